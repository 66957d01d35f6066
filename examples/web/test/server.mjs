// The server gives the page's files with their types, and nothing else.

import { symlink, mkdir, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';

import { serve } from '../serve.mjs';
import { ensure } from './api-page.mjs';

/** @typedef {import('./run.mjs').Check} Check */

/** A request whose path no client tidies up. @param {string} url @param {string} path @param {string} [method] @returns {Promise<{ status: number, type: string, body: string }>} */
function ask(url, path, method = 'GET') {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const sent = request({ hostname, port, path, method }, (response) => {
      let body = '';
      response.setEncoding('latin1');
      response.on('data', (chunk) => (body += chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, type: response.headers['content-type'] ?? '', body }));
    });
    sent.on('error', reject);
    sent.end();
  });
}

/** @type {Check[]} */
export const checks = [
  {
    name: 'server: types are those that browsers ask for',
    async run({ url }) {
      const wanted = { '/': 'text/html', '/page.js': 'text/javascript', '/style.css': 'text/css', '/package/harmonica_bg.wasm': 'application/wasm', '/model.safetensors': 'application/octet-stream' };
      for (const [path, type] of Object.entries(wanted)) {
        const got = await ask(url, path, 'HEAD');
        ensure(got.status === 200 && got.type.startsWith(type) && got.body === '', `${path} is answered ${got.status} ${got.type}, expected ${type}`);
      }
      ensure((await ask(url, '/', 'POST')).status === 405, 'a POST is answered');
    },
  },
  {
    name: 'server: no path leads out of the folder',
    async run({ scratch }) {
      const root = join(scratch, 'served');
      await mkdir(root, { recursive: true });
      await writeFile(join(scratch, 'secret.txt'), 'secret');
      await writeFile(join(root, 'open.txt'), 'open');
      await symlink(join(scratch, 'secret.txt'), join(root, 'link.txt'));
      const { url, close } = await serve({ root });
      try {
        ensure((await ask(url, '/open.txt')).body === 'open', 'what is in the folder is not served');
        for (const path of ['/../secret.txt', '/%2e%2e/secret.txt', '/..%2fsecret.txt', '/a/../../secret.txt', '/..%5csecret.txt', '/link.txt', '//etc/passwd', '/%00', '/%', '/missing']) {
          const { status, body } = await ask(url, path);
          ensure(status === 404 && !body.includes('secret'), `${path} is answered ${status}: ${body}`);
        }
      } finally {
        await close();
      }
    },
  },
];

#!/usr/bin/env node
// A small static server for the page: this machine only, no dependencies.
//
//     node examples/web/serve.mjs [--port 8000] [--root FOLDER]
//
// Without --root it serves `dist`, the built page, beside this file. Port 0 takes a free one.

import { createReadStream } from 'node:fs';
import { realpath, stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, resolve, sep } from 'node:path';
import { pipeline } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const TYPES = new Map([
  ['.html', 'text/html; charset=utf-8'],
  ['.css', 'text/css; charset=utf-8'],
  ['.js', 'text/javascript; charset=utf-8'],
  ['.mjs', 'text/javascript; charset=utf-8'],
  ['.ts', 'text/plain; charset=utf-8'],
  ['.md', 'text/markdown; charset=utf-8'],
  ['.json', 'application/json'],
  ['.svg', 'image/svg+xml'],
  ['.png', 'image/png'],
  ['.wasm', 'application/wasm'],
  ['.safetensors', 'application/octet-stream'],
]);

const HEADERS = {
  // What changed is seen at the next load.
  'cache-control': 'no-cache',
  'x-content-type-options': 'nosniff',
  // The page asks nobody else for anything; here the browser enforces it.
  'content-security-policy': "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'",
};

/**
 * The file that a request's path names, or undefined where there is none inside `root`.
 * @param {string} root a real path @param {string} url
 */
async function find(root, url) {
  let path;
  try {
    path = decodeURIComponent(new URL(url, 'http://localhost').pathname);
  } catch {
    return undefined;
  }
  if (path.includes('\0')) return undefined;
  try {
    let file = await realpath(join(root, path));
    if ((await stat(file)).isDirectory()) file = await realpath(join(file, 'index.html'));
    // Links that lead out of the folder are followed nowhere.
    const inside = file.startsWith(root.endsWith(sep) ? root : root + sep);
    const { size } = await stat(file);
    return inside ? { file, size } : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Serves a folder on the loopback address.
 * @param {{ root: string, port?: number }} options port 0 or none: a free one
 * @returns {Promise<{ url: string, close: () => Promise<void> }>}
 */
export async function serve({ root, port = 0 }) {
  const real = await realpath(root);
  const server = createServer(async (request, response) => {
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      response.writeHead(405, { allow: 'GET, HEAD' }).end();
      return;
    }
    const found = await find(real, request.url ?? '/');
    if (!found) {
      response.writeHead(404, { ...HEADERS, 'content-type': 'text/plain; charset=utf-8' }).end('Not found\n');
      return;
    }
    const type = TYPES.get(extname(found.file)) ?? 'application/octet-stream';
    response.writeHead(200, { ...HEADERS, 'content-type': type, 'content-length': found.size });
    if (request.method === 'HEAD') response.end();
    else pipeline(createReadStream(found.file), response, () => {});
  });
  await new Promise((done, failed) => {
    server.once('error', failed);
    server.listen(port, '127.0.0.1', () => done(undefined));
  });
  const address = server.address();
  if (!address || typeof address === 'string') throw new Error('The server has no port.');
  const close = () => new Promise((/** @type {(value: void) => void} */ done) => {
    server.close(() => done());
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${address.port}/`, close };
}

async function main() {
  let values;
  try {
    ({ values } = parseArgs({ options: { port: { type: 'string', default: '8000' }, root: { type: 'string' } } }));
  } catch (error) {
    return fail(`${error instanceof Error ? error.message : error}\nusage: serve.mjs [--port NUMBER] [--root FOLDER]`);
  }
  const port = Number(values.port);
  if (!Number.isInteger(port) || port < 0 || port > 65535) return fail(`--port takes a number from 0 to 65535, not “${values.port}”`);
  const root = resolve(values.root ?? fileURLToPath(new URL('./dist', import.meta.url)));
  try {
    const { url } = await serve({ root, port });
    console.log(url);
  } catch (error) {
    const code = /** @type {NodeJS.ErrnoException} */ (error).code;
    if (code === 'ENOENT') fail(`${root} is not there: build the page first, as the README says, or name a folder with --root`);
    else if (code === 'EADDRINUSE') fail(`port ${port} is taken: name another with --port, or 0 for a free one`);
    else fail(String(error));
  }
}

/** @param {string} text */
function fail(text) {
  console.error(`serve.mjs: ${text}`);
  process.exitCode = 1;
}

if (process.argv[1] && (await realpath(process.argv[1])) === fileURLToPath(import.meta.url)) await main();

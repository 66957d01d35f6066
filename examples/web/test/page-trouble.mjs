// The page where something is missing or goes wrong: it says what, and what to do.

import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

import { ensure } from './api-page.mjs';
import { colours, noticeWords, text, untilDrawn, visit } from './visit.mjs';

/** @typedef {import('./run.mjs').Check} Check */

const SHORT = '#class=face-flat&steps=4&schedule=fora:2';

/** In the worker: keeps the device, and destroys it at a word on a channel. */
const LOSE_DEVICE = `
const { requestDevice } = GPUAdapter.prototype;
let kept;
GPUAdapter.prototype.requestDevice = async function (...descriptor) { return (kept = await requestDevice.apply(this, descriptor)); };
new BroadcastChannel('lose-device').onmessage = () => kept.destroy();
`;

/** @type {Check[]} */
export const checks = [
  {
    name: 'trouble: a lost device is said, and reopened with its model by a button',
    async run(context) {
      // A software GPU is taken where it is asked for, and draws with a small network in good time.
      const browser = await context.chromium.context();
      await browser.route('**/model.safetensors', (route) => route.fulfill({ path: join(context.expected, 'tiny.safetensors') }));
      const { page } = await visit(context, { browser, hash: '#steps=4&schedule=fora:2', workerBefore: LOSE_DEVICE });
      await page.selectOption('#device-choice', 'webgpu');
      await page.waitForFunction(() => /WebGPU/.test(document.getElementById('device')?.textContent ?? ''));
      await page.waitForSelector('#main:not([hidden])');
      await untilDrawn(page);
      await page.evaluate(() => new BroadcastChannel('lose-device').postMessage(''));
      await page.waitForTimeout(300);
      await page.click('#draw');
      const words = await noticeWords(page, 'lost');
      await page.click('#notices [data-key="lost"] button.primary');
      await page.waitForSelector('#notices [data-key="lost"]', { state: 'detached' });
      await page.waitForSelector('#main:not([hidden])');
      await untilDrawn(page);
      ensure((await colours(page, 'cached')) > 20, 'nothing is drawn afterwards');
      return words.slice(0, 160);
    },
  },
  {
    name: 'trouble: a model that is not there is said, and tried again by a button',
    async run(context) {
      const browser = await context.chromium.context();
      let missing = true;
      await browser.route('**/model.safetensors', (route) => (missing ? route.fulfill({ status: 404, body: 'gone' }) : route.continue()));
      const { page } = await visit(context, { browser, hash: SHORT, drawn: false });
      const words = await noticeWords(page, 'failure');
      ensure(/404/.test(words), words);
      missing = false;
      await page.click('#notices [data-key="failure"] button.primary');
      await page.waitForSelector('#main:not([hidden])');
      await untilDrawn(page);
    },
  },
  {
    name: 'trouble: a download that breaks off is said, and is not kept',
    async run(context) {
      const browser = await context.chromium.context();
      let broken = true;
      await browser.route('**/model.safetensors', async (route) => {
        if (!broken) return route.continue();
        const response = await route.fetch();
        await route.fulfill({ response, body: (await response.body()).subarray(0, 100_000), headers: { 'content-type': 'application/octet-stream' } });
      });
      const { page } = await visit(context, { browser, hash: SHORT, drawn: false });
      await noticeWords(page, 'failure');
      broken = false;
      await page.reload();
      await page.waitForSelector('#main:not([hidden]), #notices [data-key="failure"]');
      await untilDrawn(page);
    },
  },
  {
    name: 'trouble: a program that does not load is said',
    async run(context) {
      const browser = await context.chromium.context();
      await browser.route('**/harmonica_bg.wasm', (route) => route.fulfill({ status: 404, body: 'gone' }));
      await browser.route('**/package/harmonica.js', (route) => route.fulfill({ status: 404, body: 'gone' }));
      const { page } = await visit(context, { browser, hash: SHORT, drawn: false });
      return (await noticeWords(page, 'failure')).slice(0, 160);
    },
  },
  {
    name: 'trouble: opened as a file, the page says that it needs a server, and the command',
    async run({ chromium, root }) {
      const browser = await chromium.context();
      const page = await browser.newPage();
      await page.goto(pathToFileURL(join(root, 'index.html')).href);
      const words = (await page.textContent('#notices .notice')) ?? '';
      ensure(/local web server/.test(words) && /node examples\/web\/serve\.mjs/.test(words), words);
      ensure(await page.isHidden('#loading'), 'the page seems to load');
      ensure((await text(page, 'device')) === 'not started', await text(page, 'device'));
    },
  },
  {
    name: 'trouble: without WebAssembly the page says so',
    async run(context) {
      const { page, complaints } = await visit(context, { drawn: false, before: () => Reflect.deleteProperty(globalThis, 'WebAssembly') });
      const words = (await page.textContent('#notices .notice')) ?? '';
      ensure(/no WebAssembly/.test(words), words);
      ensure(await page.isHidden('#loading'), 'the page seems to load');
      ensure(complaints.length === 0, complaints.join('; '));
    },
  },
];

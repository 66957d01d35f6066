// What the built page takes, as docs/browser.md has it: `node measure.mjs`. It wants a quiet machine, and minutes.

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

import { serve } from '../serve.mjs';
import { openApi } from './api-page.mjs';
import { Chromium } from './chromium.mjs';

const here = (/** @type {string} */ path) => fileURLToPath(new URL(path, import.meta.url));
const root = here('../dist');
const module = await readFile(`${root}/package/harmonica_bg.wasm`);
const megabytes = (/** @type {number} */ bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const range = (/** @type {number[]} */ times) => `${Math.min(...times).toFixed(2)}–${Math.max(...times).toFixed(2)} s`;
console.log(`module: ${megabytes(module.length)}, ${megabytes(gzipSync(module, { level: 9 }).length)} gzipped`);

const chromium = await Chromium.find();
const { url, close } = await serve({ root });
try {
  for (let visit = 0; visit < 3; visit++) {
    const browser = await chromium.context({ webgpu: false });
    const page = await browser.newPage();
    await page.route('**/blank-for-tests', (route) => route.fulfill({ contentType: 'text/html', body: '<!doctype html><title>blank</title>' }));
    await page.goto(`${url}blank-for-tests`);
    const [runs, loaded, drawn, memory, rest] = await page.evaluate(async () => {
      const begun = performance.now();
      const since = () => (performance.now() - begun) / 1000;
      const api = await import(/** @type {any} */ ('/package/harmonica.js'));
      const exports = await api.default();
      const runs = since();
      const engine = await api.Engine.open('cpu');
      const model = await engine.loadModel(new Uint8Array(await (await fetch('/model.safetensors')).arrayBuffer()));
      const loaded = since();
      await model.sample({ classes: [6], schedule: 'learned:2' });
      const drawn = since();
      const rest = [];
      for (const schedule of ['none', 'learned:2', 'none', 'learned:2']) rest.push((await model.sample({ classes: [6], schedule })).seconds);
      return /** @type {[number, number, number, number, number[]]} */ ([runs, loaded, drawn, exports.memory.buffer.byteLength, rest]);
    });
    console.log(`processor: the module runs after ${runs.toFixed(2)} s, the model is loaded after ${loaded.toFixed(2)} s, the first picture is drawn after ${drawn.toFixed(2)} s; ${megabytes(memory)}`);
    console.log(`processor: 20 steps uncached ${range([rest[0], rest[2]])}, at 2× ${range([rest[1], rest[3]])}`);
    await chromium.closePages();
  }
  const page = await openApi({ chromium, url, expected: here('./expected'), root, scratch: '', screenshot: undefined });
  const [tiny, emoji, memory] = await page.evaluate(async () => {
    const { t } = /** @type {any} */ (globalThis);
    const steps = async (/** @type {any} */ model) => [...(await model.sample({ classes: [6], steps: 4, schedule: 'none' })).stepSeconds].slice(1);
    const { engine, model } = await t.load();
    await steps(model);
    const tiny = await steps(model);
    const large = await engine.loadModel(t.weights.slice());
    await steps(large);
    const emoji = await steps(large);
    return [tiny, emoji, t.exports.memory.buffer.byteLength];
  });
  console.log(`WebGPU by software: a step ${range(emoji)}, of the tests' small network ${range(tiny)}; ${megabytes(memory)}`);
} finally {
  await chromium.close();
  await close();
}

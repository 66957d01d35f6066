// An empty page with the package in it, for checks of the API itself, on the page's own thread.

import { join } from 'node:path';

/** @typedef {import('./run.mjs').Context} Context */
/** @typedef {import('playwright-core').Page} Page */
/**
 * What `globalThis.t` holds inside the page.
 * @typedef {object} Inside
 * @property {typeof import('../package/harmonica.js')} api
 * @property {any} exports what `init()` resolved with
 * @property {Uint8Array} weights a copy of the emoji model's file
 * @property {(device?: string) => Promise<{ engine: any, model: any }>} load on WebGPU, by software here, a model small enough for it; otherwise the emoji model
 * @property {(action: () => unknown) => Promise<string>} words of the error with which `action` rejects or throws; an error where it does not, or where the words are none
 */

/**
 * @param {Context} context
 * @param {{ webgpu?: boolean, before?: () => void }} [options] `before` runs in the page ahead of everything
 * @returns {Promise<Page>}
 */
export async function openApi({ chromium, url, expected }, { webgpu = true, before } = {}) {
  const browser = await chromium.context({ webgpu });
  const page = await browser.newPage();
  if (before) await page.addInitScript(before);
  await page.route('**/blank-for-tests', (route) => route.fulfill({ contentType: 'text/html', body: '<!doctype html><title>blank</title>' }));
  await page.route('**/tiny.safetensors', (route) => route.fulfill({ path: join(expected, 'tiny.safetensors') }));
  await page.goto(`${url}blank-for-tests`);
  await page.evaluate(async () => {
    const api = await import(/** @type {any} */ ('/package/harmonica.js'));
    const exports = await api.default();
    const fetched = async (/** @type {string} */ file) => new Uint8Array(await (await fetch(file)).arrayBuffer());
    const weights = await fetched('/model.safetensors');
    const tiny = await fetched('/tiny.safetensors');
    Object.assign(globalThis, {
      t: {
        api,
        exports,
        weights,
        async load(device = 'webgpu') {
          const engine = await api.Engine.open(device);
          return { engine, model: await engine.loadModel((device === 'webgpu' ? tiny : weights).slice()) };
        },
        async words(/** @type {() => unknown} */ action) {
          let result;
          const late = new Promise((_, reject) => setTimeout(() => reject(new TypeError('late')), 120_000));
          try {
            result = await Promise.race([action(), late]);
          } catch (error) {
            if (error instanceof TypeError && error.message === 'late') throw new Error('It was neither refused nor done in 120 s');
            if (!(error instanceof Error)) throw new Error(`It threw something that is no Error: ${String(error)}`);
            if (error instanceof WebAssembly.RuntimeError) throw new Error(`The program trapped: ${error.message}`);
            if (error.message.length < 20 || error.message.trim().split(/\s+/).length < 4) throw new Error(`The words are no sentence: “${error.message}”`);
            return error.message;
          }
          throw new Error(`It was accepted, with ${JSON.stringify(result)?.slice(0, 120)}`);
        },
      },
    });
  });
  return page;
}

/** @param {unknown} holds @param {string} otherwise @returns {asserts holds} */
export function ensure(holds, otherwise) {
  if (!holds) throw new Error(otherwise);
}

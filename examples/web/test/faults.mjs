// A device that is lost and a shader that does not compile are reported in words, and can be left behind.

import { ensure, openApi } from './api-page.mjs';

/** @typedef {import('./run.mjs').Check} Check */

/** How long the engine may be silent about a fault. */
const SILENCE_MS = 180_000;

/** Keeps the devices that are handed out. */
function keepDevices() {
  const { requestDevice } = GPUAdapter.prototype;
  /** @type {GPUDevice[]} */
  const devices = [];
  GPUAdapter.prototype.requestDevice = async function (...descriptor) {
    const device = await requestDevice.apply(this, descriptor);
    devices.push(device);
    return device;
  };
  Object.assign(globalThis, { devices });
}

/** Breaks the next shader that is made, once `breakShader` is set. */
function breakShaders() {
  const { createShaderModule } = GPUDevice.prototype;
  const state = { breakShader: false, broken: 0 };
  GPUDevice.prototype.createShaderModule = function (descriptor) {
    if (!state.breakShader) return createShaderModule.call(this, descriptor);
    state.breakShader = false;
    state.broken += 1;
    return createShaderModule.call(this, { ...descriptor, code: `${descriptor.code}\nthis is no WGSL;` });
  };
  Object.assign(globalThis, { shaders: state });
}

/** @param {{ words: string | undefined, fault: { message: string, lost: boolean } | undefined, silent: boolean }} outcome */
function told({ words, fault, silent }) {
  ensure(!silent, `neither a picture nor an error came in ${SILENCE_MS / 1000} s`);
  const said = words ?? fault?.message;
  ensure(said, 'the run went through, and no fault is known');
  ensure(said.length >= 20 && !/unreachable/.test(said), `the words say nothing: “${said}”`);
  return said;
}

/**
 * Draws, and says what came of it.
 * @param {import('playwright-core').Page} page @param {string} trouble what is done first, as the body of a function in the page
 */
function drawThrough(page, trouble) {
  return page.evaluate(async ([trouble, silence]) => {
    const { t } = /** @type {any} */ (globalThis);
    const { engine, model } = await t.load();
    new Function(trouble)();
    const late = new Promise((done) => setTimeout(() => done('late'), silence));
    let words;
    const run = model.sample({ classes: [6], steps: 6, schedule: 'none' }).then(() => 'drawn', (/** @type {unknown} */ error) => {
      words = error instanceof Error ? error.message : String(error);
      return 'rejected';
    });
    const came = await Promise.race([run, late]);
    const fault = await Promise.race([engine.fault().catch(() => undefined), late]);
    return { words, fault: fault === 'late' ? undefined : fault, silent: came === 'late' };
  }, /** @type {[string, number]} */ ([trouble, SILENCE_MS]));
}

/** @param {import('playwright-core').Page} page */
function drawAnew(page) {
  return page.evaluate(async () => {
    const { t } = /** @type {any} */ (globalThis);
    const { engine, model } = await t.load();
    const { values } = await model.sample({ classes: [6], steps: 6, schedule: 'none' });
    const fault = await engine.fault();
    return { most: Math.max(...values.map(Math.abs)), finite: values.every(Number.isFinite), fault: fault?.message };
  });
}

/** @type {Check[]} */
export const checks = [
  {
    name: 'faults: a lost device is told, and a new engine draws',
    async run(context) {
      const page = await openApi(context, { before: keepDevices });
      const outcome = await drawThrough(page, 'globalThis.devices.at(-1).destroy()');
      const said = told(outcome);
      ensure(outcome.fault?.lost, `the engine does not say that its device is lost: ${JSON.stringify(outcome.fault)}`);
      const anew = await drawAnew(page);
      ensure(anew.finite && anew.most > 0.1 && !anew.fault, `the new engine draws nothing good: ${JSON.stringify(anew)}`);
      return said;
    },
  },
  {
    name: 'faults: a device that is lost in the middle of a run ends it',
    async run(context) {
      const page = await openApi(context, { before: keepDevices });
      const outcome = await drawThrough(page, 'setTimeout(() => globalThis.devices.at(-1).destroy(), 30)');
      const said = told(outcome);
      const anew = await drawAnew(page);
      ensure(anew.finite && anew.most > 0.1 && !anew.fault, `the new engine draws nothing good: ${JSON.stringify(anew)}`);
      return said;
    },
  },
  {
    name: 'faults: a shader that does not compile is told',
    async run(context) {
      const page = await openApi(context, { before: breakShaders });
      const outcome = await drawThrough(page, 'globalThis.shaders.breakShader = true');
      const broken = await page.evaluate(() => /** @type {any} */ (globalThis).shaders.broken);
      ensure(broken === 1, 'no shader was made during the run, so none was broken');
      const said = told(outcome);
      const anew = await drawAnew(page);
      ensure(anew.finite && anew.most > 0.1 && !anew.fault, `a new engine draws nothing good: ${JSON.stringify(anew)}`);
      return said.split('\n')[0].slice(0, 160);
    },
  },
  {
    name: 'faults: without one there is nothing to tell',
    async run(context) {
      const page = await openApi(context);
      const anew = await drawAnew(page);
      ensure(!anew.fault, `a fault is told after a good run: ${anew.fault}`);
    },
  },
];

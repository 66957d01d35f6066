// The engine in the browser draws what the native command draws.
//
// An expected image is two files in `expected/`:
//   NAME.json  the request, as `Model.sample` takes it, and the shape:
//              { "device": "cpu", "classes": [6, 33], "seed": 0, "first": 0, "steps": 20, "schedule": "learned:2", "shape": [2, 3, 32, 32] }
//              `device` ("cpu": the emoji model, "webgpu": tiny.safetensors), `classes`, `seed`, `steps`, `schedule` and `shape` must be there; `first`, `solver`, `spacing`, `guidance` and `clip` may be.
//   NAME.f32   the values [B, C, H, W] of the native command on the CPU, as raw little-endian float32: the data of `samples` in the file
//              that `harmonica sample --device cpu --save-tensors FILE` writes, image after image.
// There must be one of each schedule in MUST.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { psnr } from '../format.js';
import { ensure, openApi } from './api-page.mjs';

/** @typedef {import('./run.mjs').Check} Check */
/** @typedef {import('./run.mjs').Context} Context */
/** @typedef {{ device: string, classes: number[], seed: number, steps: number, schedule: string, shape: number[] }} Request and other settings */
/** @typedef {{ name: string, request: Request }} Expected */

export const LEAST_DB = 100;
/** Two steps make much of what differs at the noisiest timestep. */
const LEAST_EMOJI_DB = 75;
const MUST = { cpu: ['none', 'learned:2', 'fora:2'], webgpu: ['none', 'fora:2', 'taylor:2', 'fb:0.2'] };

/** Draws in a page that `openApi` opened, and compares. @param {import('playwright-core').Page} page @param {Expected} expected @param {string} folder @returns {Promise<number>} decibels */
export async function likeness(page, { name, request }, folder) {
  const { shape, device, ...asked } = request;
  const drawn = await page.evaluate(async ([device, asked]) => {
    const { t } = /** @type {any} */ (globalThis);
    const { model } = await t.load(device);
    const sample = await model.sample(asked);
    return { values: [...sample.values], pixels: sample.pixels.map((/** @type {Uint8ClampedArray} */ p) => p.length), width: sample.width, height: sample.height, cancelled: sample.cancelled };
  }, /** @type {[string, object]} */ ([device, asked]));
  const raw = await readFile(join(folder, `${name}.f32`));
  const values = new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
  const count = shape.reduce((a, b) => a * b, 1);
  ensure(values.length === count, `${name}.f32 holds ${values.length} values, its shape [${shape}] needs ${count}`);
  ensure(values.some((v) => Math.abs(v) > 0.1), `${name}.f32 holds no picture: all its values are near 0`);
  ensure(!drawn.cancelled && drawn.values.length === count, `${drawn.values.length} values came, ${count} were expected`);
  ensure(drawn.pixels.length === shape[0] && drawn.pixels.every((/** @type {number} */ n) => n === 4 * drawn.width * drawn.height), `the pixels are not those of ${shape[0]} images of ${drawn.width}×${drawn.height}`);
  const decibels = psnr(drawn.values, values);
  ensure(decibels >= LEAST_DB, `${decibels.toFixed(1)} dB to the native image, at least ${LEAST_DB} were expected`);
  return decibels;
}

/** Lets the software GPU pass for a hardware one, for which the engine has other kernels. */
function asHardware() {
  for (const { prototype } of [GPUAdapter, GPUAdapterInfo]) Object.defineProperty(prototype, 'isFallbackAdapter', { get: () => false });
}

/** @param {Expected[]} expected @returns {Check[]} */
export const checks = (expected) => [
  {
    name: 'images: WebGPU opens, and says what it is',
    async run(context) {
      const page = await openApi(context);
      const report = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        return (await t.api.Engine.open('webgpu')).report;
      });
      ensure(report.backend === 'webgpu', `the backend is ${report.backend}`);
      ensure(typeof report.device === 'string' && report.device.length > 0, 'the device has no name');
      ensure(report.max_buffer_bytes > 0, `the largest buffer has ${report.max_buffer_bytes} bytes`);
      return report.device;
    },
  },
  {
    name: 'images: the native command drew what there is to compare with',
    async run() {
      const missing = Object.entries(MUST).flatMap(([device, schedules]) => schedules.filter((schedule) => !expected.some(({ request }) => request.device === device && request.schedule === schedule)).map((schedule) => `${schedule} on ${device}`));
      ensure(missing.length === 0, `no expected image of ${missing.join(', ')}: see the top of images.mjs for the files`);
    },
  },
  ...expected.map((one) => ({
    name: `images: ${one.request.schedule} in ${one.request.steps} steps on ${one.request.device} is the native CPU's image`,
    async run(/** @type {Context} */ context) {
      const decibels = await likeness(await openApi(context), one, context.expected);
      return `${decibels.toFixed(1)} dB`;
    },
  })),
  {
    name: 'images: the kernels of a hardware GPU draw the native CPU’s images',
    async run(context) {
      const page = await openApi(context, { before: asHardware });
      const said = [];
      for (const one of expected.filter(({ request }) => request.device === 'webgpu')) said.push(`${one.request.schedule} ${(await likeness(page, one, context.expected)).toFixed(1)} dB`);
      return said.join(', ');
    },
  },
  {
    name: 'images: the emoji model draws with the kernels of a hardware GPU what it draws on the processor',
    async run(context) {
      const page = await openApi(context, { before: asHardware });
      const [software, drawn, wanted] = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const engine = await t.api.Engine.open('webgpu');
        const request = { classes: [6], steps: 2, schedule: 'none' };
        const drawn = await (await engine.loadModel(t.weights.slice())).sample(request);
        const wanted = await (await t.load('cpu')).model.sample(request);
        return [engine.report.software, [...drawn.values], [...wanted.values]];
      });
      ensure(software === false, 'the GPU does not pass for a hardware one');
      const decibels = psnr(drawn, wanted);
      ensure(decibels >= LEAST_EMOJI_DB, `${decibels.toFixed(1)} dB to the processor’s image, at least ${LEAST_EMOJI_DB} were expected`);
      return `${decibels.toFixed(1)} dB`;
    },
  },
  {
    name: 'images: a seed draws the same twice, and another seed another picture',
    async run(context) {
      const page = await openApi(context);
      const [again, other] = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        const draw = async (/** @type {number} */ seed) => (await model.sample({ classes: [6], seed, steps: 4, schedule: 'none' })).values;
        const [a, b, c] = [await draw(1), await draw(1), await draw(2)];
        const most = (/** @type {Float32Array} */ x, /** @type {Float32Array} */ y) => Math.max(...x.map((v, i) => Math.abs(v - y[i])));
        return [most(a, b), most(a, c)];
      });
      ensure(again === 0, `the same seed differs by ${again}`);
      ensure(other > 0.1, `another seed differs by ${other} only`);
    },
  },
  {
    name: 'images: steps are told as they are made, with pixels where asked for',
    async run(context) {
      const page = await openApi(context);
      const told = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        /** @type {any[]} */
        const steps = [];
        const sample = await model.sample({ classes: [6, 5], steps: 4, schedule: 'fora:2', preview: true }, (/** @type {any} */ step) => void steps.push(step));
        return { steps: steps.map(({ steps, images, reused, pixels }) => ({ steps, images, reused, pixels: pixels.map((/** @type {any} */ p) => p.length) })), times: sample.stepSeconds.length, same: steps.at(-1).pixels[1].every((/** @type {number} */ v, /** @type {number} */ i) => v === sample.pixels[1][i]) };
      });
      ensure(told.steps.length === 4 && told.times === 4, `${told.steps.length} steps were told and ${told.times} timed, of 4`);
      ensure(told.steps.every(({ steps, images, pixels }) => steps === 4 && images === 2 && pixels.length === 2 && pixels.every((/** @type {number} */ n) => n === 256)), `a step is not of 2 images of 8×8: ${JSON.stringify(told.steps)}`);
      ensure(told.steps.map(({ reused }) => reused).join() === 'false,true,false,true', `steps that reuse are told wrongly: ${told.steps.map(({ reused }) => reused)}`);
      ensure(told.same, 'the last step shows another picture than the result');
    },
  },
];

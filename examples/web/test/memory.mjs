// Drawing again and again takes no more memory.

import { ensure, openApi } from './api-page.mjs';

/** @typedef {import('./run.mjs').Check} Check */

const RUNS = 50;
const WARM_UP = 6;
/** One kept picture a run would be more: 50 × 32×32 pixels × 4 channels × 4 bytes = 800 KB. */
const MOST_BYTES = 400_000;

/** Keeps count of the bytes of the device's buffers: destroyed or collected ones are gone. */
function countBuffers() {
  let live = 0;
  const gone = new FinalizationRegistry((/** @type {{ bytes: number }} */ held) => {
    live -= held.bytes;
    held.bytes = 0;
  });
  /** @type {WeakMap<GPUBuffer, { bytes: number }>} */
  const sizes = new WeakMap();
  const { createBuffer } = GPUDevice.prototype;
  const { destroy } = GPUBuffer.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = createBuffer.call(this, descriptor);
    const held = { bytes: descriptor.size };
    live += held.bytes;
    sizes.set(buffer, held);
    gone.register(buffer, held);
    return buffer;
  };
  GPUBuffer.prototype.destroy = function () {
    const held = sizes.get(this);
    if (held) {
      live -= held.bytes;
      held.bytes = 0;
    }
    return destroy.call(this);
  };
  Object.assign(globalThis, { bufferBytes: () => live });
}

/** @type {Check[]} */
export const checks = [
  {
    name: `memory: ${RUNS} runs leave the heap, the program's memory and the device's buffers as they were`,
    seconds: 900,
    async run(context) {
      const page = await openApi(context, { before: countBuffers });
      const [before, after] = await page.evaluate(async ([runs, warmUp]) => {
        const { t, gc, bufferBytes, performance } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        // Cached and uncached, with and without pictures, so that every path is walked.
        const draw = async (/** @type {number} */ run) => {
          const schedule = ['none', 'fora:2', 'taylor:2'][run % 3];
          await model.sample({ classes: [run % 7], seed: run, steps: 4, schedule, preview: run % 2 === 0 }, () => {});
        };
        const measure = async () => {
          // What is collected is reported in later tasks.
          for (let i = 0; i < 5; i++) {
            gc();
            await new Promise((done) => setTimeout(done, 50));
          }
          return { heap: performance.memory.usedJSHeapSize, program: t.exports.memory.buffer.byteLength, buffers: bufferBytes() };
        };
        for (let run = 0; run < warmUp; run++) await draw(run);
        const before = await measure();
        for (let run = 0; run < runs; run++) await draw(run);
        return [before, await measure()];
      }, [RUNS, WARM_UP]);
      ensure(before.program > 0 && before.heap > 0 && before.buffers > 0, `nothing was measured: ${JSON.stringify(before)}`);
      const grown = { heap: after.heap - before.heap, program: after.program - before.program, buffers: after.buffers - before.buffers };
      const words = Object.entries(grown).map(([name, bytes]) => `${name} ${bytes >= 0 ? '+' : ''}${(bytes / 1000).toFixed(0)} kB`).join(', ');
      ensure(Object.values(grown).every((bytes) => bytes <= MOST_BYTES), `memory grows: ${words}`);
      return words;
    },
  },
  {
    name: 'memory: a model that is let go gives its memory back to the next one',
    seconds: 600,
    async run(context) {
      const page = await openApi(context);
      const sizes = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const sizes = [];
        for (let visit = 0; visit < 5; visit++) {
          const { engine, model } = await t.load();
          await model.sample({ classes: [6], steps: 2, schedule: 'none' });
          model.free();
          engine.close();
          sizes.push(t.exports.memory.buffer.byteLength);
        }
        return sizes;
      });
      const grown = sizes[4] - sizes[1];
      ensure(grown < 16_000_000, `four models later the program has ${(grown / 1e6).toFixed(1)} MB more: ${sizes}`);
      return `${(sizes[4] / 1e6).toFixed(0)} MB`;
    },
  },
];

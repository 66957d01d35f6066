// A run ends when it is told to, and the engine goes on.

import { ensure, openApi } from './api-page.mjs';

/** @typedef {import('./run.mjs').Check} Check */

const STEPS = 50;
/** Far below the steps of the run: some may be under way when the word comes. */
const MOST = 15;

/** @param {{ cancelled: boolean, told: number, after: boolean }} run */
function cancelled({ cancelled, told, after }) {
  ensure(cancelled, 'the run does not say that it was cancelled');
  ensure(told <= MOST, `${told} of ${STEPS} steps were made`);
  ensure(after, 'nothing could be drawn afterwards');
  return `after ${told} of ${STEPS} steps`;
}

/** @type {Check[]} */
export const checks = [
  {
    name: 'cancel: by a signal, while the run is under way',
    async run(context) {
      const page = await openApi(context);
      return cancelled(await page.evaluate(async (steps) => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        const controller = new AbortController();
        let told = 0;
        // From outside, as a button does, and not from within the callback.
        const sample = await model.sample({ classes: [6], steps, schedule: 'none', signal: controller.signal }, () => {
          if (++told === 2) setTimeout(() => controller.abort(), 0);
        });
        const after = await model.sample({ classes: [6], steps: 2, schedule: 'none' });
        return { cancelled: sample.cancelled, told, after: !after.cancelled && after.values.length === 256 };
      }, STEPS));
    },
  },
  {
    name: 'cancel: by a signal on the processor, which hears it between steps',
    async run(context) {
      const page = await openApi(context);
      return cancelled(await page.evaluate(async (steps) => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load('cpu');
        const controller = new AbortController();
        let told = 0;
        const sample = await model.sample({ classes: [6], steps, schedule: 'none', signal: controller.signal }, () => {
          if (++told === 2) setTimeout(() => controller.abort(), 0);
        });
        const after = await model.sample({ classes: [6], steps: 2, schedule: 'none' });
        return { cancelled: sample.cancelled, told, after: !after.cancelled && after.values.length === 3072 };
      }, STEPS));
    },
  },
  {
    name: 'cancel: by returning false',
    async run(context) {
      const page = await openApi(context);
      const run = await page.evaluate(async (steps) => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        let told = 0;
        const sample = await model.sample({ classes: [6], steps, schedule: 'none' }, () => ++told < 3);
        const after = await model.sample({ classes: [6], steps: 2, schedule: 'none' });
        return { cancelled: sample.cancelled, told, after: !after.cancelled && after.values.length === 256 };
      }, STEPS);
      ensure(run.told === 3, `${run.told} steps were told, though the third said no`);
      return cancelled(run);
    },
  },
  {
    name: 'cancel: by a signal that was given before the run',
    async run(context) {
      const page = await openApi(context);
      return cancelled(await page.evaluate(async (steps) => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        let told = 0;
        const sample = await model.sample({ classes: [6], steps, schedule: 'none', signal: AbortSignal.abort() }, () => void told++);
        const after = await model.sample({ classes: [6], steps: 2, schedule: 'none' });
        return { cancelled: sample.cancelled, told, after: !after.cancelled && after.values.length === 256 };
      }, STEPS));
    },
  },
  {
    name: 'cancel: training by a signal, with a schedule of what was learned until then',
    async run(context) {
      const page = await openApi(context);
      const run = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        const controller = new AbortController();
        let told = 0;
        const made = await model.trainRouter({ speed: 2, iterations: 10_000, steps: 6, batch: 1, signal: controller.signal }, () => {
          if (++told === 2) setTimeout(() => controller.abort(), 0);
        });
        const after = await model.sample({ classes: [6], steps: 6, schedule: made.text });
        return { cancelled: made.cancelled, told, after: !after.cancelled };
      });
      return cancelled(run);
    },
  },
];

// What cannot be done is refused in a sentence, and leaves the engine as it was.

import { ensure, openApi } from './api-page.mjs';

/** @typedef {import('./run.mjs').Check} Check */

/** Settings with one thing wrong each. @type {[string, Record<string, unknown>][]} */
const REQUESTS = [
  ['a class that the model has not', { classes: [999] }],
  ['a negative class', { classes: [-1] }],
  ['half a class', { classes: [1.5] }],
  ['no class', { classes: [] }],
  ['classes that are a word', { classes: 'face-flat' }],
  ['0 steps', { classes: [6], steps: 0 }],
  ['a negative number of steps', { classes: [6], steps: -3 }],
  ['more steps than timesteps', { classes: [6], steps: 100_000 }],
  ['an unknown solver', { classes: [6], solver: 'magic' }],
  ['an unknown spacing', { classes: [6], spacing: 'sideways' }],
  ['a guidance that is no number', { classes: [6], guidance: Number.NaN }],
  ['a negative seed', { classes: [6], seed: -1 }],
  ['an unknown policy', { classes: [6], schedule: 'magic:2' }],
  ['a policy without sense', { classes: [6], schedule: 'fora:0' }],
  ['a schedule that is no JSON', { classes: [6], schedule: '{ "format": 2,' }],
  ['a schedule for other steps', { classes: [6], steps: 7, schedule: 'learned:2' }],
];

/** @type {Check[]} */
export const checks = [
  {
    name: `arguments: ${REQUESTS.length} wrong requests are refused in a sentence, and the next good one is drawn`,
    async run(context) {
      const page = await openApi(context);
      const wrong = await page.evaluate(async (requests) => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        /** @type {string[]} */
        const wrong = [];
        for (const [name, request] of requests) {
          await t.words(() => model.sample(request)).catch((/** @type {Error} */ error) => wrong.push(`${name}: ${error.message}`));
        }
        const after = await model.sample({ classes: [6], steps: 2, schedule: 'none' });
        if (after.values.length !== 256) wrong.push('nothing could be drawn afterwards');
        return wrong;
      }, REQUESTS);
      ensure(wrong.length === 0, wrong.join('; '));
    },
  },
  {
    name: 'arguments: garbage and broken models are refused in a sentence, and a good one loads afterwards',
    async run(context) {
      const page = await openApi(context);
      const wrong = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const engine = await t.api.Engine.open('webgpu');
        const noise = Uint8Array.from({ length: 5000 }, (_, i) => (i * 7919) % 256);
        const huge = new Uint8Array(64).fill(255);
        const cut = t.weights.slice(0, t.weights.length - 1000);
        const header = t.weights.slice();
        header.fill(32, 8, 200);
        /** @type {[string, Uint8Array][]} */
        const files = [['nothing', new Uint8Array(0)], ['noise', noise], ['a header without end', huge], ['a truncated model', cut], ['a model cut in its header', t.weights.slice(0, 100)], ['a damaged header', header]];
        /** @type {string[]} */
        const wrong = [];
        for (const [name, file] of files) {
          await t.words(() => engine.loadModel(file)).catch((/** @type {Error} */ error) => wrong.push(`${name}: ${error.message}`));
        }
        const model = await engine.loadModel(t.weights.slice());
        if (model.info.classes.length !== 46) wrong.push('the good model does not load afterwards');
        return wrong;
      });
      ensure(wrong.length === 0, wrong.join('; '));
    },
  },
  {
    name: 'arguments: wrong devices, schedules, cells and trainings are refused in a sentence',
    async run(context) {
      const page = await openApi(context);
      const wrong = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load();
        const foreign = JSON.stringify({ ...JSON.parse(model.schedule('fora:2').text), compute: ['##', '..'] });
        /** @type {[string, () => unknown][]} */
        const calls = [
          ['an unknown device', () => t.api.Engine.open('quantum')],
          ['a schedule of an unknown policy', () => model.schedule('magic:2')],
          ['a schedule of no steps', () => model.schedule('fora:2', { steps: 0 })],
          ['a step outside', () => model.toggled('fora:2', 99, 0)],
          ['a branch outside', () => model.toggled('fora:2', 1, 99)],
          ['a reused cell in the first step', () => model.toggled('none', 0, 0)],
          ['a file that is no schedule', () => model.addSchedule('not a schedule')],
          ['a table of another size', () => model.addSchedule(foreign)],
          ['a training without speed', () => model.trainRouter({ speed: 0, iterations: 1 })],
          ['a training of no iterations', () => model.trainRouter({ speed: 2, iterations: 0 })],
        ];
        /** @type {string[]} */
        const wrong = [];
        for (const [name, call] of calls) await t.words(call).catch((/** @type {Error} */ error) => wrong.push(`${name}: ${error.message}`));
        return wrong;
      });
      ensure(wrong.length === 0, wrong.join('; '));
    },
  },
  {
    name: 'arguments: schedules are tables that fit the model, and flipping a cell twice is flipping none',
    async run(context) {
      const page = await openApi(context);
      const wrong = await page.evaluate(async () => {
        const { t } = /** @type {any} */ (globalThis);
        const { model } = await t.load('cpu');
        /** @type {string[]} */
        const wrong = [];
        for (const name of ['none', 'fora:2', ...model.schedules.map((/** @type {any} */ s) => s.name)]) {
          const made = model.schedule(name);
          const reused = made.computed.flat().filter((/** @type {boolean} */ c) => !c).length;
          if (made.computed.length !== made.steps || made.computed.some((/** @type {boolean[]} */ row) => row.length !== 24)) wrong.push(`${name} is no table of ${made.steps} by 24`);
          if (Math.abs(made.cur - reused / (24 * made.steps)) > 1e-6) wrong.push(`${name}: CUR ${made.cur} of ${reused} reused cells`);
          if (Math.abs(made.macsRatio - made.macsFull / made.macs) > 1e-6) wrong.push(`${name}: ratio ${made.macsRatio} of ${made.macsFull} and ${made.macs}`);
          const again = await model.addSchedule(made.text);
          if (JSON.stringify(again.computed) !== JSON.stringify(made.computed)) wrong.push(`${name} is another one after its file`);
        }
        const base = model.schedule('fora:2');
        const once = model.toggled(base.text, 1, 5);
        const twice = model.toggled(once.text, 1, 5);
        if (once.computed[1][5] === base.computed[1][5]) wrong.push('a flipped cell is as it was');
        if (JSON.stringify(twice.computed) !== JSON.stringify(base.computed)) wrong.push('flipping twice leaves another table');
        if (!(once.macs > base.macs)) wrong.push(`a computed cell more costs ${once.macs} after ${base.macs}`);
        return wrong;
      });
      ensure(wrong.length === 0, wrong.join('; '));
    },
  },
];

// Owns the engine and the model, off the page's thread. Calls run one after the other, as they come; only cancelling overtakes.

/** @typedef {import('./package/harmonica.js').Engine} Engine */
/** @typedef {import('./package/harmonica.js').Model} Model */

/** @type {Engine | undefined} */
let engine;
/** @type {Model | undefined} */
let model;
/** @type {Map<number, AbortController>} */
const calls = new Map();
let queue = Promise.resolve();

const PROGRESS_EVERY_MS = 40;

/** @typedef {{ signal: AbortSignal, send: (event: unknown, transfer?: Transferable[]) => void }} Context */
/** @typedef {{ result: unknown, transfer?: Transferable[] }} Answer */

function loaded() {
  if (!model) throw new Error('No model is loaded.');
  return model;
}

/** Shows that the model draws. Browsers compile shaders at their first use, which would count against the run that is drawn first. @param {Model} of @param {string} backend */
async function warm(of, backend) {
  if (of.info.classes.length === 0) throw new Error('This page draws classes, and the model has none: it draws texts or knows no names.');
  if (backend !== 'webgpu') return;
  const request = { classes: [0], preview: true };
  await of.sample({ ...request, steps: 3, schedule: 'fora:2' });
  const [learned] = of.schedules;
  if (learned) await of.sample({ ...request, schedule: learned.name });
}

/** @type {Record<string, (argument: any, context: Context) => Promise<Answer>>} */
const methods = {
  async open(device) {
    let engineModule;
    try {
      engineModule = await import('./package/harmonica.js');
      await engineModule.default();
    } catch (error) {
      throw new Error(`The engine could not be loaded from package/harmonica.js: ${words(error)}. Build it first, as the README says.`);
    }
    engine = await engineModule.Engine.open(device);
    return { result: { report: engine.report, notice: engine.notice } };
  },

  async load(weights) {
    if (!engine) throw new Error('The engine is not open.');
    const next = await engine.loadModel(weights);
    try {
      await warm(next, engine.report.backend);
    } catch (error) {
      next.free();
      throw error;
    }
    model?.free();
    model = next;
    return { result: { info: model.info, learned: model.schedules } };
  },

  async schedule({ schedule, settings }) {
    return { result: loaded().schedule(schedule, settings) };
  },

  async known({ names, settings }) {
    const of = loaded();
    const result = names.map((/** @type {string} */ value) => {
      try {
        return { value, ratio: of.schedule(value, settings).macsRatio, why: undefined };
      } catch (error) {
        return { value, ratio: undefined, why: words(error) };
      }
    });
    return { result };
  },

  async toggled({ schedule, step, branch, settings }) {
    return { result: loaded().toggled(schedule, step, branch, settings) };
  },

  async addSchedule(text) {
    return { result: await loaded().addSchedule(text) };
  },

  async sample(request, { signal, send }) {
    const result = await loaded().sample({ ...request, signal }, (step) => {
      send(step, (step.pixels ?? []).map((pixels) => pixels.buffer));
    });
    return { result, transfer: [result.values.buffer, ...result.pixels.map((pixels) => pixels.buffer)] };
  },

  async train(request, { signal, send }) {
    let last = -Infinity;
    const result = await loaded().trainRouter({ ...request, signal }, (progress) => {
      const now = performance.now();
      if (now - last < PROGRESS_EVERY_MS && progress.iteration < progress.iterations) return;
      last = now;
      send(progress);
    });
    return { result };
  },

  async fault() {
    return { result: await engine?.fault() };
  },
};

/** @param {unknown} error */
function words(error) {
  return error instanceof Error ? error.message : String(error);
}

/** @param {{ id: number, method: string, argument: unknown }} call @param {AbortSignal} signal */
async function answer({ id, method, argument }, signal) {
  const context = { signal, send: (/** @type {unknown} */ event, /** @type {Transferable[]} */ transfer = []) => self.postMessage({ id, event }, { transfer }) };
  try {
    const { result, transfer = [] } = await methods[method](argument, context);
    self.postMessage({ id, result }, { transfer });
  } catch (error) {
    self.postMessage({ id, error: { name: error instanceof Error ? error.name : 'Error', message: words(error) } });
  } finally {
    calls.delete(id);
  }
}

self.onmessage = ({ data }) => {
  if (data.cancel !== undefined) {
    calls.get(data.cancel)?.abort();
    return;
  }
  const controller = new AbortController();
  calls.set(data.id, controller);
  queue = queue.then(() => answer(data, controller.signal));
};

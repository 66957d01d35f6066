// Calls into the worker that owns the engine, as promises.

/** @typedef {import('./package/harmonica.js').DeviceReport} DeviceReport */
/** @typedef {import('./package/harmonica.js').ModelInfo} ModelInfo */
/** @typedef {import('./package/harmonica.js').Schedule} Schedule */
/** @typedef {import('./package/harmonica.js').Settings} Settings */
/** @typedef {import('./package/harmonica.js').Sample} Sample */
/** @typedef {import('./package/harmonica.js').Step} Step */
/** @typedef {import('./package/harmonica.js').TrainProgress} TrainProgress */
/** @typedef {import('./package/harmonica.js').SampleRequest} SampleRequest */
/** @typedef {import('./package/harmonica.js').TrainRequest} TrainRequest */
/** @typedef {{ info: ModelInfo, learned: { name: string, speed: number }[] }} Loaded */
/** @typedef {{ report: DeviceReport, notice: string | undefined }} Opened */
/** @typedef {{ value: string, ratio: number | undefined, why: string | undefined }} Known what a schedule's name comes to for a run, or why it does not exist */

/**
 * @typedef {{ onEvent?: (event: any) => void, signal?: AbortSignal, transfer?: Transferable[] }} CallOptions
 * @typedef {{ resolve: (value: any) => void, reject: (error: Error) => void, onEvent?: (event: any) => void, done: () => void }} Pending
 */

/** Whether the engine was closed on purpose, to be opened anew. @param {unknown} error */
export const closed = (error) => error instanceof Error && error.name === 'AbortError';

export class Client {
  /** @type {Map<number, Pending>} */
  #pending = new Map();
  #next = 0;
  #worker;

  constructor() {
    this.#worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new Error(`The worker that runs the engine stopped: ${event.message || 'its script could not be loaded'}.`));
    };
  }

  /**
   * @param {string} method @param {unknown} argument @param {CallOptions} [options]
   * @returns {Promise<any>}
   */
  #call(method, argument, { onEvent, signal, transfer = [] } = {}) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const cancel = () => this.#worker.postMessage({ cancel: id });
      const done = () => signal?.removeEventListener('abort', cancel);
      this.#pending.set(id, { resolve, reject, onEvent, done });
      this.#worker.postMessage({ id, method, argument }, transfer);
      if (signal?.aborted) cancel();
      else signal?.addEventListener('abort', cancel);
    });
  }

  /** @param {{ id: number, event?: any, result?: any, error?: { name: string, message: string } }} data */
  #receive({ id, event, result, error }) {
    const pending = this.#pending.get(id);
    if (!pending) return;
    if (event) {
      pending.onEvent?.(event);
      return;
    }
    this.#pending.delete(id);
    pending.done();
    if (error) pending.reject(Object.assign(new Error(error.message), { name: error.name }));
    else pending.resolve(result);
  }

  /** @param {Error} error */
  #fail(error) {
    for (const pending of this.#pending.values()) {
      pending.done();
      pending.reject(error);
    }
    this.#pending.clear();
  }

  /** @param {string} device @returns {Promise<Opened>} */
  open(device) {
    return this.#call('open', device);
  }

  /** Loads a model; the one before is let go only when this one is there. @param {Uint8Array<ArrayBuffer>} weights moved to the worker @returns {Promise<Loaded>} */
  load(weights) {
    return this.#call('load', weights, { transfer: [weights.buffer] });
  }

  /** @param {string} schedule @param {Settings} settings @returns {Promise<Schedule>} */
  schedule(schedule, settings) {
    return this.#call('schedule', { schedule, settings });
  }

  /** @param {string[]} names @param {Settings} settings @returns {Promise<Known[]>} */
  known(names, settings) {
    return this.#call('known', { names, settings });
  }

  /** @param {string} schedule @param {number} step @param {number} branch @param {Settings} settings @returns {Promise<Schedule>} */
  toggled(schedule, step, branch, settings) {
    return this.#call('toggled', { schedule, step, branch, settings });
  }

  /** @param {string} text @returns {Promise<Schedule>} */
  addSchedule(text) {
    return this.#call('addSchedule', text);
  }

  /** @param {Omit<SampleRequest, 'signal'>} request @param {AbortSignal} [signal] @param {(step: Step) => void} [onEvent] @returns {Promise<Sample>} */
  sample(request, signal, onEvent) {
    return this.#call('sample', request, { onEvent, signal });
  }

  /** @param {Omit<TrainRequest, 'signal'>} request @param {AbortSignal} [signal] @param {(progress: TrainProgress) => void} [onEvent] @returns {Promise<Schedule & { cancelled: boolean }>} */
  train(request, signal, onEvent) {
    return this.#call('train', request, { onEvent, signal });
  }

  /** What went wrong on the device since the last call. @returns {Promise<{ message: string, lost: boolean } | undefined>} */
  fault() {
    return this.#call('fault', undefined);
  }

  /** Ends the worker, and with it the engine and everything on the device. */
  end() {
    this.#worker.terminate();
    this.#fail(Object.assign(new Error('The engine was closed.'), { name: 'AbortError' }));
  }
}

// Draws a picture with everything computed and with a schedule, one after the other, so that each has the device for itself.

/** @typedef {import('./client.js').Client} Client */
/** @typedef {import('./client.js').Sample} Sample */
/** @typedef {import('./client.js').Step} Step */
/** @typedef {import('./panes.js').Side} Side */
/** @typedef {{ classes: number[], seed: number, steps: number, schedule: string }} Job `schedule`: a name, or the text of a file */
/**
 * @typedef {object} Hooks
 * @property {(side: Side, job: Job) => void} begin
 * @property {(side: Side, step: Step) => void} step
 * @property {(side: Side, sample: Sample, job: Job) => void} done
 * @property {(error: unknown) => void} failed
 * @property {(busy: boolean) => void} busy
 */

const TIMED_RUNS = 3;

/** @param {number[]} values */
const middle = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

export class Runner {
  /** @type {Client | undefined} */
  client;
  /** @type {Job | undefined} */
  #next;
  /** @type {AbortController | undefined} */
  #running;
  /** @type {Promise<void> | undefined} */
  #loop;
  /** What the finished uncached picture is of. */
  #reference = '';
  #hooks;

  /** @param {Hooks} hooks */
  constructor(hooks) {
    this.#hooks = hooks;
  }

  /** Draws `job`; one that is being drawn is cancelled. @param {Job} job */
  request(job) {
    this.#next = job;
    this.#running?.abort();
    this.#loop ??= this.#work();
    return this.#loop;
  }

  /** Resolves when nothing runs any more. */
  async stop() {
    this.#next = undefined;
    this.#running?.abort();
    await this.#loop;
  }

  /** Another model or device: what was drawn before compares with nothing. */
  forget() {
    this.#reference = '';
  }

  async #work() {
    this.#hooks.busy(true);
    try {
      while (this.#next) {
        const job = this.#next;
        this.#next = undefined;
        this.#running = new AbortController();
        await this.#both(job, this.#running.signal);
      }
    } catch (error) {
      this.#next = undefined;
      this.#hooks.failed(error);
    } finally {
      this.#running = undefined;
      this.#loop = undefined;
      this.#hooks.busy(false);
    }
  }

  /** @param {Job} job @param {AbortSignal} signal */
  async #both(job, signal) {
    const reference = JSON.stringify([job.classes, job.seed, job.steps]);
    if (this.#reference !== reference) {
      this.#reference = '';
      if (!(await this.#one('uncached', { ...job, schedule: 'none' }, signal))) return;
      this.#reference = reference;
    }
    if (!signal.aborted) await this.#one('cached', job, signal);
  }

  /** @param {Side} side @param {Job} job @param {AbortSignal} signal @returns {Promise<boolean>} whether it came to its end */
  async #one(side, job, signal) {
    if (!this.client) return false;
    this.#hooks.begin(side, job);
    const sample = await this.client.sample({ ...job, preview: true }, signal, (step) => this.#hooks.step(side, step));
    if (sample.cancelled) return false;
    this.#hooks.done(side, sample, job);
    return true;
  }

  /** Seconds of both without pictures: the middle of several runs, in turn. @param {Job} job @returns {Promise<{ uncached: number, cached: number } | undefined>} */
  async time(job) {
    await this.stop();
    const { client } = this;
    if (!client) return undefined;
    const abort = (this.#running = new AbortController());
    /** @type {Record<Side, number[]>} */
    const taken = { uncached: [], cached: [] };
    this.#hooks.busy(true);
    this.#loop = this.#timed(client, job, abort.signal, taken).catch((error) => this.#hooks.failed(error));
    await this.#loop;
    this.#running = undefined;
    this.#loop = undefined;
    this.#hooks.busy(false);
    // What was asked for in the meantime.
    if (this.#next) this.#loop = this.#work();
    return taken.cached.length === TIMED_RUNS ? { uncached: middle(taken.uncached), cached: middle(taken.cached) } : undefined;
  }

  /** @param {Client} client @param {Job} job @param {AbortSignal} signal @param {Record<Side, number[]>} taken seconds, added to */
  async #timed(client, job, signal, taken) {
    for (let run = 0; run < TIMED_RUNS; run++) {
      for (const side of /** @type {Side[]} */ (['uncached', 'cached'])) {
        const sample = await client.sample({ ...job, schedule: side === 'cached' ? job.schedule : 'none' }, signal);
        if (sample.cancelled) return;
        taken[side].push(sample.seconds);
      }
    }
  }
}

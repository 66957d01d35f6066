// The engine and the model of this visit, and how to get them back when the device is lost.

import { Client } from './client.js';
import { bytes } from './format.js';
import { fetchModel, forgetModel } from './model-file.js';

/** @typedef {import('./client.js').Loaded} Loaded */
/** @typedef {import('./client.js').Opened} Opened */
/** @typedef {(text: string, share: number | undefined) => void} Progress what is being done, and how much of it is done, where that is known */
/** @typedef {{ name: string, file: File | undefined }} Source a model: a file of the visitor's, or the one beside the page */

const MODEL = new URL('./model.safetensors', import.meta.url);
/** @type {Source} */
export const BESIDE = { name: 'the emoji model', file: undefined };

export class Session {
  /** @type {Client | undefined} */
  client;
  /** @type {Opened | undefined} */
  opened;
  /** @type {Loaded | undefined} */
  loaded;
  /** @type {Source} */
  source = BESIDE;
  /** Where the model came from, in words. */
  origin = '';
  #progress;

  /** @param {Progress} progress */
  constructor(progress) {
    this.#progress = progress;
  }

  /** Opens an engine, anew where there was one, and loads the model again. @param {string} device @returns {Promise<Loaded>} */
  async open(device) {
    this.client?.end();
    this.loaded = undefined;
    const client = (this.client = new Client());
    this.#progress('Starting the engine', undefined);
    // The download and the start of the engine do not wait for each other; a failure of either ends both.
    const [opened, weights] = await Promise.all([client.open(device), this.#weights(this.source)]);
    this.opened = opened;
    return this.#load(client, this.source, weights);
  }

  /** @param {Source} source @returns {Promise<Loaded>} */
  async load(source) {
    if (!this.client) throw new Error('The engine is not open.');
    return this.#load(this.client, source, await this.#weights(source));
  }

  /** @param {Client} client @param {Source} source @param {import('./model-file.js').Fetched} fetched */
  async #load(client, source, { weights, kept, keep }) {
    this.#progress(`Loading ${source.name}`, undefined);
    const size = bytes(weights.length);
    try {
      this.loaded = await client.load(weights);
    } catch (error) {
      if (kept) {
        // A kept copy that does not load is useless: the next try downloads it.
        await forgetModel(MODEL);
        throw new Error(`The kept copy of the model does not load (${error instanceof Error ? error.message : error}). It was thrown away: load the page again to download it anew.`);
      }
      throw error;
    }
    await keep();
    this.source = source;
    this.origin = source.file ? `${size}, from your file` : kept ? `${size}, kept from an earlier visit: nothing was downloaded` : `${size}, downloaded; the browser keeps it for the next visit`;
    return this.loaded;
  }

  /** @param {Source} source @returns {Promise<import('./model-file.js').Fetched>} */
  async #weights(source) {
    if (source.file) return { weights: new Uint8Array(await source.file.arrayBuffer()), kept: false, keep: async () => {} };
    return fetchModel(MODEL, (received, total) => {
      const of = total === undefined ? '' : ` of ${bytes(total)}`;
      this.#progress(`Downloading the model: ${bytes(received)}${of}`, total === undefined ? undefined : received / total);
    });
  }
}

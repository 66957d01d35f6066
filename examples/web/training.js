// Learning a router in the page, and showing how it goes.

import { button, canvas, element, input, need, select } from './dom.js';
import { left, percent, seconds, times } from './format.js';

/** @typedef {import('./client.js').TrainProgress} TrainProgress */
/** @typedef {{ speed: number, iterations: number }} Wish */

/** Draws `values` over their index, on a logarithmic height where all are positive. @param {HTMLCanvasElement} of @param {number[]} values @param {number} most */
function curve(of, values, most) {
  const scale = globalThis.devicePixelRatio || 1;
  of.width = Math.round(of.clientWidth * scale);
  of.height = Math.round(of.clientHeight * scale);
  const context = of.getContext('2d');
  if (!context || values.length < 2) return;
  const heights = values.every((v) => v > 0) ? values.map(Math.log) : values;
  const low = Math.min(...heights);
  const span = Math.max(...heights) - low || 1;
  const margin = 3 * scale;
  context.strokeStyle = getComputedStyle(of).color;
  context.lineWidth = 1.5 * scale;
  context.lineJoin = 'round';
  context.beginPath();
  heights.forEach((value, index) => {
    const x = (index / Math.max(1, most - 1)) * of.width;
    const y = margin + (1 - (value - low) / span) * (of.height - 2 * margin);
    context.lineTo(x, y);
  });
  context.stroke();
}

export class TrainPanel {
  /** @type {AbortController | undefined} */
  #running;
  /** Of the messages that came. @type {number[]} */
  #losses = [];

  /** @param {(wish: Wish, signal: AbortSignal) => Promise<void>} train resolves when all is over, errors shown */
  constructor(train) {
    need('train', HTMLFormElement).addEventListener('submit', async (event) => {
      event.preventDefault();
      if (this.#running) return;
      this.#running = new AbortController();
      const wish = { speed: Number(select('train-speed').value), iterations: Math.max(1, Math.round(Number(input('train-iterations').value) || 1)) };
      this.#begin(wish);
      try {
        await train(wish, this.#running.signal);
      } finally {
        this.#running = undefined;
        this.#buttons(false);
      }
    });
    button('train-cancel').addEventListener('click', () => this.#running?.abort());
  }

  /** Ends what runs. */
  cancel() {
    this.#running?.abort();
  }

  /** @param {TrainProgress} progress */
  progress({ iteration, iterations, loss, cur, macsRatio, seconds: taken }) {
    this.#losses.push(loss);
    const bar = need('train-bar', HTMLProgressElement);
    bar.max = iterations;
    bar.value = iteration;
    const rest = iteration > 0 ? (taken / iteration) * (iterations - iteration) : 0;
    element('train-words').textContent =
      `iteration ${iteration} of ${iterations} · loss ${loss.toPrecision(3)} · ${percent(cur)} reused, ${times(macsRatio)} · ${rest > 0 ? `about ${left(rest)} left` : seconds(taken)}`;
    // Messages can be fewer than iterations; the curve fills the width by how far the training is.
    curve(canvas('train-curve'), this.#losses, Math.ceil((this.#losses.length * iterations) / Math.max(1, iteration)));
  }

  /** @param {string} words */
  finish(words) {
    element('train-words').textContent = words;
  }

  /** @param {Wish} wish */
  #begin({ iterations }) {
    this.#losses = [];
    this.#buttons(true);
    element('train-progress').hidden = false;
    const bar = need('train-bar', HTMLProgressElement);
    bar.max = iterations;
    bar.value = 0;
    element('train-words').textContent = `Preparing ${iterations} iterations`;
    curve(canvas('train-curve'), [], iterations);
  }

  /** @param {boolean} busy */
  #buttons(busy) {
    button('train-start').disabled = busy;
    button('train-cancel').disabled = !busy;
    need('train-set', HTMLFieldSetElement).disabled = busy;
  }
}

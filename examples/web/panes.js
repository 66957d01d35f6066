// The pictures: both runs step by step, and their difference.

import { button, canvas, element, input } from './dom.js';
import { decibels, psnr, seconds } from './format.js';

/** @typedef {import('./client.js').Sample} Sample */
/** @typedef {'uncached' | 'cached'} Side */
/** @typedef {{ frames: ImageData[], sample: Sample | undefined }} Film what a run drew, a frame a step */

const AMPLIFIED = 4;
/** The slower run takes at least so long when both are played. */
const PLAY_SECONDS = 3;

/** @param {HTMLCanvasElement} of @param {ImageData | undefined} frame */
function paint(of, frame) {
  if (frame && (of.width !== frame.width || of.height !== frame.height)) {
    of.width = frame.width;
    of.height = frame.height;
  }
  const context = of.getContext('2d');
  if (frame) context?.putImageData(frame, 0, 0);
  else context?.clearRect(0, 0, of.width, of.height);
}

/** @param {ImageData} a @param {ImageData} b */
export function difference(a, b) {
  const made = new ImageData(a.width, a.height);
  for (let i = 0; i < made.data.length; i++) {
    made.data[i] = i % 4 === 3 ? 255 : AMPLIFIED * Math.abs(a.data[i] - b.data[i]);
  }
  return made;
}

export class Panes {
  /** @type {Record<Side, Film>} */
  films = { uncached: { frames: [], sample: undefined }, cached: { frames: [], sample: undefined } };
  /** Height over width of the model's pictures. */
  #aspect = 1;
  #steps = 20;
  #playing = 0;
  #canvases = { uncached: canvas('uncached'), cached: canvas('cached') };
  #difference = canvas('difference');
  #slider = input('frame');
  #play = button('play');

  constructor() {
    this.#slider.addEventListener('input', () => {
      this.#stopPlaying();
      this.#show(Number(this.#slider.value));
    });
    this.#play.addEventListener('click', () => (this.#playing ? this.#finishPlaying() : this.play()));
  }

  /** A new model: nothing of the old one is shown. @param {[number, number]} size height and width */
  reset([height, width]) {
    this.#aspect = height / width;
    for (const side of /** @type {Side[]} */ (['uncached', 'cached'])) {
      this.films[side] = { frames: [], sample: undefined };
      paint(this.#canvases[side], undefined);
      element(`${side}-clock`).textContent = '–';
      this.#bar(side, 0);
    }
    this.#clearDifference();
  }

  /** @param {Side} side @param {number} steps */
  begin(side, steps) {
    this.#stopPlaying();
    this.#steps = steps;
    this.films[side] = { frames: [], sample: undefined };
    paint(this.#canvases[side], undefined);
    this.#bar(side, 0);
    element(`${side}-clock`).textContent = `step 0 of ${steps}`;
    if (side === 'uncached') {
      this.films.cached = { frames: [], sample: undefined };
      paint(this.#canvases.cached, undefined);
      this.#bar('cached', 0);
      element('cached-clock').textContent = '–';
    }
    this.#clearDifference();
    this.#controls(false);
    this.#slider.max = String(steps);
    this.#slider.value = '0';
  }

  /** @param {Side} side @param {Uint8ClampedArray<ArrayBuffer>} pixels RGBA */
  frame(side, pixels) {
    const width = Math.round(Math.sqrt(pixels.length / 4 / this.#aspect));
    const film = this.films[side];
    film.frames.push(new ImageData(pixels, width, pixels.length / 4 / width));
    element(`${side}-clock`).textContent = `step ${film.frames.length} of ${this.#steps}`;
    this.#bar(side, film.frames.length / this.#steps);
    if (side === 'cached') this.#show(film.frames.length);
    else paint(this.#canvases.uncached, film.frames.at(-1));
  }

  /** @param {Side} side @param {Sample} sample */
  done(side, sample) {
    this.films[side].sample = sample;
    if (side === 'uncached') this.#clocks();
    if (side === 'cached') {
      this.#controls(true);
      this.#show(this.films.cached.frames.length);
      this.#clocks();
    }
  }

  /** Whether both pictures are there. */
  get complete() {
    return this.films.uncached.sample !== undefined && this.films.cached.sample !== undefined;
  }

  /** Decibels between the two finished pictures. */
  psnr() {
    const { uncached, cached } = this.films;
    if (!uncached.sample || !cached.sample) return undefined;
    return psnr(uncached.sample.values, cached.sample.values);
  }

  /** Plays both runs at once, each at the speed it was drawn, slowed where that is too fast to see. */
  play() {
    const times = [this.#arrivals('uncached'), this.#arrivals('cached')];
    const longest = Math.max(...times.map((t) => t.at(-1) ?? 0));
    if (longest <= 0) return;
    const slowed = Math.max(1, PLAY_SECONDS / longest);
    const begun = performance.now();
    this.#play.textContent = 'Stop';
    this.#clearDifference();
    const tick = () => {
      const now = (performance.now() - begun) / 1000 / slowed;
      const [uncached, cached] = times.map((t) => t.filter((at) => at <= now).length);
      paint(this.#canvases.uncached, this.films.uncached.frames[uncached - 1]);
      paint(this.#canvases.cached, this.films.cached.frames[cached - 1]);
      this.#bar('uncached', uncached / this.#steps);
      this.#bar('cached', cached / this.#steps);
      element('frame-text').textContent = slowed > 1.5 ? `slowed ${Math.round(slowed)} times` : 'as fast as drawn';
      if (now < longest) this.#playing = requestAnimationFrame(tick);
      else this.#finishPlaying();
    };
    this.#playing = requestAnimationFrame(tick);
  }

  /** @param {Side} side @returns {number[]} seconds at which the steps were done */
  #arrivals(side) {
    let sum = 0;
    return (this.films[side].sample?.stepSeconds ?? []).map((step) => (sum += step));
  }

  #finishPlaying() {
    this.#stopPlaying();
    this.#show(this.films.cached.frames.length);
    this.#clocks();
  }

  #stopPlaying() {
    cancelAnimationFrame(this.#playing);
    this.#playing = 0;
    this.#play.textContent = 'Play';
  }

  /** Both runs after `count` steps. @param {number} count */
  #show(count) {
    const [a, b] = [this.films.uncached.frames[count - 1], this.films.cached.frames[count - 1]];
    paint(this.#canvases.uncached, a);
    paint(this.#canvases.cached, b);
    this.#slider.value = String(count);
    element('frame-text').textContent = `after step ${count} of ${this.#steps}`;
    if (!a || !b || a.width !== b.width) return this.#clearDifference();
    paint(this.#difference, difference(a, b));
    const whole = count === this.#steps ? this.psnr() : undefined;
    element('difference-text').textContent = whole === undefined ? '' : whole === Infinity ? decibels(whole) : `PSNR ${decibels(whole)}`;
  }

  #clocks() {
    const { uncached, cached } = this.films;
    const longest = Math.max(uncached.sample?.seconds ?? 0, cached.sample?.seconds ?? 0);
    for (const side of /** @type {Side[]} */ (['uncached', 'cached'])) {
      const sample = this.films[side].sample;
      if (!sample) continue;
      element(`${side}-clock`).textContent = seconds(sample.seconds);
      this.#bar(side, sample.seconds / longest);
    }
  }

  #clearDifference() {
    paint(this.#difference, undefined);
    element('difference-text').textContent = '–';
  }

  /** @param {Side} side @param {number} share */
  #bar(side, share) {
    element(`${side}-bar`).style.width = `${100 * share}%`;
  }

  /** @param {boolean} on */
  #controls(on) {
    this.#play.disabled = !on;
    this.#slider.disabled = !on;
  }
}

// The lists of the controls: classes, and schedules by their speed.

import { make, select } from './dom.js';
import { times } from './format.js';

/** @typedef {import('./client.js').Known} Known */
/** @typedef {{ value: string, label: string, schedule: string }} Option `schedule`: what the engine takes */

const PUBLISHED = ['fora:2', 'fora:3', 'taylor:2'];
/** More groups than this are no groups. */
const MOST_GROUPS = 6;
export const CUSTOM = 'custom';

/** @param {string[]} classes */
export function fillClasses(classes) {
  const list = select('class');
  const ending = (/** @type {string} */ name) => (name.includes('-') ? name.slice(name.lastIndexOf('-') + 1) : '');
  const endings = [...new Set(classes.map(ending))];
  const option = (/** @type {string} */ name, /** @type {number} */ id) => make('option', { value: String(id) }, name || `class ${id}`);
  if (endings.length > MOST_GROUPS || endings.length < 2 || endings.includes('')) {
    list.replaceChildren(...classes.map((name, id) => option(name, id)));
    return;
  }
  list.replaceChildren(...endings.map((end) => make('optgroup', { label: end },
    ...classes.flatMap((name, id) => (ending(name) === end ? [option(name, id)] : [])))));
}

export class Schedules {
  #list = select('schedule');
  /** @type {Option[]} */
  #learned = [];
  /** Dropped, trained. @type {Option[]} */
  #own = [];
  #made = 0;

  /** @param {{ name: string, speed: number }[]} learned */
  reset(learned) {
    this.#learned = learned.map(({ name }) => ({ value: name, label: 'learned', schedule: name }));
    this.#own = [];
    this.#fill();
    const nearest = [...learned].sort((a, b) => Math.abs(a.speed - 2) - Math.abs(b.speed - 2))[0];
    this.#list.value = nearest?.name ?? PUBLISHED[0];
  }

  /** Names to ask the engine about. */
  names() {
    return [...this.#learned.map(({ value }) => value), ...PUBLISHED, ...this.#own.map(({ schedule }) => schedule)];
  }

  get value() {
    return this.#list.value;
  }

  /** A schedule from a file or from training. */
  get isOwn() {
    return this.#own.some(({ value }) => value === this.value);
  }

  /** @returns {boolean} whether there is such a choice */
  choose(/** @type {string} */ value) {
    if (![...this.#list.options].some((option) => option.value === value)) return false;
    this.#list.value = value;
    return true;
  }

  /** What the engine takes for the choice. @param {string} custom the policy typed in */
  schedule(custom) {
    if (this.value === CUSTOM) return custom.trim();
    return this.#own.find(({ value }) => value === this.value)?.schedule ?? this.value;
  }

  /** Adds a schedule from a file or from training, and chooses it. @param {string} label @param {string} text */
  add(label, text) {
    const value = `own-${this.#made++}`;
    this.#own.push({ value, label, schedule: text });
    this.#fill();
    this.#list.value = value;
  }

  /** Says the speed of each choice, and which do not exist for this run. @param {Known[]} known */
  mark(known) {
    const of = new Map(known.map((entry) => [entry.value, entry]));
    for (const option of this.#list.options) {
      const own = this.#own.find(({ value }) => value === option.value);
      const entry = of.get(own?.schedule ?? option.value);
      const base = option.dataset.label ?? option.value;
      if (!entry) continue;
      option.disabled = entry.ratio === undefined;
      option.title = entry.why ?? '';
      option.textContent = entry.ratio === undefined ? `${base} (not for this run)` : `${times(entry.ratio)} · ${base}`;
    }
  }

  #fill() {
    const chosen = this.value;
    const option = (/** @type {string} */ value, label = value) => make('option', { value, 'data-label': label }, label);
    const group = (/** @type {string} */ label, /** @type {HTMLElement[]} */ options) => (options.length ? [make('optgroup', { label }, ...options)] : []);
    this.#list.replaceChildren(
      option('none', 'everything computed'),
      ...group('learned for this model', this.#learned.map(({ value, label }) => option(value, label))),
      ...group('yours', this.#own.map(({ value, label }) => option(value, label))),
      ...group('published rules', PUBLISHED.map((value) => option(value))),
      option(CUSTOM, 'another policy …'),
    );
    this.choose(chosen);
  }
}

// The schedule as a table of cells: steps down, branches across, a group of columns for each kind of branch.

import { make } from './dom.js';
import { seconds } from './format.js';

/** @typedef {import('./client.js').Schedule} Schedule */
/** @typedef {import('./client.js').ModelInfo} ModelInfo */
/** @typedef {ModelInfo['branches'][number]} Branch */
/** @typedef {'computed' | 'reused' | 'forecast'} State */

const KINDS = new Map([['self-attention', 'attention'], ['mlp', 'MLP']]);
/** Width of a cell with its gap, below which the table scrolls. */
const LEAST_PX = 8.5;
/** @param {string} kind */
const kindName = (kind) => KINDS.get(kind) ?? kind;

/** @param {Schedule} schedule @param {number} step @param {number} branch @returns {State} */
function stateOf(schedule, step, branch) {
  if (!schedule.network[step]) return 'forecast';
  return schedule.computed[step][branch] ? 'computed' : 'reused';
}

/** How many cells differ. @param {Schedule} a @param {Schedule} b */
export function flips(a, b) {
  let count = 0;
  for (let s = 0; s < a.steps; s++) {
    for (let n = 0; n < a.branches; n++) count += Number(stateOf(a, s, n) !== stateOf(b, s, n));
  }
  return count;
}

export class Table {
  /** @type {HTMLElement[][]} by step and branch */
  #cells = [];
  /** @type {HTMLElement[]} */
  #rows = [];
  /** @type {HTMLElement[]} */
  #clocks = [];
  /** @type {Branch[]} */
  #branches = [];
  /** Branches in the order of the columns. @type {number[]} */
  #columns = [];
  /** @type {Schedule | undefined} */
  #schedule;
  #focus = { step: 0, column: 0 };
  #built = '';
  #root;
  #words;
  #onFlip;

  /** @param {HTMLElement} root @param {HTMLElement} words @param {(step: number, branch: number) => void} onFlip */
  constructor(root, words, onFlip) {
    this.#root = root;
    this.#words = words;
    this.#onFlip = onFlip;
    root.addEventListener('click', (event) => this.#flip(event.target));
    root.addEventListener('keydown', (event) => this.#key(event));
    root.addEventListener('pointerover', (event) => this.#describe(event.target));
    root.addEventListener('focusin', (event) => this.#describe(event.target));
    root.addEventListener('pointerleave', () => (words.textContent = '\u00a0'));
  }

  /**
   * @param {Schedule} schedule @param {Branch[]} branches
   * @param {Schedule} [base] what cells that were flipped by hand are marked against
   */
  show(schedule, branches, base = schedule) {
    this.#schedule = schedule;
    this.#shape(schedule, branches);
    this.#root.classList.remove('forming');
    this.#cells.forEach((row, step) => row.forEach((cell, branch) => {
      const state = stateOf(schedule, step, branch);
      const edited = state !== stateOf(base, step, branch);
      cell.className = `cell ${state}${edited ? ' edited' : ''}${step === 0 ? ' fixed' : ''}`;
      cell.setAttribute('aria-label', this.#label(step, branch, state) + (edited ? ', flipped by hand' : ''));
      cell.setAttribute('aria-selected', String(state === 'computed'));
    }));
  }

  /** A router that is being trained: how likely each branch is to be computed. @param {Float32Array} weights by step and branch, 0 to 1 */
  form(weights) {
    this.#root.classList.add('forming');
    this.#cells.forEach((row, step) => row.forEach((cell, branch) => {
      cell.style.setProperty('--w', `${Math.round(100 * weights[step * row.length + branch])}%`);
    }));
  }

  /** Marks the step that is being drawn. @param {number | undefined} step */
  current(step) {
    this.#rows.forEach((row, index) => row.classList.toggle('current', index === step));
  }

  /** What each step took. @param {number[] | undefined} stepSeconds */
  times(stepSeconds) {
    const longest = Math.max(...(stepSeconds ?? []), 1e-9);
    this.#clocks.forEach((clock, step) => {
      const value = stepSeconds?.[step];
      clock.style.setProperty('--share', `${(100 * (value ?? 0)) / longest}%`);
      clock.title = value === undefined ? '' : seconds(value);
    });
  }

  /** @param {Schedule} schedule @param {Branch[]} branches */
  #shape({ steps, timesteps }, branches) {
    const key = JSON.stringify([timesteps, branches]);
    if (key === this.#built) return;
    this.#built = key;
    this.#branches = branches;
    const kinds = [...new Set(branches.map(({ kind }) => kind))];
    const groups = kinds.map((kind) => branches.flatMap((branch, index) => (branch.kind === kind ? [index] : [])));
    this.#columns = groups.flat();
    this.#focus = { step: Math.min(1, steps - 1), column: 0 };
    this.#root.style.setProperty('--groups', groups.map(({ length }) => `minmax(${length * LEAST_PX}px, ${length}fr)`).join(' '));
    const head = make('div', { class: 'trow head', role: 'row' }, make('span', { role: 'columnheader' }, 'step'),
      ...kinds.map((kind, index) => make('span', { role: 'columnheader', 'aria-colspan': String(groups[index].length) }, kindName(kind))),
      make('span', { class: 'took', 'aria-hidden': 'true' }, 'time'));
    this.#cells = [];
    this.#rows = [];
    this.#clocks = [];
    for (let step = 0; step < steps; step++) this.#row(step, timesteps[step], groups);
    const grid = make('div', { class: 'grid', role: 'grid', 'aria-label': 'Schedule: steps by branches', 'aria-colcount': String(branches.length + 1) }, head, ...this.#rows);
    this.#root.replaceChildren(grid);
    this.#cells[this.#focus.step][this.#columns[0]].tabIndex = 0;
  }

  /** @param {number} step @param {number} timestep @param {number[][]} groups */
  #row(step, timestep, groups) {
    /** @type {HTMLElement[]} */
    const cells = [];
    const parts = groups.map((group) => {
      const part = make('span', { class: 'group', role: 'none' });
      part.style.setProperty('--n', String(group.length));
      for (const branch of group) {
        const attributes = { role: 'gridcell', tabindex: '-1', 'data-step': String(step), 'data-branch': String(branch) };
        cells[branch] = make('span', step === 0 ? { ...attributes, 'aria-disabled': 'true' } : attributes);
        part.append(cells[branch]);
      }
      return part;
    });
    const clock = make('span', { class: 'took', 'aria-hidden': 'true' }, make('i'));
    const label = make('span', { role: 'rowheader', title: `timestep ${Math.round(timestep)}` }, String(step));
    this.#rows.push(make('div', { class: 'trow', role: 'row' }, label, ...parts, clock));
    this.#cells.push(cells);
    this.#clocks.push(clock);
  }

  /** @param {number} step @param {number} branch @param {State} state */
  #label(step, branch, state) {
    const { block, kind } = this.#branches[branch];
    return `step ${step}, block ${block}, ${kindName(kind)}: ${state}`;
  }

  /** @param {EventTarget | null} target @returns {{ step: number, branch: number } | undefined} */
  #at(target) {
    if (!(target instanceof HTMLElement) || target.dataset.branch === undefined) return undefined;
    return { step: Number(target.dataset.step), branch: Number(target.dataset.branch) };
  }

  /** @param {EventTarget | null} target */
  #flip(target) {
    const at = this.#at(target);
    if (!at || this.#root.classList.contains('locked')) return;
    this.#move(at.step, this.#columns.indexOf(at.branch));
    if (at.step > 0) this.#onFlip(at.step, at.branch);
  }

  /** @param {EventTarget | null} target */
  #describe(target) {
    const at = this.#at(target);
    if (!at || !this.#schedule) return;
    const state = stateOf(this.#schedule, at.step, at.branch);
    const words = {
      computed: at.step === 0 ? 'the first step computes everything' : 'click to reuse what an earlier step computed',
      reused: 'click to compute it',
      forecast: 'no branch runs in this step; click to make it a computed one',
    };
    const time = Math.round(this.#schedule.timesteps[at.step]);
    this.#words.textContent = `${this.#label(at.step, at.branch, state)} (timestep ${time}) – ${words[state]}`;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { step, column } = this.#focus;
    const last = this.#columns.length - 1;
    /** @type {Record<string, [number, number]>} */
    const moves = { ArrowUp: [step - 1, column], ArrowDown: [step + 1, column], ArrowLeft: [step, column - 1], ArrowRight: [step, column + 1], Home: [step, 0], End: [step, last],
      PageUp: [0, column], PageDown: [this.#cells.length - 1, column] };
    if (event.key === 'Enter' || event.key === ' ') this.#flip(event.target);
    else if (event.key in moves) this.#move(...moves[event.key]);
    else return;
    event.preventDefault();
  }

  /** Focus, kept inside the table. @param {number} step @param {number} column */
  #move(step, column) {
    const to = { step: Math.min(Math.max(step, 0), this.#cells.length - 1), column: Math.min(Math.max(column, 0), this.#columns.length - 1) };
    this.#cells[this.#focus.step][this.#columns[this.#focus.column]].tabIndex = -1;
    this.#focus = to;
    const cell = this.#cells[to.step][this.#columns[to.column]];
    cell.tabIndex = 0;
    cell.focus();
  }
}

// The controls, kept in the address, so that a link draws the same picture.

import { CUSTOM } from './choices.js';
import { input, select } from './dom.js';

/** @typedef {import('./choices.js').Schedules} Schedules */

/** What a first visit draws, where the model knows it. */
const FIRST_CLASS = 'face-flat';

/** @param {Schedules} schedules @param {string} className */
export function writeLink(schedules, className) {
  const link = new URLSearchParams({ class: className, seed: input('seed').value, steps: input('steps').value });
  // A dropped or trained schedule is no name that another visit knows.
  if (!schedules.isOwn) link.set('schedule', schedules.schedule(input('custom').value));
  history.replaceState(null, '', `#${link}`);
}

/** @param {Schedules} schedules @param {string[]} classes */
export function readLink(schedules, classes) {
  const asked = new URLSearchParams(location.hash.slice(1));
  const id = classes.indexOf(asked.get('class') ?? FIRST_CLASS);
  if (id >= 0) select('class').value = String(id);
  for (const name of ['seed', 'steps']) {
    const value = Number(asked.get(name) ?? '');
    if (asked.has(name) && Number.isInteger(value) && value >= 0) input(name).value = String(value);
  }
  const schedule = asked.get('schedule');
  if (schedule && !schedules.choose(schedule)) {
    input('custom').value = schedule;
    schedules.choose(CUSTOM);
  }
}

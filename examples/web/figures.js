// What the schedule saves, and what it costs, in numbers.

import { element } from './dom.js';
import { bytes, decibels, macs, percent, times } from './format.js';

/** @typedef {import('./client.js').Schedule} Schedule */
/** @typedef {import('./panes.js').Panes} Panes */

/** @param {Schedule | undefined} schedule @param {Panes} panes */
export function showFigures(schedule, panes) {
  const { uncached, cached } = panes.films;
  const likeness = panes.psnr();
  element('figure-work').textContent = schedule ? times(schedule.macsRatio) : '–';
  element('figure-macs').textContent = schedule ? `${macs(schedule.macs)} of ${macs(schedule.macsFull)} MACs` : 'multiply-accumulates';
  element('figure-cur').textContent = schedule ? percent(schedule.cur) : '–';
  element('figure-cache').textContent = schedule ? bytes(schedule.cacheBytes) : '–';
  element('figure-psnr').textContent = likeness === undefined ? '–' : decibels(likeness);
  element('figure-clock').textContent = uncached.sample && cached.sample ? times(uncached.sample.seconds / cached.sample.seconds) : '–';
  element('clock-words').textContent = 'drawing every step';
}

/** Seconds of both runs without pictures. @param {{ uncached: number, cached: number }} taken */
export function showTiming({ uncached, cached }) {
  element('figure-clock').textContent = times(uncached / cached);
  element('clock-words').textContent = `${(1000 * uncached).toFixed(0)} and ${(1000 * cached).toFixed(0)} ms, without pictures`;
}

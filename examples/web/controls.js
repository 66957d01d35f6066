// What the controls say.

import { button, element, input, need, select } from './dom.js';

/** The run's settings; the others are the model's usual ones. */
export const settings = () => ({ steps: Number(input('steps').value) });

export const className = () => select('class').selectedOptions[0]?.textContent ?? '';

/** What is to be drawn, but for the schedule. */
export const picture = () => ({ classes: [Number(select('class').value)], seed: Math.max(0, Math.round(Number(input('seed').value) || 0)), ...settings() });

/** @param {number} [value] where it is another */
export function showSteps(value) {
  if (value !== undefined) input('steps').value = String(value);
  element('steps-text').textContent = input('steps').value;
}

export function nextSeed() {
  input('seed').value = String((Number(input('seed').value) + 1) % 2 ** 32);
}

/** While a router is trained, nothing else can be asked for. @param {boolean} on */
export function lock(on) {
  need('controls-set', HTMLFieldSetElement).disabled = on;
  for (const id of ['draw', 'time', 'pick-model', 'pick-schedule', 'own-model']) button(id).disabled = on;
  element('table').classList.toggle('locked', on);
  button('undo').disabled = true;
}

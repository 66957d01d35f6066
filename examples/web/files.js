// Files in and out: dropped, chosen, saved.

import { button, element, input } from './dom.js';

/** @typedef {{ model: (file: File) => void, schedule: (file: File) => void, other: (file: File) => void }} Takers */

/** @param {File} file @param {Takers} takers */
function take(file, takers) {
  const name = file.name.toLowerCase();
  if (name.endsWith('.safetensors')) takers.model(file);
  else if (name.endsWith('.json')) takers.schedule(file);
  else takers.other(file);
}

/** @param {Takers} takers */
export function takeFiles(takers) {
  const veil = element('drop');
  let depth = 0;
  const carriesFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes('Files') ?? false;
  document.addEventListener('dragenter', (event) => {
    if (!carriesFiles(event)) return;
    depth += 1;
    veil.hidden = false;
  });
  document.addEventListener('dragleave', () => {
    depth = Math.max(0, depth - 1);
    veil.hidden = depth === 0;
  });
  document.addEventListener('dragover', (event) => {
    if (carriesFiles(event)) event.preventDefault();
  });
  document.addEventListener('drop', (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    veil.hidden = true;
    for (const file of event.dataTransfer?.files ?? []) take(file, takers);
  });
  for (const [opener, chooser] of [['pick-model', 'model-file'], ['pick-schedule', 'schedule-file']]) {
    const field = input(chooser);
    button(opener).addEventListener('click', () => field.click());
    field.addEventListener('change', () => {
      const file = field.files?.[0];
      if (file) take(file, takers);
      // The same file can be chosen again.
      field.value = '';
    });
  }
}

/** @param {Blob} blob @param {string} name */
function save(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** @param {string} text @param {string} name */
export function saveText(text, name) {
  save(new Blob([text], { type: 'application/json' }), name);
}

/** Small pictures are saved in whole multiples, without blur. @param {HTMLCanvasElement} picture @param {string} name */
export function savePicture(picture, name) {
  const scale = Math.max(1, Math.floor(512 / Math.max(picture.width, picture.height)));
  const large = document.createElement('canvas');
  large.width = picture.width * scale;
  large.height = picture.height * scale;
  const context = large.getContext('2d');
  if (!context) throw new Error('The browser gives no canvas to make the file of.');
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, large.width, large.height);
  return new Promise((/** @type {(value: void) => void} */ resolve, reject) => {
    large.toBlob((blob) => {
      if (!blob) return reject(new Error('The browser could not make a PNG of the picture.'));
      save(blob, name);
      resolve();
    }, 'image/png');
  });
}

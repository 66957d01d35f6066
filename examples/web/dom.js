// The page's elements, by id.

/**
 * @template {HTMLElement} T
 * @param {string} id @param {{ new (): T, name: string }} kind what the element must be
 * @returns {T}
 */
export function need(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`The page has no ${kind.name} with the id “${id}”.`);
  return found;
}

/** @param {string} id */
export const button = (id) => need(id, HTMLButtonElement);
/** @param {string} id */
export const input = (id) => need(id, HTMLInputElement);
/** @param {string} id */
export const select = (id) => need(id, HTMLSelectElement);
/** @param {string} id */
export const canvas = (id) => need(id, HTMLCanvasElement);
/** @param {string} id */
export const element = (id) => need(id, HTMLElement);

/**
 * @param {string} tag @param {Record<string, string>} attributes @param {(Node | string)[]} children
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** @param {unknown} error */
export const wordsOf = (error) => (error instanceof Error ? error.message : String(error));

/** Says a change to people who do not see it. @param {string} text */
export function announce(text) {
  element('status').textContent = text;
}

// The page as a visitor opens it, and what a visitor does.

import { ensure } from './api-page.mjs';

/** @typedef {import('./run.mjs').Context} Context */
/** @typedef {import('playwright-core').Page} Page */
/** @typedef {import('playwright-core').BrowserContext} BrowserContext */

/** What the page may take to draw, on a software device of a busy machine. */
export const PATIENCE_MS = 300_000;

/**
 * @param {Context} context
 * @param {{ webgpu?: boolean, hash?: string, browser?: BrowserContext, width?: number, colorScheme?: 'light' | 'dark', workerBefore?: string, before?: () => void, drawn?: boolean }} [options]
 * `workerBefore`: code that runs in the worker ahead of its own; `drawn`: wait for the first picture
 */
export async function visit(context, { webgpu = true, hash = '', width = 1280, colorScheme = 'light', browser, workerBefore, before, drawn = true } = {}) {
  browser ??= await context.chromium.context({ webgpu, viewport: { width, height: 900 }, colorScheme, acceptDownloads: true });
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  /** @type {string[]} */
  const complaints = [];
  /** @type {string[]} */
  const requests = [];
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(error.message));
  browser.on('request', (request) => requests.push(request.url()));
  if (before) await page.addInitScript(before);
  if (workerBefore) {
    await page.route('**/worker.js', async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, body: `${workerBefore}\n${await response.text()}` });
    });
  }
  await page.goto(`${context.url}${hash}`);
  if (drawn) await untilDrawn(page);
  return { page, browser, complaints, requests };
}

/** Until both pictures are there and nothing runs. @param {Page} page */
export async function untilDrawn(page) {
  await page.waitForFunction(() => {
    const notice = document.querySelector('#notices [data-key="failure"], #notices [data-key="lost"]');
    if (notice) throw new Error(`The page says: ${notice.textContent}`);
    const stop = /** @type {HTMLButtonElement | null} */ (document.getElementById('stop'));
    const play = /** @type {HTMLButtonElement | null} */ (document.getElementById('play'));
    return stop?.disabled && play && !play.disabled;
  }, undefined, { timeout: PATIENCE_MS });
}

/** @param {Page} page @param {string} id */
export const text = async (page, id) => ((await page.textContent(`#${id}`)) ?? '').trim();

/** How many different colours a canvas shows. @param {Page} page @param {string} id */
export function colours(page, id) {
  return page.evaluate((id) => {
    const canvas = /** @type {HTMLCanvasElement} */ (document.getElementById(id));
    const data = canvas.getContext('2d')?.getImageData(0, 0, canvas.width, canvas.height).data ?? [];
    const seen = new Set();
    for (let i = 0; i < data.length; i += 4) seen.add(`${data[i]},${data[i + 1]},${data[i + 2]},${data[i + 3]}`);
    return seen.size;
  }, id);
}

/** Drops a file onto the page. @param {Page} page @param {string} name @param {string} content */
export function drop(page, name, content) {
  return page.evaluate(([name, content]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([content], name));
    for (const type of ['dragenter', 'dragover', 'drop']) document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
  }, [name, content]);
}

/** The words of a notice, once it is there. @param {Page} page @param {string} key */
export async function noticeWords(page, key) {
  const words = (await page.textContent(`#notices [data-key="${key}"]`)) ?? '';
  ensure(words.length > 40, `the notice says little: “${words}”`);
  return words;
}

/** @param {Page} page @param {number} step @param {number} branch */
export const cell = (page, step, branch) => page.locator(`[role="gridcell"][data-step="${step}"][data-branch="${branch}"]`);

/** The states of all cells, as one text. @param {Page} page */
export function states(page) {
  return page.evaluate(() => [...document.querySelectorAll('[role="gridcell"]')].map((cell) => cell.className.split(' ')[1]?.[0]).join(''));
}

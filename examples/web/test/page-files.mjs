// Files that are dropped on the page, chosen, and saved from it.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { ensure } from './api-page.mjs';
import { drop, noticeWords, states, text, untilDrawn, visit } from './visit.mjs';

/** @typedef {import('./run.mjs').Check} Check */

const FORA = '#class=face-flat&seed=3&steps=8&schedule=fora:2';
const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

/** @param {import('playwright-core').Page} page @param {string} button */
async function download(page, button) {
  const [file] = await Promise.all([page.waitForEvent('download'), page.click(button)]);
  return { name: file.suggestedFilename(), content: await readFile(await file.path()) };
}

/** @type {Check[]} */
export const checks = [
  {
    name: 'files: the picture and the schedule are saved',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      const picture = await download(page, '#save-picture');
      ensure(picture.name.endsWith('.png') && /face-flat/.test(picture.name), `the picture is called ${picture.name}`);
      ensure(picture.content.subarray(0, 8).equals(PNG), 'the picture is no PNG');
      const [width, height] = [picture.content.readUInt32BE(16), picture.content.readUInt32BE(20)];
      ensure(width === 512 && height === 512, `the picture has ${width}×${height} pixels, expected 16 for each of 32×32`);
      const schedule = await download(page, '#save-schedule');
      ensure(schedule.name.endsWith('.schedule.json'), `the schedule is called ${schedule.name}`);
      ensure(JSON.parse(schedule.content.toString()).steps === 8, 'the schedule is not of 8 steps');
      return `${picture.name}, ${schedule.name}`;
    },
  },
  {
    name: 'files: a saved schedule that is dropped again is the same one, with its steps',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      const { content } = await download(page, '#save-schedule');
      const before = await states(page);
      await page.locator('#steps').fill('12');
      await page.waitForFunction(() => document.querySelectorAll('[role="gridcell"]').length === 12 * 24);
      await untilDrawn(page);
      await drop(page, 'mine.schedule.json', content.toString());
      await page.waitForFunction(() => document.querySelectorAll('[role="gridcell"]').length === 8 * 24);
      await untilDrawn(page);
      ensure((await page.inputValue('#steps')) === '8', 'the steps are not those of the file');
      ensure((await states(page)) === before, 'the dropped schedule is another one');
      ensure(/mine/.test((await page.locator('#schedule option:checked').textContent()) ?? ''), 'the file is not among the speeds');
    },
  },
  {
    name: 'files: broken and foreign files are refused in words, and the page draws on',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      const said = [];
      // A file that comes in the middle of a run does not end it.
      await page.click('#draw');
      for (const [name, content] of [['broken.safetensors', 'this is no model'], ['broken.schedule.json', '{ "format": 2'], ['other.json', '{"a": 1}'], ['letter.txt', 'hello']]) {
        await page.evaluate(() => document.querySelector('#notices [data-key="failure"] .close')?.dispatchEvent(new MouseEvent('click')));
        await drop(page, name, content);
        const words = await noticeWords(page, 'failure');
        ensure(words.includes(name), `the notice does not name ${name}: ${words}`);
        said.push(words);
      }
      await page.waitForSelector('#play:enabled');
      await page.click('#draw');
      await untilDrawn(page);
      ensure(await page.isHidden('#drop'), 'the veil stays over the page');
      return said[0].slice(0, 160);
    },
  },
  {
    name: 'files: a chosen model takes the place of the first, and the first comes back',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.click('#pick-model')]);
      await chooser.setFiles(join(context.root, 'model.safetensors'));
      await page.waitForFunction(() => /from your file/.test(document.getElementById('model-words')?.textContent ?? ''));
      await untilDrawn(page);
      await page.click('#own-model');
      await page.waitForFunction(() => /nothing was downloaded/.test(document.getElementById('model-words')?.textContent ?? ''));
      await untilDrawn(page);
      return text(page, 'model-words');
    },
  },
];

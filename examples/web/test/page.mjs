// The page: it draws, and does what its controls say.

import { ensure } from './api-page.mjs';
import { PATIENCE_MS, cell, colours, noticeWords, states, text, untilDrawn, visit } from './visit.mjs';

/** @typedef {import('./run.mjs').Check} Check */

const FORA = '#class=face-flat&seed=3&steps=8&schedule=fora:2';
/** An iteration of training passes every step, on one thread. */
const SHORT = '#class=face-flat&seed=3&steps=4&schedule=fora:2';

/** @type {Check[]} */
export const checks = [
  {
    name: 'page: loads, draws both pictures, asks no other host and makes no errors',
    async run(context) {
      const { page, complaints, requests } = await visit(context);
      for (const id of ['uncached', 'cached']) ensure((await colours(page, id)) > 50, `the picture “${id}” is blank`);
      ensure(/\d\.\d\d×/.test(await text(page, 'figure-work')), 'the work saved is not shown');
      ensure(/\d\sdB/.test(await text(page, 'figure-psnr')), `the likeness is not shown: ${await text(page, 'figure-psnr')}`);
      ensure((await page.locator('[role="gridcell"]').count()) === 480, 'the table has not 20 × 24 cells');
      ensure((await page.locator('#class option').count()) === 46, 'the list has not 46 classes');
      // A software GPU is not taken where nobody asks for it.
      ensure(/WebGPU|processor/.test(await text(page, 'device')), `the device is ${await text(page, 'device')}`);
      const strange = requests.filter((url) => !url.startsWith(context.url) && !url.startsWith('blob:') && !url.startsWith('data:'));
      ensure(strange.length === 0, `the page asks elsewhere: ${strange}`);
      ensure(complaints.length === 0, complaints.join('; '));
      if (context.screenshot) await page.screenshot({ path: context.screenshot, fullPage: true });
      return `likeness ${await text(page, 'figure-psnr')}`;
    },
  },
  {
    name: 'page: a flipped cell changes the figures and the picture, and is undone',
    async run(context) {
      const { page, complaints } = await visit(context, { hash: FORA });
      const before = { macs: await text(page, 'figure-macs'), psnr: await text(page, 'figure-psnr'), states: await states(page) };
      await cell(page, 1, 5).click();
      await page.waitForFunction((macs) => document.getElementById('figure-macs')?.textContent !== macs, before.macs);
      await untilDrawn(page);
      ensure(/computed.*edited/.test((await cell(page, 1, 5).getAttribute('class')) ?? ''), 'the cell is not marked');
      ensure((await states(page)) !== before.states, 'the table is as it was');
      ensure((await text(page, 'figure-psnr')) !== before.psnr, `the likeness stays ${before.psnr}`);
      ensure(/1 cell flipped/.test(await text(page, 'schedule-name')), `the schedule is called ${await text(page, 'schedule-name')}`);
      await page.click('#undo');
      await untilDrawn(page);
      ensure((await states(page)) === before.states && (await text(page, 'figure-macs')) === before.macs, 'undoing leaves another schedule');
      ensure(complaints.length === 0, complaints.join('; '));
    },
  },
  {
    name: 'page: cells flipped in quick succession are all flipped',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      for (const branch of [0, 3, 8, 15, 23]) await cell(page, 3, branch).click();
      await page.waitForFunction(() => /5 cells flipped/.test(document.getElementById('schedule-name')?.textContent ?? ''));
      await untilDrawn(page);
      ensure((await page.locator('[role="gridcell"].edited').count()) === 5, 'not five cells are marked');
    },
  },
  {
    name: 'page: a cell of a step without the network becomes a computed one',
    async run(context) {
      const { page } = await visit(context);
      const forecast = page.locator('[role="gridcell"].forecast').first();
      ensure(await forecast.count(), 'the learned schedule shows no forecast');
      const step = Number(await forecast.getAttribute('data-step'));
      await cell(page, step, 0).click();
      await page.waitForFunction((step) => document.querySelectorAll(`[data-step="${step}"].forecast`).length === 0, step);
      await untilDrawn(page);
    },
  },
  {
    name: 'page: the table is walked and flipped with the keyboard',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      const at = () => page.evaluate(() => /** @type {HTMLElement} */ (document.activeElement)?.dataset);
      ensure((await page.locator('[role="gridcell"][tabindex="0"]').count()) === 1, 'the table has not one place in the order of tabs');
      await page.locator('[role="gridcell"][tabindex="0"]').focus();
      for (const key of ['Home', 'ArrowRight', 'ArrowDown', 'ArrowDown']) await page.keyboard.press(key);
      const { step, branch } = /** @type {{ step: string, branch: string }} */ (await at());
      ensure(step === '3' && branch === '2', `the focus is at step ${step}, branch ${branch}, expected 3 and 2`);
      await page.keyboard.press('Enter');
      await page.waitForSelector('[data-step="3"][data-branch="2"].edited');
      ensure((await at())?.branch === '2', 'the focus is lost by flipping');
      await untilDrawn(page);
      await page.keyboard.press(' ');
      await page.waitForSelector('[data-step="3"][data-branch="2"]:not(.edited)');
    },
  },
  {
    name: 'page: class, seed, steps and speed draw anew',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      const drawn = () => page.evaluate(() => /** @type {HTMLCanvasElement} */ (document.getElementById('uncached')).toDataURL());
      const first = await drawn();
      await page.selectOption('#class', { label: 'heart-flat' });
      await page.waitForTimeout(50);
      await untilDrawn(page);
      const second = await drawn();
      ensure(first !== second, 'another class draws the same');
      await page.click('#new-seed');
      await page.waitForTimeout(50);
      await untilDrawn(page);
      ensure((await drawn()) !== second, 'another seed draws the same');
      ensure((await page.inputValue('#seed')) === '4', 'the seed is not the next one');
      await page.selectOption('#schedule', 'none');
      await page.waitForFunction(() => document.getElementById('figure-psnr')?.textContent === 'identical');
      ensure(/class=heart-flat&seed=4&steps=8&schedule=none$/.test(page.url()), `the link is ${page.url()}`);
      await page.selectOption('#schedule', 'custom');
      await page.fill('#custom', 'random:0.5');
      await page.click('#custom-use');
      await page.waitForFunction(() => /random/.test(document.getElementById('schedule-name')?.textContent ?? ''));
      await untilDrawn(page);
    },
  },
  {
    name: 'page: a schedule that does not exist for a run is said in words',
    async run(context) {
      const { page } = await visit(context, { hash: '#steps=9&schedule=learned:2', drawn: false });
      await page.waitForSelector('#schedule-words:not([hidden])');
      const words = await text(page, 'schedule-words');
      ensure(words.length > 20, `the words are “${words}”`);
      await page.selectOption('#schedule', 'fora:2');
      await untilDrawn(page);
      ensure(await page.isHidden('#schedule-words'), 'the words stay');
      return words.slice(0, 120);
    },
  },
  {
    name: 'page: Stop ends a run, and Draw begins it again',
    async run(context) {
      const { page } = await visit(context, { hash: '#steps=60&schedule=fora:2', drawn: false });
      await page.waitForFunction(() => /step [1-9]/.test(document.getElementById('uncached-clock')?.textContent ?? ''));
      await page.click('#stop');
      await page.waitForSelector('#stop[disabled]');
      ensure(await page.isDisabled('#play'), 'the run went to its end');
      await page.click('#draw');
      await untilDrawn(page);
    },
  },
  {
    name: 'page: both runs are shown step by step, played and timed',
    async run(context) {
      const { page } = await visit(context, { hash: FORA });
      const last = await colours(page, 'cached');
      await page.locator('#frame').fill('2');
      ensure(/after step 2 of 8/.test(await text(page, 'frame-text')), 'the step is not told');
      ensure((await colours(page, 'cached')) !== last, 'an early step shows the last picture');
      await page.click('#play');
      await page.waitForFunction(() => document.getElementById('play')?.textContent === 'Play' && /after step 8/.test(document.getElementById('frame-text')?.textContent ?? ''));
      await page.click('#time');
      await page.waitForFunction(() => /without pictures/.test(document.getElementById('clock-words')?.textContent ?? ''));
      return text(page, 'clock-words');
    },
  },
  {
    name: 'page: three iterations of training move the table, and their schedule is used',
    seconds: 600,
    async run(context) {
      const { page, complaints } = await visit(context, { hash: SHORT });
      await page.fill('#train-iterations', '3');
      await page.click('#train-start');
      await page.waitForSelector('#table.forming');
      const weights = await page.evaluate(() => [...document.querySelectorAll('[role="gridcell"]')].map((cell) => /** @type {HTMLElement} */ (cell).style.getPropertyValue('--w')));
      ensure(weights.length === 4 * 24 && weights.every((w) => /^\d+%$/.test(w)), `the table does not show the weights: ${weights.slice(0, 8)}`);
      await page.waitForFunction(() => /Done/.test(document.getElementById('train-words')?.textContent ?? ''));
      await page.waitForFunction(() => /trained here/.test(/** @type {HTMLSelectElement} */ (document.getElementById('schedule')).selectedOptions[0].textContent ?? ''));
      await untilDrawn(page);
      await page.waitForSelector('#table:not(.forming)');
      ensure(complaints.length === 0, complaints.join('; '));
      return text(page, 'train-words');
    },
  },
  {
    name: 'page: training is cancelled by its button, and the page goes on',
    seconds: 600,
    async run(context) {
      const { page } = await visit(context, { hash: SHORT });
      await page.fill('#train-iterations', '100000');
      await page.click('#train-start');
      await page.waitForFunction(() => /left/.test(document.getElementById('train-words')?.textContent ?? ''));
      ensure(await page.isDisabled('#class'), 'the controls are free while it trains');
      await page.click('#train-cancel');
      await page.waitForFunction(() => /Cancelled/.test(document.getElementById('train-words')?.textContent ?? ''));
      await untilDrawn(page);
      ensure(await page.isEnabled('#class'), 'the controls stay locked');
    },
  },
  {
    name: 'page: a second visit downloads no model, and says so',
    async run(context) {
      const first = await visit(context, { hash: FORA });
      ensure(first.requests.some((url) => url.endsWith('model.safetensors')), 'the first visit asks for no model');
      ensure(/MB, downloaded/.test(await text(first.page, 'model-words')), await text(first.page, 'model-words'));
      await first.page.close();
      const second = await visit(context, { hash: FORA, browser: first.browser });
      ensure(!second.requests.some((url) => url.endsWith('model.safetensors')), 'the second visit asks for the model again');
      ensure(/nothing was downloaded/.test(await text(second.page, 'model-words')), await text(second.page, 'model-words'));
      return text(second.page, 'model-words');
    },
  },
  {
    name: 'page: fits 400 pixels, and follows the dark scheme',
    async run(context) {
      const { page } = await visit(context, { hash: FORA, width: 400, colorScheme: 'dark' });
      const [wide, ink] = await page.evaluate(() => [document.documentElement.scrollWidth, getComputedStyle(document.body).color]);
      ensure(wide <= 400, `the page is ${wide} pixels wide`);
      ensure(Number(/\d+/.exec(ink)?.[0]) > 150, `the text is ${ink} in the dark scheme`);
      const nameless = await page.evaluate(() => [...document.querySelectorAll('button, input:not([hidden]), select')].filter((control) => !('labels' in control && /** @type {HTMLInputElement} */ (control).labels?.length) && !control.textContent?.trim() && !control.getAttribute('aria-label')).map((control) => control.id));
      ensure(nameless.length === 0, `controls without a name: ${nameless}`);
    },
  },
  {
    name: 'page: draws on the processor when asked to',
    seconds: 600,
    async run(context) {
      const { page } = await visit(context, { hash: '#class=face-flat&steps=4&schedule=fora:2' });
      await page.selectOption('#device-choice', 'cpu');
      await page.waitForFunction(() => /processor/.test(document.getElementById('device')?.textContent ?? ''), undefined, { timeout: PATIENCE_MS });
      await untilDrawn(page);
      ensure((await page.locator('#notices .notice').count()) === 0, `a choice is met with a notice: ${(await page.locator('#notices').textContent()) ?? ''}`);
    },
  },
  {
    name: 'page: the example of twenty lines draws',
    async run(context) {
      const browser = await context.chromium.context();
      const page = await browser.newPage();
      await page.goto(`${context.url}example.html`);
      await page.waitForFunction(() => !/^Drawing/.test(document.getElementById('words')?.textContent ?? ''), undefined, { timeout: PATIENCE_MS });
      const words = await text(page, 'words');
      ensure(/Drawn in/.test(words), words);
      ensure((await colours(page, 'picture')) > 50, 'its picture is blank');
      return words;
    },
  },
  {
    name: 'page: a device that does not exist is said in words, and another can be chosen',
    async run(context) {
      const { page } = await visit(context, { webgpu: false, hash: '#class=face-flat&steps=4&schedule=fora:2' });
      await page.selectOption('#device-choice', 'webgpu');
      const words = await noticeWords(page, 'failure');
      await page.selectOption('#device-choice', 'cpu');
      await untilDrawn(page);
      return words.slice(0, 160);
    },
  },
];

// Without WebGPU the engine says so, and draws the same picture on the processor.

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

import { ensure, openApi } from './api-page.mjs';
import { likeness } from './images.mjs';
import { colours, noticeWords, text, visit } from './visit.mjs';

/** @typedef {import('./run.mjs').Check} Check */

/** @param {import('playwright-core').Page} page */
function opened(page) {
  return page.evaluate(async () => {
    const { t } = /** @type {any} */ (globalThis);
    const engine = await t.api.Engine.open('auto');
    const refused = await t.words(() => t.api.Engine.open('webgpu'));
    return { report: engine.report, notice: engine.notice, refused };
  });
}

/** @type {Check[]} */
export const checks = [
  {
    name: 'without WebGPU: “auto” takes the processor and says why, “webgpu” is refused in a sentence',
    async run(context) {
      for (const before of [
        () => Reflect.deleteProperty(Navigator.prototype, 'gpu'),
        () => {
          GPU.prototype.requestAdapter = async () => null;
        },
      ]) {
        const { report, notice, refused } = await opened(await openApi(context, { before }));
        ensure(report.backend === 'cpu', `the backend is ${report.backend}`);
        ensure(notice?.length > 20, `the notice is “${notice}”`);
        ensure(/webgpu/i.test(refused), `the words do not name WebGPU: ${refused}`);
      }
    },
  },
  {
    name: 'without WebGPU: the processor draws the native images',
    seconds: 900,
    async run(context) {
      const names = (await readdir(context.expected).catch(() => [])).filter((name) => name.endsWith('.json'));
      ensure(names.length > 0, 'there is no expected image: see the top of images.mjs');
      const page = await openApi(context, { webgpu: false });
      const said = [];
      for (const file of names) {
        const name = file.slice(0, -5);
        const request = JSON.parse(await readFile(join(context.expected, file), 'utf8'));
        if (request.device !== 'cpu') continue;
        said.push(`${name} ${(await likeness(page, { name, request: { ...request, device: 'auto' } }, context.expected)).toFixed(1)} dB`);
      }
      return said.join(', ');
    },
  },
  {
    name: 'without WebGPU: the page draws, says that it is slower, and how to switch WebGPU on',
    seconds: 600,
    async run(context) {
      const { page, complaints } = await visit(context, { webgpu: false, hash: '#class=face-flat&steps=4&schedule=fora:2' });
      const words = await noticeWords(page, 'webgpu');
      for (const browser of ['Chrome', 'Firefox', 'Safari']) ensure(words.includes(browser), `nothing is said for ${browser}: ${words}`);
      ensure(/processor/.test(await text(page, 'device')), await text(page, 'device'));
      ensure((await colours(page, 'cached')) > 50, 'the picture is blank');
      ensure(complaints.length === 0, complaints.join('; '));
    },
  },
];

#!/usr/bin/env node
// Browser tests of the page and of the package, in Chromium with its software WebGPU.
//
//     node examples/web/test/run.mjs [--root FOLDER] [--expected FOLDER] [--only WORD] [--screenshot FILE.png]
//
// --root      the built page: index.html, *.js, package/, model.safetensors [examples/web/dist]
// --expected  images that the native command drew, in the format that images.mjs describes [examples/web/test/expected]
// --only      only checks whose name holds this word
// --screenshot  where to write a picture of the page after it drew
//
// Every check prints a line. The exit code is 1 where one failed or nothing could be tested.

import { access, mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { serve } from '../serve.mjs';
import { checks as argumentChecks } from './arguments.mjs';
import { Chromium, Missing } from './chromium.mjs';
import { checks as cancelChecks } from './cancel.mjs';
import { checks as faultChecks } from './faults.mjs';
import { checks as imageChecks } from './images.mjs';
import { checks as memoryChecks } from './memory.mjs';
import { checks as pageChecks } from './page.mjs';
import { checks as pageFileChecks } from './page-files.mjs';
import { checks as pageTrouble } from './page-trouble.mjs';
import { checks as serverChecks } from './server.mjs';
import { checks as withoutChecks } from './without-webgpu.mjs';

/**
 * @typedef {object} Context what a check has at hand
 * @property {string} url of the built page, with a slash at its end
 * @property {string} root the folder of the built page
 * @property {string} expected folder of the expected images
 * @property {Chromium} chromium
 * @property {string} scratch a folder that is removed at the end
 * @property {string | undefined} screenshot
 */
/** @typedef {{ name: string, seconds?: number, run: (context: Context) => Promise<string | void> }} Check `seconds`: what it may take; it resolves with a detail worth a look, or rejects */

const USUAL_SECONDS = 400;
/** What a built page must hold. */
const BUILT = ['index.html', 'page.js', 'worker.js', 'package/harmonica.js', 'package/harmonica_bg.wasm', 'model.safetensors'];

const here = (/** @type {string} */ path) => fileURLToPath(new URL(path, import.meta.url));

function options() {
  try {
    return parseArgs({
      options: {
        root: { type: 'string', default: here('../dist') },
        expected: { type: 'string', default: here('./expected') },
        only: { type: 'string' },
        screenshot: { type: 'string' },
      },
    }).values;
  } catch (error) {
    throw new Missing(`${error instanceof Error ? error.message : error}; the flags are --root, --expected, --only and --screenshot`);
  }
}

/** @param {Check} check @param {Context} context */
async function attempt(check, context) {
  const most = check.seconds ?? USUAL_SECONDS;
  /** @type {NodeJS.Timeout | undefined} */
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing came of it in ${most} s`)), most * 1000);
  });
  const begun = performance.now();
  const took = () => `${((performance.now() - begun) / 1000).toFixed(1)} s`;
  try {
    const detail = await Promise.race([check.run(context), late]);
    console.log(`ok    ${check.name}${detail ? ` (${detail})` : ''}, ${took()}`);
    return true;
  } catch (error) {
    console.log(`FAIL  ${check.name}: ${error instanceof Error ? error.message : error}, ${took()}`);
    return false;
  } finally {
    clearTimeout(timer);
    await context.chromium.closePages();
  }
}

async function main() {
  const { root: folder, expected, only, screenshot } = options();
  const root = resolve(folder);
  const all = [serverChecks, imageChecks(await readExpected(expected)), argumentChecks, cancelChecks, faultChecks, memoryChecks, withoutChecks, pageChecks, pageFileChecks, pageTrouble].flat();
  const chosen = only ? all.filter(({ name }) => name.includes(only)) : all;
  if (chosen.length === 0) throw new Missing(`no check’s name holds “${only}”`);
  for (const file of BUILT) {
    await access(join(root, file)).catch(() => {
      throw new Missing(`${join(root, file)} is not there: build the page first, as the README says, or name its folder with --root`);
    });
  }
  const chromium = await Chromium.find();
  const { url, close } = await serve({ root });
  const scratch = await mkdtemp(join(tmpdir(), 'harmonica-web-'));
  let failed = 0;
  try {
    for (const check of chosen) {
      const passed = await attempt(check, { url, root, expected, chromium, scratch, screenshot });
      failed += passed ? 0 : 1;
    }
  } finally {
    await chromium.close();
    await close();
    await rm(scratch, { recursive: true, force: true });
  }
  console.log(failed ? `${failed} of ${chosen.length} checks failed` : `all ${chosen.length} checks passed`);
  return failed ? 1 : 0;
}

/** @param {string} folder */
async function readExpected(folder) {
  const names = await readdir(folder).catch(() => []);
  const found = [];
  for (const name of names.filter((name) => name.endsWith('.json')).sort()) {
    found.push({ name: name.slice(0, -5), request: JSON.parse(await readFile(join(folder, name), 'utf8')) });
  }
  return found;
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(error instanceof Missing ? `run.mjs: ${error.message}` : error);
  process.exitCode = 1;
}

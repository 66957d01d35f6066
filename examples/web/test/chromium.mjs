// Finds Chromium and playwright-core, and starts browsers with and without WebGPU.

import { access } from 'node:fs/promises';

/** @typedef {import('playwright-core').Browser} Browser */
/** @typedef {import('playwright-core').BrowserContext} BrowserContext */
/** @typedef {import('playwright-core').BrowserContextOptions} ContextOptions */
/** @typedef {import('playwright-core').Page} Page */

/** Something that the tests cannot do without, or a flag that means nothing. */
export class Missing extends Error {}

const PLACES = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
  '/usr/bin/google-chrome-stable',
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
  'C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe',
];

const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu-sandbox', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
  // Memory that is measured, not rounded, and a collection that can be asked for.
  '--enable-precise-memory-info', '--js-flags=--expose-gc',
];
const WEBGPU = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'];
const NO_WEBGPU = ['--disable-blink-features=WebGPU'];

async function executable() {
  const asked = process.env.CHROMIUM;
  for (const place of asked ? [asked] : PLACES) {
    const there = await access(place).then(() => true, () => false);
    if (there) return place;
  }
  throw new Missing(asked
    ? `CHROMIUM names ${asked}, which is not there`
    : 'Chromium is missing: install it (on Debian, apt-get install chromium), or name the program in the environment variable CHROMIUM');
}

async function playwright() {
  try {
    return (await import('playwright-core')).chromium;
  } catch (error) {
    throw new Missing(`playwright-core is missing: npm install --prefix examples/web/test (${error instanceof Error ? error.message.split('\n')[0] : error})`);
  }
}

export class Chromium {
  /** @type {Map<boolean, Browser>} */
  #browsers = new Map();
  /** @type {BrowserContext[]} */
  #contexts = [];
  #start;

  /** @param {(webgpu: boolean) => Promise<Browser>} start */
  constructor(start) {
    this.#start = start;
  }

  static async find() {
    const [launcher, executablePath] = [await playwright(), await executable()];
    return new Chromium((webgpu) => launcher.launch({ executablePath, args: [...FLAGS, ...(webgpu ? WEBGPU : NO_WEBGPU)] }));
  }

  /** A context with nothing kept from others; it is closed when the check is over. @param {ContextOptions & { webgpu?: boolean }} [options] */
  async context({ webgpu = true, ...options } = {}) {
    let browser = this.#browsers.get(webgpu);
    if (!browser?.isConnected()) {
      browser = await this.#start(webgpu);
      this.#browsers.set(webgpu, browser);
    }
    const context = await browser.newContext(options);
    this.#contexts.push(context);
    return context;
  }

  async closePages() {
    await Promise.all(this.#contexts.splice(0).map((context) => context.close().catch(() => {})));
  }

  async close() {
    await this.closePages();
    await Promise.all([...this.#browsers.values()].map((browser) => browser.close()));
  }
}

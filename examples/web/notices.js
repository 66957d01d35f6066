// What people must know, in words: what is missing, what went wrong, and what to do.

import { element, make, need } from './dom.js';

/** @typedef {{ key: string, title: string, text: (string | Node)[], action?: { label: string, run: () => void }, alert?: boolean }} Notice */

/** Shows a notice; another with the same key is replaced. @param {Notice} notice */
export function notice({ key, title, text, action, alert = false }) {
  dismiss(key);
  const close = make('button', { type: 'button', class: 'close', 'aria-label': 'Close this notice' }, '×');
  const box = make('div', { class: 'notice', 'data-key': key, role: alert ? 'alert' : 'status' }, close, make('strong', {}, title));
  for (const part of text) box.append(typeof part === 'string' ? make('p', {}, part) : part);
  if (action) {
    const run = make('button', { type: 'button', class: 'primary' }, action.label);
    run.addEventListener('click', () => {
      dismiss(key);
      action.run();
    });
    box.append(run);
  }
  close.addEventListener('click', () => dismiss(key));
  element('notices').append(box);
}

/** @param {string} key */
export function dismiss(key) {
  document.querySelector(`#notices [data-key="${key}"]`)?.remove();
}

/** How far the start is. @param {string} text @param {number | undefined} share of 1, where that is known */
export function showLoading(text, share) {
  const bar = need('loading-bar', HTMLProgressElement);
  element('loading-text').textContent = text;
  if (share === undefined) bar.removeAttribute('value');
  else bar.value = share;
}

/** The words beside the title. @param {'busy' | 'fast' | 'slow' | 'stopped'} state @param {string} text */
export function badge(state, text) {
  element('device').dataset.state = state;
  element('device').textContent = text;
}

/** Says what the engine runs on. @param {import('./client.js').Opened} opened @param {string} wanted */
export function showDevice({ report, notice: why }, wanted) {
  const webgpu = report.backend === 'webgpu';
  badge(webgpu && !report.software ? 'fast' : 'slow', `${webgpu ? 'WebGPU' : 'processor'}: ${report.device}${webgpu && report.software ? ' (software)' : ''}`);
  if (!webgpu && wanted === 'auto') withoutWebGpu(why);
}

/** The engine runs on the processor. @param {string | undefined} why the engine's own words */
function withoutWebGpu(why) {
  const text = [why ?? 'The engine runs on the processor.'];
  if (!globalThis.isSecureContext) {
    text.push('Browsers offer WebGPU only to pages from https:// or from this machine: open this one as http://localhost, or over https.');
  }
  const list = make('ul', {},
    make('li', {}, 'Chrome, Edge: on by default on Windows, macOS, Android and ChromeOS; look that “Use graphics acceleration when available” is on in Settings, System. On Linux, switch on ', make('code', {}, 'chrome://flags/#enable-unsafe-webgpu'), ' and start again.'),
    make('li', {}, 'Firefox: on by default on Windows, and on macOS with Apple silicon, in new versions; elsewhere set ', make('code', {}, 'dom.webgpu.enabled'), ' in ', make('code', {}, 'about:config'), '.'),
    make('li', {}, 'Safari: from version 26; before, Develop, Feature Flags, WebGPU.'));
  notice({
    key: 'webgpu',
    title: 'Drawing on the processor: slower, the same pictures',
    text: [...text, make('details', {}, make('summary', {}, 'How to switch WebGPU on'), list)],
  });
}

/** @param {string} message @param {() => void} reopen */
export function lost(message, reopen) {
  notice({
    key: 'lost', title: 'The graphics device is gone', alert: true,
    text: [message, 'A driver that was reset or updated, a machine that slept, or too little memory can be the reason. Nothing on it can be used any more; it can be opened anew.'],
    action: { label: 'Reopen and load the model again', run: reopen },
  });
}

/** @param {string} title @param {unknown} error @param {{ label: string, run: () => void }} [action] */
export function failure(title, error, action) {
  const text = error instanceof Error ? error.message : String(error);
  notice({ key: 'failure', title, text: [text], action, alert: true });
}

// Numbers as people read them.

const thin = '\u202f';

/** @param {number} bytes @returns {string} `16.4 MB` */
export function bytes(bytes) {
  if (bytes < 1000) return `${bytes}${thin}B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(bytes < 1e5 ? 1 : 0)}${thin}kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(1)}${thin}MB`;
  return `${(bytes / 1e9).toFixed(2)}${thin}GB`;
}

/** @param {number} seconds @returns {string} `840 ms`, `3.42 s` */
export function seconds(seconds) {
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)}${thin}ms`;
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)}${thin}s`;
}

/** @param {number} seconds @returns {string} `12 s`, `3 min`, `1 h 5 min`: for what is left */
export function left(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))}${thin}s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes}${thin}min`;
  return `${Math.floor(minutes / 60)}${thin}h ${minutes % 60}${thin}min`;
}

/** @param {number} ratio @returns {string} `2.00×` */
export const times = (ratio) => (Number.isFinite(ratio) ? `${ratio.toFixed(2)}×` : '–');

/** @param {number} share of 1 @returns {string} `49.6 %` */
export const percent = (share) => `${(100 * share).toFixed(1)}${thin}%`;

/** @param {number} macs multiply-accumulates @returns {string} `7.3 G` */
export function macs(macs) {
  const [unit, scale] = macs >= 1e12 ? ['T', 1e12] : macs >= 1e9 ? ['G', 1e9] : ['M', 1e6];
  return `${(macs / scale).toFixed(macs / scale < 10 ? 2 : 1)}${thin}${unit}`;
}

/**
 * Peak signal to noise of two images with values in [-1, 1], in decibels; infinite for equal ones.
 * @param {ArrayLike<number>} a @param {ArrayLike<number>} b
 */
export function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return 10 * Math.log10(4 / (sum / a.length));
}

/** @param {number} value @returns {string} `36.7 dB`, `identical` */
export const decibels = (value) => (value === Infinity ? 'identical' : `${value.toFixed(1)}${thin}dB`);

/** A name that any file system takes. @param {string} text */
export const fileName = (text) => text.toLowerCase().replace(/[^a-z0-9.]+/g, '-').replace(/^-+|-+$/g, '') || 'harmonica';

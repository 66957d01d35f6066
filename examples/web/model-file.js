// The model beside the page: downloaded once, then kept by the browser.

/** Raised when the file beside the page changes, so that nobody keeps drawing with an old copy. */
const VERSION = 'dit-emoji32-v1';
const PREFIX = 'harmonica-';

/** @typedef {{ weights: Uint8Array<ArrayBuffer>, kept: boolean, keep: () => Promise<void> }} Fetched `kept`: it came from the browser's storage; `keep` puts it there, to be called when it has proved to be a model */

/** The browser's storage; none in private windows of some browsers and on pages without https. */
async function storage() {
  if (!('caches' in globalThis)) return undefined;
  try {
    for (const name of await caches.keys()) {
      if (name.startsWith(PREFIX) && name !== PREFIX + VERSION) await caches.delete(name);
    }
    return await caches.open(PREFIX + VERSION);
  } catch {
    return undefined;
  }
}

/**
 * @param {string | URL} url
 * @param {(received: number, total: number | undefined) => void} onProgress bytes
 * @returns {Promise<Fetched>}
 */
export async function fetchModel(url, onProgress) {
  const address = String(url);
  const store = await storage();
  const hit = await store?.match(address);
  if (hit) return { weights: new Uint8Array(await hit.arrayBuffer()), kept: true, keep: async () => {} };

  let response;
  try {
    response = await fetch(address, { cache: 'no-store' });
  } catch {
    throw new Error(`The model could not be downloaded: the server does not answer (${address}).`);
  }
  if (!response.ok || !response.body) throw new Error(`The model could not be downloaded: ${address} answers ${response.status} ${response.statusText}.`);
  const weights = await collect(response.body, size(response), onProgress);
  const copy = new Response(weights, { headers: { 'content-type': 'application/octet-stream' } });
  // A full disk or a denied quota only costs the next visit a download.
  const keep = async () => void (await store?.put(address, copy).catch(() => {}));
  return { weights, kept: false, keep };
}

/** Forgets the kept copy. @param {string | URL} url */
export async function forgetModel(url) {
  await (await storage())?.delete(String(url));
}

/** @param {Response} response @returns {number | undefined} bytes of the body, where the header counts those and not compressed ones */
function size(response) {
  const length = Number(response.headers.get('content-length'));
  return length > 0 && !response.headers.get('content-encoding') ? length : undefined;
}

/**
 * @param {ReadableStream<Uint8Array>} body @param {number | undefined} total
 * @param {(received: number, total: number | undefined) => void} onProgress
 */
async function collect(body, total, onProgress) {
  const chunks = [];
  let received = 0;
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    received += value.length;
    onProgress(received, total);
  }
  if (total !== undefined && received !== total) throw new Error(`The download of the model broke off: ${received} of ${total} bytes came. Load the page again.`);
  const whole = new Uint8Array(received);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}

// Ties the controls, the pictures, the table and the training to the engine.

import { CUSTOM, Schedules, fillClasses } from './choices.js';
import { closed } from './client.js';
import { className, lock, nextSeed, picture, settings, showSteps } from './controls.js';
import { announce, button, canvas, element, input, need, select, wordsOf } from './dom.js';
import { saveText, savePicture, takeFiles } from './files.js';
import { showFigures, showTiming } from './figures.js';
import { fileName, percent, times } from './format.js';
import { readLink, writeLink } from './link.js';
import { badge, dismiss, failure, lost, notice, showDevice, showLoading } from './notices.js';
import { Panes } from './panes.js';
import { Runner } from './runner.js';
import { BESIDE, Session } from './session.js';
import { Table, flips } from './table.js';
import { TrainPanel } from './training.js';

/** @typedef {import('./client.js').Schedule} Schedule */
/** @typedef {import('./runner.js').Job} Job */

const session = new Session(showLoading);
const panes = new Panes();
const schedules = new Schedules();
const table = new Table(element('table'), element('cell-words'), (step, branch) => {
  changes = changes.then(() => flip(step, branch));
});

/** What was chosen, and what it became by flips. @type {{ base: Schedule, now: Schedule } | undefined} */
let shown;
/** Choices and flips, one after the other: each starts from what the one before made. */
let changes = Promise.resolve();
let training = false;

const runner = new Runner({
  begin: (side, job) => {
    panes.begin(side, job.steps);
    if (side === 'cached') table.times(undefined);
    announce(side === 'uncached' ? 'Drawing with everything computed' : 'Drawing with the schedule');
  },
  step: (side, { pixels }) => {
    if (pixels?.[0]) panes.frame(side, /** @type {Uint8ClampedArray<ArrayBuffer>} */ (pixels[0]));
    if (side === 'cached') table.current(panes.films.cached.frames.length - 1);
  },
  done: (side, sample, job) => {
    panes.done(side, sample);
    if (side === 'uncached') return;
    table.times(sample.stepSeconds);
    showFigures(shown?.now, panes);
    button('save-picture').disabled = false;
    announce(`Drawn: ${className()}, seed ${job.seed}; MACs ratio ${element('figure-work').textContent}, likeness ${element('figure-psnr').textContent}`);
  },
  failed: (error) => void failed('The picture could not be drawn', error),
  busy: (busy) => {
    button('stop').disabled = !busy;
    button('time').disabled = busy || !shown;
    element('pictures').setAttribute('aria-busy', String(busy));
    if (!busy) table.current(undefined);
  },
});

/** @returns {Job | undefined} */
function job() {
  if (!shown || !session.loaded) return undefined;
  return { ...picture(), schedule: shown.now.text };
}

function draw() {
  const asked = job();
  if (!asked || training) return;
  dismiss('failure');
  writeLink(schedules, className());
  void runner.request(asked);
}

/** Shows a schedule, and draws with it. @param {Schedule} base @param {Schedule} now */
function use(base, now) {
  shown = { base, now };
  table.show(now, session.loaded?.info.branches ?? [], base);
  const count = flips(base, now);
  element('schedule-name').textContent = `${base.name}${count ? `, ${count} ${count === 1 ? 'cell' : 'cells'} flipped` : ''}`;
  element('edits').textContent = count ? `${count} of ${now.steps * now.branches} cells differ from ${base.name}` : '';
  button('undo').disabled = count === 0;
  button('save-schedule').disabled = false;
  showFigures(now, panes);
  draw();
}

/** Takes the schedule that the controls name. */
async function choose() {
  const { client, loaded } = session;
  if (!client || !loaded) return;
  await runner.stop();
  const words = element('schedule-words');
  element('custom-field').hidden = schedules.value !== CUSTOM;
  try {
    schedules.mark(await client.known(schedules.names(), settings()));
    const made = await client.schedule(schedules.schedule(input('custom').value), settings());
    words.hidden = true;
    use(made, made);
  } catch (error) {
    if (closed(error)) return;
    shown = undefined;
    button('time').disabled = true;
    button('save-schedule').disabled = true;
    words.textContent = wordsOf(error);
    words.hidden = false;
  }
}

/** @param {number} step @param {number} branch */
async function flip(step, branch) {
  if (!shown || !session.client || training) return;
  const { base, now } = shown;
  await runner.stop();
  try {
    use(base, await session.client.toggled(now.text, step, branch, settings()));
  } catch (error) {
    await failed('The cell could not be flipped', error);
  }
}

/** @param {import('./training.js').Wish} wish @param {AbortSignal} signal */
async function train(wish, signal) {
  const { client, loaded } = session;
  if (!client || !loaded) return;
  await runner.stop();
  training = true;
  lock(true);
  try {
    const start = await client.schedule('none', settings());
    table.show(start, loaded.info.branches);
    announce('Training has begun');
    const made = await client.train({ ...wish, ...settings() }, signal, (progress) => {
      table.form(progress.weights);
      panel.progress(progress);
    });
    const words = made.cancelled ? 'Cancelled; the schedule is what was learned until then.' : 'Done; the schedule is in use, and among the speeds.';
    panel.finish(`${words} ${percent(made.cur)} reused, MACs ratio ${times(made.macsRatio)}.`);
    announce(words);
    schedules.add(made.cancelled ? 'trained here, cancelled' : 'trained here', made.text);
  } catch (error) {
    panel.finish('The training failed.');
    await failed('The training failed', error);
  } finally {
    training = false;
    lock(false);
  }
  changes = changes.then(choose);
}
const panel = new TrainPanel(train);

/** A file is of no use: what was drawn before it came is drawn to its end. @param {string} title @param {unknown} error */
async function refused(title, error) {
  const asked = job();
  if ((await failed(title, error)) && asked && !panes.complete) void runner.request(asked);
}

/** Whether the device is gone; it is said, and offered to open it anew. */
async function isLost() {
  const fault = await session.client?.fault().catch(() => undefined);
  if (fault?.lost) lost(fault.message, () => void start());
  return fault?.lost ?? false;
}

/** Says what failed. @param {string} title @param {unknown} error @returns {Promise<boolean>} whether the engine can go on */
async function failed(title, error) {
  if (closed(error) || (await isLost())) return false;
  // A trap leaves the engine in no state to go on.
  const trapped = error instanceof Error && error.name === 'RuntimeError';
  failure(title, error, trapped ? { label: 'Start the engine anew', run: () => void start() } : undefined);
  announce(title);
  return !trapped;
}

/** The controls for the model that was loaded. */
function arrived() {
  const { loaded, opened } = session;
  if (!loaded || !opened) return;
  const { info } = loaded;
  showDevice(opened, select('device-choice').value);
  runner.client = session.client;
  runner.forget();
  panes.reset(info.size);
  fillClasses(info.classes);
  schedules.reset(loaded.learned);
  showSteps(info.usual.steps ?? 20);
  element('model-words').textContent = `${info.name}, ${(info.parameters / 1e6).toFixed(1)} million parameters: ${session.origin}.`;
  button('own-model').hidden = session.source === BESIDE;
  element('loading').hidden = true;
  element('main').hidden = false;
}

/** Opens the engine, anew where there was one. */
async function start() {
  panel.cancel();
  dismiss('lost');
  dismiss('failure');
  dismiss('webgpu');
  element('loading').hidden = false;
  element('main').hidden = true;
  badge('busy', 'starting');
  try {
    await session.open(select('device-choice').value);
    arrived();
    readLink(schedules, session.loaded?.info.classes ?? []);
    showSteps();
    await (changes = changes.then(choose));
    announce('Ready');
  } catch (error) {
    if (closed(error)) return;
    element('loading').hidden = true;
    badge('stopped', 'not started');
    failure('The engine could not be started', error, { label: 'Try again', run: () => void start() });
  }
}

/** @param {import('./session.js').Source} source */
async function openModel(source) {
  if (training) return;
  await runner.stop();
  element('model-words').textContent = `Loading ${source.name} …`;
  try {
    await session.load(source);
    arrived();
    dismiss('failure');
  } catch (error) {
    element('model-words').textContent = `${session.loaded?.info.name ?? 'No model'} stays in use.`;
    return refused(`${source.name} could not be opened`, error);
  }
  await choose();
}

/** @param {File} file */
async function openSchedule(file) {
  if (training || !session.client) return;
  await runner.stop();
  try {
    const made = await session.client.addSchedule(await file.text());
    showSteps(made.steps);
    schedules.add(file.name.replace(/(\.schedule)?\.json$/i, ''), made.text);
    dismiss('failure');
  } catch (error) {
    return refused(`${file.name} could not be used`, error);
  }
  await choose();
}

function wire() {
  const changed = () => (changes = changes.then(choose));
  need('controls', HTMLFormElement).addEventListener('submit', (event) => {
    event.preventDefault();
    // Both anew, as a visitor who asks again expects.
    runner.forget();
    if (shown) draw();
    else changed();
  });
  button('stop').addEventListener('click', () => void runner.stop());
  select('class').addEventListener('change', draw);
  input('seed').addEventListener('change', draw);
  button('new-seed').addEventListener('click', () => {
    nextSeed();
    draw();
  });
  input('steps').addEventListener('input', () => showSteps());
  input('steps').addEventListener('change', changed);
  select('schedule').addEventListener('change', changed);
  button('custom-use').addEventListener('click', changed);
  input('custom').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter') return;
    event.preventDefault();
    changed();
  });
  button('undo').addEventListener('click', () => shown && use(shown.base, shown.base));
  button('time').addEventListener('click', async () => {
    const asked = job();
    const taken = asked && (await runner.time(asked));
    if (!taken) return;
    showTiming(taken);
    announce(`Timed: ${element('figure-clock').textContent} as fast`);
  });
  const name = () => fileName(`${className()}-seed${input('seed').value}-${shown?.base.name ?? ''}`);
  button('save-picture').addEventListener('click', () => savePicture(canvas('cached'), `${name()}.png`).catch((error) => failure('The picture could not be saved', error)));
  button('save-schedule').addEventListener('click', () => shown && saveText(shown.now.text, `${fileName(shown.now.name)}-${shown.now.steps}.schedule.json`));
  button('own-model').addEventListener('click', () => void openModel(BESIDE));
  select('device-choice').addEventListener('change', () => void start());
  takeFiles({
    model: (file) => void openModel({ name: file.name, file }),
    schedule: (file) => void (changes = changes.then(() => openSchedule(file))),
    other: (file) => notice({ key: 'failure', alert: true, title: `${file.name} is of no use here`, text: ['This page takes a model as .safetensors, and a schedule as .schedule.json.'] }),
  });
  // A device can be lost while nobody draws, as when a machine sleeps.
  document.addEventListener('visibilitychange', () => void (!document.hidden && session.loaded && isLost()));
}

// guard.js has said why, where the page cannot start.
if (!('harmonicaBlocked' in globalThis)) {
  wire();
  await start();
}

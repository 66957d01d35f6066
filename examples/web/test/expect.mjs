// Draws with the native command what the browser is to draw: `node expect.mjs HARMONICA`, into `expected/`.

import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

// Software WebGPU takes half a minute for a step of the emoji model: there, a network of two small blocks.
const tiny = new URL('../../../tests/golden/tiny-a.pt', import.meta.url).pathname;
const REQUESTS = [
  { name: 'none-cpu', device: 'cpu', classes: [6, 33], seed: 0, steps: 10, schedule: 'none' },
  { name: 'learned-cpu', device: 'cpu', classes: [6, 33], seed: 0, steps: 20, schedule: 'learned:2' },
  { name: 'fora-cpu', device: 'cpu', classes: [6, 33], seed: 0, steps: 10, schedule: 'fora:2' },
  { name: 'none-webgpu', device: 'webgpu', classes: [6, 1], seed: 0, steps: 6, schedule: 'none', clip: true },
  { name: 'fora-webgpu', device: 'webgpu', classes: [6, 1], seed: 0, steps: 6, schedule: 'fora:2', clip: true },
  { name: 'taylor-webgpu', device: 'webgpu', classes: [0, 2], seed: 1, steps: 6, schedule: 'taylor:2', clip: true },
  { name: 'decided-webgpu', device: 'webgpu', classes: [3], seed: 3, steps: 6, schedule: 'fb:0.2', clip: true },
];

const [harmonica] = process.argv.slice(2);
if (!harmonica) throw new Error('expected the path of the command: node expect.mjs HARMONICA');
const run = promisify(execFile);
const folder = new URL('./expected/', import.meta.url).pathname;
const scratch = await mkdtemp(join(tmpdir(), 'harmonica-expect-'));
try {
  await mkdir(folder, { recursive: true });
  await run(harmonica, ['convert', '--quiet', '--model', tiny, '--heads', '4', '--dtype', 'f32', '--out', join(folder, 'tiny.safetensors')]);
  for (const { name, ...request } of REQUESTS) {
    const tensors = join(scratch, `${name}.safetensors`);
    const { device, classes, seed, steps, schedule } = request;
    // Clipped, since its random weights draw numbers of any size.
    const model = device === 'cpu' ? [] : ['--model', tiny, '--heads', '4', '--clip-x0', 'on'];
    await run(harmonica, [
      'sample', '--quiet', '--device', 'cpu', ...model, '--classes', classes.join(','), '--count', String(classes.length), '--batch', String(classes.length), '--seed', String(seed),
      '--steps', String(steps), '--schedule', schedule, '--save-tensors', tensors, '--out', join(scratch, `${name}.png`),
    ]);
    const file = await readFile(tensors);
    const length = Number(file.readBigUInt64LE(0));
    const { samples } = JSON.parse(file.subarray(8, 8 + length).toString());
    if (samples?.dtype !== 'F32') throw new Error(`${tensors} holds no tensor \`samples\` of 32-bit floats`);
    const [from, to] = samples.data_offsets;
    await writeFile(join(folder, `${name}.f32`), file.subarray(8 + length + from, 8 + length + to));
    await writeFile(join(folder, `${name}.json`), `${JSON.stringify({ ...request, shape: samples.shape })}\n`);
  }
} finally {
  await rm(scratch, { recursive: true });
}

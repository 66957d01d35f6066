//! The shapes of what goes in and out, for TypeScript.

use wasm_bindgen::prelude::*;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
/** What an engine runs on. */
export interface DeviceReport {
  device: string;
  backend: "webgpu" | "cpu";
  /** Whether it is a software rasteriser. */
  software: boolean;
  /** Bytes of the largest buffer, where there is a limit. */
  max_buffer_bytes: number | null;
}

/** What of a run differs from the model's usual one. */
export interface Settings {
  steps?: number;
  /** "ddim", "ddpm", "dpm++2m", "euler" and what else `harmonica sample --solver` takes. */
  solver?: string;
  /** "even", "ddim", "dpm" or "flow". */
  spacing?: string;
  /** Scale of classifier-free guidance; 1 is none. */
  guidance?: number;
  /** Whether predicted clean images are clipped to [-1, 1]. */
  clip?: boolean;
}

export interface ModelInfo {
  name: string;
  parameters: number;
  /** Bytes of its weights on the device. */
  bytes: number;
  /** Names of what it draws, by class. */
  classes: string[];
  channels: number;
  /** [height, width] */
  size: [number, number];
  /** What may be reused, in the order of a schedule's cells. */
  branches: { block: number; kind: string; name: string }[];
  usual: Required<Settings>;
  /** Identity of the weights. */
  fingerprint: string;
}

/** What is computed at which step, and what that costs for one image. */
export interface Schedule {
  name: string;
  steps: number;
  branches: number;
  timesteps: number[];
  /** [step][branch] */
  computed: boolean[][];
  /** [step]: false where a forecast makes the whole step. */
  network: boolean[];
  /** Reused branch evaluations over all. */
  cur: number;
  macs: number;
  macsFull: number;
  macsRatio: number;
  cacheBytes: number;
  /** Its file: what `schedule` of a request takes, and `harmonica sample --schedule` from disk. */
  text: string;
}

export interface Step {
  step: number;
  steps: number;
  /** The first image of those that are drawn together, and how many they are. */
  first: number;
  images: number;
  /** Whether it reused: all branches by its schedule, or as was decided at the step. */
  reused: boolean;
  /** RGBA of the clean images as predicted here, with `preview`. */
  pixels?: Uint8ClampedArray[];
}

export interface SampleRequest extends Settings {
  /** A class an image. */
  classes: number[];
  seed?: number;
  /** Number of the first image: any image of a larger run can be drawn by itself. */
  first?: number;
  /** Images at a time. */
  batch?: number;
  /** "none" (the default), "fora:2", "learned:2", a name of `schedules`, or the text of a schedule file. */
  schedule?: string;
  /** Whether steps carry pictures. */
  preview?: boolean;
  signal?: AbortSignal;
}

export interface Sample {
  width: number;
  height: number;
  /** RGBA, one an image; of latents a rough preview. */
  pixels: Uint8ClampedArray[];
  /** [B, C, H, W] in [-1, 1] */
  values: Float32Array;
  seconds: number;
  stepSeconds: number[];
  macs: number;
  macsFull: number;
  cur: number;
  peakCacheBytes: number;
  /** Whether it was stopped; then it holds the images that were done. */
  cancelled: boolean;
}

export interface TrainRequest extends Settings {
  /** The wished MACs ratio, above 1. */
  speed: number;
  /** Passes down the denoising path [default: 80]. */
  iterations?: number;
  /** Images a pass [default: 4]. */
  batch?: number;
  learningRate?: number;
  seed?: number;
  signal?: AbortSignal;
}

export interface TrainProgress {
  /** Passes that are done. */
  iteration: number;
  iterations: number;
  loss: number;
  cur: number;
  macsRatio: number;
  /** The router's scores, 0 to 1, steps × branches. */
  weights: Float32Array;
  seconds: number;
}
"#;

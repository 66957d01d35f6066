//! Diffusion Transformers with learned feature caching (HarmoniCa, arXiv 2410.01723), on any vendor's GPU.
//!
//! A DiT makes an image in 10 to 50 passes through the same network, and from pass to pass most branches
//! hardly change. A *router* of one logit a step and branch learns, without any images, which attention and
//! MLP branches may be reused; a *forecast* learns at which steps the network need not run, and how to make its picture of
//! earlier ones. Both are a [`schedule::Schedule`], and the [`sampler`] does no work for what the schedule leaves out.
//!
//! # From a checkpoint to images
//!
//! ```no_run
//! use harmonica::{
//!     checkpoint::{LoadOptions, ModelSpec},
//!     device::{DeviceChoice, Engine},
//!     models::Condition,
//!     pipeline::Pipeline,
//!     sampler::{Event, Request},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::open(DeviceChoice::Auto)?.engine;
//! let pipeline = Pipeline::open(&engine, &ModelSpec::Bundled, LoadOptions::default())?;
//! let settings = pipeline.usual_settings();
//! // What was learned for this model and run: half of the work.
//! let chosen = pipeline.choose("learned:2", &settings)?;
//! let sampler = pipeline.sampler(settings, Some(chosen.reuse))?;
//! let conditions = Condition::classes(&[6, 7]);
//! let request = Request { conditions, seed: 0, first: 0, noise: None, batch: 2 };
//! // A run is an iterator that does one step a poll: stop polling to pause, drop it to cancel.
//! for event in sampler.run(request)? {
//!     match event? {
//!         Event::Step { step, .. } => println!("step {step}"),
//!         Event::Images { x0, .. } => println!("{} values in [-1, 1]", x0.len()),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Inside another program
//!
//! A host that has a wgpu device shares it: [`device::device_descriptor`] says how to make one, [`device::Engine::from_wgpu`]
//! takes it, [`device::interop`] gives results back as buffers and textures on it. [`device::DeviceFault`] is what can
//! go wrong there. Other languages come in through `capi`, the C interface of `include/harmonica.h`.
//!
//! # The rooms
//!
//! Lower rooms never import higher ones.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`graph`] | the network as pure data: the branches that may be reused, and what each costs |
//! | [`diffusion`] | noise schedule, respacing, guidance, solvers, seeded noise |
//! | [`schedule`] | the table of what is computed, its file, CUR and MACs, router logits, importers' index conversion |
//! | [`policy`] | ways to choose what to reuse, one file each |
//! | [`plan`] | the compiler: schedule and graph to ops, slots and exact figures |
//! | [`device`] | adapter choice and reports, drivers and what to install, sharing the host's device |
//! | [`kernels`] | hand-written shaders with their CPU twins; forms with gradients; a check of all on a device at hand |
//! | [`layers`] | what networks are made of beside their blocks |
//! | [`containers`] | safetensors, pickles and zip archives of named tensors |
//! | [`models`] | families of networks, their branches callable one by one; [`models::walk`] is the loop over them; [`models::text`] encodes prompts for them |
//! | [`checkpoint`] | loading published weights, pipeline folders and the hub's cache into models, writing ours |
//! | [`cache`] | the feature store: slots that a plan names |
//! | [`sampler`] | the denoising loop under a schedule |
//! | [`pipeline`] | the facade: a model on a device, schedules by name, samplers |
//! | [`ranks`] | processes that do one job together |
//! | [`files`] | files that are never half-written |
//! | [`metrics`], [`report`] | numbers about images; pictures and pages about numbers |
//! | [`training`] | [`training::router`]: SDT, IEPO, the budget; [`training::forecast`]: which steps to run, and what makes up for the others; [`training::calibration`]: what published policies want measured; [`training::network`]: a DiT from pictures; [`training::run`]: resumable runs |
//! | `cli` | the command, one file a subcommand, with the feature of that name |
//! | `capi` | the C interface of `include/harmonica.h`, with the feature of that name |
//! | `web` | the JavaScript interface of `examples/web`, with the feature of that name, in browsers |
#![deny(unsafe_code)]
// A page has no files, no threads and nothing to wait with, so what is for them alone is unused there.
#![cfg_attr(target_family = "wasm", allow(dead_code, unused_imports))]

pub mod cache;
#[cfg(feature = "capi")]
pub mod capi;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod containers;
pub mod device;
pub mod diffusion;
pub mod files;
pub mod graph;
pub mod kernels;
pub mod layers;
pub mod metrics;
pub mod models;
pub mod pipeline;
pub mod plan;
pub mod policy;
pub mod ranks;
pub mod report;
pub mod sampler;
pub mod schedule;
mod stop;
pub mod training;
#[cfg(all(feature = "web", target_family = "wasm"))]
pub mod web;
mod words;

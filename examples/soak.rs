//! Does memory stay flat, and does every run after a cancelled one or a lost device make the same images? Three
//! endurance runs on devices of this program's own, with figures; fails where an image differs.
//!
//! ```sh
//! cargo run --release --example soak                     # 1000 runs, 200 cancellations, 100 losses
//! cargo run --release --example soak -- 100 20 2
//! ```

use std::{
    error::Error,
    time::{Duration, Instant},
};

use harmonica::{
    checkpoint::random_model,
    device::{Engine, device_descriptor},
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    metrics::{peak_memory_bytes, reset_peak_memory},
    models::Condition,
    models::dit::DitConfig,
    policy::Policy,
    sampler::{Event, Request, SampleError, Sampler, Settings},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const STEPS: usize = 6;

/// A host that makes its device itself, so that it can destroy it.
struct Host {
    device: wgpu::Device,
    sampler: Sampler,
    engine: Engine,
}

impl Host {
    fn new() -> Result<Self, Box<dyn Error>> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
        let (device, queue) =
            pollster::block_on(adapter.request_device(&device_descriptor(&adapter)))?;
        let engine = Engine::from_wgpu(instance, adapter, device.clone(), queue)?;
        let config = DitConfig {
            input_size: [16, 16],
            patch: 2,
            channels: 3,
            hidden: 64,
            blocks: 3,
            heads: 2,
            classes: 4,
            learned_sigma: true,
            timestep_shift: 0,
            mlp_norm_eps: 1e-6,
        };
        let (model, info) = random_model(config.architecture()?, 1, engine.device())?;
        let settings = Settings {
            steps: STEPS,
            spacing: Spacing::Even,
            solver: Solver::ddim(0.0)?,
            guidance: Guidance::new(2.0, GuidedChannels::All)?,
            clip_x0: info.clip_x0,
        };
        let schedule = "fora:2"
            .parse::<Policy>()?
            .schedule(STEPS, &info.outline.graph)?;
        let sampler = Sampler::new(&model, settings, Some(schedule))?.with_engine(&engine);
        Ok(Self {
            device,
            sampler,
            engine,
        })
    }

    /// Without this, every device that was opened would cost memory to the end of the process.
    fn close(self) {
        drop(self.sampler);
        self.engine.close();
    }

    /// Bytes that burn holds on the device, and those of the process.
    fn memory(&self) -> Result<(u64, u64), Box<dyn Error>> {
        let usage = self.engine.device().memory_pool_usage();
        let reserved = usage
            .ok_or("the device does not tell its memory")?
            .bytes_reserved;
        // A peak that was just reset is what is resident now.
        let resident = reset_peak_memory().then(peak_memory_bytes).flatten();
        Ok((reserved, resident.unwrap_or(0)))
    }
}

fn request() -> Request {
    Request {
        conditions: Condition::classes(&[1, 2]),
        seed: 3,
        first: 0,
        noise: None,
        batch: 2,
    }
}

fn check(images: &[f32], expected: &[f32]) -> Result<(), Box<dyn Error>> {
    if images == expected {
        Ok(())
    } else {
        Err("the images are not those of the first run".into())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .map(|n| n.parse())
        .collect::<Result<_, _>>()?;
    let number = |i: usize, default: usize| numbers.get(i).copied().unwrap_or(default);
    let (runs, cancellations, losses) = (number(0, 1000), number(1, 200), number(2, 100));
    let mut random = ChaCha8Rng::seed_from_u64(0);

    let host = Host::new()?;
    println!(
        "{} ({})",
        host.engine.report().device,
        host.engine.report().backend
    );
    let expected = host.sampler.sample(request())?;

    println!("\nruns          device MB  process MB");
    let mut slowest = Duration::ZERO;
    for run in 1..=runs {
        let started = Instant::now();
        check(&host.sampler.sample(request())?, &expected)?;
        slowest = slowest.max(started.elapsed());
        if run == 10 || run.is_multiple_of(runs.div_ceil(5)) {
            print_memory(run, host.memory()?);
        }
    }

    println!("\ncancelled     device MB  process MB");
    let mut polls = 0;
    for cancelled in 1..=cancellations {
        let moment = slowest.mul_f64(random.random_range(0.0..1.0));
        let mut run = host.sampler.run(request())?;
        let started = Instant::now();
        while started.elapsed() < moment
            && let Some(event) = run.next()
        {
            event?;
            polls += 1;
        }
        drop(run);
        check(&host.sampler.sample(request())?, &expected)?;
        if cancelled == 10 || cancelled.is_multiple_of(cancellations.div_ceil(5)) {
            print_memory(cancelled, host.memory()?);
        }
    }
    println!("{polls} events were seen before the cancellations");
    host.close();

    println!("\nlost devices  device MB  process MB");
    for lost in 1..=losses {
        let host = Host::new()?;
        let sampler = host.sampler.clone().with_recovery(true);
        let mut run = sampler.run(request())?;
        for _ in 0..random.random_range(2..=STEPS) {
            run.next().transpose()?;
        }
        host.device.destroy();
        match run.find_map(Result::err) {
            Some(SampleError::Device(fault)) if fault.is_lost() => {}
            other => return Err(format!("a lost device ended the run with {other:?}").into()),
        }
        let state = run.state().ok_or("no step was finished")?.clone();
        drop((run, sampler));
        host.close();

        // Another device: the interrupted run goes on, and a fresh one is as ever.
        let next = Host::new()?;
        let resumed = next.sampler.resume(state)?;
        let images = resumed
            .map(|event| {
                event.map(|event| match event {
                    Event::Images { images, .. } => images,
                    _ => 0,
                })
            })
            .sum::<Result<usize, _>>()?;
        if images != request().conditions.len() {
            return Err(format!("the resumed run made {images} images").into());
        }
        check(&next.sampler.sample(request())?, &expected)?;
        if lost == 1 || lost.is_multiple_of(losses.div_ceil(5)) {
            print_memory(lost, next.memory()?);
        }
        next.close();
    }
    println!("\nevery image is the same as the first run's");
    Ok(())
}

fn print_memory(count: usize, (device, process): (u64, u64)) {
    println!(
        "{count:<12}  {:>9.2}  {:>10.1}",
        device as f64 / 1e6,
        process as f64 / 1e6
    );
}

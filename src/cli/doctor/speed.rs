//! How long small work takes.

use std::time::Instant;

use burn::tensor::Tensor;
use serde::Serialize;

use crate::{
    checkpoint::{LoadOptions, ModelSpec},
    device::{DeviceFault, Engine},
    kernels::{on_cpu, product},
    metrics::{max_abs_error, median},
    pipeline::Pipeline,
    sampler::Request,
};

/// Rows, depth and columns of the product.
const SIDE: usize = 512;
/// Timed products, after two that are not.
const RUNS: usize = 5;
/// Steps of the picture.
const STEPS: usize = 4;

#[derive(Debug, Serialize)]
pub(super) struct Speed {
    pub product: Product,
    /// None in builds that bring no model.
    pub picture: Option<Picture>,
}

/// A matrix product `[side, side]·[side, side]`.
#[derive(Debug, Serialize)]
pub(super) struct Product {
    pub side: usize,
    pub median_s: f64,
    pub shortest_s: f64,
    pub longest_s: f64,
}

impl Product {
    /// Multiplications and additions a second.
    pub fn macs_per_second(&self) -> f64 {
        (self.side as f64).powi(3) / self.median_s
    }
}

/// One picture of the bundled model, everything computed.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    pub steps: usize,
    /// With what happens once, such as compiling shaders.
    pub first_s: f64,
    pub second_s: f64,
    /// The largest difference to the same picture on the CPU, of values in [-1, 1]; none on the CPU.
    pub difference_to_cpu: Option<f32>,
}

impl Speed {
    /// # Errors
    /// What went wrong, in words.
    pub fn of(engine: &Engine) -> Result<Self, String> {
        let product = of_product(engine).map_err(|e| e.to_string())?;
        let picture = match cfg!(feature = "bundled") {
            true => Some(of_picture(engine)?),
            false => None,
        };
        Ok(Self { product, picture })
    }
}

fn of_product(engine: &Engine) -> Result<Product, DeviceFault> {
    let device = engine.device();
    let finish = || device.sync().map_err(|e| engine.fault_of(&e));
    let x = Tensor::<3>::ones([1, SIDE, SIDE], device);
    let weight = Tensor::<2>::ones([SIDE, SIDE], device);
    let mut seconds = Vec::new();
    for _ in 0..2 + RUNS {
        finish()?;
        let started = Instant::now();
        let made = product(x.clone(), weight.clone());
        finish()?;
        seconds.push(started.elapsed().as_secs_f64());
        drop(made);
    }
    let timed = &seconds[2..];
    Ok(Product {
        side: SIDE,
        median_s: median(timed),
        shortest_s: timed.iter().copied().fold(f64::INFINITY, f64::min),
        longest_s: timed.iter().copied().fold(0.0, f64::max),
    })
}

fn of_picture(engine: &Engine) -> Result<Picture, String> {
    let draw = |engine: &Engine| -> Result<(Vec<f32>, [f64; 2]), String> {
        let pipeline = Pipeline::open(engine, &ModelSpec::Bundled, LoadOptions::default());
        let pipeline = pipeline.map_err(|e| e.to_string())?;
        let mut settings = pipeline.usual_settings();
        settings.steps = STEPS;
        let sampler = pipeline.sampler(settings, None);
        let sampler = sampler.map_err(|e| e.to_string())?;
        let request = Request {
            conditions: pipeline.prompts.in_turn(1),
            seed: 0,
            first: 0,
            noise: None,
            batch: 1,
        };
        let mut image = Vec::new();
        let mut seconds = [0.0; 2];
        for seconds in &mut seconds {
            let started = Instant::now();
            image = sampler.sample(request.clone()).map_err(|e| e.to_string())?;
            *seconds = started.elapsed().as_secs_f64();
        }
        Ok((image, seconds))
    };
    let (image, [first_s, second_s]) = draw(engine)?;
    let difference_to_cpu = match on_cpu(engine.device()) {
        true => None,
        false => Some(max_abs_error(&image, &draw(&Engine::cpu())?.0)),
    };
    Ok(Picture {
        steps: STEPS,
        first_s,
        second_s,
        difference_to_cpu,
    })
}

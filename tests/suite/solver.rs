//! Solver steps against the release's formulas in double precision.

use burn::tensor::{Device, Tensor, TensorData};
use harmonica::{
    diffusion::{
        Guidance, Prediction, Predicts, Solver, Step, StepNoise, Trajectory,
        solvers::kept_predictions,
    },
    kernels::{Before, OutputLayout, solver_step, solver_step_of_images},
    metrics::max_abs_error,
};

use crate::common::{engines, tensor, within};

#[test]
fn every_step_of_every_solver() {
    let file = "solver.safetensors";
    let device = Device::flex();
    let all = |name: &str| tensor(file, name);
    let at = |(shape, values): &(Vec<usize>, Vec<f32>), s: usize| -> Tensor<4> {
        let size: usize = shape[1..].iter().product();
        let dims = [shape[1], shape[2], shape[3], shape[4]];
        Tensor::from_data(
            TensorData::new(values[s * size..][..size].to_vec(), dims),
            &device,
        )
    };
    let (x, out, noise) = (all("x"), all("out"), all("noise"));
    let run = Trajectory::linear(10).unwrap();
    let cases = [
        ("ddim0", Solver::ddim(0.0).unwrap(), false, true),
        ("ddim05", Solver::ddim(0.5).unwrap(), false, true),
        ("ddim0_clip", Solver::ddim(0.0).unwrap(), true, true),
        ("ddpm", Solver::Ddpm, false, true),
        ("ddpm_fixed", Solver::Ddpm, false, false),
    ];
    for (name, solver, clip, learned_sigma) in cases {
        let expected = all(name);
        let predicts = Predicts {
            prediction: Prediction::Epsilon,
            learned_sigma,
            clip,
        };
        for (s, step) in solver.steps(&run, predicts).iter().enumerate() {
            let output = if learned_sigma {
                at(&out, s)
            } else {
                at(&out, s).narrow(1, 0, 4)
            };
            let noise = Some(at(&noise, s));
            let (next, ..) = solver_step_of_images(at(&x, s), Some(output), &[], noise, step);
            let next: Vec<f32> = next.into_data().try_into_vec().unwrap();
            let expected: Vec<f32> = at(&expected, s).into_data().try_into_vec().unwrap();
            let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let error = max_abs_error(&next, &expected) / scale;
            within(format!("solver {name}, step {s}"), error, 1e-6);
        }
    }
}

/// What a network says that predicts noise, or something else, without sigma channels or clipping.
fn predicts(prediction: Prediction) -> Predicts {
    Predicts {
        prediction,
        learned_sigma: false,
        clip: false,
    }
}

/// A run from `states[0]` under fixed outputs and noise, by the composed form and by the kernel, which gets each output as if a
/// network of one-pixel patches had made it; every state within `bound` of the largest number there.
fn replay(
    name: &str,
    steps: &[Step],
    [out, noise, states]: [&[f32]; 3],
    channels: usize,
    device: &Device,
    bound: f64,
) {
    let size = channels * 16;
    let at = |values: &[f32], s: usize| -> Tensor<4> {
        let values = values[s * size..][..size].to_vec();
        Tensor::from_data(TensorData::new(values, [1, channels, 4, 4]), device)
    };
    let layout = OutputLayout {
        patch: 1,
        out_channels: channels,
        guidance: Guidance::default(),
    };
    let kept = kept_predictions(steps, |_| true);
    let (mut x, mut composed) = (at(states, 0), at(states, 0));
    let mut history = (kept > 0).then(|| Tensor::zeros([kept, channels, 4, 4], device));
    let mut earlier = Vec::new();
    for (s, step) in steps.iter().enumerate() {
        let fresh = (step.noise != StepNoise::None).then(|| at(noise, s));
        let images = at(out, s);
        let (next, _, prediction) = solver_step_of_images(
            composed,
            Some(images.clone()),
            &earlier,
            fresh.clone(),
            step,
        );
        composed = next;
        earlier.splice(0..0, prediction);
        earlier.truncate(kept);
        let patches = images.reshape([1, channels, 16]).swap_dims(1, 2);
        let before = Before {
            x,
            output: Some((patches, Tensor::zeros([channels], device))),
            history: history.take(),
            noise: fresh,
        };
        let after = solver_step(before, layout, step);
        (x, history) = (after.x, after.history);
        let expected = &states[(s + 1) * size..][..size];
        let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        for found in [&composed, &x] {
            let found: Vec<f32> = found.clone().into_data().try_into_vec().unwrap();
            let error = max_abs_error(&found, expected) / scale;
            within(format!("{name}, step {s}"), error, bound);
        }
    }
}

/// Whole runs of DPM-Solver++ (2M), whose steps look back, against diffusers' scheduler.
#[test]
fn multistep_runs_are_those_of_diffusers() {
    let file = "multistep.safetensors";
    for (device_name, engine) in engines() {
        for steps in [3, 10, 20] {
            let (_, out) = tensor(file, &format!("{steps}.out"));
            let (_, states) = tensor(file, &format!("{steps}.states"));
            let run = Trajectory::linear(steps).unwrap();
            let numbers = Solver::Dpm2m.steps(&run, predicts(Prediction::Epsilon));
            let name = format!("multistep, {steps} steps, {device_name}");
            replay(
                &name,
                &numbers,
                [&out, &[], &states],
                4,
                engine.device(),
                5e-6,
            );
        }
    }
}

/// Whole runs of diffusers' schedulers, at the timesteps that these choose or at the release's: looking back up to two steps,
/// with noise of some steps or of all, along a flow. From the first step's lower order to the last, which ends at the clean image.
#[test]
fn trajectories_are_those_of_diffusers() {
    let file = "trajectories.safetensors";
    let multistep = ["dpm++2m", "dpm++3m", "dpm++2m-sde", "sa-solver"];
    let with_euler = [&["euler"][..], &multistep].concat();
    let cases = [
        ("even", &with_euler[..], Prediction::Epsilon),
        ("dpm", &multistep[..], Prediction::Epsilon),
        ("flow", &["euler"][..], Prediction::Flow),
        ("flow:3", &["euler"][..], Prediction::Flow),
    ];
    for (device_name, engine) in engines() {
        for (spacing, solvers, prediction) in cases {
            for steps in [2, 3, 10, 20] {
                let run = Trajectory::spaced(spacing.parse().unwrap(), steps).unwrap();
                let found: Vec<f32> = run.steps().iter().map(|s| s.timestep as f32).collect();
                let (_, timesteps) = tensor(file, &format!("{spacing}.{steps}"));
                let error = max_abs_error(&found, &timesteps);
                within(format!("timesteps, {spacing}, {steps} steps"), error, 2e-4);
                let (_, out) = tensor(file, &format!("{steps}.out"));
                let (_, noise) = tensor(file, &format!("{steps}.noise"));
                for name in solvers {
                    let solver: Solver = name.parse().unwrap();
                    let numbers = solver.steps(&run, predicts(prediction));
                    let (_, states) = tensor(file, &format!("{spacing}.{name}.{steps}"));
                    replay(
                        &format!("{name}, {spacing}, {steps} steps, {device_name}"),
                        &numbers,
                        [&out, &noise, &states],
                        2,
                        engine.device(),
                        2e-5,
                    );
                }
            }
        }
    }
}

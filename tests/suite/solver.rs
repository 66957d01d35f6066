//! Solver steps against the release's formulas in double precision.

use burn::tensor::{Device, Tensor, TensorData};
use harmonica::{
    diffusion::{Guidance, Prediction, Predicts, Solver, Trajectory},
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

/// Whole runs of DPM-Solver++ (2M), whose steps look back, against diffusers' scheduler: by the composed form and by the
/// kernel, which gets each output as if a network of one-pixel patches had made it.
#[test]
fn multistep_runs_are_those_of_diffusers() {
    let file = "multistep.safetensors";
    for (device_name, engine) in engines() {
        let device = engine.device();
        for steps in [3, 10, 20] {
            let (_, out) = tensor(file, &format!("{steps}.out"));
            let (_, states) = tensor(file, &format!("{steps}.states"));
            let (out, states): (Vec<_>, Vec<_>) =
                (out.chunks(64).collect(), states.chunks(64).collect());
            let at = |values: &[f32]| -> Tensor<4> {
                Tensor::from_data(TensorData::new(values.to_vec(), [1, 4, 4, 4]), device)
            };
            let predicts = Predicts {
                prediction: Prediction::Epsilon,
                learned_sigma: false,
                clip: false,
            };
            let run = Trajectory::linear(steps).unwrap();
            let numbers = Solver::Dpm2m.steps(&run, predicts);
            let layout = OutputLayout {
                patch: 1,
                out_channels: 4,
                guidance: Guidance::default(),
            };
            let (mut x, mut history) = (at(states[0]), Some(at(&[0.0; 64])));
            let (mut composed, mut earlier) = (at(states[0]), Vec::new());
            for (s, step) in numbers.iter().enumerate() {
                let images = at(out[s]);
                let (next, _, prediction) =
                    solver_step_of_images(composed, Some(images.clone()), &earlier, None, step);
                (composed, earlier) = (next, prediction.into_iter().collect());
                let patches = images.reshape([1, 4, 16]).swap_dims(1, 2);
                let before = Before {
                    x,
                    output: Some((patches, Tensor::zeros([4], device))),
                    history: history.take(),
                    noise: None,
                };
                let after = solver_step(before, layout, step);
                (x, history) = (after.x, after.history);
                let expected = states[s + 1];
                let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                for found in [&composed, &x] {
                    let found: Vec<f32> = found.clone().into_data().try_into_vec().unwrap();
                    let error = max_abs_error(&found, expected) / scale;
                    within(
                        format!("multistep, {steps} steps, {device_name}"),
                        error,
                        5e-6,
                    );
                }
            }
        }
    }
}

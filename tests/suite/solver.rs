//! Solver steps against the release's formulas in double precision.

use burn::tensor::{Device, Tensor, TensorData};
use harmonica::{
    diffusion::{Solver, Trajectory},
    metrics::max_abs_error,
};

use crate::common::tensor;

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
        for (s, step) in run.steps().iter().enumerate() {
            let output = if learned_sigma {
                at(&out, s)
            } else {
                at(&out, s).narrow(1, 0, 4)
            };
            let next = solver
                .step(step, at(&x, s), output, clip, Some(at(&noise, s)))
                .next;
            let next: Vec<f32> = next.into_data().try_into_vec().unwrap();
            let expected: Vec<f32> = at(&expected, s).into_data().try_into_vec().unwrap();
            let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let error = max_abs_error(&next, &expected) / scale;
            assert!(error <= 2e-5, "{name}, step {s}: relative error {error}");
        }
    }
}

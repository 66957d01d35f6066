//! Solvers, one file each, none of which knows a device: a step is numbers, computed in f64 before the run, and one kernel
//! ([`crate::kernels::solver_step`]) runs them all.

mod ddim;
mod ddpm;
mod dpm;
mod dpm3m;
mod dpm_sde;
mod euler;
mod sa_solver;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{DiffusionError, StepCoefficients, Trajectory};

/// How `x_s` becomes `x_{s+1}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Solver {
    /// DDIM (arXiv 2010.02502); `eta` 0 is deterministic, 1 as noisy as DDPM.
    Ddim { eta: f64 },
    /// Ancestral DDPM sampling, with the learned-range variance where the network has one.
    Ddpm,
    /// Euler's method; what flow-matching networks (arXiv 2209.03003) are usually sampled with.
    Euler,
    /// DPM-Solver++ of second order, multistep (arXiv 2211.01095, algorithm 2).
    Dpm2m,
    /// DPM-Solver++ of third order, multistep.
    Dpm3m,
    /// SDE-DPM-Solver++ of second order, multistep: fresh noise at every step.
    Dpm2mSde,
    /// SA-Solver (arXiv 2309.05019), predictor and corrector of second order, fresh noise between timesteps 800 and 200.
    SaSolver,
}

/// Names that [`Solver`] is written and read by.
const EXPECTED: &str = "`ddim`, `ddim:ETA` (0 to 1), `ddpm`, `euler`, `dpm++2m`, `dpm++3m`, `dpm++2m-sde` or `sa-solver`";

/// Predictions of the clean image that a step may weigh: its own and those before it.
pub const PREDICTIONS: usize = 3;

/// One denoising step, as numbers.
///
/// 1. A step that runs the network predicts the clean image, `X = predict[0]·x + predict[1]·output`, clipped to [-1, 1]
///    where `clip` says so. `H_0` is the newest prediction, `H_1` the one before it.
/// 2. What is taken for the clean image is `X̂ = Σ_j estimate.predictions[j]·H_j + estimate.state·x`, clipped alike.
/// 3. `x' = update.state·x + update.predictions[0]·X̂ + Σ_{j≥1} update.predictions[j]·H_j`, and noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The time that the network is told, 0 to 1000.
    pub timestep: f64,
    pub predict: [f64; 2],
    pub clip: bool,
    pub estimate: Weights,
    pub update: Weights,
    pub noise: StepNoise,
}

/// What the state and the predictions weigh, the newest prediction first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    pub state: f64,
    pub predictions: [f64; PREDICTIONS],
}

/// Fresh noise of a step, N(0, 1) times this deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StepNoise {
    None,
    Deviation(f64),
    /// Between two log variances, as the network's sigma channels say in [-1, 1] (arXiv 2102.09672, eq. 15).
    Learned {
        log_variances: [f64; 2],
    },
}

/// What a network was trained to predict of `x = √ᾱ·x_0 + √(1−ᾱ)·ε`, or of a flow's `x = (1−σ)·x_0 + σ·ε`; files name it as diffusers does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise `ε`.
    #[default]
    Epsilon,
    /// `√ᾱ·ε − √(1−ᾱ)·x_0` (arXiv 2202.00512).
    #[serde(rename = "v_prediction")]
    Velocity,
    /// The clean image `x_0`.
    Sample,
    /// The flow's direction `ε − x_0` (arXiv 2209.03003, towards noise).
    Flow,
}

/// What a step needs to know of the network's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predicts {
    pub prediction: Prediction,
    /// Whether sigma channels follow those of the prediction.
    pub learned_sigma: bool,
    /// Whether the clean image lies in [-1, 1] and is clipped to it.
    pub clip: bool,
}

impl Weights {
    /// The newest prediction alone.
    pub const NEWEST: Self = Self {
        state: 0.0,
        predictions: [1.0, 0.0, 0.0],
    };

    /// How many of the newest predictions carry weight.
    pub fn depth(&self) -> usize {
        let last = self.predictions.iter().rposition(|w| *w != 0.0);
        last.map_or(0, |last| last + 1)
    }
}

impl Step {
    /// Predictions of earlier steps that this one reads, where it runs the network or does not.
    pub fn earlier_predictions(&self, runs_network: bool) -> usize {
        let depth = self.estimate.depth().max(self.update.depth());
        depth.saturating_sub(usize::from(runs_network))
    }
}

impl StepNoise {
    /// With `factor` times the deviation.
    fn times(self, factor: f64) -> Self {
        match self {
            Self::None => Self::None,
            Self::Deviation(deviation) => Self::Deviation(deviation * factor),
            Self::Learned { log_variances } => Self::Learned {
                log_variances: log_variances.map(|v| v + 2.0 * factor.ln()),
            },
        }
    }

    /// That of a step that runs no network: where the network would say the deviation, the larger one it could say.
    pub fn without_network(self) -> Self {
        match self {
            Self::Learned {
                log_variances: [_, high],
            } => Self::Deviation((0.5 * high).exp()),
            other => other,
        }
    }
}

/// Earlier predictions that some step of a run reads; `runs_network` of a step's number.
pub fn kept_predictions(steps: &[Step], runs_network: impl Fn(usize) -> bool) -> usize {
    let steps = steps.iter().enumerate();
    let earlier = steps.map(|(s, step)| step.earlier_predictions(runs_network(s)));
    earlier.max().unwrap_or(0)
}

impl Prediction {
    /// What the state and the output weigh in the clean image, at a step where image and noise weigh so much in the state.
    fn weights(self, [signal, spread]: [f64; 2]) -> [f64; 2] {
        match self {
            Self::Epsilon => [1.0 / signal, -spread / signal],
            Self::Velocity => [signal, -spread],
            Self::Sample => [0.0, 1.0],
            Self::Flow => [1.0 / (signal + spread), -spread / (signal + spread)],
        }
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epsilon => "noise",
            Self::Velocity => "a velocity",
            Self::Sample => "clean images",
            Self::Flow => "a flow",
        })
    }
}

impl Solver {
    /// # Errors
    /// [`DiffusionError::Eta`] unless `0 ≤ eta ≤ 1`.
    pub fn ddim(eta: f64) -> Result<Self, DiffusionError> {
        if (0.0..=1.0).contains(&eta) {
            Ok(Self::Ddim { eta })
        } else {
            Err(DiffusionError::Eta { eta })
        }
    }

    /// Whether steps take fresh noise.
    pub fn is_stochastic(&self) -> bool {
        match self {
            Self::Ddim { eta } => *eta != 0.0,
            Self::Ddpm | Self::Dpm2mSde | Self::SaSolver => true,
            Self::Euler | Self::Dpm2m | Self::Dpm3m => false,
        }
    }

    /// The numbers of every step of a run.
    pub fn steps(&self, trajectory: &Trajectory, predicts: Predicts) -> Vec<Step> {
        let points = trajectory.steps();
        let step = |(s, point): (usize, &StepCoefficients)| {
            let (update, noise) = match *self {
                Self::Ddim { eta } => ddim::update(point, eta),
                Self::Ddpm => ddpm::update(point, predicts.learned_sigma),
                Self::Euler => (euler::update(point), StepNoise::None),
                Self::Dpm2m => (dpm::update(points, s), StepNoise::None),
                Self::Dpm3m => (dpm3m::update(points, s), StepNoise::None),
                Self::Dpm2mSde => dpm_sde::update(points, s),
                Self::SaSolver => sa_solver::update(points, s),
            };
            let weighed = point.signal_and_spread().map(|w| w * point.norm);
            Step {
                timestep: point.timestep,
                predict: predicts.prediction.weights(weighed),
                clip: predicts.clip,
                estimate: Weights::NEWEST,
                update: Weights {
                    state: update.state * point.norm_prev / point.norm,
                    predictions: update.predictions.map(|w| w * point.norm_prev),
                },
                noise: match point.last {
                    true => StepNoise::None,
                    false => noise.times(point.norm_prev),
                },
            }
        };
        points.iter().enumerate().map(step).collect()
    }
}

impl FromStr for Solver {
    type Err = DiffusionError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || DiffusionError::UnknownSolver {
            name: name.into(),
            expected: EXPECTED,
        };
        match name.split_once(':') {
            None if name == "ddim" => Ok(Self::Ddim { eta: 0.0 }),
            None if name == "ddpm" => Ok(Self::Ddpm),
            None if name == "euler" => Ok(Self::Euler),
            None if ["dpm++2m", "dpm++", "dpmpp-2m"].contains(&name) => Ok(Self::Dpm2m),
            None if ["dpm++3m", "dpmpp-3m"].contains(&name) => Ok(Self::Dpm3m),
            None if ["dpm++2m-sde", "dpmpp-2m-sde"].contains(&name) => Ok(Self::Dpm2mSde),
            None if name == "sa-solver" => Ok(Self::SaSolver),
            Some(("ddim", eta)) => Self::ddim(eta.parse().map_err(|_| unknown())?),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for Solver {
    type Error = DiffusionError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Solver> for String {
    fn from(solver: Solver) -> Self {
        solver.to_string()
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ddim { eta } if *eta == 0.0 => f.write_str("ddim"),
            Self::Ddim { eta } => write!(f, "ddim:{eta}"),
            Self::Ddpm => f.write_str("ddpm"),
            Self::Euler => f.write_str("euler"),
            Self::Dpm2m => f.write_str("dpm++2m"),
            Self::Dpm3m => f.write_str("dpm++3m"),
            Self::Dpm2mSde => f.write_str("dpm++2m-sde"),
            Self::SaSolver => f.write_str("sa-solver"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Spacing;

    const NAMES: [&str; 8] = [
        "ddim",
        "ddim:0.5",
        "ddpm",
        "euler",
        "dpm++2m",
        "dpm++3m",
        "dpm++2m-sde",
        "sa-solver",
    ];

    const EPSILON: Predicts = Predicts {
        prediction: Prediction::Epsilon,
        learned_sigma: true,
        clip: false,
    };

    #[test]
    fn names_round_trip() {
        for name in NAMES {
            assert_eq!(name.parse::<Solver>().unwrap().to_string(), name);
        }
        for name in ["", "heun", "ddim:2", "ddim:x", "ddpm:1"] {
            assert!(name.parse::<Solver>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_clean_network_ends_at_the_image_it_predicts() {
        let spacings = [Spacing::Even, Spacing::Dpm, Spacing::Flow { shift: 3.0 }];
        for (name, spacing) in NAMES.into_iter().flat_map(|n| spacings.map(|s| (n, s))) {
            let solver: Solver = name.parse().unwrap();
            let run = Trajectory::spaced(spacing, 7).unwrap();
            let last = *solver.steps(&run, EPSILON).last().unwrap();
            assert_eq!(last.update.depth(), 1, "{name}");
            let w = last.update.predictions[0];
            assert!((w - 1.0).abs() < 1e-12, "{name}: {w}");
            assert_eq!(last.update.state.abs(), 0.0, "{name}");
            assert_eq!(last.noise, StepNoise::None);
        }
    }

    /// Whatever the number of steps, and where a run begins at nothing but noise, which has no logarithm of its signal.
    #[test]
    fn all_numbers_are_finite() {
        let spacings = [Spacing::Even, Spacing::Dpm, Spacing::Flow { shift: 3.0 }];
        for (name, spacing) in NAMES.into_iter().flat_map(|n| spacings.map(|s| (n, s))) {
            let solver: Solver = name.parse().unwrap();
            let predicts = Predicts {
                prediction: match spacing {
                    Spacing::Flow { .. } => Prediction::Flow,
                    _ => Prediction::Epsilon,
                },
                learned_sigma: false,
                clip: false,
            };
            for steps in [1, 2, 3, 4, 14, 15, 50] {
                let run = Trajectory::spaced(spacing, steps).unwrap();
                for step in solver.steps(&run, predicts) {
                    let Weights { state, predictions } = step.update;
                    let numbers = [step.predict.to_vec(), predictions.to_vec(), vec![state]];
                    let finite = numbers.concat().iter().all(|v| v.is_finite());
                    let deviation = match step.noise {
                        StepNoise::Deviation(deviation) => deviation,
                        _ => 0.0,
                    };
                    assert!(finite && deviation.is_finite(), "{name}: {step:?}");
                }
            }
        }
    }

    /// Euler's step over noise levels is DDIM's without noise, and along a straight path a step along the network's output.
    #[test]
    fn euler_follows_the_path() {
        let steps = |solver: Solver| solver.steps(&Trajectory::linear(6).unwrap(), EPSILON);
        let ddim = steps(Solver::Ddim { eta: 0.0 });
        for (a, b) in steps(Solver::Euler).iter().zip(&ddim) {
            let weights = |step: &Step| [step.update.state, step.update.predictions[0]];
            for (a, b) in weights(a).into_iter().zip(weights(b)) {
                assert!((a - b).abs() < 1e-12, "{a} {b}");
            }
        }
        let flow = Predicts {
            prediction: Prediction::Flow,
            ..EPSILON
        };
        let run = Trajectory::spaced(Spacing::Flow { shift: 3.0 }, 6).unwrap();
        let steps = Solver::Euler.steps(&run, flow);
        let (x, output) = (0.4, -0.9);
        for (s, step) in steps.iter().enumerate() {
            let [of_state, of_output] = step.predict;
            let clean = of_state * x + of_output * output;
            let found = step.update.state * x + step.update.predictions[0] * clean;
            let next = steps.get(s + 1).map_or(0.0, |next| next.timestep);
            let expected = x + (next - step.timestep) / 1000.0 * output;
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn sa_solver_adds_noise_in_the_middle_of_a_run() {
        let run = Trajectory::linear(6).unwrap();
        let noisy = |step: &Step| step.noise != StepNoise::None;
        let steps = Solver::SaSolver.steps(&run, EPSILON);
        // Timesteps 999, 799, 599, 400, 200, 0.
        let expected = [false, true, true, true, true, false];
        assert_eq!(steps.iter().map(noisy).collect::<Vec<_>>(), expected);
    }

    /// Whatever a network predicts, it predicts the same image.
    #[test]
    fn prediction_types_agree() {
        let (clean, noise) = (0.7, -1.3);
        for point in Trajectory::linear(9).unwrap().steps() {
            let [signal, spread] = point.signal_and_spread();
            let x = signal * clean + spread * noise;
            for (prediction, output) in [
                (Prediction::Epsilon, noise),
                (Prediction::Velocity, signal * noise - spread * clean),
                (Prediction::Sample, clean),
                (Prediction::Flow, noise - clean),
            ] {
                let [state, weight] = prediction.weights([signal, spread]);
                let found = state * x + weight * output;
                assert!((found - clean).abs() < 1e-12, "{prediction:?}: {found}");
            }
        }
    }

    #[test]
    fn only_a_multistep_solver_looks_back() {
        let run = Trajectory::linear(20).unwrap();
        let earlier = |solver: Solver| -> Vec<usize> {
            let steps = solver.steps(&run, EPSILON);
            steps.iter().map(|s| s.earlier_predictions(true)).collect()
        };
        assert_eq!(earlier(Solver::Ddim { eta: 0.5 }), vec![0; 20]);
        assert_eq!(earlier(Solver::Ddpm), vec![0; 20]);
        let mut second_order = vec![1; 20];
        (second_order[0], second_order[19]) = (0, 0);
        assert_eq!(earlier(Solver::Euler), vec![0; 20]);
        assert_eq!(earlier(Solver::Dpm2m), second_order);
        assert_eq!(earlier(Solver::Dpm2mSde), second_order);
        let mut third_order = vec![2; 20];
        (third_order[0], third_order[1], third_order[19]) = (0, 1, 0);
        assert_eq!(earlier(Solver::Dpm3m), third_order);
        assert_eq!(earlier(Solver::SaSolver), third_order);
    }
}

//! Runs through a noise schedule, and along a flow's straight path.

use std::{fmt, str::FromStr};

use super::{DiffusionError, NoiseSchedule, Prediction};

/// Number of timesteps the networks are trained with, so the longest possible run.
pub const MAX_STEPS: usize = 1000;

/// Names that [`Spacing`] is written and read by.
const EXPECTED: &str = "`even`, `ddim`, `dpm`, `flow` or `flow:SHIFT` (above 0)";

/// Where the `T` steps of a run lie among the times that the network was trained at.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Spacing {
    /// Evenly from timestep 999 to 0, both included: what the DiT release's `timestep_respacing` makes of `T`. A single step
    /// starts at 999.
    #[default]
    Even,
    /// Multiples of the smallest whole stride that makes `T` of them below 1000: what it makes of `ddimT`.
    Ddim,
    /// `T + 1` evenly from 999 to 0 without that 0, so that no step is spent on nearly clean images: how DPM-Solver++ runs PixArt.
    Dpm,
    /// For networks that predict a flow: `σ` evenly from 1 to the least that was trained, a thousandth, then moved towards noise,
    /// `shift·σ / (1 + (shift − 1)·σ)` (arXiv 2403.03206, eq. 23); the network is told 1000·σ. The thousandth is moved before as
    /// well, as in diffusers.
    Flow { shift: f64 },
}

impl Spacing {
    /// # Errors
    /// [`DiffusionError::Shift`] unless `shift` is a finite number above 0.
    pub fn flow(shift: f64) -> Result<Self, DiffusionError> {
        if shift.is_finite() && shift > 0.0 {
            Ok(Self::Flow { shift })
        } else {
            Err(DiffusionError::Shift { shift })
        }
    }

    /// What networks are sampled with that predict this, unless told otherwise.
    pub fn usual(prediction: Prediction) -> Self {
        match prediction {
            Prediction::Flow => Self::Flow { shift: 1.0 },
            _ => Self::Even,
        }
    }

    /// Whether it goes the way from noise that networks are trained on which predict this.
    ///
    /// # Errors
    /// [`DiffusionError::Path`].
    pub(crate) fn check(self, prediction: Prediction) -> Result<(), DiffusionError> {
        let straight = matches!(self, Self::Flow { .. });
        match straight == (prediction == Prediction::Flow) {
            true => Ok(()),
            false => Err(DiffusionError::Path {
                spacing: self,
                prediction,
            }),
        }
    }
}

impl FromStr for Spacing {
    type Err = DiffusionError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || DiffusionError::UnknownSpacing {
            name: name.into(),
            expected: EXPECTED,
        };
        match name.split_once(':') {
            None if name == "even" => Ok(Self::Even),
            None if name == "ddim" => Ok(Self::Ddim),
            None if name == "dpm" => Ok(Self::Dpm),
            None if name == "flow" => Ok(Self::Flow { shift: 1.0 }),
            Some(("flow", shift)) => Self::flow(shift.parse().map_err(|_| unknown())?),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Even => f.write_str("even"),
            Self::Ddim => f.write_str("ddim"),
            Self::Dpm => f.write_str("dpm"),
            Self::Flow { shift } if *shift == 1.0 => f.write_str("flow"),
            Self::Flow { shift } => write!(f, "flow:{shift}"),
        }
    }
}

/// Everything a solver needs to know about one denoising step.
///
/// Solvers see a state that keeps its variance, `√ᾱ·x_0 + √(1−ᾱ)·ε`. What the network sees is `norm` times that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCoefficients {
    /// The time that the network is told: the training timestep (0…999), or `1000·σ` of a flow.
    pub timestep: f64,
    /// `ᾱ_t`, the share of signal in `x_t`.
    pub alpha_bar: f64,
    /// `ᾱ` of the step that follows in execution order (less noise); 1 after the last step.
    pub alpha_bar_prev: f64,
    /// 1, and of a flow's `(1−σ)·x_0 + σ·ε` what that is times the state that keeps its variance.
    pub norm: f64,
    /// The same of the step that follows.
    pub norm_prev: f64,
    /// Log of the respaced posterior variance `β̃`, clipped at the last step as the release does.
    pub posterior_log_variance: f64,
    /// Log of the respaced `β`.
    pub log_beta: f64,
    /// Log variance used by DDPM when the network learns none ("fixed large").
    pub fixed_log_variance: f64,
    /// Whether this is the last step: no noise is added after it.
    pub last: bool,
}

impl StepCoefficients {
    /// The respaced `β = 1 − ᾱ_t / ᾱ_prev`.
    pub fn beta(&self) -> f64 {
        1.0 - self.alpha_bar / self.alpha_bar_prev
    }

    /// `√ᾱ` and `√(1−ᾱ)`: what the clean image and the noise weigh in the state.
    pub fn signal_and_spread(&self) -> [f64; 2] {
        signal_and_spread(self.alpha_bar)
    }

    /// The same of the step that follows.
    pub fn next_signal_and_spread(&self) -> [f64; 2] {
        signal_and_spread(self.alpha_bar_prev)
    }

    /// What the state and the clean image `X` weigh in `√ᾱ'·X + √(1−ᾱ')·ε`, with `ε = (x − √ᾱ·X) / √(1−ᾱ)`: every deterministic solver's
    /// first order.
    pub(super) fn first_order(&self) -> [f64; 2] {
        let [signal, spread] = self.signal_and_spread();
        let [next_signal, next_spread] = self.next_signal_and_spread();
        [
            next_spread / spread,
            next_signal - next_spread * signal / spread,
        ]
    }

    /// `h = λ' − λ` with `λ = ln(√ᾱ / √(1−ᾱ))`; infinite at the last step, and at one that starts from nothing but noise.
    pub(super) fn log_snr_step(&self) -> f64 {
        let half_log_snr = |[signal, spread]: [f64; 2]| (signal / spread).ln();
        half_log_snr(self.next_signal_and_spread()) - half_log_snr(self.signal_and_spread())
    }

    /// `e^−h`, by a formula that gives 0 where `h` is infinite.
    pub(super) fn decay(&self) -> f64 {
        let [signal, spread] = self.signal_and_spread();
        let [next_signal, next_spread] = self.next_signal_and_spread();
        next_spread * signal / (spread * next_signal)
    }
}

fn signal_and_spread(alpha_bar: f64) -> [f64; 2] {
    [alpha_bar.sqrt(), (1.0 - alpha_bar).max(0.0).sqrt()]
}

/// A respaced denoising run: the steps in execution order, `s = 0` the noisiest.
#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    steps: Vec<StepCoefficients>,
}

/// Where a step begins.
struct Level {
    timestep: f64,
    alpha_bar: f64,
    norm: f64,
}

impl Trajectory {
    /// [`Spacing::Even`].
    ///
    /// # Errors
    /// [`DiffusionError::Steps`] unless `1 ≤ steps ≤ 1000`.
    pub fn linear(steps: usize) -> Result<Self, DiffusionError> {
        Self::spaced(Spacing::Even, steps)
    }

    /// The run through the release's linear noise schedule, as [`Self::through`].
    ///
    /// # Errors
    /// As [`Self::through`].
    pub fn spaced(spacing: Spacing, steps: usize) -> Result<Self, DiffusionError> {
        Self::through(&NoiseSchedule::default(), spacing, steps)
    }

    /// `T = steps` steps, spaced so; a flow knows no noise schedule.
    ///
    /// # Errors
    /// [`DiffusionError::Steps`] unless `1 ≤ steps ≤ 1000`, [`DiffusionError::Spacing`] for as many as cannot be spaced so.
    pub fn through(
        noise: &NoiseSchedule,
        spacing: Spacing,
        steps: usize,
    ) -> Result<Self, DiffusionError> {
        if steps == 0 || steps > MAX_STEPS {
            return Err(DiffusionError::Steps { steps });
        }
        let timesteps = match spacing {
            Spacing::Even => even(steps),
            Spacing::Ddim => ddim(steps)?,
            Spacing::Dpm => dpm(steps)?,
            Spacing::Flow { shift } => return Ok(Self::of_levels(&flow(steps, shift))),
        };
        let alpha_bar = noise.alpha_bars();
        let level = |&timestep: &usize| Level {
            timestep: timestep as f64,
            alpha_bar: alpha_bar[timestep],
            norm: 1.0,
        };
        let levels: Vec<Level> = timesteps.iter().rev().map(level).collect();
        Ok(Self::of_levels(&levels))
    }

    /// A step from each level to the next, and from the last to the clean image.
    fn of_levels(levels: &[Level]) -> Self {
        let next = |s: usize| levels.get(s + 1).map_or(1.0, |level| level.alpha_bar);
        let beta = |s: usize| 1.0 - levels[s].alpha_bar / next(s);
        let posterior = |s: usize| beta(s) * (1.0 - next(s)) / (1.0 - levels[s].alpha_bar);
        let last = levels.len() - 1;
        // The posterior variance of the last step is 0; the release puts its neighbour's there.
        let neighbour = last.saturating_sub(1);
        let step = |(s, level): (usize, &Level)| {
            let posterior_log_variance = posterior(s.min(neighbour)).max(1e-20).ln();
            StepCoefficients {
                timestep: level.timestep,
                alpha_bar: level.alpha_bar,
                alpha_bar_prev: next(s),
                norm: level.norm,
                norm_prev: levels.get(s + 1).map_or(1.0, |level| level.norm),
                posterior_log_variance,
                log_beta: beta(s).ln(),
                fixed_log_variance: match s == last {
                    true => posterior_log_variance,
                    false => beta(s).ln(),
                },
                last: s == last,
            }
        };
        Self {
            steps: levels.iter().enumerate().map(step).collect(),
        }
    }

    /// The steps in execution order.
    pub fn steps(&self) -> &[StepCoefficients] {
        &self.steps
    }

    /// `T`, the number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Never true: a trajectory has at least one step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Training timesteps in execution order (descending), the nearest ones where a flow is told others.
    pub fn timesteps(&self) -> Vec<usize> {
        let nearest = |s: &StepCoefficients| s.timestep.round() as usize;
        self.steps.iter().map(nearest).collect()
    }
}

/// Ascending, as are the following ones.
fn even(steps: usize) -> Vec<usize> {
    let last = (MAX_STEPS - 1) as f64;
    if steps == 1 {
        return vec![MAX_STEPS - 1];
    }
    let stride = last / (steps - 1) as f64;
    // Summed up as in the release, since rounding errors decide where ties go.
    let positions = std::iter::successors(Some(0.0f64), |position| Some(position + stride));
    let timesteps = positions.map(|position| position.round_ties_even() as usize);
    timesteps.take(steps).collect()
}

fn ddim(steps: usize) -> Result<Vec<usize>, DiffusionError> {
    let stride = MAX_STEPS.div_ceil(steps).min(MAX_STEPS - 1);
    let found = MAX_STEPS.div_ceil(stride);
    match found == steps {
        true => Ok((0..MAX_STEPS).step_by(stride).collect()),
        false => Err(DiffusionError::Spacing {
            spacing: Spacing::Ddim,
            steps,
            expected: format!("as many as a whole stride makes of {MAX_STEPS}, such as {found}"),
        }),
    }
}

fn dpm(steps: usize) -> Result<Vec<usize>, DiffusionError> {
    if steps == MAX_STEPS {
        return Err(DiffusionError::Spacing {
            spacing: Spacing::Dpm,
            steps,
            expected: format!("at most {}", MAX_STEPS - 1),
        });
    }
    let stride = (MAX_STEPS - 1) as f64 / steps as f64;
    let timestep = |k: usize| (k as f64 * stride).round_ties_even() as usize;
    Ok((1..=steps).map(timestep).collect())
}

/// In execution order.
fn flow(steps: usize, shift: f64) -> Vec<Level> {
    let shifted = |sigma: f64| shift * sigma / (1.0 + (shift - 1.0) * sigma);
    let lowest = shifted(1.0 / MAX_STEPS as f64);
    let level = |k: usize| {
        let share = k as f64 / (steps.max(2) - 1) as f64;
        let sigma = shifted(1.0 + (lowest - 1.0) * share);
        let norm = (1.0 - sigma).hypot(sigma);
        Level {
            timestep: MAX_STEPS as f64 * sigma,
            alpha_bar: ((1.0 - sigma) / norm).powi(2),
            norm,
        }
    };
    (0..steps).map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_steps_are_multiples_of_111() {
        let run = Trajectory::linear(10).unwrap();
        assert_eq!(
            run.timesteps(),
            (0..10).rev().map(|k| k * 111).collect::<Vec<_>>()
        );
    }

    #[test]
    fn ties_round_to_even_as_python_does() {
        // 7 steps are 166.5 apart: Python's round(166.5) is 166.
        assert_eq!(
            Trajectory::linear(7).unwrap().timesteps(),
            vec![999, 832, 666, 500, 333, 166, 0]
        );
    }

    #[test]
    fn all_steps_and_one_step() {
        let all = Trajectory::linear(1000).unwrap();
        assert_eq!(all.timesteps(), (0..1000).rev().collect::<Vec<_>>());
        assert!((all.steps()[0].beta() - 0.02).abs() < 1e-12);
        assert!((all.steps()[999].beta() - 1e-4).abs() < 1e-12);
        let one = Trajectory::linear(1).unwrap();
        assert_eq!(one.timesteps(), vec![999]);
        assert!(one.steps()[0].last && one.steps()[0].posterior_log_variance.is_finite());
    }

    #[test]
    fn impossible_step_counts_are_refused() {
        for steps in [0, 1001] {
            assert_eq!(
                Trajectory::linear(steps),
                Err(DiffusionError::Steps { steps })
            );
        }
    }

    #[test]
    fn names_of_spacings_round_trip() {
        for name in ["even", "ddim", "dpm", "flow", "flow:3"] {
            assert_eq!(name.parse::<Spacing>().unwrap().to_string(), name);
        }
        for name in [
            "", "linear", "even:2", "flow:0", "flow:x", "flow:inf", "flow:NaN",
        ] {
            assert!(name.parse::<Spacing>().is_err(), "{name}");
        }
    }

    /// Python adds 49.95 up ten times and finds less than 499.5.
    #[test]
    fn ties_are_met_as_the_release_meets_them() {
        let run = Trajectory::linear(21).unwrap();
        assert_eq!(run.timesteps()[10], 499);
        assert_eq!((run.timesteps()[0], run.timesteps()[20]), (999, 0));
    }

    #[test]
    fn ddim_takes_whole_strides() {
        let timesteps = |steps| Trajectory::spaced(Spacing::Ddim, steps).map(|run| run.timesteps());
        let multiples = |stride: usize, count: usize| -> Vec<usize> {
            (0..count).rev().map(|k| k * stride).collect()
        };
        for (steps, stride) in [(2, 500), (10, 100), (25, 40), (50, 20), (250, 4), (1000, 1)] {
            assert_eq!(timesteps(steps), Ok(multiples(stride, steps)));
        }
        // 334 by threes.
        assert_eq!(timesteps(334).unwrap()[..2], [999, 996]);
        let refused = timesteps(300).unwrap_err().to_string();
        assert!(refused.ends_with("such as 250"), "{refused}");
        assert!(timesteps(1).is_err());
    }

    #[test]
    fn dpm_spends_no_step_on_timestep_0() {
        let timesteps = |steps| Trajectory::spaced(Spacing::Dpm, steps).map(|run| run.timesteps());
        assert_eq!(timesteps(4), Ok(vec![999, 749, 500, 250]));
        assert_eq!(timesteps(1), Ok(vec![999]));
        assert_eq!(timesteps(999), Ok((1..=999).rev().collect()));
        assert!(timesteps(1000).is_err());
    }

    /// `(1 − σ)·x_0 + σ·ε` at every step, whatever the scale that solvers work at.
    #[test]
    fn a_flow_goes_straight() {
        for shift in [1.0, 3.0] {
            let run = Trajectory::spaced(Spacing::Flow { shift }, 8).unwrap();
            for (s, point) in run.steps().iter().enumerate() {
                let [signal, spread] = point.signal_and_spread().map(|w| w * point.norm);
                assert!((signal + spread - 1.0).abs() < 1e-12);
                assert!((spread - point.timestep / 1000.0).abs() < 1e-12);
                let next = run.steps().get(s + 1);
                let [norm, share] = next.map_or([1.0; 2], |next| [next.norm, next.alpha_bar]);
                assert_eq!((point.norm_prev, point.alpha_bar_prev), (norm, share));
            }
            assert_eq!(run.steps()[0].timestep, 1000.0);
            assert_eq!(run.steps()[0].alpha_bar, 0.0);
        }
        let middle = Trajectory::spaced(Spacing::Flow { shift: 3.0 }, 3)
            .unwrap()
            .steps()[1];
        // Half way from 1 to 3/1002 is 335/668.
        let half = 335.0 / 668.0;
        let expected = 3.0 * half / (1.0 + 2.0 * half);
        assert!((middle.timestep / 1000.0 - expected).abs() < 1e-12);
    }
}

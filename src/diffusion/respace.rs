//! The evenly respaced run through a noise schedule.

use super::{DiffusionError, NoiseSchedule};

/// Number of timesteps the networks are trained with, so the longest possible run.
pub const MAX_STEPS: usize = 1000;

/// Everything a solver needs to know about one denoising step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCoefficients {
    /// The training timestep `t` (0…999) this step stands for.
    pub timestep: usize,
    /// `ᾱ_t`, the share of signal in `x_t`.
    pub alpha_bar: f64,
    /// `ᾱ` of the step that follows in execution order (less noise); 1 after the last step.
    pub alpha_bar_prev: f64,
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
}

fn signal_and_spread(alpha_bar: f64) -> [f64; 2] {
    [alpha_bar.sqrt(), (1.0 - alpha_bar).max(0.0).sqrt()]
}

/// A respaced denoising run: the steps in execution order, `s = 0` the noisiest.
#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    steps: Vec<StepCoefficients>,
}

impl Trajectory {
    /// The run through the release's linear noise schedule, as [`Self::through`].
    ///
    /// # Errors
    /// [`DiffusionError::Steps`] unless `1 ≤ steps ≤ 1000`.
    pub fn linear(steps: usize) -> Result<Self, DiffusionError> {
        Self::through(&NoiseSchedule::default(), steps)
    }

    /// `T = steps` evenly spaced timesteps `round(k·999/(T−1))`, first and last included
    /// (ties to even, as in the Python release). A single step starts at the noisiest timestep.
    ///
    /// # Errors
    /// [`DiffusionError::Steps`] unless `1 ≤ steps ≤ 1000`.
    pub fn through(noise: &NoiseSchedule, steps: usize) -> Result<Self, DiffusionError> {
        if steps == 0 || steps > MAX_STEPS {
            return Err(DiffusionError::Steps { steps });
        }
        let alpha_bar = noise.alpha_bars();
        let ascending: Vec<usize> = if steps == 1 {
            vec![MAX_STEPS - 1]
        } else {
            (0..steps)
                .map(|k| {
                    let position = (k * (MAX_STEPS - 1)) as f64 / (steps - 1) as f64;
                    position.round_ties_even() as usize
                })
                .collect()
        };
        let previous = |i: usize| {
            if i == 0 {
                1.0
            } else {
                alpha_bar[ascending[i - 1]]
            }
        };
        let beta = |i: usize| 1.0 - alpha_bar[ascending[i]] / previous(i);
        let posterior = |i: usize| beta(i) * (1.0 - previous(i)) / (1.0 - alpha_bar[ascending[i]]);
        // The posterior variance of the last executed step is 0; the release puts its neighbour's there.
        let second = 1.min(steps - 1);
        let steps = (0..steps)
            .rev()
            .map(|i| StepCoefficients {
                timestep: ascending[i],
                alpha_bar: alpha_bar[ascending[i]],
                alpha_bar_prev: previous(i),
                posterior_log_variance: posterior(i.max(second)).max(1e-20).ln(),
                log_beta: beta(i).ln(),
                fixed_log_variance: if i == 0 {
                    posterior(second).max(1e-20).ln()
                } else {
                    beta(i).ln()
                },
                last: i == 0,
            })
            .collect();
        Ok(Self { steps })
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

    /// Training timesteps in execution order (descending).
    pub fn timesteps(&self) -> Vec<usize> {
        self.steps.iter().map(|s| s.timestep).collect()
    }
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
}

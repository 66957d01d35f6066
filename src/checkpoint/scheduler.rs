//! What a diffusers `scheduler_config.json` says of the network beside it.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    containers::{CheckpointError, read_json},
    diffusion::{BetaCurve, MAX_STEPS, NoiseSchedule, Prediction, Process, Solver},
};

/// The noise that a network was trained on, and how its pictures are usually drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// diffusers' class, such as `DDIMScheduler`.
    pub class: String,
    pub process: Process,
    /// Whether the predicted `x_0` is clipped to [-1, 1].
    pub clip_x0: bool,
    /// The solver of the class, where there is one here.
    pub solver: Option<Solver>,
    /// What the file asks for and runs here do otherwise, a sentence each. None of it changes what the network was trained on.
    pub notes: Vec<String>,
}

/// Classes by their solvers.
const SOLVERS: [(&str, Solver); 5] = [
    ("DDIMScheduler", Solver::Ddim { eta: 0.0 }),
    ("DDPMScheduler", Solver::Ddpm),
    ("DPMSolverMultistepScheduler", Solver::Dpm2m),
    ("EulerDiscreteScheduler", Solver::Euler),
    ("SASolverScheduler", Solver::SaSolver),
];

/// Classes that describe noise in the same words, but whose solvers are not here.
const OTHER_SOLVERS: [&str; 8] = [
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
];

/// Keys that change the noise itself, with the only value that is understood.
fn required() -> [(&'static str, Value); 4] {
    [
        ("num_train_timesteps", json!(MAX_STEPS)),
        ("trained_betas", Value::Null),
        ("rescale_betas_zero_snr", json!(false)),
        ("use_flow_sigmas", json!(false)),
    ]
}

/// Keys that change how a run goes through it, with what runs here do.
fn preferred() -> [(&'static str, Value); 12] {
    [
        ("timestep_spacing", json!("linspace")),
        ("set_alpha_to_one", json!(true)),
        ("thresholding", json!(false)),
        ("use_karras_sigmas", json!(false)),
        ("use_exponential_sigmas", json!(false)),
        ("use_beta_sigmas", json!(false)),
        ("use_lu_lambdas", json!(false)),
        ("algorithm_type", json!("dpmsolver++")),
        ("solver_order", json!(2)),
        ("solver_type", json!("midpoint")),
        ("lower_order_final", json!(true)),
        ("final_sigmas_type", json!("zero")),
    ]
}

impl SchedulerConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`CheckpointError`]: unreadable, no JSON, or noise that is not understood; the text names the key.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let json = read_json(path)?;
        Self::parse(&json).map_err(|problem| CheckpointError::Config {
            path: path.into(),
            problem,
        })
    }

    fn parse(json: &Value) -> Result<Self, String> {
        let known = SOLVERS.map(|(class, _)| class);
        let Some(class) = json.get("_class_name").and_then(Value::as_str) else {
            return Err(format!(
                "expected a `_class_name` such as {}",
                known.join(", ")
            ));
        };
        let solver = SOLVERS.iter().find(|(name, _)| *name == class);
        let solver = solver.map(|(_, solver)| *solver);
        if solver.is_none() && !OTHER_SOLVERS.contains(&class) {
            return Err(format!(
                "its `_class_name` is \"{class}\", expected {} or another of diffusers' schedulers of β",
                known.join(", ")
            ));
        }
        let of = |key: &str| json.get(key).filter(|value| !value.is_null());
        for (key, wanted) in required() {
            if let Some(found) = of(key).filter(|found| !same(found, &wanted)) {
                return Err(format!("its `{key}` is {found}, expected {wanted}"));
            }
        }
        let number = |key: &str, default: f64| match of(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| format!("its `{key}` is {value}, expected a number")),
        };
        let choice = |key: &str, default: &str| match of(key) {
            None => Ok(default.to_owned()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("its `{key}` is {other}, expected a string")),
        };
        let curve = match &*choice("beta_schedule", "linear")? {
            "linear" => BetaCurve::Linear,
            "scaled_linear" => BetaCurve::ScaledLinear,
            other => {
                return Err(format!(
                    "its `beta_schedule` is \"{other}\", expected \"linear\" or \"scaled_linear\""
                ));
            }
        };
        let prediction = match &*choice("prediction_type", "epsilon")? {
            "epsilon" => Prediction::Epsilon,
            "v_prediction" => Prediction::Velocity,
            "sample" => Prediction::Sample,
            other => {
                return Err(format!(
                    "its `prediction_type` is \"{other}\", expected \"epsilon\", \"v_prediction\" or \"sample\""
                ));
            }
        };
        // What stands where a key is missing is what the class itself would take.
        let clips = matches!(solver, Some(Solver::Ddim { .. } | Solver::Ddpm));
        let clip_x0 = match of("clip_sample") {
            None => clips,
            Some(Value::Bool(clip)) => *clip,
            Some(other) => {
                return Err(format!(
                    "its `clip_sample` is {other}, expected true or false"
                ));
            }
        };
        if clip_x0 && number("clip_sample_range", 1.0)? != 1.0 {
            return Err(format!(
                "its `clip_sample_range` is {}, expected 1",
                json["clip_sample_range"]
            ));
        }
        let noise = NoiseSchedule::new(
            curve,
            number("beta_start", 1e-4)?,
            number("beta_end", 0.02)?,
        );
        let noise = noise.map_err(|e| format!("its `beta_start` and `beta_end`: {e}"))?;
        let mut notes = Vec::new();
        if solver.is_none() {
            notes.push(format!(
                "there is no solver like `{class}` here, so ddim is taken"
            ));
        }
        for (key, ours) in preferred() {
            if let Some(found) = of(key).filter(|found| !same(found, &ours)) {
                notes.push(format!("`{key}` is {found} there, runs here have {ours}"));
            }
        }
        Ok(Self {
            class: class.into(),
            process: Process { prediction, noise },
            clip_x0,
            solver,
            notes,
        })
    }
}

/// Equality that takes 1000.0 for 1000.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As published beside PixArt-α.
    fn dpm() -> Value {
        json!({
            "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "beta_end": 0.02,
            "beta_schedule": "linear", "beta_start": 0.0001, "dynamic_thresholding_ratio": 0.995, "lower_order_final": true,
            "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "solver_order": 2,
            "solver_type": "midpoint", "steps_offset": 0, "thresholding": false, "timestep_spacing": "linspace",
            "trained_betas": null, "use_karras_sigmas": false, "variance_type": null
        })
    }

    #[test]
    fn a_published_scheduler_is_its_solver_and_the_usual_noise() {
        let config = SchedulerConfig::parse(&dpm()).unwrap();
        assert_eq!(config.solver, Some(Solver::Dpm2m));
        assert!(config.process.is_usual() && !config.clip_x0);
        assert_eq!(config.notes, Vec::<String>::new());
    }

    #[test]
    fn other_noise_is_taken_over_and_other_runs_are_noted() {
        let mut json = dpm();
        json["_class_name"] = "HeunDiscreteScheduler".into();
        json["beta_schedule"] = "scaled_linear".into();
        json["beta_start"] = 0.00085.into();
        json["prediction_type"] = "v_prediction".into();
        json["use_karras_sigmas"] = true.into();
        let config = SchedulerConfig::parse(&json).unwrap();
        let noise = NoiseSchedule::new(BetaCurve::ScaledLinear, 0.00085, 0.02).unwrap();
        let prediction = Prediction::Velocity;
        assert_eq!(config.process, Process { prediction, noise });
        assert_eq!(config.solver, None);
        assert_eq!(
            config.notes,
            [
                "there is no solver like `HeunDiscreteScheduler` here, so ddim is taken",
                "`use_karras_sigmas` is true there, runs here have false",
            ]
        );
    }

    #[test]
    fn a_class_clips_where_the_file_does_not_say() {
        for (class, clips) in [
            ("DDIMScheduler", true),
            ("DDPMScheduler", true),
            ("DPMSolverMultistepScheduler", false),
            ("PNDMScheduler", false),
        ] {
            let config = SchedulerConfig::parse(&json!({ "_class_name": class })).unwrap();
            assert_eq!(config.clip_x0, clips, "{class}");
        }
    }
}

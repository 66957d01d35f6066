//! `*.schedule.json`, version 1.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ModelShape, Router, Schedule, ScheduleError, router::check_tau};
use crate::files::write_bytes_atomically;

/// Denoising steps at most: one a training timestep.
const MAX_STEPS: usize = 1000;

/// Largest file that is read: a schedule of 1000 steps and 8000 branches is smaller.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// A schedule with everything needed to know whether it fits a run, readable in a diff.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleFile {
    /// 1.
    pub format: u32,
    pub policy: PolicyRecord,
    pub model: ModelIdentity,
    #[serde(flatten)]
    pub run: RunSettings,
    /// τ, for schedules that came from scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// A row a step, step 0 first: `#` compute, `.` reuse.
    pub compute: Vec<String>,
    /// Router logits `[T, N]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<Vec<Vec<f32>>>,
    /// `λ_s` as refreshed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda: Option<Vec<f64>>,
    /// Settings of the training run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// Which policy made a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}

/// The model a schedule is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    pub family: String,
    pub blocks: usize,
    pub branches: usize,
    pub hidden: usize,
    pub tokens: usize,
    /// Inputs of the patch embedding and outputs of the last layer, for exact costs.
    #[serde(default = "latent_patch")]
    pub patch: [usize; 2],
    /// Identity of the weights; absent for policies that look at shapes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// A latent model of patch 2 with learned sigma.
fn latent_patch() -> [usize; 2] {
    [16, 32]
}

impl ModelIdentity {
    /// What the cost of a run depends on.
    pub fn shape(&self) -> ModelShape {
        ModelShape {
            blocks: self.blocks,
            hidden: self.hidden,
            tokens: self.tokens,
            mlp_ratio: 4,
            patch_inputs: self.patch[0],
            patch_outputs: self.patch[1],
            timestep_channels: 256,
        }
    }
}

/// The run a schedule is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    pub solver: String,
    pub steps: usize,
    pub timesteps: Vec<usize>,
    /// Absent: without guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<GuidanceRecord>,
    /// `[height, width]`
    pub resolution: [usize; 2],
}

/// Guidance as a schedule file writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuidanceRecord {
    pub scale: f64,
    pub channels: String,
}

/// Figures that were measured when the schedule was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Measured {
    pub cur: f64,
    pub macs_ratio: f64,
    /// Mean squared error to the uncached images, over `images`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mse: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psnr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
}

impl Measured {
    /// The figures that follow from the table alone.
    pub fn of(schedule: &Schedule, shape: &ModelShape) -> Self {
        Self {
            cur: schedule.cur(),
            macs_ratio: shape.macs_ratio(schedule),
            ..Self::default()
        }
    }
}

impl ScheduleFile {
    /// The table.
    ///
    /// # Errors
    /// [`ScheduleError`] if the rows are no valid table (never after [`ScheduleFile::read`]).
    pub fn schedule(&self) -> Result<Schedule, ScheduleError> {
        let branches = self.model.branches;
        let expected = self.run.steps.saturating_mul(branches);
        let found = self.compute.iter().map(String::len).sum();
        if self.compute.len() != self.run.steps
            || self.compute.iter().any(|row| row.len() != branches)
        {
            return Err(ScheduleError::Size {
                steps: self.run.steps,
                branches,
                expected,
                found,
            });
        }
        let table = self
            .compute
            .iter()
            .flat_map(|row| row.bytes().map(|b| b == b'#'))
            .collect();
        Schedule::new(self.run.steps, branches, table)
    }

    /// The router, if the file has its logits.
    ///
    /// # Errors
    /// [`ScheduleError`] if they are no valid router.
    pub fn router(&self) -> Result<Option<Router>, ScheduleError> {
        let Some(rows) = &self.logits else {
            return Ok(None);
        };
        let branches = self.model.branches;
        let found = rows.iter().map(Vec::len).sum();
        if rows.len() != self.run.steps || rows.iter().any(|row| row.len() != branches) {
            let expected = self.run.steps.saturating_mul(branches);
            return Err(ScheduleError::Size {
                steps: self.run.steps,
                branches,
                expected,
                found,
            });
        }
        Router::new(self.run.steps, branches, rows.concat()).map(Some)
    }

    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ScheduleError::Io`], [`ScheduleError::Format`].
    pub fn read(path: &Path) -> Result<Self, ScheduleError> {
        let io = |source| ScheduleError::Io {
            action: "read",
            path: path.into(),
            source,
        };
        if std::fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
            let problem = format!("it is larger than {MAX_BYTES} bytes");
            return Err(ScheduleError::Format {
                path: path.into(),
                problem,
            });
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        Self::parse(&text, path)
    }

    /// Validates a file's text; `path` stands for it in messages.
    ///
    /// # Errors
    /// [`ScheduleError::Format`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ScheduleError> {
        let bad = |problem: String| ScheduleError::Format {
            path: path.into(),
            problem,
        };
        let file: Self = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if file.format != 1 {
            return Err(bad(format!(
                "it has format {}, this program reads format 1",
                file.format
            )));
        }
        for (name, value, most) in [
            ("blocks", file.model.blocks, 4096),
            ("hidden", file.model.hidden, 1 << 16),
            ("tokens", file.model.tokens, 1 << 16),
            ("patch inputs", file.model.patch[0], 1 << 24),
            ("patch outputs", file.model.patch[1], 1 << 24),
            ("steps", file.run.steps, MAX_STEPS),
        ] {
            if value == 0 || value > most {
                return Err(bad(format!("{name} is {value}, expected 1 to {most}")));
            }
        }
        // Multiply-accumulates are counted in 64 bits. More of them than `ModelShape::macs` finds: a block costs a token at most
        // 12·hidden for its products, 6·hidden for adaLN and 2·tokens for attention, each times hidden; what is no block, two.
        let [blocks, hidden, tokens] =
            [file.model.blocks, file.model.hidden, file.model.tokens].map(|n| n as u128);
        let of_token = 18 * hidden + 2 * tokens + file.model.patch.iter().sum::<usize>() as u128;
        let most = MAX_STEPS as u128 * (blocks + 2) * tokens * hidden * of_token;
        if most > u128::from(u64::MAX) {
            return Err(bad(format!(
                "{blocks} blocks of {hidden} with {tokens} tokens are no network that can be run"
            )));
        }
        if file.model.branches != 2 * file.model.blocks {
            return Err(bad(format!(
                "{} blocks have {} branches, not {}",
                file.model.blocks,
                2 * file.model.blocks,
                file.model.branches
            )));
        }
        if let Some((s, row)) = file
            .compute
            .iter()
            .enumerate()
            .find(|(_, row)| row.bytes().any(|b| b != b'#' && b != b'.'))
        {
            return Err(bad(format!(
                "step {s} is `{row}`, expected only # (compute) and . (reuse)"
            )));
        }
        if file.run.timesteps.len() != file.run.steps {
            return Err(bad(format!(
                "it lists {} timesteps for {} steps",
                file.run.timesteps.len(),
                file.run.steps
            )));
        }
        let schedule = file.schedule().map_err(|e| bad(e.to_string()))?;
        if let Some(tau) = file.threshold {
            check_tau(tau).map_err(|e| bad(e.to_string()))?;
        }
        if let Some(router) = file.router().map_err(|e| bad(e.to_string()))?
            && let Some(tau) = file.threshold
            && router.threshold(tau).map_err(|e| bad(e.to_string()))? != schedule
        {
            return Err(bad(format!(
                "its logits at threshold {tau} do not make its table"
            )));
        }
        if file
            .lambda
            .as_ref()
            .is_some_and(|l| l.len() != file.run.steps)
        {
            return Err(bad("it has not one lambda a step".into()));
        }
        Ok(file)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`ScheduleError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), ScheduleError> {
        write_bytes_atomically(path, self.to_text().as_bytes()).map_err(|source| {
            ScheduleError::Io {
                action: "write",
                path: path.into(),
                source,
            }
        })
    }

    /// The file's text: indented, with one line for every row of numbers.
    pub fn to_text(&self) -> String {
        // A struct of plain data always serialises.
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut text = String::new();
        write_value(&value, 0, &mut text);
        text.push('\n');
        text
    }

    /// Whether the schedule was made for this model and run.
    ///
    /// # Errors
    /// [`ScheduleError::Mismatch`] with the first reason found.
    pub fn check_fits(
        &self,
        model: &ModelIdentity,
        run: &RunSettings,
    ) -> Result<(), ScheduleError> {
        self.check_shape(model, run)?;
        let mismatch = |reason: String| Err(ScheduleError::Mismatch { reason });
        if let (Some(made_for), Some(found)) = (&self.model.fingerprint, &model.fingerprint)
            && made_for != found
        {
            return mismatch(format!(
                "it was made for weights {made_for}, this model's are {found}"
            ));
        }
        if self.run.solver != run.solver {
            return mismatch(format!(
                "it was made for solver {}, this run uses {}",
                self.run.solver, run.solver
            ));
        }
        if self.run.timesteps != run.timesteps {
            return mismatch("it was made for other timesteps".into());
        }
        let mode = |g: &Option<GuidanceRecord>| match g {
            Some(g) => format!("guidance over channels {}", g.channels),
            None => "no guidance".into(),
        };
        if mode(&self.run.guidance) != mode(&run.guidance) {
            return mismatch(format!(
                "it was made for {}, this run has {}",
                mode(&self.run.guidance),
                mode(&run.guidance)
            ));
        }
        if self.run.resolution != run.resolution {
            return mismatch(format!(
                "it was made for inputs of {:?}, this model's are {:?}",
                self.run.resolution, run.resolution
            ));
        }
        Ok(())
    }

    /// What even `--force` cannot override: the table must have the run's size.
    ///
    /// # Errors
    /// [`ScheduleError::Mismatch`].
    pub fn check_shape(
        &self,
        model: &ModelIdentity,
        run: &RunSettings,
    ) -> Result<(), ScheduleError> {
        let mismatch = |reason: String| Err(ScheduleError::Mismatch { reason });
        if self.model.family != model.family || self.model.branches != model.branches {
            return mismatch(format!(
                "it is for a {} of {} blocks, this model is a {} of {}",
                self.model.family, self.model.blocks, model.family, model.blocks
            ));
        }
        if self.run.steps != run.steps {
            return mismatch(format!(
                "it is for {} steps, this run has {}",
                self.run.steps, run.steps
            ));
        }
        Ok(())
    }
}

/// Pretty JSON, except that arrays of numbers stay on one line.
fn write_value(value: &Value, depth: usize, out: &mut String) {
    let indent = |depth: usize| "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push_str("{\n");
            for (i, (key, value)) in map.iter().enumerate() {
                let comma = if i + 1 < map.len() { "," } else { "" };
                out.push_str(&format!(
                    "{}{}: ",
                    indent(depth + 1),
                    Value::from(key.as_str())
                ));
                write_value(value, depth + 1, out);
                out.push_str(comma);
                out.push('\n');
            }
            out.push_str(&indent(depth));
            out.push('}');
        }
        Value::Array(items) if items.iter().any(|i| !i.is_number()) => {
            out.push_str("[\n");
            for (i, item) in items.iter().enumerate() {
                let comma = if i + 1 < items.len() { "," } else { "" };
                out.push_str(&indent(depth + 1));
                write_value(item, depth + 1, out);
                out.push_str(comma);
                out.push('\n');
            }
            out.push_str(&indent(depth));
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

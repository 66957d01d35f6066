//! `*.schedule.json`, version 2; version 1 still loads.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ForecastRecord, Joint, ModelIdentity, Router, Schedule, ScheduleError, forecast,
    reads::{self, StepReads},
    router::check_tau,
};
use crate::{
    files::{read_text_up_to, write_bytes_atomically},
    graph::Graph,
};

/// Version of the files that are written: 2 knows the model by its graph, weights of reads, branches that are reused together, and
/// forecasts.
pub const FORMAT: u32 = 2;

/// Denoising steps at most: one a training timestep.
const MAX_STEPS: usize = 1000;

/// Largest file that is read: a schedule of 1000 steps and 8000 branches is smaller.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// A schedule with everything needed to know whether it fits a run, readable in a diff.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleFile {
    /// [`FORMAT`], whatever version was read.
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
    /// How neighbouring branches are reused together; absent where each is reused by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint: Option<Joint>,
    /// What reused cells weigh, a row a step; absent where all reuse is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<Vec<StepReads>>,
    /// Clean images that are made of earlier ones; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<ForecastRecord>,
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
    /// Whether clean images were clipped to [-1, 1], where what was learned depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_x0: Option<bool>,
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
    pub fn of(schedule: &Schedule, graph: &Graph) -> Self {
        Self {
            cur: schedule.cur(),
            macs_ratio: schedule.macs_ratio(graph),
            ..Self::default()
        }
    }
}

impl ScheduleFile {
    /// Whether it was learned for its weights, rather than made by a rule: it says how it was trained, or holds scores.
    pub fn is_learned(&self) -> bool {
        self.training.is_some() || self.logits.is_some()
    }

    /// The table.
    ///
    /// # Errors
    /// [`ScheduleError`] if the rows are no valid table (never after [`ScheduleFile::read`]).
    pub fn schedule(&self) -> Result<Schedule, ScheduleError> {
        let branches = self.model.graph.branches();
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
        let table = Schedule::new(self.run.steps, branches, table)?;
        let table = match self.joint {
            None => table,
            Some(joint) => table.with_joint(joint)?,
        };
        let table = match &self.reads {
            None => table,
            Some(rows) => reads::apply(table, rows)?,
        };
        match &self.forecast {
            None => Ok(table),
            Some(record) => forecast::apply(table, record),
        }
    }

    /// A file for a table, with the figures that follow from it.
    pub fn of(
        schedule: &Schedule,
        policy: PolicyRecord,
        model: ModelIdentity,
        run: RunSettings,
    ) -> Self {
        Self {
            format: FORMAT,
            policy,
            measured: Some(Measured::of(schedule, &model.graph)),
            model,
            run,
            threshold: None,
            compute: schedule.to_rows(),
            joint: schedule.joint(),
            reads: reads::of(schedule),
            forecast: forecast::of(schedule),
            logits: None,
            lambda: None,
            training: None,
        }
    }

    /// The router, if the file has its logits.
    ///
    /// # Errors
    /// [`ScheduleError`] if they are no valid router.
    pub fn router(&self) -> Result<Option<Router>, ScheduleError> {
        let Some(rows) = &self.logits else {
            return Ok(None);
        };
        let branches = self.model.graph.branches();
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
        let text = read_text_up_to(path, MAX_BYTES).map_err(io)?;
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
        let mut file: Self = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if !(1..=FORMAT).contains(&file.format) {
            return Err(bad(format!(
                "it has format {}, this program reads formats 1 to {FORMAT}",
                file.format
            )));
        }
        file.format = FORMAT;
        if file.run.steps == 0 || file.run.steps > MAX_STEPS {
            return Err(bad(format!(
                "steps is {}, expected 1 to {MAX_STEPS}",
                file.run.steps
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
            && router
                .threshold(tau)
                .map_err(|e| bad(e.to_string()))?
                .to_rows()
                != schedule.to_rows()
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
    /// [`ScheduleError::Shape`], or [`ScheduleError::Mismatch`] with the first reason found.
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

    /// Whether the table has the size of the model and the run, without which it cannot be used at all.
    ///
    /// # Errors
    /// [`ScheduleError::Shape`].
    pub fn check_shape(
        &self,
        model: &ModelIdentity,
        run: &RunSettings,
    ) -> Result<(), ScheduleError> {
        let mismatch = |reason: String| Err(ScheduleError::Shape { reason });
        let kinds = |graph: &Graph| {
            graph
                .sites()
                .iter()
                .map(|site| site.kind)
                .collect::<Vec<_>>()
        };
        if self.model.family != model.family || kinds(&self.model.graph) != kinds(&model.graph) {
            return mismatch(format!(
                "it is for a {} of {} blocks, this model is a {} of {}",
                self.model.family,
                self.model.graph.blocks(),
                model.family,
                model.graph.blocks()
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

//! What calibrated policies know of a model and a run: measurements along uncached runs, in a `*.calibration.json` file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::PolicyError;
use crate::{
    files::{read_text_up_to, write_bytes_atomically},
    graph::SiteKind,
    schedule::{ModelIdentity, RunSettings, ScheduleError},
};

/// Version of the file.
pub const CALIBRATION_FORMAT: u32 = 1;
/// The folder that calibrations are looked for in, where the program runs.
pub const CALIBRATIONS: &str = "harmonica-calibrations";
/// Largest file that is read: rows of a thousand steps and images are smaller.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// How the name of a calibration ends.
const SUFFIX: &str = ".calibration.json";

/// Steps apart at which the features of a branch are compared, at most.
pub const FEATURE_DISTANCE: usize = 3;
/// Steps apart at which the stream after the last block is compared, at most.
pub const STREAM_DISTANCE: usize = 9;

/// What was measured of a model along uncached runs from noise and conditions.
///
/// Steps apart are counted in the run: a row of distance `k` has an entry for each pair of steps `s` and `s + k`, by `s`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`CALIBRATION_FORMAT`]
    pub format: u32,
    pub model: ModelIdentity,
    pub run: RunSettings,
    /// Images that were drawn for it.
    pub images: usize,
    /// Seed of their noise and conditions.
    pub seed: u64,
    /// Of each kind of branch and at distances 1, 2 and 3, `Σ|f_s − f_{s+k}| / Σ|f_{s+k}|` of features before their gates,
    /// over all images and both guidance halves, then the mean over the blocks.
    pub feature_changes: BTreeMap<String, Vec<Vec<f64>>>,
    /// At distances 1 to 9, `1 − cos` of the stream after the last block, its mean over tokens, of both guidance halves as one
    /// vector; the mean over images.
    pub stream_distances: Vec<Vec<f64>>,
    /// A number a step: the mean over tokens, halves and images of `‖R_s‖ / ‖R_{s−1}‖`, `R` what all blocks add to the stream;
    /// 1 at step 0.
    pub magnitude_ratios: Vec<f64>,
    /// Of each image and each step but the first, by image: `mean|m_s − m_{s−1}| / mean|m_{s−1}|` of the modulated tokens that
    /// enter the first block, both guidance halves together.
    pub input_changes: Vec<f64>,
    /// The same of the network's output.
    pub output_changes: Vec<f64>,
}

impl Calibration {
    /// What the features of a kind of branch change at distances 1, 2 and 3.
    pub fn feature_changes(&self, kind: SiteKind) -> &[Vec<f64>] {
        self.feature_changes
            .get(kind.name())
            .map_or(&[], Vec::as_slice)
    }

    /// Whether it is of this model and run.
    pub fn fits(&self, model: &ModelIdentity, run: &RunSettings) -> bool {
        self.model == *model && self.run == *run
    }

    /// What a reader of its rows may rely on.
    fn check(&self) -> Result<(), String> {
        let steps = self.run.steps;
        let is_of_pairs = |rows: &[Vec<f64>], distances: usize| {
            let fits = |(k, row): (usize, &Vec<f64>)| row.len() == steps.saturating_sub(k + 1);
            rows.len() == distances && rows.iter().enumerate().all(fits)
        };
        let kinds = self.model.graph.kinds();
        let features = kinds
            .iter()
            .all(|kind| is_of_pairs(self.feature_changes(*kind), FEATURE_DISTANCE));
        let changes = self.images.saturating_mul(steps.saturating_sub(1));
        let fits = self.format == CALIBRATION_FORMAT
            && steps > 0
            && features
            && is_of_pairs(&self.stream_distances, STREAM_DISTANCE)
            && self.magnitude_ratios.len() == steps
            && [&self.input_changes, &self.output_changes]
                .iter()
                .all(|row| row.len() == changes);
        match fits {
            true => Ok(()),
            false => Err(format!(
                "its rows are not those of {steps} steps and {} images, or it has another format than {CALIBRATION_FORMAT}",
                self.images
            )),
        }
    }

    /// The first measurement that is no number, if there is one: what it is of.
    pub fn not_finite(&self) -> Option<&'static str> {
        let rows = |rows: &[Vec<f64>]| rows.iter().flatten().all(|v| v.is_finite());
        let row = |row: &[f64]| row.iter().all(|v| v.is_finite());
        let finite = [
            (
                "features",
                self.feature_changes.values().all(|kind| rows(kind)),
            ),
            ("the stream", rows(&self.stream_distances)),
            ("what all blocks add", row(&self.magnitude_ratios)),
            ("the first block's input", row(&self.input_changes)),
            ("the output", row(&self.output_changes)),
        ];
        finite
            .into_iter()
            .find_map(|(what, finite)| (!finite).then_some(what))
    }

    /// The file's name: the run's, and a hash of all that it depends on.
    pub fn file_name(model: &ModelIdentity, run: &RunSettings) -> String {
        let what = serde_json::json!([model, run]).to_string();
        let hash = blake3::hash(what.as_bytes()).to_hex();
        let solver = run.solver.replace([':', '+'], "");
        format!("{solver}{}-{}{SUFFIX}", run.steps, &hash[..8])
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ScheduleError::Io`], [`PolicyError::NoCalibration`].
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let text = read_text_up_to(path, MAX_BYTES).map_err(|source| unreadable(path, source))?;
        Self::parse(&text, path)
    }

    /// Validates a file's text; `path` stands for it in messages.
    ///
    /// # Errors
    /// [`PolicyError::NoCalibration`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, PolicyError> {
        let bad = |problem: String| PolicyError::NoCalibration {
            path: path.into(),
            problem,
        };
        let calibration: Self = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        calibration.check().map_err(bad)?;
        Ok(calibration)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`ScheduleError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), ScheduleError> {
        let io = |source| ScheduleError::Io {
            action: "write",
            path: path.into(),
            source,
        };
        let text = serde_json::to_string(self).map_err(|e| io(e.into()))?;
        write_bytes_atomically(path, text.as_bytes()).map_err(io)
    }

    /// The calibration of a folder that is of this model and run; none too where there is no such folder.
    ///
    /// # Errors
    /// As [`Self::read`], for any calibration there.
    pub fn find(
        folder: &Path,
        model: &ModelIdentity,
        run: &RunSettings,
    ) -> Result<Option<Self>, PolicyError> {
        if !folder.is_dir() {
            return Ok(None);
        }
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|source| unreadable(folder, source))? {
            let path = entry.map_err(|source| unreadable(folder, source))?.path();
            if path.to_string_lossy().ends_with(SUFFIX) {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let calibration = Self::read(&path)?;
            if calibration.fits(model, run) {
                return Ok(Some(calibration));
            }
        }
        Ok(None)
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> PolicyError {
    ScheduleError::Io {
        action: "read",
        path: path.into(),
        source,
    }
    .into()
}

/// One that fits a network and a number of steps, for tests of what is made of it.
#[cfg(test)]
pub(super) fn example(graph: &crate::graph::Graph, steps: usize) -> Calibration {
    let pairs = |distances: usize| -> Vec<Vec<f64>> {
        let row = |k: usize| vec![0.1 * k as f64; steps.saturating_sub(k)];
        (1..=distances).map(row).collect()
    };
    let of_kind = |kind: &SiteKind| (kind.name().to_owned(), pairs(FEATURE_DISTANCE));
    Calibration {
        format: CALIBRATION_FORMAT,
        model: ModelIdentity {
            family: "DiT".into(),
            graph: graph.clone(),
            fingerprint: None,
        },
        run: RunSettings {
            solver: "ddim".into(),
            steps,
            timesteps: (0..steps).rev().collect(),
            guidance: None,
            resolution: [2, 2],
            clip_x0: Some(false),
        },
        images: 2,
        seed: 0,
        feature_changes: graph.kinds().iter().map(of_kind).collect(),
        stream_distances: pairs(STREAM_DISTANCE),
        magnitude_ratios: vec![1.0; steps],
        input_changes: (1..2 * steps - 1).map(|i| 0.01 * i as f64).collect(),
        output_changes: (1..2 * steps - 1).map(|i| 0.03 * i as f64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::of_blocks;

    #[test]
    fn a_folder_gives_what_fits() {
        let calibration = example(&of_blocks(2), 5);
        let (model, run) = (calibration.model.clone(), calibration.run.clone());
        let folder = tempfile::tempdir().unwrap();
        let find = |run: &RunSettings| Calibration::find(folder.path(), &model, run);
        assert_eq!(find(&run).unwrap(), None);
        assert_eq!(
            Calibration::find(&folder.path().join("none"), &model, &run).unwrap(),
            None
        );
        let path = folder.path().join(Calibration::file_name(&model, &run));
        calibration.write(&path).unwrap();
        let found = find(&run).unwrap().unwrap();
        assert!(found.fits(&model, &run));
        assert_eq!(found.feature_changes.len(), 2);
        let clipped = RunSettings {
            clip_x0: Some(true),
            ..run.clone()
        };
        assert_eq!(find(&clipped).unwrap(), None);
        assert_ne!(
            Calibration::file_name(&model, &run),
            Calibration::file_name(&model, &clipped)
        );
        let short = Calibration {
            magnitude_ratios: vec![1.0; 4],
            ..calibration
        };
        short.write(&path).unwrap();
        assert!(matches!(find(&run), Err(PolicyError::NoCalibration { .. })));
    }
}

//! What was passed where something else belongs: a router as a model, a model as a schedule.

use std::path::Path;

use super::again;
use crate::{
    checkpoint::{self, CheckpointError, ReleasedRouter},
    policy::ScheduleChoice,
    schedule::{ScheduleError, ScheduleFile},
    training::{TrainingSummary, network::SavedRun},
};

/// Where that belongs which was no model.
pub(super) fn as_model(error: &CheckpointError) -> Option<String> {
    match error {
        CheckpointError::Io { path, .. } if !path.exists() => schedule_name(path.to_str()?),
        CheckpointError::UnknownFormat { path, .. }
        | CheckpointError::Config { path, .. }
        | CheckpointError::NotADit { path, .. } => known(path),
        _ => None,
    }
}

/// Where that belongs which was no schedule.
pub(super) fn as_schedule(error: &ScheduleError) -> Option<String> {
    match error {
        ScheduleError::Io {
            action: "read",
            path,
            ..
        }
        | ScheduleError::Format { path, .. } => known(path).or_else(|| {
            let opened = checkpoint::open(path).ok();
            opened.map(|_| "; it is a weight file: pass it as --model".into())
        }),
        _ => None,
    }
}

/// A schedule by name, which is no file.
fn schedule_name(name: &str) -> Option<String> {
    let choice = name.parse::<ScheduleChoice>().ok()?;
    let is_name = !matches!(choice, ScheduleChoice::File(_));
    is_name.then(|| {
        format!(
            "; `{name}` names a schedule: pass it as --schedule, or to `harmonica schedule show`"
        )
    })
}

/// What one of our own files is, or a released router, and what takes it.
fn known(path: &Path) -> Option<String> {
    let shown = again::path(path);
    if path.is_dir() {
        let entries = std::fs::read_dir(path).ok()?;
        let mut names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        let holds = names.any(|name| name.to_string_lossy().ends_with(".schedule.json"));
        return holds.then(|| format!("; it holds schedules: pass it as --schedule {shown}"));
    }
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    if is_json && ScheduleFile::read(path).is_ok() {
        return Some(format!(
            "; it is a schedule: pass it as --schedule, or to `harmonica schedule show {shown}`"
        ));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => again::path(folder),
        _ => ".".into(),
    };
    if let Ok(Some(_)) = TrainingSummary::read(path) {
        return Some(format!(
            "; it is the state of a router in training: its schedules lie beside it, pass --schedule {folder}"
        ));
    }
    if let Ok(Some(_)) = SavedRun::find(path) {
        return Some(format!(
            "; it is the state of a DiT in training: the model is {folder}/model.safetensors"
        ));
    }
    ReleasedRouter::read(path).ok().map(|_| {
        format!("; it is a router: `harmonica schedule import {shown} --model MODEL --out FILE.schedule.json` makes a schedule of it")
    })
}

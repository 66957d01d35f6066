//! The log of a run: a line a step, and the curves drawn from it.

use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    report::{Panel, Scale},
    training::run::{Log, TrainingError},
};

/// One optimizer step in a few numbers; a line of `train.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PretrainStep {
    /// Counted from 0.
    pub step: u64,
    /// Pictures so far, this step's included.
    pub images: u64,
    pub mse: f64,
    /// Bits a value.
    pub vlb: f64,
    /// `mse + vlb_weight·vlb`, the mean squared error unweighted.
    pub loss: f64,
    pub lr: f64,
    /// Norm of the gradient before clipping; 0 where half precision overflowed and the step was left out.
    pub grad_norm: f64,
    pub images_per_second: f64,
}

impl Logged for PretrainStep {
    const CURVES: [(&'static str, Scale); 3] = [
        ("mean squared error, by pictures", Scale::Decades),
        ("variational bound, bits a value", Scale::Decades),
        ("learning rate × 1000", Scale::Even),
    ];

    fn step(&self) -> u64 {
        self.step
    }

    fn images(&self) -> u64 {
        self.images
    }

    fn values(&self) -> [f64; 3] {
        [self.mse, self.vlb, 1000.0 * self.lr]
    }
}

/// A line of a log, and what is drawn of it.
pub(super) trait Logged: Serialize + DeserializeOwned {
    /// Captions and scales of the curves.
    const CURVES: [(&'static str, Scale); 3];

    /// The step's number, from 0.
    fn step(&self) -> u64;

    /// Pictures so far.
    fn images(&self) -> u64;

    /// A value for each curve.
    fn values(&self) -> [f64; 3];
}

/// Points of a curve at most: beyond, neighbours are averaged.
const POINTS: usize = 1024;

/// An open log of `S`s and the curves so far.
#[derive(Debug)]
pub(super) struct History<S> {
    log: Log<S>,
    /// Means over `width` steps each.
    points: Vec<Point>,
    width: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Point {
    steps: u64,
    images: u64,
    values: [f64; 3],
}

impl<S: Logged> History<S> {
    /// Opens the log and cuts it back to the steps before `steps`.
    pub fn open(path: &Path, steps: u64) -> Result<Self, TrainingError> {
        let (log, kept) = Log::open(path, |entry: &S| entry.step() < steps)?;
        let mut history = Self {
            log,
            points: Vec::new(),
            width: 1,
        };
        kept.iter().for_each(|step| history.remember(step));
        Ok(history)
    }

    /// Appends a step.
    pub fn push(&mut self, step: &S) -> Result<(), TrainingError> {
        self.log.append(std::slice::from_ref(step))?;
        self.remember(step);
        Ok(())
    }

    fn remember(&mut self, step: &S) {
        if self.points.last().is_none_or(|p| p.steps >= self.width) {
            if self.points.len() == POINTS {
                self.points = self.points.chunks(2).map(Point::merge).collect();
                self.width *= 2;
            }
            self.points.push(Point::default());
        }
        if let Some(point) = self.points.last_mut() {
            let new = Point {
                steps: 1,
                images: step.images(),
                values: step.values(),
            };
            *point = Point::merge(&[*point, new]);
        }
    }

    /// The curves, against pictures seen.
    pub fn panels(&self) -> Vec<Panel> {
        let panel = |(curve, (caption, scale)): (usize, (&str, Scale))| Panel {
            caption: caption.into(),
            points: self
                .points
                .iter()
                .map(|point| (point.images as f64, point.values[curve]))
                .collect(),
            scale,
        };
        S::CURVES.into_iter().enumerate().map(panel).collect()
    }
}

impl Point {
    fn merge(points: &[Self]) -> Self {
        let steps: u64 = points.iter().map(|p| p.steps).sum();
        let mean = |curve: usize| {
            let sum: f64 = points
                .iter()
                .map(|p| p.steps as f64 * p.values[curve])
                .sum();
            sum / steps.max(1) as f64
        };
        Self {
            steps,
            images: points.iter().map(|p| p.images).max().unwrap_or(0),
            values: [0, 1, 2].map(mean),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write};

    use super::*;

    #[test]
    fn a_log_is_cut_back_and_long_curves_are_thinned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        let step = |step| PretrainStep {
            step,
            images: 4 * (step + 1),
            mse: 1.0,
            vlb: 0.5,
            loss: 1.5,
            lr: 1e-3,
            grad_norm: 2.0,
            images_per_second: 9.0,
        };
        let mut history = History::open(&path, 0).unwrap();
        for i in 0..5000 {
            history.push(&step(i)).unwrap();
        }
        assert!(history.points.len() <= POINTS);
        assert_eq!(history.points.iter().map(|p| p.steps).sum::<u64>(), 5000);
        drop(history);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut f| f.write_all(b"{\"step\": 50"))
            .unwrap();
        let history = History::<PretrainStep>::open(&path, 3000).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap().lines().count(),
            3000
        );
        assert_eq!(history.points.iter().map(|p| p.steps).sum::<u64>(), 3000);
    }
}

//! Weights, their averages and moments in a checkpoint.

use std::path::Path;

use burn::tensor::{Device, Tensor};

use super::{
    forward::{flat, read},
    optimizer::{MuonMatrix, Weights},
};
use crate::{
    checkpoint::{CheckpointError, StoredDtype, TensorSource, write_safetensors},
    device::DeviceFault,
    training::TrainingError,
};

/// Tensors of a checkpoint by role and name, in the order they are written. Muon's momentum is a first moment too.
pub(super) const ROLES: [&str; 4] = ["value", "ema", "adamw.first_moment", "adamw.second_moment"];

/// The place of the average among them.
pub(super) const AVERAGE: usize = 1;

/// A tensor's name and shape.
pub(super) type Named = (String, Vec<usize>);

impl Weights {
    /// Tensor `place` of one of the [`ROLES`].
    pub fn stored(&self, role: usize, place: usize) -> Result<Vec<f32>, TrainingError> {
        // Shorter than it should be only after the device failed in the middle of a step.
        match [&self.values, &self.ema, &self.first, &self.second][role].get(place) {
            Some(tensor) => read(tensor.clone()),
            None => Err(DeviceFault::failed("the last step was not finished").into()),
        }
    }

    /// Writes them as `role.name`, whole or not at all. Values lie as the network takes them: their number is that of the shape.
    pub fn write(
        &self,
        parameters: &[Named],
        metadata: &str,
        path: &Path,
    ) -> Result<(), TrainingError> {
        let of_role = |role: &'static str| {
            let parameters = parameters.iter();
            parameters.map(move |(name, shape)| (format!("{role}.{name}"), shape.clone()))
        };
        let shapes: Vec<_> = ROLES.into_iter().flat_map(of_role).collect();
        let mut next = 0;
        write_from_device(path, &shapes, Some(metadata), StoredDtype::F32, || {
            let (role, place) = (next / parameters.len(), next % parameters.len());
            next += 1;
            self.stored(role, place)
        })
    }

    /// The way back.
    pub fn read(
        source: &mut TensorSource,
        parameters: &[Named],
        matrices: Vec<Option<MuonMatrix>>,
        device: &Device,
    ) -> Result<Self, TrainingError> {
        let mut role = |role: &str| -> Result<Vec<Tensor<1>>, TrainingError> {
            let tensor = |(name, shape): &Named| {
                let (name, len) = (format!("{role}.{name}"), shape.iter().product::<usize>());
                let values = source.read_f32(&name)?;
                match values.len() == len {
                    true => Ok(flat(values, device)),
                    false => Err(CheckpointError::Damaged {
                        path: source.path().into(),
                        problem: format!("`{name}` holds {} numbers, expected {len}", values.len()),
                    }
                    .into()),
                }
            };
            parameters.iter().map(tensor).collect()
        };
        let [values, ema, first, second] = ROLES;
        Ok(Self {
            values: role(values)?,
            ema: role(ema)?,
            first: role(first)?,
            second: role(second)?,
            matrices,
        })
    }
}

/// Writes a file of tensors that lie on a device, whole or not at all; one is in memory at a time. What the device says is told as such.
pub(super) fn write_from_device(
    path: &Path,
    shapes: &[(String, Vec<usize>)],
    metadata: Option<&str>,
    dtype: StoredDtype,
    mut next: impl FnMut() -> Result<Vec<f32>, TrainingError>,
) -> Result<(), TrainingError> {
    let mut failed = None;
    let written = write_safetensors(path, shapes, metadata, dtype, || {
        next().map_err(|e| {
            let problem = e.to_string();
            failed = Some(e);
            CheckpointError::Damaged {
                path: path.into(),
                problem,
            }
        })
    });
    match failed {
        Some(device) => Err(device),
        None => Ok(written?),
    }
}

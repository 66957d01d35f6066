//! Where a network's weights lie: on the device, or on the host until they are used.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use burn::tensor::{DType, Device, TensorData};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use serde::{Deserialize, Serialize};

use crate::{
    kernels::{Bf16Matrix, QuantisedData, on_cpu},
    layers::WeightData,
    models::TensorSpec,
};

/// In what the matrices of blocks are kept. Products are in f32, but for those of f16 on devices with matrix units
/// ([`crate::kernels::Hardware`]), and those of bf16, whose sums alone are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    #[default]
    F32,
    /// Half the bytes.
    F16,
    /// Half the bytes, on the CPU alone: in the order in which products read them.
    Bf16,
    /// A byte a number and an f32 scale an output channel: a quarter of the bytes.
    Q8,
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        })
    }
}

/// How the weights of blocks are kept; all others lie on the device in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residence {
    pub kept: Kept,
    /// Bytes of weights on the device. What does not fit waits on the host and is sent each time a branch is computed; a branch
    /// that is reused sends nothing.
    pub max_bytes: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Resident {
    /// In what the matrices of blocks are kept.
    pub kept: Kept,
    /// Bytes of weights that stay on the device.
    pub device_bytes: u64,
    /// Bytes of those that wait on the host.
    pub host_bytes: u64,
    pub(super) sent: Arc<AtomicU64>,
}

impl Resident {
    /// Bytes of weights that were sent to the device since loading.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Why weights cannot be kept so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResidenceError {
    /// Too little.
    #[error(
        "at most {limit} bytes of weights on the device are too few: what belongs to no block and the largest matrix of one take {least}"
    )]
    Limit { limit: u64, least: u64 },
    /// The device computes with nothing narrower than f32.
    #[error("this device has no f16; keep the weights in f32")]
    NoF16,
    /// The device is a GPU.
    #[error("weights in bf16 are for the CPU; on this device keep them in f16, or in f32")]
    NoBf16,
    /// No buffer of the device holds a tensor as products take it, however its weights are kept.
    #[error(
        "tensor `{name}` takes {bytes} bytes in f32, as products use it, and the largest buffer of this device has {limit}: use another device, such as the CPU"
    )]
    Buffer {
        name: String,
        bytes: u64,
        limit: u64,
    },
    /// No buffer of the device holds a picture on its way through the autoencoder.
    #[error(
        "decoding takes a buffer of {bytes} bytes, and the largest of this device has {limit}: decode in smaller tiles, or on another device, such as the CPU"
    )]
    Decoding { bytes: u64, limit: u64 },
    /// A weight beyond what the type holds that it was to be kept in.
    #[error("tensor `{name}` holds {value}, which is beyond {kept}; keep the weights in f32")]
    Overflow {
        name: String,
        value: f32,
        kept: Kept,
    },
}

impl ResidenceError {
    /// Refuses tensors, of so many bytes in f32, beyond a device's largest buffer; a device may have no such limit.
    pub(crate) fn check_buffers(
        tensors: impl IntoIterator<Item = (String, u64)>,
        limit: Option<u64>,
    ) -> Result<(), Self> {
        let Some(limit) = limit else { return Ok(()) };
        let largest = tensors.into_iter().max_by_key(|(_, bytes)| *bytes);
        match largest {
            Some((name, bytes)) if bytes > limit => Err(Self::Buffer { name, bytes, limit }),
            _ => Ok(()),
        }
    }
}

impl Residence {
    /// Whether a tensor is a matrix of a block.
    fn is_in_block(tensor: &TensorSpec) -> bool {
        tensor.turned && tensor.name.starts_with("blocks.")
    }

    /// Whether it is read once a run rather than at every step.
    fn is_of_preparation(tensor: &TensorSpec) -> bool {
        tensor.name.contains("adaLN_modulation")
    }

    /// Bytes of a tensor where it lies.
    fn bytes(&self, tensor: &TensorSpec) -> u64 {
        let numbers = tensor.numbers();
        let outputs = || tensor.shape.first().copied().unwrap_or(1);
        match self.kept {
            Kept::F16 if Self::is_in_block(tensor) => 2 * numbers as u64,
            Kept::Bf16 if Self::is_in_block(tensor) => {
                let outputs = outputs();
                Bf16Matrix::bytes_of([numbers / outputs.max(1), outputs])
            }
            Kept::Q8 if Self::is_in_block(tensor) => QuantisedData::bytes_of(numbers, outputs()),
            _ => 4 * numbers as u64,
        }
    }

    /// What would lie where, of a network of these tensors.
    ///
    /// # Errors
    /// [`ResidenceError`].
    pub fn resident(
        &self,
        tensors: &[TensorSpec],
        device: &Device,
    ) -> Result<Resident, ResidenceError> {
        Ok(self.plan(tensors, device)?.1)
    }

    /// `has_f16`: whether the device can keep it; `cpu`: whether it is the processor.
    fn check_type(&self, has_f16: bool, cpu: bool) -> Result<(), ResidenceError> {
        match self.kept {
            Kept::F16 if !has_f16 => Err(ResidenceError::NoF16),
            Kept::Bf16 if !cpu => Err(ResidenceError::NoBf16),
            _ => Ok(()),
        }
    }

    /// The names of the tensors that wait on the host, and what lies where.
    pub(super) fn plan(
        &self,
        tensors: &[TensorSpec],
        device: &Device,
    ) -> Result<(HashSet<String>, Resident), ResidenceError> {
        self.check_type(device.supports_dtype(DType::F16), on_cpu(device))?;
        let total: u64 = tensors.iter().map(|tensor| self.bytes(tensor)).sum();
        let limit = match self.max_bytes {
            Some(limit) if limit < total => limit,
            _ => {
                let resident = Resident {
                    kept: self.kept,
                    device_bytes: total,
                    ..Resident::default()
                };
                return Ok((HashSet::new(), resident));
            }
        };
        let blocks = || tensors.iter().filter(|tensor| Self::is_in_block(tensor));
        let in_blocks: u64 = blocks().map(|tensor| self.bytes(tensor)).sum();
        // A matrix that is sent is used as f32.
        let in_flight = blocks().map(|tensor| 4 * tensor.numbers() as u64 + self.bytes(tensor));
        let fixed = total - in_blocks + in_flight.max().unwrap_or(0);
        if fixed > limit {
            return Err(ResidenceError::Limit {
                limit,
                least: fixed,
            });
        }
        let (mut kept, mut waiting) = (0, HashSet::new());
        for tensor in blocks() {
            let bytes = self.bytes(tensor);
            if Self::is_of_preparation(tensor) || fixed + kept + bytes > limit {
                waiting.insert(tensor.name.clone());
            } else {
                kept += bytes;
            }
        }
        let resident = Resident {
            kept: self.kept,
            device_bytes: total - in_blocks + kept,
            host_bytes: in_blocks - kept,
            ..Resident::default()
        };
        Ok((waiting, resident))
    }

    /// A tensor's values `[rows, columns]` as they are kept.
    pub(super) fn matrix(
        &self,
        tensor: &TensorSpec,
        values: Vec<f32>,
        shape: [usize; 2],
    ) -> Result<WeightData, ResidenceError> {
        match self.kept {
            Kept::F16 if Self::is_in_block(tensor) => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(&values);
                self.check_range(tensor, &values, |at| halves[at].is_finite())?;
                Ok(WeightData::Floats(TensorData::new(halves, shape)))
            }
            Kept::Bf16 if Self::is_in_block(tensor) => {
                self.check_range(tensor, &values, |at| bf16::from_f32(values[at]).is_finite())?;
                Ok(WeightData::Bf16(Bf16Matrix::of(&values, shape)))
            }
            Kept::Q8 if Self::is_in_block(tensor) => {
                Ok(WeightData::Quantised(QuantisedData::of(&values, shape)))
            }
            _ => Ok(WeightData::Floats(TensorData::new(values, shape))),
        }
    }

    /// Refuses a tensor of which a number is none as it is kept.
    fn check_range(
        &self,
        tensor: &TensorSpec,
        values: &[f32],
        fits: impl Fn(usize) -> bool,
    ) -> Result<(), ResidenceError> {
        match (0..values.len()).find(|at| !fits(*at)) {
            None => Ok(()),
            Some(at) => Err(ResidenceError::Overflow {
                name: tensor.name.clone(),
                value: values[at],
                kept: self.kept,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<TensorSpec> {
        let matrix = |name: &str, shape: [usize; 2]| {
            TensorSpec::matrix(name.into(), shape.to_vec(), Vec::new())
        };
        let mut all = vec![matrix("x_embedder.proj.weight", [10, 10])];
        for b in 0..3 {
            all.push(matrix(&format!("blocks.{b}.attn.qkv.weight"), [30, 10]));
            all.push(matrix(&format!("blocks.{b}.mlp.fc1.weight"), [40, 10]));
            all.push(matrix(
                &format!("blocks.{b}.adaLN_modulation.1.weight"),
                [60, 10],
            ));
            all.push(TensorSpec::vector(
                format!("blocks.{b}.mlp.fc1.bias"),
                40,
                Vec::new(),
            ));
        }
        all
    }

    fn plan(kept: Kept, max_bytes: u64) -> Result<(HashSet<String>, Resident), ResidenceError> {
        let residence = Residence {
            kept,
            max_bytes: Some(max_bytes),
        };
        residence.plan(&tensors(), &Device::flex())
    }

    #[test]
    fn what_does_not_fit_waits() {
        // 400 beside blocks, 480 of biases, 5200 a block; the largest matrix is 2400, sent and used.
        let (waiting, resident) = plan(Kept::F32, 400 + 480 + 3 * 5200).unwrap();
        assert!(waiting.is_empty());
        assert_eq!((resident.device_bytes, resident.host_bytes), (16480, 0));
        // Preparation waits first.
        let (waiting, resident) = plan(Kept::F32, 880 + 4800 + 1200 + 1600 + 1200).unwrap();
        assert_eq!(
            (resident.device_bytes, resident.host_bytes),
            (880 + 4000, 16480 - 880 - 4000)
        );
        assert!(waiting.contains("blocks.0.adaLN_modulation.1.weight"));
        assert!(!waiting.contains("blocks.1.attn.qkv.weight"));
        assert!(waiting.contains("blocks.2.attn.qkv.weight"));
        let error = plan(Kept::F32, 5679).unwrap_err();
        let (limit, least) = (5679, 5680);
        assert_eq!(error, ResidenceError::Limit { limit, least });
        assert!(plan(Kept::F32, 5680).is_ok());
    }

    #[test]
    fn a_buffer_holds_what_is_no_larger() {
        let sizes = || [("a", 100), ("b", 400), ("c", 300)].map(|(n, bytes)| (n.to_owned(), bytes));
        let check = |limit| ResidenceError::check_buffers(sizes(), limit);
        assert_eq!((check(None), check(Some(400))), (Ok(()), Ok(())));
        let (name, bytes, limit) = ("b".to_owned(), 400, 399);
        assert_eq!(
            check(Some(399)),
            Err(ResidenceError::Buffer { name, bytes, limit })
        );
    }

    #[test]
    fn halves_take_half() {
        let (waiting, resident) = plan(Kept::F16, 1 << 20).unwrap();
        assert!(waiting.is_empty());
        assert_eq!(resident.device_bytes, 880 + 3 * 2600);
        let residence = Residence {
            kept: Kept::F16,
            max_bytes: None,
        };
        let of_block = &tensors()[1];
        let large = residence
            .matrix(of_block, vec![0.0, 1e6], [1, 2])
            .unwrap_err();
        assert!(
            large
                .to_string()
                .contains("holds 1000000, which is beyond f16"),
            "{large}"
        );
        let bytes = |tensor| residence.matrix(tensor, vec![0.5], [1, 1]).unwrap().bytes();
        assert_eq!([bytes(of_block), bytes(&tensors()[0])], [2, 4]);
    }

    #[test]
    fn f16_needs_a_device_that_has_it() {
        let check = |kept, has_f16| {
            let max_bytes = None;
            Residence { kept, max_bytes }.check_type(has_f16, false)
        };
        assert_eq!(check(Kept::F16, false), Err(ResidenceError::NoF16));
        assert_eq!(check(Kept::F16, true), Ok(()));
        for kept in [Kept::F32, Kept::Q8] {
            assert_eq!(check(kept, false), Ok(()));
        }
    }

    #[test]
    fn bf16_is_for_the_cpu_and_takes_half() {
        let residence = Residence {
            kept: Kept::Bf16,
            max_bytes: None,
        };
        assert_eq!(
            residence.check_type(true, false),
            Err(ResidenceError::NoBf16)
        );
        assert_eq!(residence.check_type(false, true), Ok(()));
        let tensor = |numbers: [usize; 2]| {
            TensorSpec::matrix("blocks.0.mlp.fc1.weight".into(), numbers.into(), Vec::new())
        };
        // Sizes that fill tiles, and sizes that do not.
        for ([outputs, inputs], bytes) in [([48, 64], 2 * 48 * 64), ([30, 10], 2 * 32 * 32)] {
            let tensor = tensor([outputs, inputs]);
            let kept = residence.matrix(&tensor, vec![0.5; inputs * outputs], [inputs, outputs]);
            assert_eq!(kept.unwrap().bytes(), bytes);
            assert_eq!(residence.bytes(&tensor), bytes);
        }
        let large = residence.matrix(&tensor([1, 2]), vec![0.0, f32::MAX], [2, 1]);
        let said = large.unwrap_err().to_string();
        assert!(said.contains("which is beyond bf16"), "{said}");
    }

    #[test]
    fn bytes_take_a_quarter_and_their_scales() {
        let (waiting, resident) = plan(Kept::Q8, 1 << 20).unwrap();
        assert!(waiting.is_empty());
        // A byte each of 300, 400 and 600 numbers, and a scale for each of 30, 40 and 60 outputs.
        let of_block = 1300 + 4 * 130;
        assert_eq!(resident.device_bytes, 880 + 3 * of_block);
        // The largest matrix is sent in bytes and used as f32: 600 and 60 scales, and 2400.
        let error = plan(Kept::Q8, 1000).unwrap_err();
        let (limit, least) = (1000, 880 + 840 + 2400);
        assert_eq!(error, ResidenceError::Limit { limit, least });
        let (waiting, resident) = plan(Kept::Q8, least).unwrap();
        assert_eq!(waiting.len(), 9);
        assert_eq!(
            (resident.device_bytes, resident.host_bytes),
            (880, 3 * of_block)
        );
        let residence = Residence {
            kept: Kept::Q8,
            max_bytes: None,
        };
        for tensor in tensors() {
            let shape = [tensor.numbers() / tensor.shape[0], tensor.shape[0]];
            let kept = residence.matrix(&tensor, vec![0.5; tensor.numbers()], shape);
            assert_eq!(kept.unwrap().bytes(), residence.bytes(&tensor));
        }
    }
}

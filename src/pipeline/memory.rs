//! What a run takes, known before a weight is read.

use crate::{
    cache::CacheDtype,
    checkpoint::{CheckpointError, ModelInfo, Residence, ResidenceError},
    device::Engine,
    models::{
        TensorSpec,
        text::T5Encoder,
        vae::{Tiling, VaeOutline},
    },
    plan::Plan,
    sampler::{Settings, cache_bytes},
    schedule::Reuse,
};

/// What would run.
pub struct MemoryRequest<'a> {
    pub info: &'a ModelInfo,
    pub residence: Residence,
    pub settings: &'a Settings,
    pub reuse: &'a Reuse,
    pub cache_dtype: CacheDtype,
    /// Images at a time.
    pub batch: usize,
    pub vae: Option<(&'a VaeOutline, Tiling)>,
    pub text_encoder: Option<&'a T5Encoder>,
}

/// A part of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPart {
    pub what: &'static str,
    /// Bytes on the device while it is in use.
    pub device_bytes: u64,
    /// Bytes that wait on the host.
    pub host_bytes: u64,
    /// Bytes of its largest buffer.
    pub largest_buffer: u64,
    /// The flag of `harmonica sample` that makes that buffer smaller, or does without it.
    pub smaller: &'static str,
}

/// All of it; figures other than of weights and cache are estimates.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub parts: Vec<MemoryPart>,
    /// Bytes on the device at most: weights, and beside them text encoder, denoising or decoding, which follow each other.
    pub peak_device_bytes: u64,
    /// Bytes of the largest buffer of the device, where it has a limit.
    pub max_buffer_bytes: Option<u64>,
}

impl Memory {
    /// Of a run on this engine's device.
    ///
    /// # Errors
    /// [`CheckpointError::Residence`]: weights that cannot be kept so.
    pub fn of(engine: &Engine, request: &MemoryRequest) -> Result<Self, CheckpointError> {
        let MemoryRequest {
            info,
            settings,
            batch,
            ..
        } = *request;
        let (outline, graph) = (&info.outline, &info.outline.graph);
        let refused = |source: ResidenceError| CheckpointError::Residence {
            path: info.source.to_string().into(),
            source,
        };
        let tensors = info.architecture.tensors();
        let resident = request.residence.resident(&tensors, engine.device());
        let resident = resident.map_err(refused)?;
        let largest = tensors.iter().map(TensorSpec::device_bytes);
        let weights = MemoryPart {
            what: "weights",
            device_bytes: resident.device_bytes,
            host_bytes: resident.host_bytes,
            largest_buffer: largest.max().unwrap_or(0),
            smaller: "another --device, such as cpu",
        };
        let copies = if settings.guidance.is_active() { 2 } else { 1 };
        let elements = (copies * batch) as u64;
        let denoising = MemoryPart {
            what: "activations",
            device_bytes: 4 * outline.activations * elements,
            host_bytes: 0,
            // The MLP's inner layer.
            largest_buffer: 4 * 4 * graph.feature_numbers() as u64 * elements,
            smaller: "--batch",
        };
        let plan = Plan::of(request.reuse, graph);
        let kept = cache_bytes(
            &plan,
            request.reuse,
            outline.latents,
            request.cache_dtype,
            [copies, batch],
        );
        let numbers = graph.feature_numbers() * elements as usize;
        let slot = request.cache_dtype.feature_bytes(numbers) as u64;
        let cache = MemoryPart {
            what: "cache",
            device_bytes: kept as u64,
            host_bytes: 0,
            largest_buffer: if plan.slots() > 0 { slot } else { 0 },
            smaller: "--cache-dtype f16, or --batch",
        };
        let vae = request.vae.map(|(vae, tiling)| {
            let size = outline.latents.size;
            (
                MemoryPart {
                    what: "autoencoder",
                    device_bytes: vae.weight_bytes(),
                    host_bytes: 0,
                    largest_buffer: 0,
                    smaller: "",
                },
                MemoryPart {
                    what: "decoding",
                    device_bytes: vae.decode_bytes(size, tiling),
                    host_bytes: 0,
                    largest_buffer: vae.largest_buffer(size, tiling),
                    smaller: "--vae-tile",
                },
            )
        });
        let text = request.text_encoder.map(|encoder| {
            let [_, block, table] = encoder.bytes();
            MemoryPart {
                what: "text encoder",
                device_bytes: block,
                host_bytes: table,
                largest_buffer: encoder.largest_matrix().1,
                smaller: "--texts with texts that were encoded elsewhere",
            }
        });
        let of_vae = vae.as_ref().map_or(0, |(vae, _)| vae.device_bytes);
        let decoding = vae
            .as_ref()
            .map_or(0, |(_, decoding)| decoding.device_bytes);
        let phases = [
            denoising.device_bytes + cache.device_bytes,
            decoding,
            text.as_ref().map_or(0, |text| text.device_bytes),
        ];
        let peak = phases.into_iter().max().unwrap_or(0);
        let peak_device_bytes = resident.device_bytes + of_vae + peak;
        let mut parts = vec![weights];
        parts.extend(text);
        parts.extend([denoising, cache]);
        if let Some((vae, decoding)) = vae {
            parts.extend([vae, decoding]);
        }
        Ok(Self {
            parts,
            peak_device_bytes,
            max_buffer_bytes: engine.report().max_buffer_bytes,
        })
    }

    /// The parts whose buffers are larger than the device has.
    pub fn too_large(&self) -> impl Iterator<Item = &MemoryPart> {
        let limit = self.max_buffer_bytes.unwrap_or(u64::MAX);
        self.parts
            .iter()
            .filter(move |part| part.largest_buffer > limit)
    }
}

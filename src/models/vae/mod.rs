//! Autoencoders: from pictures to the latents that a network draws, and back.
//!
//! Two kinds, each a list of [`Layer`]s: `AutoencoderKL` (arXiv 2112.10752), which the published DiT and PixArt were trained with,
//! and TAESD, a small one for pictures at once.

mod config;
mod device;
mod host;
mod infer;
mod layers;
mod machine;
mod names;
mod network;
mod tiles;
mod trainable;

pub use config::{KlConfig, TinyConfig, VaeConfig};
pub(crate) use layers::Weight as VaeParameter;
pub use layers::{Layer, Padding};
pub use tiles::Tiling;
pub(crate) use trainable::{Leaf, TrainableVae};

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use burn::tensor::Device;

use self::{
    infer::{Found, Half},
    network::Network,
};
use crate::{
    containers::{self, CheckpointError, TensorSource},
    device::DeviceFault,
};

/// An autoencoder on a device.
#[derive(Debug, Clone)]
pub struct Vae {
    path: PathBuf,
    config: VaeConfig,
    decoder: Option<Network>,
    encoder: Option<Network>,
}

/// An autoencoder of which no weight has been read.
#[derive(Debug, Clone)]
pub struct VaeOutline {
    pub config: VaeConfig,
    decoder: Vec<Layer>,
    weight_bytes: u64,
}

impl VaeOutline {
    /// Whether it makes pictures of latents.
    pub fn decodes(&self) -> bool {
        !self.decoder.is_empty()
    }

    /// Bytes of its decoder's weights on a device.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes that decoding latents of `[height, width]` holds at a time, by estimate.
    pub fn decode_bytes(&self, size: [usize; 2], tiling: Tiling) -> u64 {
        layers::peak_bytes(&self.decoder, self.tile(size, tiling))
    }

    /// Bytes of the largest buffer on the way.
    pub fn largest_buffer(&self, size: [usize; 2], tiling: Tiling) -> u64 {
        layers::largest_buffer(&self.decoder, self.tile(size, tiling))
    }

    fn tile(&self, size: [usize; 2], tiling: Tiling) -> [usize; 2] {
        let bytes = |side: usize| layers::peak_bytes(&self.decoder, [side; 2]);
        let side = tiling.side(bytes, size);
        size.map(|length| length.min(side))
    }
}

/// Why latents or pictures could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VaeError {
    /// The file holds only one of the two halves.
    #[error("this autoencoder has no {half}; load a file that holds one")]
    Half { half: &'static str },
    /// Values of another shape.
    #[error("expected {expected}, found {found:?}")]
    Shape { expected: String, found: [usize; 3] },
    /// A picture that is not one.
    #[error(
        "the decoded picture holds a value that is not finite: the latents, or the weights of the autoencoder, are damaged"
    )]
    NotFinite,
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceFault),
    /// The caller said so.
    #[error("interrupted")]
    Interrupted,
}

impl Vae {
    /// Loads an autoencoder: a diffusers folder (`vae/` or its parent), or a file of weights in diffusers' names, those of the
    /// latent-diffusion release (by itself or inside a whole checkpoint) or TAESD's.
    ///
    /// Peak memory is the weights in f32 plus one tensor.
    ///
    /// # Errors
    /// [`CheckpointError`]; shapes are checked before any weight is read.
    pub fn open(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        Self::open_with(path, None, device)
    }

    /// The same for a file that does not tell its config, where it is not the usual one: groups of norms and scaling of latents
    /// stand in no shape.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        path: &Path,
        config: Option<VaeConfig>,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (mut source, found) = describe(path, config)?;
        let mut load = |half: Option<Half>| {
            half.map(|half| Network::load(&half, &mut source, device))
                .transpose()
        };
        Ok(Self {
            path: path.into(),
            config: found.config,
            decoder: load(found.decoder)?,
            encoder: load(found.encoder)?,
        })
    }

    /// The decoder alone, which is all that drawing needs; the encoder is checked, and none of its weights read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_decoder(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        let (mut source, found) = describe(path, None)?;
        let decoder = found
            .decoder
            .map(|half| Network::load(&half, &mut source, device));
        Ok(Self {
            path: path.into(),
            config: found.config,
            decoder: decoder.transpose()?,
            encoder: None,
        })
    }

    /// What [`Self::open_decoder`] would load.
    ///
    /// # Errors
    /// As [`Self::open_decoder`], but for those of the weights' values.
    pub fn outline(path: &Path) -> Result<VaeOutline, CheckpointError> {
        let (_, found) = describe(path, None)?;
        let weights = found.decoder.iter().flat_map(|half| &half.stored);
        let numbers = weights.map(|(weight, _)| weight.shape.iter().product::<usize>() as u64);
        Ok(VaeOutline {
            weight_bytes: 4 * numbers.sum::<u64>(),
            decoder: found.decoder.map_or(Vec::new(), |half| half.layers),
            config: found.config,
        })
    }

    /// Config and weights of an AutoencoderKL with both halves, by diffusers' names and in PyTorch's layout: what training goes on
    /// from.
    ///
    /// # Errors
    /// As [`Self::open`]; [`CheckpointError::Config`] for one of another kind, or for half of one.
    pub fn read_weights(
        path: &Path,
    ) -> Result<(KlConfig, HashMap<String, Vec<f32>>), CheckpointError> {
        let (mut source, found) = describe(path, None)?;
        let (VaeConfig::Kl(config), Some(encoder), Some(decoder)) =
            (found.config, found.encoder, found.decoder)
        else {
            return Err(CheckpointError::Config {
                path: source.path().into(),
                problem: "training goes on from an AutoencoderKL with encoder and decoder".into(),
            });
        };
        let stored = encoder.stored.into_iter().chain(decoder.stored);
        let weights = stored.map(|(weight, name)| Ok((weight.name, source.read_f32(&name)?)));
        let weights = weights.collect::<Result<_, CheckpointError>>()?;
        Ok((config, weights))
    }

    /// A hash of the encoder's weights and of what scales latents: two autoencoders of one identity make the same latents. Reads the
    /// file once more.
    ///
    /// # Errors
    /// As [`Self::open`]: the file may be gone by now.
    pub fn encoder_identity(&self) -> Result<String, CheckpointError> {
        let (mut source, found) = describe(&self.path, Some(self.config.clone()))?;
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{:?}", found.config).as_bytes());
        for (weight, name) in found.encoder.iter().flat_map(|half| &half.stored) {
            hash.update(weight.name.as_bytes());
            hash.update(bytemuck::cast_slice(&source.read_f32(name)?));
        }
        Ok(hash.finalize().to_hex()[..32].to_owned())
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of it beside its weights.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Whether it makes pictures of latents.
    pub fn decodes(&self) -> bool {
        self.decoder.is_some()
    }

    /// Whether it makes latents of pictures.
    pub fn encodes(&self) -> bool {
        self.encoder.is_some()
    }

    /// Bytes that decoding latents of `[height, width]` in one piece holds at a time, the weights not counted: an estimate.
    pub fn decode_bytes(&self, size: [usize; 2]) -> u64 {
        self.decoder
            .as_ref()
            .map_or(0, |decoder| decoder.peak_bytes(size))
    }

    /// The picture `[3, f·H, f·W]` in [-1, 1] of latents `[C, H, W]` as a network draws them, `f` the
    /// [factor](VaeConfig::factor). `go_on` is asked before every tile.
    ///
    /// # Errors
    /// [`VaeError`].
    pub fn decode(
        &self,
        latents: &[f32],
        shape: [usize; 3],
        tiling: Tiling,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<f32>, VaeError> {
        let decoder = self
            .decoder
            .as_ref()
            .ok_or(VaeError::Half { half: "decoder" })?;
        let channels = self.config.latent_channels();
        self.check(shape, channels, latents.len(), 1, "latents")?;
        let latents: Vec<f32> = latents.iter().map(|z| self.config.to_vae(*z)).collect();
        let side = tiling.side(|side| decoder.peak_bytes([side; 2]), [shape[1], shape[2]]);
        let picture = tiles::over(
            &latents,
            shape,
            side,
            self.config.factor(),
            |tile, shape| {
                if !go_on() {
                    return Err(VaeError::Interrupted);
                }
                Ok(decoder.pass(tile, shape)?.0)
            },
        )?;
        if picture.iter().any(|v| !v.is_finite()) {
            return Err(VaeError::NotFinite);
        }
        Ok(picture)
    }

    /// The latents `[C, H/f, W/f]` of a picture `[3, H, W]` in [-1, 1], as a network draws them: the mean of what the encoder
    /// says.
    ///
    /// # Errors
    /// [`VaeError`]; sides that are no multiples of the [factor](VaeConfig::factor) too.
    pub fn encode(&self, picture: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, VaeError> {
        self.check(shape, 3, picture.len(), self.config.factor(), "a picture")?;
        let (mut moments, [_, height, width]) = self.moments(picture, shape)?;
        // Means come first.
        moments.truncate(self.config.latent_channels() * height * width);
        moments
            .iter_mut()
            .for_each(|z| *z = self.config.to_network(*z));
        Ok(moments)
    }

    /// What the encoder says of a picture `[3, H, W]`, and its shape: means and logarithms of variances `[2C, h, w]`, or `[C, h, w]`
    /// where it knows no variance; `h` and `w` are rounded down.
    ///
    /// # Errors
    /// As [`Self::encode`], but for sides of any length.
    pub fn moments(
        &self,
        picture: &[f32],
        shape: [usize; 3],
    ) -> Result<(Vec<f32>, [usize; 3]), VaeError> {
        let encoder = self
            .encoder
            .as_ref()
            .ok_or(VaeError::Half { half: "encoder" })?;
        self.check(shape, 3, picture.len(), 1, "a picture")?;
        Ok(encoder.pass(picture.to_vec(), shape)?)
    }

    fn check(
        &self,
        shape: [usize; 3],
        channels: usize,
        numbers: usize,
        multiple: usize,
        what: &str,
    ) -> Result<(), VaeError> {
        let [found, height, width] = shape;
        let whole = |side: usize| side > 0 && side.is_multiple_of(multiple);
        if found == channels && whole(height) && whole(width) && numbers == found * height * width {
            return Ok(());
        }
        Err(VaeError::Shape {
            expected: format!(
                "{what} [{channels}, H, W] with sides that are multiples of {multiple}"
            ),
            found: shape,
        })
    }
}

/// The open weights of an autoencoder in a folder, or in the `vae` of one, or in a file.
fn describe(
    path: &Path,
    config: Option<VaeConfig>,
) -> Result<(TensorSource, Found), CheckpointError> {
    let inner = path.join("vae");
    let source = containers::open(if inner.is_dir() { &inner } else { path })?;
    let found = infer::describe(&source, config)?;
    tracing::debug!(path = %source.path().display(), "opened an autoencoder");
    Ok((source, found))
}

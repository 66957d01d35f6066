//! From what a network draws to pictures.

use std::path::Path;

use image::RgbImage;

use crate::{
    checkpoint::{CheckpointError, ModelInfo, ResidenceError},
    device::Engine,
    models::vae::{Tiling, Vae, VaeError, VaeOutline},
    report::image_from_values,
};

/// What makes pictures of a network's images.
#[derive(Debug, Clone, Default)]
pub enum Decoder {
    /// Pixels as they are; of latents a rough preview.
    #[default]
    Direct,
    /// An autoencoder's decoder.
    Vae(Box<Vae>, Tiling),
}

impl Decoder {
    /// The autoencoder at `path` (see [`Vae::open_decoder`]), for the latents of a model.
    ///
    /// # Errors
    /// [`CheckpointError`], also where model and autoencoder do not belong together, or a buffer would be larger than the
    /// device has.
    pub fn open(
        path: &Path,
        tiling: Tiling,
        info: &ModelInfo,
        engine: &Engine,
    ) -> Result<Self, CheckpointError> {
        let outline = Self::outline(path, info)?;
        let bytes = outline.largest_buffer(info.outline.latents.size, tiling);
        match engine.report().max_buffer_bytes {
            Some(limit) if bytes > limit => Err(CheckpointError::Residence {
                path: path.into(),
                source: ResidenceError::Decoding { bytes, limit },
            }),
            _ => {
                let vae = Vae::open_decoder(path, engine.device())?;
                Ok(Self::Vae(Box::new(vae), tiling))
            }
        }
    }

    /// What [`Self::open`] would load, of which no weight is read.
    ///
    /// # Errors
    /// As [`Self::open`], but for those of the weights' values and of the device.
    pub fn outline(path: &Path, info: &ModelInfo) -> Result<VaeOutline, CheckpointError> {
        let contradiction = |problem: String| CheckpointError::Settings {
            path: path.into(),
            problem,
        };
        let model = &info.outline;
        if info.is_pixel_space() {
            return Err(contradiction(format!(
                "{} draws pixels, which need no autoencoder; leave it out",
                model.name
            )));
        }
        let outline = Vae::outline(path)?;
        let channels = outline.config.latent_channels();
        if channels != model.latents.channels {
            return Err(contradiction(format!(
                "the autoencoder has {channels} latent channels, {} draws {}; expected the one that it was trained with",
                model.name, model.latents.channels
            )));
        }
        if !outline.decodes() {
            return Err(contradiction(
                "it holds an encoder alone; expected a decoder".into(),
            ));
        }
        Ok(outline)
    }

    /// Width and height of the pictures of images `[C, H, W]`.
    pub fn picture_size(&self, [_, height, width]: [usize; 3]) -> [usize; 2] {
        let factor = match self {
            Self::Direct => 1,
            Self::Vae(vae, _) => vae.config().factor(),
        };
        [width * factor, height * factor]
    }

    /// The picture of one image `[C, H, W]`. `go_on` is asked before every tile of a large one.
    ///
    /// # Errors
    /// [`VaeError`].
    pub fn picture(
        &self,
        image: &[f32],
        shape: [usize; 3],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<RgbImage, VaeError> {
        match self {
            Self::Direct => Ok(image_from_values(image, shape)),
            Self::Vae(vae, tiling) => {
                let [width, height] = self.picture_size(shape);
                let pixels = vae.decode(image, shape, *tiling, go_on)?;
                Ok(image_from_values(&pixels, [3, height, width]))
            }
        }
    }
}

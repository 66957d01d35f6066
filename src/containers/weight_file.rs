//! The names under which a folder keeps its weights: one file or shards with an index, safetensors or PyTorch's, in full
//! precision or a variant of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{Format, error::CheckpointError, json::read_json};

/// What names of weights begin with, best first: diffusers', then those of transformers.
const STEMS: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];
/// The variant that is taken where several lie beside each other and full precision does not.
const USUAL_VARIANT: &str = "fp16";

/// A file of weights, or the index of several, as its name tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFile {
    pub name: String,
    pub format: Format,
    /// Whether it is the index of shards.
    pub index: bool,
    /// Such as `fp16`; none is full precision.
    pub variant: Option<String>,
    /// Place in [`STEMS`].
    stem: usize,
}

impl WeightFile {
    /// What a file name says, `None` for anything but weights: a shard is known by its index alone.
    pub fn parse(name: &str) -> Option<Self> {
        let of_stem = |(place, stem): (usize, &&str)| {
            let rest = name.strip_prefix(stem)?.strip_prefix('.')?;
            Some((place, rest.split('.').collect::<Vec<_>>()))
        };
        let (stem, parts) = STEMS.iter().enumerate().find_map(of_stem)?;
        let (variant, kind, index) = match parts[..] {
            [kind] => (None, kind, false),
            [kind, "index", "json"] => (None, kind, true),
            // diffusers puts the variant of an index behind the kind, transformers before it.
            [kind, "index", variant, "json"] | [variant, kind, "index", "json"] => {
                (Some(variant), kind, true)
            }
            [variant, kind] => (Some(variant), kind, false),
            _ => return None,
        };
        let format = match kind {
            "safetensors" => Format::Safetensors,
            "bin" => Format::Torch,
            _ => return None,
        };
        // `model.fp16-00001-of-00002.safetensors` is a shard of the variant `fp16`.
        let variant = variant.map(str::to_owned);
        if variant.as_ref().is_some_and(|v| v.contains("-of-")) {
            return None;
        }
        Some(Self {
            name: name.into(),
            format,
            index,
            variant,
            stem,
        })
    }

    /// The weights to read of the files of a folder: those of the variant, or, where none is asked for, full precision
    /// before any variant. Safetensors go before PyTorch's files, an index before a single file.
    pub fn best<'a>(
        names: impl IntoIterator<Item = &'a str>,
        variant: Option<&str>,
    ) -> Option<Self> {
        let wanted = |file: &Self| variant.is_none() || file.variant.as_deref() == variant;
        let files = names.into_iter().filter_map(Self::parse).filter(wanted);
        files.min_by_key(|file| {
            let usual = file.variant.as_deref() != Some(USUAL_VARIANT);
            (
                file.variant
                    .as_ref()
                    .map(|variant| (usual, variant.clone())),
                file.format == Format::Torch,
                !file.index,
                file.stem,
            )
        })
    }
}

/// The files that a shard index names, each once, in order; all lie beside it.
///
/// # Errors
/// [`CheckpointError`]: unreadable, or names that are no file names.
pub fn read_shard_names(index: &Path) -> Result<Vec<String>, CheckpointError> {
    let files: BTreeSet<String> = read_shards(index)?.into_values().collect();
    Ok(files.into_iter().collect())
}

/// Where a shard index places each tensor.
///
/// # Errors
/// As [`read_shard_names`].
pub(super) fn read_shards(index: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let json = read_json(index)?;
    let config = |problem: String| CheckpointError::Config {
        path: index.into(),
        problem,
    };
    let map = json
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| {
            config("expected an object `weight_map` from tensor names to file names".into())
        })?;
    let mut places = BTreeMap::new();
    for (tensor, file) in map {
        let is_name = |name: &&str| {
            Path::new(name).file_name().is_some_and(|n| n == *name) && !name.contains('\\')
        };
        let name = file.as_str().filter(is_name).ok_or_else(|| {
            config(format!(
                "tensor `{tensor}` is placed in {file}, which is no file name"
            ))
        })?;
        places.insert(tensor.clone(), name.to_owned());
    }
    if places.is_empty() {
        return Err(config("`weight_map` is empty".into()));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_precision_goes_before_its_variants_and_safetensors_before_pickles() {
        let names = [
            "config.json",
            "diffusion_pytorch_model.fp16.bin",
            "diffusion_pytorch_model.bf16.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
        ];
        // The best is taken away each time.
        let order = [
            names[8], names[7], names[6], names[5], names[3], names[1], names[2],
        ];
        let mut left = names.to_vec();
        for expected in order {
            let best = WeightFile::best(left.iter().copied(), None).unwrap();
            assert_eq!(best.name, expected);
            left.retain(|name| *name != expected);
        }
        assert_eq!(WeightFile::best(left, None), None);
        let of = |variant| WeightFile::best(names, Some(variant)).map(|file| file.name);
        assert_eq!(of("fp16").as_deref(), Some(names[5]));
        assert_eq!(of("bf16").as_deref(), Some(names[2]));
        assert_eq!(of("non_ema"), None);
    }

    #[test]
    fn the_text_encoders_names_are_known_too() {
        for (name, index, variant) in [
            ("model.safetensors", false, None),
            ("model.safetensors.index.json", true, None),
            ("model.fp16.safetensors.index.json", true, Some("fp16")),
            ("pytorch_model.bin", false, None),
            ("pytorch_model.bin.index.json", true, None),
            ("pytorch_model.fp16.bin", false, Some("fp16")),
        ] {
            let file = WeightFile::parse(name).unwrap();
            assert_eq!(
                (file.index, file.variant.as_deref()),
                (index, variant),
                "{name}"
            );
        }
        for name in [
            "pytorch_model-00001-of-00002.bin",
            "model.safetensors.part",
            "optimizer.bin",
            "models.safetensors",
        ] {
            assert_eq!(WeightFile::parse(name), None, "{name}");
        }
    }
}

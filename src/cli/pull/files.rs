//! Which files of a repository are needed.

use crate::{
    checkpoint::{MODEL_INDEX, Part},
    containers::WeightFile,
};

/// Files to download, by their paths in the repository.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// Small ones and whole weights.
    pub files: Vec<String>,
    /// Indices of shards, which name more files in the same folder.
    pub indices: Vec<String>,
}

/// Endings of weights in forms that nothing here reads, and of shards, which their index names.
const HEAVY: [&str; 9] = [
    "bin",
    "ckpt",
    "gguf",
    "h5",
    "msgpack",
    "onnx",
    "pt",
    "pth",
    "safetensors",
];

/// What of `listed` the parts need; all that the pipeline has where `only` is empty.
///
/// # Errors
/// A sentence that goes on after the repository's name.
pub(super) fn wanted(
    listed: &[String],
    only: &[Part],
    variant: Option<&str>,
) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        files: Vec::new(),
        indices: Vec::new(),
    };
    if !listed.iter().any(|file| file == MODEL_INDEX) {
        // A transformer by itself.
        if !only.is_empty() || !wanted.add("", listed, variant) {
            return Err(format!(
                "is no pipeline: it has no {MODEL_INDEX}, but {}",
                some_of(listed)
            ));
        }
        return Ok(wanted);
    }
    wanted.files.push(MODEL_INDEX.into());
    let asked = if only.is_empty() { &Part::ALL } else { only };
    for part in asked {
        let folder = format!("{part}/");
        let has_weights = wanted.add(&folder, listed, variant);
        let there = listed.iter().any(|file| file.starts_with(&folder));
        let needs_weights = !matches!(part, Part::Scheduler | Part::Tokenizer);
        let is_asked_for = !only.is_empty() || *part == Part::Transformer;
        if (is_asked_for && !there) || (there && needs_weights && !has_weights) {
            let what = if there { "no weights in" } else { "no" };
            return Err(format!("has {what} `{folder}`, but {}", some_of(listed)));
        }
    }
    if let Some(variant) = variant
        && !wanted.all().any(|file| is_variant(file, variant))
    {
        return Err(format!("has no weights of the form `{variant}`"));
    }
    Ok(wanted)
}

impl Wanted {
    /// Adds the files of a folder: what is no weight, and the best of its weights. Returns whether there are any.
    fn add(&mut self, folder: &str, listed: &[String], variant: Option<&str>) -> bool {
        let inside = listed.iter().filter_map(|file| file.strip_prefix(folder));
        let inside: Vec<&str> = inside.filter(|name| is_plain(name)).collect();
        let best = WeightFile::best(inside.iter().copied(), variant)
            .or_else(|| WeightFile::best(inside.iter().copied(), None));
        for name in inside {
            let ending = name.rsplit('.').next().unwrap_or_default();
            let is_weights = WeightFile::parse(name).is_some() || HEAVY.contains(&ending);
            // Of a repository's own folder, only what belongs to its weights.
            let belongs = !folder.is_empty() || name == "config.json";
            if !is_weights && belongs {
                self.files.push(format!("{folder}{name}"));
            }
        }
        let Some(best) = best else {
            return false;
        };
        let list = if best.index {
            &mut self.indices
        } else {
            &mut self.files
        };
        list.push(format!("{folder}{}", best.name));
        true
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.files.iter().chain(&self.indices)
    }
}

fn is_variant(file: &str, variant: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default();
    let parsed = WeightFile::parse(name);
    parsed.is_some_and(|file| file.variant.as_deref() == Some(variant))
}

/// Whether a name from the hub is that of a file in the folder itself, and nothing that a path could be made of.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
}

fn some_of(listed: &[String]) -> String {
    let some: Vec<_> = listed
        .iter()
        .take(3)
        .map(|file| format!("`{file}`"))
        .collect();
    if some.is_empty() {
        "nothing".into()
    } else {
        some.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Vec<String> {
        let files = [
            ".gitattributes",
            "README.md",
            "model_index.json",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.safetensors.index.json",
            "tokenizer/spiece.model",
            "tokenizer/tokenizer_config.json",
            "transformer/../../escape.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.bin",
            "transformer/diffusion_pytorch_model.fp16.safetensors",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        files.map(String::from).to_vec()
    }

    #[test]
    fn every_part_comes_in_one_form_and_nothing_else_does() {
        let all = wanted(&listed(), &[], None).unwrap();
        let expected = [
            "model_index.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/config.json",
            "tokenizer/spiece.model",
            "tokenizer/tokenizer_config.json",
        ];
        assert_eq!(all.files, expected);
        assert_eq!(all.indices, ["text_encoder/model.safetensors.index.json"]);
    }

    #[test]
    fn parts_and_forms_can_be_chosen() {
        let chosen = wanted(&listed(), &[Part::Transformer, Part::Vae], Some("fp16")).unwrap();
        let expected = [
            "model_index.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(chosen.files, expected);
        assert_eq!(
            wanted(&listed(), &[], Some("bf16")).unwrap_err(),
            "has no weights of the form `bf16`"
        );
    }

    #[test]
    fn a_transformer_by_itself_comes_with_its_config() {
        let files = [
            "README.md",
            "config.json",
            "diffusion_pytorch_model.safetensors",
        ];
        let alone = wanted(&files.map(String::from), &[], None).unwrap();
        assert_eq!(alone.files, files[1..]);
        let error = wanted(&files.map(String::from), &[Part::Vae], None).unwrap_err();
        assert_eq!(
            error,
            "is no pipeline: it has no model_index.json, but `README.md`, `config.json`, `diffusion_pytorch_model.safetensors`"
        );
        let files = ["model_index.json", "transformer/config.json"];
        assert_eq!(
            wanted(&files.map(String::from), &[], None).unwrap_err(),
            "has no weights in `transformer/`, but `model_index.json`, `transformer/config.json`"
        );
    }
}

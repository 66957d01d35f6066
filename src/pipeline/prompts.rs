//! From prompts to what a model of texts is conditioned on: tokenizer, encoder, and a cache of what they made.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Pipeline;
use crate::{
    checkpoint::{
        CheckpointError, METADATA_KEY, ModelInfo, ResidenceError, write_tensors_with_metadata,
    },
    containers,
    device::{DeviceFault, Watch},
    models::{
        Condition, Conditioning, Prompts, TextEmbedding,
        text::{T5Encoder, TextError, TextTokenizer},
    },
};

/// What to encode, and with what.
#[derive(Debug, Clone)]
pub struct PromptRequest {
    /// A folder with `text_encoder/` and `tokenizer/`, or with the files of both.
    pub folder: PathBuf,
    pub prompts: Vec<String>,
    /// What guidance leads away from; without it what the model brings for no text or, where it brings none, the empty text.
    pub negative: Option<String>,
    /// Where encoded texts are kept for the next time, a file each.
    pub cache: Option<PathBuf>,
}

/// A prompt that was too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutPrompt {
    pub prompt: String,
    /// Tokens that the model takes.
    pub most: usize,
    /// The end that was left out.
    pub cut: String,
}

/// The folder around a model's transformer, where it holds a text encoder.
pub fn encoder_beside(model: &ModelInfo) -> Option<PathBuf> {
    model.folder_with(ENCODER)
}

/// The encoder in a folder, for the texts of a model; no weight is read.
///
/// # Errors
/// [`TextError`], also where its texts are of another width than the model's.
pub fn encoder_for(model: &ModelInfo, folder: &Path) -> Result<T5Encoder, TextError> {
    let Conditioning::Text { width, .. } = model.outline.conditioning else {
        return Err(TextError::Classes);
    };
    let encoder = T5Encoder::open(&part(folder, ENCODER))?;
    match encoder.config().d_model {
        found if found == width => Ok(encoder),
        found => Err(TextError::Width {
            folder: encoder.folder().into(),
            found,
            expected: width,
        }),
    }
}

/// The tokenizer in the folder of an encoder.
///
/// # Errors
/// [`TextError`].
pub fn tokenizer_in(folder: &Path) -> Result<TextTokenizer, TextError> {
    TextTokenizer::open(&part(folder, TOKENIZER))
}

/// `$XDG_CACHE_HOME/harmonica/texts`; without that variable in `%LOCALAPPDATA%` or `~/.cache`.
pub fn usual_text_cache() -> Option<PathBuf> {
    let folder = |name| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let root = folder("XDG_CACHE_HOME")
        .or_else(|| folder("LOCALAPPDATA"))
        .or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(root.join("harmonica/texts"))
}

const ENCODER: &str = "text_encoder";
const TOKENIZER: &str = "tokenizer";

impl Pipeline {
    /// The same for prompts, in lower case and stripped, as PixArt was trained. Returns those that were too long as well.
    ///
    /// The encoder runs on the pipeline's device, block by block, and is gone when this returns. It does not run for texts that
    /// the cache has. `each` hears how many of its blocks are done, of how many, and may break off.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn with_prompts(
        self,
        request: &PromptRequest,
        each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<(Self, Vec<CutPrompt>), TextError> {
        let Conditioning::Text { tokens: most, .. } = self.info.outline.conditioning else {
            return Err(TextError::Classes);
        };
        let encoder = encoder_for(&self.info, &request.folder)?;
        let empty = self.prompts.null.is_none().then(String::new);
        let negative = request.negative.clone().or(empty);
        let words: Vec<&String> = request.prompts.iter().chain(&negative).collect();

        let tokenizer = tokenizer_in(&request.folder)?;
        let (mut ids, mut cut) = (Vec::new(), Vec::new());
        for words in &words {
            let text = words.trim().to_lowercase();
            let tokens = tokenizer.tokenize(&text, encoder.config().eos_token_id, most)?;
            cut.extend(tokens.cut.map(|cut| CutPrompt {
                prompt: words.to_string(),
                most,
                cut,
            }));
            ids.push(tokens.ids);
        }
        let encoded = self.encoded(encoder, &ids, request.cache.as_deref(), each)?;
        let texts = words.iter().zip(&ids).filter_map(|(words, ids)| {
            let text = encoded.get(ids)?.clone().with_words(words.trim());
            Some(Condition::Text(Arc::new(text)))
        });
        let mut pool: Vec<Condition> = texts.collect();
        let null = pool.split_off(request.prompts.len()).pop();
        let prompts = Prompts {
            pool,
            null: null.or(self.prompts.null),
        };
        Ok((Self { prompts, ..self }, cut))
    }

    /// An embedding for every list of tokens, from the cache or the encoder.
    fn encoded(
        &self,
        mut encoder: T5Encoder,
        ids: &[Vec<u32>],
        cache: Option<&Path>,
        each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<HashMap<Vec<u32>, TextEmbedding>, TextError> {
        let fingerprint = encoder.fingerprint()?;
        let file = |ids: &[u32]| Some(cache?.join(cached_name(&fingerprint, ids)));
        let width = encoder.config().d_model;
        let (mut done, mut missing) = (HashMap::new(), Vec::new());
        for ids in ids {
            if done.contains_key(ids) || missing.contains(ids) {
                continue;
            }
            match file(ids).and_then(|file| read_cached(&file, [ids.len(), width])) {
                Some(text) => drop(done.insert(ids.clone(), text)),
                None => missing.push(ids.clone()),
            }
        }
        if missing.is_empty() {
            return Ok(done);
        }
        let limit = self.engine.report().max_buffer_bytes;
        ResidenceError::check_buffers([encoder.largest_matrix()], limit).map_err(|source| {
            CheckpointError::Residence {
                path: encoder.folder().into(),
                source,
            }
        })?;
        let watch = Watch::new(&self.engine);
        let blocks = encoder.config().num_layers;
        let device = self.engine.device();
        let work = || encoder.encode(&missing, device, &mut |block| each(block, blocks));
        // Some faults of a device come out of burn as panics.
        let encoded = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|panic| Err(DeviceFault::of_panic(&*panic).into()));
        self.engine.release_memory();
        let encoded = encoded.map_err(|error| match error {
            TextError::Device(fault) => watch.explained(fault).into(),
            error => error,
        })?;
        for (ids, text) in missing.into_iter().zip(encoded) {
            if let Some(file) = file(&ids)
                && let Err(error) = write_cached(&file, &text)
            {
                tracing::warn!("an encoded text is not kept: {error}");
            }
            done.insert(ids, text);
        }
        Ok(done)
    }
}

/// A part of a pipeline's folder, or the folder itself where it lies flat.
fn part(folder: &Path, name: &str) -> PathBuf {
    let inner = folder.join(name);
    if inner.is_dir() { inner } else { folder.into() }
}

/// The file of a text: a hash of [`T5Encoder::fingerprint`] and the token ids.
fn cached_name(fingerprint: &str, ids: &[u32]) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(fingerprint.as_bytes());
    for id in ids {
        hash.update(&id.to_le_bytes());
    }
    format!("{}.safetensors", &hash.finalize().to_hex()[..32])
}

/// The one tensor of a cached text, `[1, tokens, width]`, by the name that `read_texts` looks for.
const EMBEDS: &str = "prompt_embeds";

/// Keeps a text with a hash of its values.
fn write_cached(file: &Path, text: &TextEmbedding) -> Result<(), containers::CheckpointError> {
    let shape = vec![1, text.tokens(), text.width()];
    let tensor = (EMBEDS, shape, text.values().to_vec());
    write_tensors_with_metadata(file, &[tensor], &hash_of(text.values()))
}

/// A text that was kept; none where there is no file, or a damaged one.
fn read_cached(file: &Path, [tokens, width]: [usize; 2]) -> Option<TextEmbedding> {
    let mut source = containers::open(file).ok()?;
    if source.get(EMBEDS)?.shape != [1, tokens, width] {
        return None;
    }
    let values = source.read_f32(EMBEDS).ok()?;
    if source.metadata().get(METADATA_KEY)? != &hash_of(&values) {
        return None;
    }
    TextEmbedding::new(values, width, vec![true; tokens]).ok()
}

fn hash_of(values: &[f32]) -> String {
    let hash = blake3::hash(bytemuck::cast_slice(values));
    hash.to_hex()[..32].to_owned()
}

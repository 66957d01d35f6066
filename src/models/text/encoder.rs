//! T5's encoder, block by block from its files: T5-XXL has 19 GB in f32, of which one block is in memory at a time.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::{
    Device, Tensor, TensorData,
    activation::{relu, softmax},
};

use super::{
    TextError,
    config::{FeedForward, T5Config},
};
use crate::{
    containers::{self, CheckpointError, TensorSource},
    device::read_back,
    kernels::{gelu, product},
    models::{ConditionError, Parameter, TensorSpec, TextEmbedding},
};

/// Names of the token embeddings, `[vocabulary, d_model]`: shared with a decoder, or the encoder's own.
const EMBEDDINGS: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];
const DISTANCES: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
const LAST_NORM: &str = "encoder.final_layer_norm.weight";

/// What a padding token adds to its scores.
const MASKED: f32 = -1e9;

/// Scores of a group of texts that are in memory at a time.
const SCORES: usize = 1 << 24;
/// Texts of a group at most.
const GROUP: usize = 64;

/// The encoder of a T5 (arXiv 1910.10683), 1.0 or 1.1, whose weights stay in their files until they are used.
pub struct T5Encoder {
    folder: PathBuf,
    config: T5Config,
    source: TensorSource,
    /// The name of its token embeddings.
    embeddings: &'static str,
}

impl T5Encoder {
    /// Opens a folder with `config.json` and weights: `model.safetensors`, shards with their index, or `pytorch_model.bin`.
    /// Nothing large is read.
    ///
    /// # Errors
    /// [`TextError`]: something is missing, damaged, or of another shape than the config says.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let config = folder.join("config.json");
        if !config.is_file() {
            return Err(TextError::NotThere {
                folder: folder.into(),
                what: "text encoder",
                expected: "config.json, and model.safetensors, its shards or pytorch_model.bin,",
            });
        }
        let config = T5Config::read(&config)?;
        let source = open_weights(folder)?;
        let [shared, own] = EMBEDDINGS;
        let embeddings = match source.get(shared) {
            None if source.get(own).is_some() => own,
            _ => shared,
        };
        let encoder = Self {
            folder: folder.into(),
            config,
            source,
            embeddings,
        };
        encoder.check()?;
        Ok(encoder)
    }

    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Bytes in f32: of all its weights; of a block, which is on the device at a time; and of the table of token embeddings, which
    /// is on the host while texts begin.
    pub fn bytes(&self) -> [u64; 3] {
        let bytes = |shape: &[usize]| 4 * shape.iter().product::<usize>() as u64;
        let tensors = self.tensors();
        let whole = tensors.iter().map(|(_, shape)| bytes(shape)).sum();
        let in_block = tensors
            .iter()
            .filter(|(name, _)| name.starts_with("encoder.block.0."));
        let block = in_block.map(|(_, shape)| bytes(shape)).sum();
        let table = bytes(&[self.config.vocab_size, self.config.d_model]);
        [whole, block, table]
    }

    /// The largest of the matrices that it multiplies by, and its bytes in f32; the embedding table stays on the host.
    pub fn largest_matrix(&self) -> (String, u64) {
        let bytes = |shape: &[usize]| 4 * shape.iter().product::<usize>() as u64;
        let tensors = self.tensors().into_iter();
        let in_blocks = tensors.filter(|(name, _)| name.starts_with("encoder.block."));
        let sizes = in_blocks.map(|(name, shape)| (name, bytes(&shape)));
        sizes.max_by_key(|(_, bytes)| *bytes).unwrap_or_default()
    }

    /// Name and shape of every tensor of the encoder.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let c = &self.config;
        let inner = c.num_heads * c.d_kv;
        let mut all = vec![
            (self.embeddings.into(), vec![c.vocab_size, c.d_model]),
            (
                DISTANCES.into(),
                vec![c.relative_attention_num_buckets, c.num_heads],
            ),
            (LAST_NORM.into(), vec![c.d_model]),
        ];
        for b in 0..c.num_layers {
            let mut add = |part: &str, shape: &[usize]| all.push((of_block(b, part), shape.into()));
            add("layer.0.layer_norm", &[c.d_model]);
            for part in ["q", "k", "v"] {
                add(
                    &format!("layer.0.SelfAttention.{part}"),
                    &[inner, c.d_model],
                );
            }
            add("layer.0.SelfAttention.o", &[c.d_model, inner]);
            add("layer.1.layer_norm", &[c.d_model]);
            let (gate, wi) = first_layers(c.feed_forward_proj);
            for part in gate.into_iter().chain([wi]) {
                add(
                    &format!("layer.1.DenseReluDense.{part}"),
                    &[c.d_ff, c.d_model],
                );
            }
            add("layer.1.DenseReluDense.wo", &[c.d_model, c.d_ff]);
        }
        all
    }

    /// Names, shapes and types of the file against those of the config. A file may hold more: a decoder.
    fn check(&self) -> Result<(), CheckpointError> {
        let path = || self.source.path().to_path_buf();
        let expected = self.tensors();
        let is_missing = |(name, _): &&(String, Vec<usize>)| self.source.get(name).is_none();
        let mut missing = expected.iter().filter(is_missing);
        if let Some((name, shape)) = missing.next() {
            return Err(self.source.missing(name, shape, 1 + missing.count()));
        }
        for (name, expected) in expected {
            let Some(entry) = self.source.get(&name) else {
                continue;
            };
            if entry.shape != expected {
                return Err(CheckpointError::Shape {
                    path: path(),
                    name,
                    found: entry.shape.clone(),
                    expected,
                });
            }
            if !entry.dtype.is_float() {
                return Err(CheckpointError::Dtype {
                    path: path(),
                    name,
                    dtype: entry.dtype.to_string(),
                });
            }
        }
        Ok(())
    }

    /// An identity of the encoder, without reading 19 GB: a hash of its config, of names, types and shapes of its tensors, and
    /// of the values of three small ones (distances, first and last norm). The same weights of the same type in
    /// another kind of file keep it.
    ///
    /// # Errors
    /// [`CheckpointError`]: a tensor that cannot be read.
    pub fn fingerprint(&mut self) -> Result<String, CheckpointError> {
        let mut hash = blake3::Hasher::new();
        // A struct of plain data always serialises.
        let config = serde_json::to_string(&self.config).unwrap_or_default();
        hash.update(config.as_bytes());
        for (name, shape) in self.tensors() {
            let dtype = self.source.get(&name).map(|entry| entry.dtype.to_string());
            hash.update(format!("{name} {dtype:?} {shape:?}\n").as_bytes());
        }
        for name in [DISTANCES, LAST_NORM, &of_block(0, "layer.0.layer_norm")] {
            hash.update(bytemuck::cast_slice(&self.read(name)?));
        }
        Ok(hash.finalize().to_hex()[..32].to_owned())
    }

    /// Encodes texts given as token ids, each ending with [`T5Config::eos_token_id`]: the last hidden states, `[tokens, d_model]`
    /// a text, all tokens of which count. `each` hears the number of every block that begins, and may break off.
    ///
    /// Shorter texts of a group are padded; padding is masked, and cut off again.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn encode(
        mut self,
        texts: &[Vec<u32>],
        device: &Device,
        each: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<TextEmbedding>, TextError> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let mut groups = self.embed(texts, longest, device)?;
        let distances = self.distances(longest, device)?;
        for b in 0..self.config.num_layers {
            if each(b).is_break() {
                return Err(TextError::Stopped);
            }
            let block = self.block(b, device)?;
            for group in &mut groups {
                let tokens = group.tokens();
                let near = distances.clone().narrow(2, 0, tokens).narrow(3, 0, tokens);
                group.hidden = block.forward(&self.config, group, near);
            }
            // Without this, uploads of later blocks would queue up in memory.
            let _ = device.sync();
        }
        let norm = self.vector(LAST_NORM, device)?;
        let (width, epsilon) = (self.config.d_model, self.config.layer_norm_epsilon);
        let mut out = Vec::with_capacity(texts.len());
        for group in groups {
            let tokens = group.tokens();
            let values = read_back(rms_norm(group.hidden, norm.clone(), epsilon))?;
            for (text, length) in values.chunks(tokens * width).zip(group.lengths) {
                let values = text[..length * width].to_vec();
                out.push(TextEmbedding::new(values, width, vec![true; length])?);
            }
        }
        Ok(out)
    }

    /// The texts' tokens as vectors, in groups of what fits in memory at a time.
    fn embed(
        &mut self,
        texts: &[Vec<u32>],
        longest: usize,
        device: &Device,
    ) -> Result<Vec<Group>, TextError> {
        let (width, vocabulary) = (self.config.d_model, self.config.vocab_size);
        if texts.iter().any(Vec::is_empty) {
            return Err(ConditionError::TextShape {
                numbers: 0,
                width,
                tokens: 0,
            }
            .into());
        }
        for token in texts.iter().flatten().copied() {
            if token as usize >= vocabulary {
                return Err(TextError::Token { token, vocabulary });
            }
        }
        let table = self.read(self.embeddings)?;
        let scores = self.config.num_heads * longest * longest;
        let at_a_time = (SCORES / scores.max(1)).clamp(1, GROUP);
        let group = |texts: &[Vec<u32>]| {
            let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
            let tokens = lengths.iter().copied().max().unwrap_or(0);
            let mut values = Vec::with_capacity(texts.len() * tokens * width);
            let mut mask = Vec::with_capacity(texts.len() * tokens);
            for (i, text) in texts.iter().enumerate() {
                for token in text {
                    values.extend_from_slice(&table[*token as usize * width..][..width]);
                }
                mask.resize(i * tokens + text.len(), 0.0);
                // What is masked may hold anything.
                values.resize((i + 1) * tokens * width, 0.0);
                mask.resize((i + 1) * tokens, MASKED);
            }
            let [n, l] = [texts.len(), tokens];
            Group {
                hidden: Tensor::from_data(TensorData::new(values, [n, l, width]), device),
                mask: Tensor::from_data(TensorData::new(mask, [n, 1, 1, l]), device),
                lengths,
            }
        };
        Ok(texts.chunks(at_a_time).map(group).collect())
    }

    /// What the distance between two tokens adds to their score in every block, `[1, heads, tokens, tokens]`.
    fn distances(&mut self, tokens: usize, device: &Device) -> Result<Tensor<4>, TextError> {
        let table = self.read(DISTANCES)?;
        let heads = self.config.num_heads;
        let from_key = |query: usize, key: usize| key as isize - query as isize;
        let mut values = Vec::with_capacity(heads * tokens * tokens);
        for head in 0..heads {
            for query in 0..tokens {
                let bucket = |key| self.config.bucket(from_key(query, key));
                values.extend((0..tokens).map(|key| table[bucket(key) * heads + head]));
            }
        }
        let data = TensorData::new(values, [1, heads, tokens, tokens]);
        Ok(Tensor::from_data(data, device))
    }

    /// The weights of a block, on the device.
    fn block(&mut self, b: usize, device: &Device) -> Result<Block, TextError> {
        let (gate, wi) = first_layers(self.config.feed_forward_proj);
        let mut matrix = |part: &str| self.matrix(&of_block(b, part), device);
        let q = matrix("layer.0.SelfAttention.q")?;
        let k = matrix("layer.0.SelfAttention.k")?;
        let v = matrix("layer.0.SelfAttention.v")?;
        let o = matrix("layer.0.SelfAttention.o")?;
        let mut first = |part: &str| matrix(&format!("layer.1.DenseReluDense.{part}"));
        let (gate, wi) = (gate.map(&mut first).transpose()?, first(wi)?);
        let wo = matrix("layer.1.DenseReluDense.wo")?;
        Ok(Block {
            attention_norm: self.vector(&of_block(b, "layer.0.layer_norm"), device)?,
            q,
            k,
            v,
            o,
            mlp_norm: self.vector(&of_block(b, "layer.1.layer_norm"), device)?,
            gate,
            wi,
            wo,
        })
    }

    /// A layer's weights, `[inputs, outputs]`.
    fn matrix(&mut self, name: &str, device: &Device) -> Result<Tensor<2>, TextError> {
        let shape = self.source.get(name).map(|entry| entry.shape.clone());
        let values = self.read(name)?;
        let spec = TensorSpec::matrix(name.into(), shape.unwrap_or_default(), Vec::new());
        let parameter = Parameter::of(&spec);
        let values = parameter.to_network(values);
        let data = TensorData::new(values, parameter.shape);
        Ok(Tensor::from_data(data, device))
    }

    fn vector(&mut self, name: &str, device: &Device) -> Result<Tensor<1>, TextError> {
        let values = self.read(name)?;
        let count = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [count]), device))
    }

    /// A tensor that was checked, row-major in PyTorch's shape.
    fn read(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let values = self.source.read_f32(name)?;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(position) => Err(CheckpointError::NotFinite {
                path: self.source.path().into(),
                name: name.into(),
                position,
            }),
        }
    }
}

/// The weights of an encoder's folder, in whatever kind of file.
fn open_weights(folder: &Path) -> Result<TensorSource, TextError> {
    let pickled = folder.join("pytorch_model.bin");
    match containers::open(folder) {
        Err(CheckpointError::UnknownFormat { .. }) if pickled.is_file() => {
            Ok(containers::open(&pickled)?)
        }
        Err(CheckpointError::UnknownFormat { .. }) => Err(TextError::NotThere {
            folder: folder.into(),
            what: "weights of a text encoder",
            expected: "model.safetensors, its shards with an index, or pytorch_model.bin",
        }),
        opened => Ok(opened?),
    }
}

/// The name of a block's weights.
fn of_block(b: usize, part: &str) -> String {
    format!("encoder.block.{b}.{part}.weight")
}

/// The first layers of an MLP: its gate, if it has one, and what goes through.
fn first_layers(mlp: FeedForward) -> (Option<&'static str>, &'static str) {
    match mlp {
        FeedForward::Relu => (None, "wi"),
        FeedForward::GatedGelu => (Some("wi_0"), "wi_1"),
    }
}

/// Texts that are encoded together.
struct Group {
    /// `[texts, tokens, d_model]`
    hidden: Tensor<3>,
    /// What a token adds to the scores of all, `[texts, 1, 1, tokens]`.
    mask: Tensor<4>,
    lengths: Vec<usize>,
}

impl Group {
    /// Tokens of its longest text.
    fn tokens(&self) -> usize {
        self.hidden.dims()[1]
    }
}

/// One block: `x += Attn(RMS(x))`, `x += MLP(RMS(x))`, no layer with a bias.
struct Block {
    attention_norm: Tensor<1>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    o: Tensor<2>,
    mlp_norm: Tensor<1>,
    gate: Option<Tensor<2>>,
    wi: Tensor<2>,
    wo: Tensor<2>,
}

impl Block {
    /// The group's `[texts, tokens, d_model]` after it.
    fn forward(&self, config: &T5Config, group: &Group, distances: Tensor<4>) -> Tensor<3> {
        let x = group.hidden.clone();
        let [n, tokens, _] = x.dims();
        let (heads, head) = (config.num_heads, config.d_kv);
        let epsilon = config.layer_norm_epsilon;

        let normed = rms_norm(x.clone(), self.attention_norm.clone(), epsilon);
        let split = |weight: &Tensor<2>| {
            let projected = product(normed.clone(), weight.clone());
            projected.reshape([n, tokens, heads, head]).swap_dims(1, 2)
        };
        let (q, k, v) = (split(&self.q), split(&self.k), split(&self.v));
        // T5 has no 1/√head: its initialisation holds that.
        let scores = q.matmul(k.swap_dims(2, 3)) + distances + group.mask.clone();
        let mixed = softmax(scores, 3).matmul(v).swap_dims(1, 2);
        let x = x + product(mixed.reshape([n, tokens, heads * head]), self.o.clone());

        let normed = rms_norm(x.clone(), self.mlp_norm.clone(), epsilon);
        let inner = product(normed.clone(), self.wi.clone());
        let inner = match &self.gate {
            Some(gate) => {
                let no_bias = Tensor::zeros([config.d_ff], &inner.device());
                gelu(product(normed, gate.clone()), no_bias) * inner
            }
            None => relu(inner),
        };
        x + product(inner, self.wo.clone())
    }
}

/// `x/√(mean(x²) + ε) ⊙ weight`, over the last axis.
fn rms_norm(x: Tensor<3>, weight: Tensor<1>, epsilon: f64) -> Tensor<3> {
    let size = (x.clone().square().mean_dim(2) + epsilon).sqrt();
    x / size * weight.unsqueeze()
}

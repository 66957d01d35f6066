//! What a DiT's tensors are called: in the public release (also our own names) and in diffusers.

use crate::dit::{DitConfig, MLP_RATIO, TIMESTEP_CHANNELS};

/// Under whose names a file holds its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// The public DiT release's.
    Release,
    /// The diffusers library's.
    Diffusers,
}

/// A tensor of the network under its canonical (release) name and PyTorch shape (`[out, in]`).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    pub name: String,
    pub shape: Vec<usize>,
}

/// Prefix of the embedder shared by all blocks.
pub(super) const SHARED: &str = "";

/// Prefix of block `b`'s own embedder, where blocks have one each.
pub(super) fn own_embedder(block: usize) -> String {
    format!("blocks.{block}.")
}

/// Whether a canonical name belongs to a timestep or label embedder.
pub(super) fn is_embedder(name: &str) -> bool {
    name.contains("t_embedder.") || name.contains("y_embedder.")
}

/// The position embedding: fixed by a formula, so a file need not hold it.
pub(super) const POSITIONS: &str = "pos_embed";

/// Every tensor of the network, in canonical order. `own_embedders`: one embedder a block.
pub(super) fn expected(config: &DitConfig, own_embedders: bool) -> Vec<Expected> {
    let d = config.hidden;
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        all.push(Expected {
            name,
            shape: shape.to_vec(),
        })
    };
    let mut linear = |name: String, input: usize, output: usize| {
        add(format!("{name}.weight"), &[output, input]);
        add(format!("{name}.bias"), &[output]);
    };
    let embedders: Vec<String> = if own_embedders {
        (0..config.blocks).map(own_embedder).collect()
    } else {
        vec![SHARED.into()]
    };
    for prefix in &embedders {
        linear(format!("{prefix}t_embedder.mlp.0"), TIMESTEP_CHANNELS, d);
        linear(format!("{prefix}t_embedder.mlp.2"), d, d);
    }
    for b in 0..config.blocks {
        linear(format!("blocks.{b}.attn.qkv"), d, 3 * d);
        linear(format!("blocks.{b}.attn.proj"), d, d);
        linear(format!("blocks.{b}.mlp.fc1"), d, MLP_RATIO * d);
        linear(format!("blocks.{b}.mlp.fc2"), MLP_RATIO * d, d);
        linear(format!("blocks.{b}.adaLN_modulation.1"), d, 6 * d);
    }
    linear(
        "final_layer.linear".into(),
        d,
        config.patch * config.patch * config.out_channels(),
    );
    linear("final_layer.adaLN_modulation.1".into(), d, 2 * d);
    add(
        "x_embedder.proj.weight".into(),
        &[d, config.channels, config.patch, config.patch],
    );
    add("x_embedder.proj.bias".into(), &[d]);
    for prefix in &embedders {
        add(
            format!("{prefix}y_embedder.embedding_table.weight"),
            &[config.classes + 1, d],
        );
    }
    add(POSITIONS.into(), &[1, config.tokens(), d]);
    all
}

/// The names under which a file holds a canonical tensor; several are joined along the first axis.
pub(super) fn stored_names(naming: Naming, canonical: &str) -> Vec<String> {
    if naming == Naming::Release {
        return vec![canonical.into()];
    }
    if canonical == POSITIONS {
        return vec!["pos_embed.pos_embed".into()];
    }
    let renamed = |part: &str| -> Option<Vec<String>> {
        for (ours, theirs) in [
            ("x_embedder.proj", "pos_embed.proj"),
            ("final_layer.linear", "proj_out_2"),
            ("final_layer.adaLN_modulation.1", "proj_out_1"),
        ] {
            if let Some(kind) = part.strip_prefix(ours) {
                return Some(vec![format!("{theirs}{kind}")]);
            }
        }
        // A shared embedder stands, equal, in every block; block 0's copy is as good as any.
        let (block, rest) = match part.strip_prefix("blocks.") {
            Some(rest) => rest.split_once('.')?,
            None => ("0", part),
        };
        let prefix = format!("transformer_blocks.{block}.");
        if let Some(kind) = rest.strip_prefix("attn.qkv") {
            return Some(
                ["q", "k", "v"]
                    .map(|n| format!("{prefix}attn1.to_{n}{kind}"))
                    .to_vec(),
            );
        }
        for (ours, theirs) in [
            ("attn.proj", "attn1.to_out.0"),
            ("mlp.fc1", "ff.net.0.proj"),
            ("mlp.fc2", "ff.net.2"),
            ("adaLN_modulation.1", "norm1.linear"),
            ("t_embedder.mlp.0", "norm1.emb.timestep_embedder.linear_1"),
            ("t_embedder.mlp.2", "norm1.emb.timestep_embedder.linear_2"),
            ("y_embedder", "norm1.emb.class_embedder"),
        ] {
            if let Some(kind) = rest.strip_prefix(ours) {
                return Some(vec![format!("{prefix}{theirs}{kind}")]);
            }
        }
        None
    };
    renamed(canonical).unwrap_or_else(|| vec![canonical.into()])
}

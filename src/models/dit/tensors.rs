//! Every tensor of a DiT: its names in the public release (also our own) and in diffusers, its shape, how it begins.

use super::{DitConfig, MLP_RATIO};
use crate::{
    layers::TIMESTEP_CHANNELS,
    models::{Start, TensorSpec},
};

/// Prefix of block `b`'s own embedder, where blocks have one each.
pub(super) fn own_embedder(block: usize) -> String {
    format!("blocks.{block}.")
}

/// Every tensor of the network, in canonical order. `own_embedders`: one embedder a block.
///
/// Matrices start Xavier-uniform, labels and the timestep MLP from N(0, 0.02), biases, adaLN and the last layer at
/// zero, so that every block begins as the identity (arXiv 2212.09748, section 3.2, and the public release).
pub(super) fn tensors(config: &DitConfig, own_embedders: bool) -> Vec<TensorSpec> {
    let d = config.hidden;
    let mut all = Vec::new();
    let mut linear =
        |name: String, theirs: &[String], [input, output]: [usize; 2], start: Start| {
            let names = |kind: &str| theirs.iter().map(|name| format!("{name}.{kind}")).collect();
            let weight = TensorSpec::matrix(
                format!("{name}.weight"),
                vec![output, input],
                names("weight"),
            );
            all.push(weight.starting(start));
            all.push(TensorSpec::vector(
                format!("{name}.bias"),
                output,
                names("bias"),
            ));
        };
    // A shared embedder stands, equal, in every block of diffusers' files; block 0's copy is as good as any.
    let embedders: Vec<(String, String)> = match own_embedders {
        true => (0..config.blocks)
            .map(|b| (own_embedder(b), format!("transformer_blocks.{b}.norm1.emb")))
            .collect(),
        false => vec![(String::new(), "transformer_blocks.0.norm1.emb".into())],
    };
    for (prefix, theirs) in &embedders {
        for (ours, number, input) in [("0", 1, TIMESTEP_CHANNELS), ("2", 2, d)] {
            let theirs = format!("{theirs}.timestep_embedder.linear_{number}");
            linear(
                format!("{prefix}t_embedder.mlp.{ours}"),
                &[theirs],
                [input, d],
                Start::Normal,
            );
        }
    }
    for b in 0..config.blocks {
        let ours = |name: &str| format!("blocks.{b}.{name}");
        let theirs = |name: &str| format!("transformer_blocks.{b}.{name}");
        let qkv = ["q", "k", "v"].map(|part| theirs(&format!("attn1.to_{part}")));
        let inner = MLP_RATIO * d;
        linear(ours("attn.qkv"), &qkv, [d, 3 * d], Start::Xavier);
        linear(
            ours("attn.proj"),
            &[theirs("attn1.to_out.0")],
            [d, d],
            Start::Xavier,
        );
        linear(
            ours("mlp.fc1"),
            &[theirs("ff.net.0.proj")],
            [d, inner],
            Start::Xavier,
        );
        linear(
            ours("mlp.fc2"),
            &[theirs("ff.net.2")],
            [inner, d],
            Start::Xavier,
        );
        linear(
            ours("adaLN_modulation.1"),
            &[theirs("norm1.linear")],
            [d, 6 * d],
            Start::Zeros,
        );
    }
    let outputs = config.patch * config.patch * config.out_channels();
    linear(
        "final_layer.linear".into(),
        &["proj_out_2".into()],
        [d, outputs],
        Start::Zeros,
    );
    linear(
        "final_layer.adaLN_modulation.1".into(),
        &["proj_out_1".into()],
        [d, 2 * d],
        Start::Zeros,
    );
    all.extend(TensorSpec::patches(d, config.channels, config.patch));
    for (prefix, theirs) in &embedders {
        let names = vec![format!("{theirs}.class_embedder.embedding_table.weight")];
        let name = format!("{prefix}y_embedder.embedding_table.weight");
        all.push(TensorSpec::table(name, [config.classes + 1, d], names, 1.0));
    }
    all.push(TensorSpec::positions(
        config.tokens(),
        d,
        vec!["pos_embed.pos_embed".into()],
    ));
    all
}

/// Whether a tensor belongs to the matrix products of an attention or MLP branch.
pub(crate) fn in_branch(name: &str) -> bool {
    // A block's own timestep embedder is an MLP too.
    name.starts_with("blocks.")
        && (name.contains(".attn.") || name.contains(".mlp."))
        && !name.contains("t_embedder")
}

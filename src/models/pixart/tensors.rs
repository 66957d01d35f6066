//! Every tensor of a PixArt transformer: its names in the authors' release (also our own) and in diffusers.

use super::config::{MLP_RATIO, PixArtConfig};
use crate::{
    layers::TIMESTEP_CHANNELS,
    models::{Start, TensorSpec},
};

/// Every tensor of the network, in canonical order.
pub(super) fn tensors(config: &PixArtConfig) -> Vec<TensorSpec> {
    let d = config.hidden;
    let mut all = Vec::new();
    let mut linear = |name: String, theirs: &[String], [input, output]: [usize; 2]| {
        let names = |kind: &str| theirs.iter().map(|name| format!("{name}.{kind}")).collect();
        let shape = vec![output, input];
        all.push(TensorSpec::matrix(
            format!("{name}.weight"),
            shape,
            names("weight"),
        ));
        all.push(TensorSpec::vector(
            format!("{name}.bias"),
            output,
            names("bias"),
        ));
    };
    // A two-layer embedding of sinusoidal features: `(ours, theirs, width)`.
    let mut embedders = vec![("t_embedder", "timestep_embedder", d)];
    if config.micro_conditions {
        let width = config.micro_width();
        embedders.push(("csize_embedder", "resolution_embedder", width));
        embedders.push(("ar_embedder", "aspect_ratio_embedder", width));
    }
    for (ours, theirs, width) in embedders {
        let theirs = |n: usize| format!("adaln_single.emb.{theirs}.linear_{n}");
        linear(
            format!("{ours}.mlp.0"),
            &[theirs(1)],
            [TIMESTEP_CHANNELS, width],
        );
        linear(format!("{ours}.mlp.2"), &[theirs(2)], [width, width]);
    }
    linear(
        "t_block.1".into(),
        &["adaln_single.linear".into()],
        [d, 6 * d],
    );
    for (n, input) in [(1, config.caption), (2, d)] {
        let theirs = format!("caption_projection.linear_{n}");
        linear(format!("y_embedder.y_proj.fc{n}"), &[theirs], [input, d]);
    }
    for b in 0..config.blocks {
        let ours = |name: &str| format!("blocks.{b}.{name}");
        let theirs = |name: &str| format!("transformer_blocks.{b}.{name}");
        let parts = |attention: usize, of: &[&str]| -> Vec<String> {
            of.iter()
                .map(|part| theirs(&format!("attn{attention}.to_{part}")))
                .collect()
        };
        let inner = MLP_RATIO * d;
        linear(ours("attn.qkv"), &parts(1, &["q", "k", "v"]), [d, 3 * d]);
        linear(ours("attn.proj"), &[theirs("attn1.to_out.0")], [d, d]);
        linear(ours("cross_attn.q_linear"), &parts(2, &["q"]), [d, d]);
        linear(
            ours("cross_attn.kv_linear"),
            &parts(2, &["k", "v"]),
            [d, 2 * d],
        );
        linear(ours("cross_attn.proj"), &[theirs("attn2.to_out.0")], [d, d]);
        linear(ours("mlp.fc1"), &[theirs("ff.net.0.proj")], [d, inner]);
        linear(ours("mlp.fc2"), &[theirs("ff.net.2")], [inner, d]);
    }
    linear(
        "final_layer.linear".into(),
        &["proj_out".into()],
        [d, config.patch_outputs()],
    );
    all.extend(TensorSpec::patches(d, config.channels, config.patch));
    let alive = (d as f32).sqrt().recip();
    let table = |name: String, theirs: String, rows: usize| {
        TensorSpec::table(name, [rows, d], vec![theirs], alive).starting(Start::Normal)
    };
    for b in 0..config.blocks {
        let theirs = format!("transformer_blocks.{b}.scale_shift_table");
        all.push(table(format!("blocks.{b}.scale_shift_table"), theirs, 6));
    }
    all.push(table(
        "final_layer.scale_shift_table".into(),
        "scale_shift_table".into(),
        2,
    ));
    if config.null_text {
        // Only the authors' files hold it.
        let name = "y_embedder.y_embedding";
        let shape = [config.text_tokens, config.caption];
        all.push(TensorSpec::table(
            name.into(),
            shape,
            vec![name.into()],
            1.0,
        ));
    }
    let positions = TensorSpec::positions(config.tokens(), d, Vec::new());
    all.push(match config.stored_positions {
        true => positions,
        false => positions.computed(),
    });
    all
}

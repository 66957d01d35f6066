//! `harmonica inspect`

use std::path::PathBuf;

use serde_json::json;

use super::{Context, error::CliError, options::print_json};
use crate::checkpoint::{self, LoadOptions, TensorEntry};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// A .pt or .safetensors file, or a diffusers folder
    file: PathBuf,
    /// Attention heads, where a bare .pt cannot tell
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let source = checkpoint::open(&args.file)?;
    let entries: Vec<&TensorEntry> = source.entries().collect();
    let bytes: usize = entries.iter().map(|e| e.bytes()).sum();
    let options = LoadOptions {
        heads: args.heads,
        input_size: None,
    };
    let description = checkpoint::describe(&source, options);
    if args.json {
        let tensors: Vec<_> = entries
            .iter()
            .map(|e| json!({ "name": e.name, "dtype": e.dtype.to_string(), "shape": e.shape }))
            .collect();
        let (model, problem) = match &description {
            Ok(d) => (
                json!({
                    "name": d.config.name(), "config": d.config, "parameters": d.config.parameters(),
                    "classes": d.class_names, "clip_x0": d.clip_x0,
                    "fingerprint": d.fingerprint.as_ref().map(|f| f.to_string()), "naming": d.naming,
                }),
                None,
            ),
            Err(e) => (serde_json::Value::Null, Some(e.to_string())),
        };
        print_json(&json!({
            "file": args.file, "format": source.format().describe(), "bytes": bytes,
            "model": model, "problem": problem, "tensors": tensors,
        }));
        return Ok(());
    }
    println!("{}", args.file.display());
    println!(
        "  container   {}, {} tensors, {:.1} MB",
        source.format().describe(),
        entries.len(),
        bytes as f64 / 1e6
    );
    match &description {
        Ok(d) => {
            let c = &d.config;
            println!(
                "  model       {}, {:.1} M parameters",
                c.name(),
                c.parameters() as f64 / 1e6
            );
            println!(
                "  input       {}×{}×{} in {} tokens",
                c.channels,
                c.input_size[0],
                c.input_size[1],
                c.tokens()
            );
            println!(
                "  output      {} channels{}",
                c.out_channels(),
                if c.learned_sigma {
                    ", learned sigma"
                } else {
                    ""
                }
            );
            println!("  classes     {}{}", c.classes, preview(&d.class_names));
            println!(
                "  names       {}{}",
                d.naming,
                if d.own_embedders {
                    ", embedders in every block"
                } else {
                    ""
                }
            );
            println!("  clip x0     {}", if d.clip_x0 { "on" } else { "off" });
            if let Some(fingerprint) = &d.fingerprint {
                println!("  fingerprint {fingerprint}");
            }
        }
        Err(e) => println!("  not a model that can be sampled: {e}"),
    }
    if args.tensors {
        for e in entries {
            println!("  {:<48} {:>5} {:?}", e.name, e.dtype.to_string(), e.shape);
        }
    } else {
        context.say("  (--tensors lists every tensor)");
    }
    Ok(())
}

fn preview(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names if names.len() <= 6 => format!(": {}", names.join(", ")),
        names => format!(": {}, …", names[..6].join(", ")),
    }
}

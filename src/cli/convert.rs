//! `harmonica convert`

use std::path::{Path, PathBuf};

use super::{
    Context,
    error::CliError,
    options::{DtypeArg, ModelArgs},
};
use crate::{
    checkpoint::{CheckpointError, ClassNames, SaveOptions, save_model},
    diffusion::{Guidance, GuidedChannels},
    files::read_text_up_to,
};

/// Largest file of class names that is read.
const MAX_NAMES: u64 = 64 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  harmonica convert --model DiT-XL-2-256x256.pt --out dit-xl.safetensors
  harmonica convert --model dit --dtype f32 --out full.safetensors
  harmonica convert --model bare.pt --heads 6 --out named.safetensors";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, next_help_heading = "Output")]
pub(super) struct Args {
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Element type of the written weights
    #[arg(long, value_name = "f16|f32", value_enum, default_value = "f16")]
    dtype: DtypeArg,
    /// Class names: a JSON file with a list of strings, or `{"classes": [{"id": 0, "name": "…"}, …]}`
    #[arg(long, value_name = "FILE")]
    class_names: Option<PathBuf>,
    /// Whether sampling clips the predicted clean image by default (pixel-space models)
    #[arg(long, value_name = "on|off", value_parser = super::options::parse_switch)]
    clip_x0: Option<bool>,
    /// The guidance scale that it is usually drawn under
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// The channels that guidance usually replaces
    #[arg(long, value_name = "3|all")]
    guidance_channels: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let class_names = args
        .class_names
        .as_deref()
        .map(read_class_names)
        .transpose()?;
    if let Some(scale) = args.guidance {
        Guidance::new(scale, GuidedChannels::default())?;
    }
    let dtype = args.dtype.into();
    let options = SaveOptions {
        class_names,
        clip_x0: args.clip_x0,
        guidance: args.guidance,
        guidance_channels: args.guidance_channels.map(|c| c.parse()).transpose()?,
    };
    let fingerprint = save_model(
        &args.model.spec()?,
        args.model.load_options(context)?,
        options,
        dtype,
        &args.out,
    )?;
    context.say(format!(
        "wrote {} (fingerprint {fingerprint})",
        args.out.display()
    ));
    Ok(())
}

/// Names by class number, from a plain list or a data set's `classes.json`.
fn read_class_names(path: &Path) -> Result<ClassNames, CheckpointError> {
    let bad = |problem: String| CheckpointError::Config {
        path: path.into(),
        problem,
    };
    let text = read_text_up_to(path, MAX_NAMES).map_err(|source| CheckpointError::Io {
        action: "read",
        path: path.into(),
        source,
    })?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if let Some(list) = json.as_array() {
        let names: Option<ClassNames> =
            list.iter().map(|n| n.as_str().map(str::to_owned)).collect();
        return names.ok_or_else(|| bad("expected a list of strings".into()));
    }
    let classes = json
        .get("classes")
        .and_then(|c| c.as_array())
        .ok_or_else(|| bad("expected a list of strings, or an object with `classes`".into()))?;
    let mut names = vec![String::new(); classes.len()];
    for class in classes {
        let id = class
            .get("id")
            .and_then(|id| id.as_u64())
            .map(|id| id as usize);
        let name = class.get("name").and_then(|n| n.as_str());
        match (id, name) {
            (Some(id), Some(name)) if id < names.len() && names[id].is_empty() => {
                names[id] = name.into()
            }
            _ => {
                return Err(bad(format!(
                    "{class} is no class with an `id` of its own and a `name`"
                )));
            }
        }
    }
    Ok(names)
}

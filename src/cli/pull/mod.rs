//! `harmonica pull`

mod download;
mod error;
mod files;

use std::time::Instant;

use super::{Context, error::CliError};
use crate::{
    checkpoint::{HubName, Part, hub_cache},
    words::counted,
};
use download::Hub;
pub(super) use error::PullError;

const EXAMPLES: &str = "\
Examples:
  harmonica pull facebook/DiT-XL-2-256
  harmonica pull facebook/DiT-XL-2-256 --only transformer,scheduler,vae
  harmonica sample --model facebook/DiT-XL-2-256 --classes 207";

/// The parts come into the cache that all of the hub's tools share (`HF_HUB_CACHE`, `HF_HOME`), from `HF_ENDPOINT`, with the
/// token of `HF_TOKEN` or of `hf auth login`. Ctrl-C keeps what has come; the same command goes on from there.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A pipeline's repository, at a branch, tag or commit if one is named
    #[arg(value_name = "OWNER/NAME[@REVISION]")]
    name: String,
    /// Only these parts: transformer, scheduler, vae, text_encoder, tokenizer [default: all that there are]
    #[arg(long, value_name = "A,B,…", value_delimiter = ',')]
    only: Vec<Part>,
    /// The form of the weights, such as fp16; parts that have no such form come in full precision [default: full precision, or
    /// what alone is there]
    #[arg(long, value_name = "FORM")]
    variant: Option<String>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let name: HubName = args.name.parse()?;
    let cache = hub_cache().ok_or(PullError::NoCache)?;
    let hub = Hub::open(name, cache)?;
    let started = Instant::now();
    let pulled = hub.pull(&args.only, args.variant.as_deref(), context)?;
    context.say(format!(
        "{}: {}, {:.1} MB of them downloaded in {:.0} s",
        hub.name,
        counted(pulled.files, "file"),
        pulled.downloaded as f64 / 1e6,
        started.elapsed().as_secs_f64()
    ));
    out!("{}", pulled.snapshot.display());
    Ok(())
}

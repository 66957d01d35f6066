//! `harmonica inspect`

use std::path::Path;

use serde_json::{Value, json};

use super::{Context, again, error::CliError, options::print_json, recipe::Recipe};
use crate::{
    checkpoint::{
        CheckpointError, Description, LoadOptions, ModelSpec, PipelineFolder, ReleasedRouter,
        TensorEntry, open_model,
    },
    models::Conditioning,
    schedule::{ReleasedKind, ScheduleFile, router_from_release},
    training::{TrainingSummary, network::SavedRun},
    words::counted,
};

const EXAMPLES: &str = "\
Examples:
  harmonica inspect bundled --classes
  harmonica inspect DiT-XL-2-256x256.pt --tensors
  harmonica inspect router/router-speedup2.schedule.json
  harmonica inspect harmonica.png";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A .pt, .bin or .safetensors file, a diffusers folder, a name of the hub that is in the cache, `bundled`, a training
    /// state, a *.schedule.json, or a PNG that `sample` wrote
    #[arg(value_name = "FILE|DIR|NAME")]
    file: String,
    /// The form of a folder's weights, such as fp16
    #[arg(long, value_name = "FORM", help_heading = "Model")]
    variant: Option<String>,
    /// Attention heads, where a bare .pt cannot tell
    #[arg(long, value_name = "N", help_heading = "Model")]
    heads: Option<usize>,
    /// Input size, where the file's tokens form no square
    #[arg(
        long,
        value_name = "HEIGHTxWIDTH",
        value_parser = super::options::parse_size,
        help_heading = "Model"
    )]
    input_size: Option<[usize; 2]>,
    /// List every tensor
    #[arg(long, help_heading = "Output")]
    tensors: bool,
    /// List the classes by number and name, synonyms with commas, and nothing else
    #[arg(long, conflicts_with = "tensors", help_heading = "Output")]
    classes: bool,
    /// One JSON document on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut spec: ModelSpec = args.file.parse()?;
    if let ModelSpec::Path(path) = &spec
        && args.variant.is_none()
        && show_other(path, &args, context)?
    {
        return Ok(());
    }
    if let Some(variant) = &args.variant {
        spec = spec.with_variant(variant)?;
    }
    let opened = open_model(&spec).inspect_err(|error| {
        // What is there may tell more than what is not.
        if let CheckpointError::MissingPart { path, .. } = error
            && let Ok(Some(folder)) = PipelineFolder::read(path)
            && !args.json
        {
            out!("{}", args.file);
            show_folder(&folder);
        }
    })?;
    let source = &opened.source;
    let entries: Vec<&TensorEntry> = source.entries().collect();
    let bytes: usize = entries.iter().map(|e| e.bytes()).sum();
    let options = LoadOptions {
        heads: args.heads,
        input_size: args.input_size,
    };
    let description = opened.describe(options);
    if args.classes {
        return list_classes(&description?, args.json);
    }
    if args.json {
        let tensors: Vec<_> = entries
            .iter()
            .map(|e| json!({ "name": e.name, "dtype": e.dtype.to_string(), "shape": e.shape }))
            .collect();
        let (model, problem) = match &description {
            Ok(d) => (
                json!({
                    "name": d.architecture.outline().name, "family": d.architecture.outline().family,
                    "config": d.architecture.to_json(), "parameters": d.architecture.outline().parameters,
                    "classes": d.class_names, "clip_x0": d.clip_x0, "process": d.process, "solver": d.solver, "guidance": d.guidance,
                    "notes": d.notes,
                    "fingerprint": d.fingerprint.as_ref().map(|f| f.to_string()), "naming": d.naming_of(),
                }),
                None,
            ),
            Err(e) => (serde_json::Value::Null, Some(e.to_string())),
        };
        print_json(&json!({
            "file": args.file, "format": source.format().describe(), "bytes": bytes,
            "folder": opened.folder.as_ref().map(folder_json), "model": model, "problem": problem, "tensors": tensors,
        }));
        return Ok(());
    }
    out!("{}", args.file);
    if let Some(folder) = &opened.folder {
        show_folder(folder);
    }
    out!(
        "  container   {}, {} tensors, {:.1} MB",
        source.format().describe(),
        entries.len(),
        bytes as f64 / 1e6
    );
    match &description {
        Ok(d) => {
            let outline = d.architecture.outline();
            let latents = outline.latents;
            out!(
                "  model       {}, {:.1} M parameters",
                outline.name,
                outline.parameters as f64 / 1e6
            );
            out!(
                "  input       {}×{}×{} in {} tokens",
                latents.channels,
                latents.size[0],
                latents.size[1],
                outline.graph.tokens()
            );
            out!(
                "  output      {} channels{}",
                latents.out_channels,
                if latents.out_channels > latents.channels {
                    ", learned sigma"
                } else {
                    ""
                }
            );
            match outline.conditioning {
                Conditioning::Classes(classes) => {
                    out!("  classes     {classes}{}", preview(&d.class_names));
                }
                Conditioning::Text { tokens, width } => {
                    out!("  texts       up to {tokens} tokens of {width}");
                }
            }
            let own = d.architecture.as_dit().is_some_and(|dit| dit.own_embedders);
            out!(
                "  names       {}{}",
                d.naming_of(),
                if own {
                    ", embedders in every block"
                } else {
                    ""
                }
            );
            if !d.process.is_usual() {
                let predicted = d.process.prediction;
                out!(
                    "  trained on  {}, to predict {predicted:?}",
                    d.process.noise
                );
            }
            if let Some(solver) = d.solver {
                out!("  solver      {solver}");
            }
            for note in &d.notes {
                out!("  note        {note}");
            }
            out!("  clip x0     {}", if d.clip_x0 { "on" } else { "off" });
            if let Some(guidance) = d.guidance {
                out!(
                    "  guidance    {} over channels {}",
                    guidance.scale(),
                    guidance.channels()
                );
            }
            if let Some(fingerprint) = &d.fingerprint {
                out!("  fingerprint {fingerprint}");
            }
        }
        Err(e) => out!("  not a model that can be sampled: {e}"),
    }
    if args.tensors {
        for e in entries {
            out!("  {:<48} {:>5} {:?}", e.name, e.dtype.to_string(), e.shape);
        }
    } else {
        let named = matches!(&description, Ok(d) if !d.class_names.is_empty());
        let classes = if named { ", --classes every class" } else { "" };
        context.say(format!("  (--tensors lists every tensor{classes})"));
    }
    Ok(())
}

/// Shows what is no model: a schedule, a picture, a training state, a released router. Returns whether it was one.
fn show_other(path: &Path, args: &Args, context: &Context) -> Result<bool, CliError> {
    if args.classes || args.tensors {
        // Only models have them; what is none is told so by what reads it as one.
        return Ok(false);
    }
    if path.extension().is_some_and(|e| e == "json") {
        let file = ScheduleFile::read(path)?;
        super::schedule::show(&file, None, args.json.then_some(false), context)?;
    } else if path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("png"))
    {
        show_picture(&Recipe::read(path)?, path, args.json)?;
    } else if let Some(router) = TrainingSummary::read(path)? {
        show_router(&router, args.json)?;
    } else if let Some(run) = SavedRun::find(path)? {
        show_run(&run, path, args.json)?;
    } else if let Ok(router) = ReleasedRouter::read(path) {
        show_released(&router, path, args.json)?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn list_classes(description: &Description, as_json: bool) -> Result<(), CliError> {
    let outline = description.architecture.outline();
    let Some(classes) = outline.conditioning.classes() else {
        return Err(CliError::Usage("the model draws texts, not classes".into()));
    };
    let names = &description.class_names;
    if as_json {
        print_json(&json!(names));
    } else if names.is_empty() {
        match classes {
            1 => out!("0 alone, without a name"),
            _ => out!("0 to {}, without names", classes - 1),
        }
    } else {
        for (class, name) in names.iter().enumerate() {
            out!("{class:>4}  {name}");
        }
    }
    Ok(())
}

/// The parts of a pipeline folder.
fn show_folder(folder: &PipelineFolder) {
    out!("  pipeline    {}", folder.class);
    for part in &folder.parts {
        let there = if part.there { "" } else { ", not there" };
        out!("    {:<14}{}{there}", part.part.name(), part.class);
    }
}

fn folder_json(folder: &PipelineFolder) -> Value {
    let parts = folder.parts.iter().map(|part| {
        json!({ "part": part.part.name(), "class": part.class, "path": part.path, "there": part.there })
    });
    let parts: Vec<_> = parts.collect();
    json!({ "class": folder.class, "parts": parts })
}

fn preview(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names if names.len() <= 6 => format!(": {}", names.join(", ")),
        names => format!(": {}, …", names[..6].join(", ")),
    }
}

/// How a picture was drawn.
fn show_picture(recipe: &Recipe, path: &Path, as_json: bool) -> Result<(), CliError> {
    if as_json {
        print_json(&json!({ "kind": "picture", "recipe": recipe }));
        return Ok(());
    }
    out!("{}", path.display());
    out!(
        "  drawn by    harmonica {}, {} ({})",
        recipe.version,
        recipe.model,
        recipe.fingerprint
    );
    let shown = match recipe.prompts.is_empty() {
        true => &recipe.classes,
        false => &recipe.prompts,
    };
    out!(
        "  shows       {}{}",
        counted(recipe.count, "image"),
        preview(shown)
    );
    out!(
        "  again       harmonica sample --from {}",
        again::path(path)
    );
    out!(
        "  by flags    harmonica sample{}",
        again::flags(recipe.flags())
    );
    Ok(())
}

/// The state of a DiT in training.
fn show_run(run: &SavedRun, path: &Path, as_json: bool) -> Result<(), CliError> {
    let images = run.steps * run.settings.batch as u64;
    if as_json {
        print_json(&json!({
            "kind": "training state", "model": run.config.name(), "config": run.config, "steps": run.steps,
            "images": images, "seconds": run.seconds, "settings": run.settings, "dtype": run.dtype,
        }));
        return Ok(());
    }
    out!("a DiT in training: {}", run.config.name());
    out!(
        "  so far      {}, {}, {:.1} min",
        counted(run.steps, "step"),
        counted(images, "picture"),
        run.seconds / 60.0
    );
    out!(
        "  input       {:?} (channels, height, width), {}",
        run.config.image_shape(),
        counted(run.config.classes, "class")
    );
    if let Some(data) = &run.data_path {
        out!("  data        {data}");
    }
    if let Some(vae) = &run.vae_path {
        out!("  latents of  {vae}");
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => again::path(folder),
        _ => ".".into(),
    };
    // A run that does not know its autoencoder wants it said.
    let of_latents = run.config.channels != 3;
    let is_file = |data: &String| data.ends_with(".safetensors");
    let of_pictures = of_latents && !run.data_path.as_ref().is_some_and(is_file);
    let vae = match of_pictures && run.vae_path.is_none() {
        true => " --vae VAE",
        false => "",
    };
    out!(
        "  goes on     harmonica train dit --resume --out {folder}{vae}; {folder}/model.safetensors is what samples"
    );
    Ok(())
}

/// The training state in `router.safetensors`.
fn show_router(router: &TrainingSummary, as_json: bool) -> Result<(), CliError> {
    let schedule = router.router.threshold(router.settings.tau)?;
    if as_json {
        print_json(&json!({
            "kind": "router in training", "pass": router.pass, "settings": router.settings, "beta": router.beta,
            "lambda": router.lambda, "steps": schedule.steps(), "branches": schedule.branches(), "cur": schedule.cur(),
        }));
        return Ok(());
    }
    out!(
        "router in training: {} of {}",
        router.pass,
        counted(router.settings.passes, "pass")
    );
    out!(
        "  table       {} steps × {} branches, CUR {:.1} % at τ {}",
        schedule.steps(),
        schedule.branches(),
        100.0 * schedule.cur(),
        router.settings.tau
    );
    out!(
        "  proxy       {}, λ from {:.2e} to {:.2e}",
        router.settings.proxy,
        smallest(&router.lambda),
        largest(&router.lambda)
    );
    out!(
        "  beta        {:.3e}, learning rate {}",
        router.beta,
        router.settings.learning_rate
    );
    Ok(())
}

/// A router that another project released.
fn show_released(released: &ReleasedRouter, path: &Path, as_json: bool) -> Result<(), CliError> {
    let kind = ReleasedKind::guess(&released.rows);
    let schedule = kind.schedule(&released.rows, 0.1)?;
    let router = router_from_release(&released.rows)?;
    if as_json {
        print_json(&json!({
            "kind": kind.policy_name(), "steps": schedule.steps(), "branches": schedule.branches(),
            "cur": schedule.cur(), "logits": router.logits(),
        }));
        return Ok(());
    }
    out!("released router, by its form {}'s", kind.policy_name());
    out!(
        "  table       {} steps × {} branches, CUR {:.1} % at τ 0.1",
        schedule.steps(),
        schedule.branches(),
        100.0 * schedule.cur()
    );
    out!(
        "  use         harmonica schedule import {} --model MODEL --out FILE.schedule.json",
        again::path(path)
    );
    Ok(())
}

fn smallest(lambda: &[f64]) -> f64 {
    lambda.iter().skip(1).copied().fold(f64::INFINITY, f64::min)
}

fn largest(lambda: &[f64]) -> f64 {
    lambda.iter().skip(1).copied().fold(0.0, f64::max)
}

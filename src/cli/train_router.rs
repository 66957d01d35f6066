//! `harmonica train router`

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::json;

use super::{
    Context, again,
    error::CliError,
    options::{Session, SessionArgs, parse_seed, print_json},
    progress::progress,
    train_ladder::{self, Asked},
    train_table,
};
use crate::{
    checkpoint::{self, CheckpointError},
    metrics::peak_memory_bytes,
    models::{Condition, Prompts},
    pipeline::{Pipeline, texts_named},
    schedule::Router,
    training::{
        Budget, Progress, Proxy, Replay, RouterRun, RouterRunOptions, RunFolder, SdtSettings,
        TrainingSummary, forecast::LadderSettings, router::budget::TOLERANCE,
    },
    words::counted,
};

/// Without a target or β: a good part of the work saved at little loss.
const DEFAULT_TARGET_CUR: f64 = 0.4;
/// The same where only every other step may reuse.
const DEFAULT_TARGET_CUR_OF_PAIRS: f64 = 0.25;

/// The heading of what only the published recipes know.
const OWN_FLAGS: &str = "Recipes harmonica and learning-to-cache";

const EXAMPLES: &str = "\
Examples:
  harmonica train router --steps 20               for speeds from 1.25 to 4
  harmonica train router --steps 20 --table fora:2,taylor:2:1
  harmonica sample --steps 20 --schedule router --speed 2
  harmonica train router --recipe harmonica --target-cur 0.4 --out published";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES, next_help_heading = "Learning", allow_negative_numbers = true)]
pub(super) struct Args {
    /// How to learn. forecast: which steps to run the network at, and how the others make their images of earlier ones, a
    /// schedule for every speed. harmonica: which branches to reuse at which step (SDT and IEPO, as published).
    /// learning-to-cache: the same on pairs of steps of the uncached path, of which the second may reuse the first
    /// [default: forecast, or harmonica where a flag of its own is given]
    #[arg(long, value_name = "RECIPE")]
    recipe: Option<Recipe>,
    /// Folder of the run: *.schedule.json, train.jsonl, router.png, and what it is resumed from
    #[arg(
        long,
        value_name = "DIR",
        default_value = "router",
        help_heading = "Output"
    )]
    out: PathBuf,
    /// forecast: search nothing, and fit to these tables what a search would fit to those that it tries: what --schedule takes
    /// (fora:2, taylor:2:1, a router's *.schedule.json). Each becomes corrected-NAME.schedule.json, unless it fares better as it is
    #[arg(long, value_name = "SCHEDULE,…", value_delimiter = ',', conflicts_with_all = ["target_cur", "target_speedup", "sweeps", "max_cache", "resume"])]
    table: Vec<String>,
    /// forecast: images to search on, as many more that weights are fitted to, and as many that they are judged on [default: 96]
    #[arg(long, value_name = "N")]
    draws: Option<usize>,
    /// forecast: sweeps over all moves of computed steps, at most; 0 computes even steps [default: 3]
    #[arg(long, value_name = "N")]
    sweeps: Option<usize>,
    /// Passes over the whole trajectory [default: 80, or all of --replay]
    #[arg(long, value_name = "N", help_heading = OWN_FLAGS)]
    passes: Option<usize>,
    /// Images a pass (guidance doubles what the network sees) [default: 4]
    #[arg(long, value_name = "N", help_heading = OWN_FLAGS)]
    batch: Option<usize>,
    /// Images in the network at a time; the features of a whole batch stay in memory [default: what fits in 256 MiB]
    #[arg(long, value_name = "N", help_heading = OWN_FLAGS)]
    micro_batch: Option<usize>,
    /// Weight of the computed branches in the loss, fixed
    #[arg(long, conflicts_with_all = ["target_cur", "target_speedup"], help_heading = OWN_FLAGS)]
    beta: Option<f64>,
    /// Save this share of all branch evaluations; several make a schedule each (harmonica: the first one steers beta)
    #[arg(
        long,
        value_name = "X,…",
        value_delimiter = ',',
        conflicts_with = "target_speedup"
    )]
    target_cur: Vec<f64>,
    /// Save work by this factor; several make a schedule each [default of forecast: 1.25 to 4]
    #[arg(long, value_name = "X,…", value_delimiter = ',')]
    target_speedup: Vec<f64>,
    /// Let the schedules keep at most this share of all features at a time. forecast: 0 for whole steps alone, which keep none;
    /// up to 2 [default: 2]. harmonica: 0.5 halves the cache; training does not depend on it: with --resume, a finished run
    /// makes schedules for another bound
    #[arg(long, value_name = "SHARE")]
    max_cache: Option<f64>,
    /// Learning rate [default: 0.01, as published, with --beta; 0.1 when beta is steered]
    #[arg(long, help_heading = OWN_FLAGS)]
    lr: Option<f64>,
    /// Threshold: compute where the score is above it [default: 0.1]
    #[arg(long, help_heading = OWN_FLAGS)]
    tau: Option<f64>,
    /// Iterations (steps) between refreshes of lambda [default: 500, as published, with --beta; 200 when
    /// beta is steered]
    #[arg(long, value_name = "C", help_heading = OWN_FLAGS)]
    lambda_every: Option<usize>,
    /// What weights a step: leave-one-out (the paper's), progressive (the release's code), sensitivity (image error
    /// per unit of output error), or none (SDT alone) [default: leave-one-out with --beta, sensitivity when beta
    /// is steered]
    #[arg(long, help_heading = OWN_FLAGS)]
    proxy: Option<Proxy>,
    /// Seed of noise, labels and the first logits [default: 0]
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,
    /// Keep only the blocks' inputs and run each block again on the way back: less memory, a third more time
    #[arg(long, help_heading = OWN_FLAGS)]
    gradient_checkpointing: bool,
    /// Passes between checkpoints [default: 5]
    #[arg(long, value_name = "N", help_heading = OWN_FLAGS)]
    save_every: Option<usize>,
    /// Go on with the run in --out, of the same --model, --steps and guidance; of the recipe, what is not said again stays
    /// as it was. A finished run makes schedules for other targets
    #[arg(long, help_heading = "Output")]
    resume: bool,
    /// Take `noise` [passes,B,C,H,W], `labels` [passes,B] (or `text` [passes,B,L,width] with `mask`, `null_text`, `null_mask`)
    /// and `router_init` [T,N] from this file instead of drawing them
    #[arg(long, value_name = "FILE", help_heading = OWN_FLAGS)]
    replay: Option<PathBuf>,
    /// Also write the log (a JSON line an iteration) here
    #[arg(long, value_name = "FILE.jsonl", help_heading = OWN_FLAGS)]
    log: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    session: SessionArgs,
}

/// How a router is learned.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Recipe {
    Harmonica,
    LearningToCache,
    Forecast,
}

impl Args {
    /// A flag that only the published recipes know, if one was given.
    fn of_harmonica(&self) -> Option<&'static str> {
        [
            ("passes", self.passes.is_some()),
            ("batch", self.batch.is_some()),
            ("micro-batch", self.micro_batch.is_some()),
            ("beta", self.beta.is_some()),
            ("lr", self.lr.is_some()),
            ("tau", self.tau.is_some()),
            ("lambda-every", self.lambda_every.is_some()),
            ("proxy", self.proxy.is_some()),
            ("gradient-checkpointing", self.gradient_checkpointing),
            ("replay", self.replay.is_some()),
            ("log", self.log.is_some()),
            ("save-every", self.save_every.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }

    /// The recipe, by name, by flags, or by what is to be resumed.
    fn recipe(&self) -> Result<Recipe, CliError> {
        let own = self.of_harmonica();
        let of_forecast = self.draws.is_some() || self.sweeps.is_some() || !self.table.is_empty();
        let contradicts = |flag: &str, recipe: &str| {
            Err(CliError::Usage(format!(
                "--{flag} does not belong to the recipe {recipe}"
            )))
        };
        let begun = self.resume && RunFolder::new(&self.out).checkpoint().exists();
        match (self.recipe, own) {
            (Some(Recipe::Forecast), Some(flag)) => contradicts(flag, "forecast"),
            (Some(Recipe::Harmonica | Recipe::LearningToCache), _) if of_forecast => contradicts(
                "draws, --sweeps or --table",
                "harmonica or learning-to-cache",
            ),
            (Some(Recipe::LearningToCache), _) if self.lambda_every.is_some() => {
                contradicts("lambda-every", "learning-to-cache")
            }
            (None, Some(flag)) if of_forecast => contradicts(
                flag,
                "forecast, which --draws, --sweeps and --table ask for",
            ),
            (Some(recipe), _) => Ok(recipe),
            (None, None) if begun && of_forecast => contradicts(
                "draws, --sweeps or --table",
                "harmonica, which that run is of",
            ),
            (None, None) if !begun => Ok(Recipe::Forecast),
            (None, _) => Ok(Recipe::Harmonica),
        }
    }

    fn targets(&self) -> Vec<Budget> {
        let speedups = self.target_speedup.iter().copied();
        let shares = self.target_cur.iter().copied();
        speedups
            .map(Budget::TargetSpeedup)
            .chain(shares.map(Budget::TargetCur))
            .collect()
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let recipe = args.recipe()?;
    if recipe == Recipe::Forecast {
        // A resumed run keeps what this command does not name.
        let before = match args.resume {
            true => LadderSettings::of_run(&RunFolder::new(&args.out))?,
            false => None,
        };
        let usual = before.unwrap_or_default();
        let draws = args.draws.unwrap_or(usual.draws);
        let settings = LadderSettings {
            draws,
            glance: usual.glance.min(draws),
            validation: args.draws.unwrap_or(usual.validation),
            sweeps: args.sweeps.unwrap_or(usual.sweeps),
            max_cache: args.max_cache.or(usual.max_cache),
            seed: args.seed.unwrap_or(usual.seed),
        };
        if !args.table.is_empty() {
            let asked = train_table::Asked {
                out: args.out,
                tables: args.table,
                settings,
                json: args.json,
            };
            let session = args.session.open(context)?;
            let again = again::same_run(&args.session);
            return train_table::run(asked, session, &again, context);
        }
        let asked = Asked {
            targets: args.targets(),
            settings,
            out: args.out,
            resume: args.resume,
            json: args.json,
            go_on: String::new(),
        };
        let session = args.session.open(context)?;
        let again = again::same_run(&args.session);
        let asked = Asked {
            go_on: go_on(&asked.out, session.settings.steps, &again),
            ..asked
        };
        return train_ladder::run(asked, session, &again, context);
    }
    let (replay, texts) = match args.replay.as_deref().map(read_replay).transpose()? {
        Some((replay, texts)) => (Some(replay), texts),
        None => (None, None),
    };
    let asked = args.targets();
    let mut session = args.session;
    if let Some(replay) = &replay {
        let steps = replay.router.steps();
        if session.run.steps.is_some_and(|asked| asked != steps) {
            return Err(CliError::Usage(format!(
                "--steps contradicts --replay, whose router has {steps}"
            )));
        }
        session.run.steps = Some(steps);
    }
    let again = again::same_run(&session);
    let Session {
        pipeline,
        settings: run,
        ..
    } = session.open_with(context, texts)?;
    let Pipeline {
        engine,
        model,
        info,
        prompts,
        ..
    } = pipeline;
    if run.solver.is_stochastic() {
        return Err(CliError::Usage(
            "routers are trained along the deterministic ddim solver".into(),
        ));
    }
    if run.steps < 2 {
        return Err(CliError::Usage(
            "a router needs at least 2 steps: there is nothing to reuse at step 0".into(),
        ));
    }

    // A resumed run keeps the settings that this command does not name.
    let folder = RunFolder::new(&args.out);
    let before = match args.resume && folder.checkpoint().exists() {
        true => TrainingSummary::read(&folder.checkpoint())?,
        false => None,
    };
    let mut targets: Vec<Budget> = match args.beta {
        Some(beta) => vec![Budget::Beta(beta)],
        None if !asked.is_empty() => asked,
        None => match &before {
            Some(before) => before.targets.clone(),
            None => vec![Budget::TargetCur(match recipe {
                Recipe::LearningToCache => DEFAULT_TARGET_CUR_OF_PAIRS,
                _ => DEFAULT_TARGET_CUR,
            })],
        },
    };
    // A bound that was named once goes on, unless other targets are asked for.
    let named =
        args.beta.is_some() || !args.target_cur.is_empty() || !args.target_speedup.is_empty();
    let max_cache = match &before {
        Some(before) if !named => args.max_cache.or(before.max_cache),
        _ => args.max_cache,
    };
    let begun = before.as_ref().map_or(0, |before| before.pass);
    let before = before.map(|before| before.settings);
    let budget = targets.remove(0);
    let replayed = replay
        .as_ref()
        .map(|r| (r.conditions.len(), r.conditions.first().map_or(0, Vec::len)));
    // What is not said again stays as it was, or is as usual.
    let resumed = before.is_some();
    let known = before.unwrap_or_else(|| match recipe {
        Recipe::LearningToCache => SdtSettings::usual_of_pairs(budget),
        _ => SdtSettings::usual(budget),
    });
    let batch = args.batch.or(replayed.map(|r| r.1)).unwrap_or(known.batch);
    if let Some((_, held)) = replayed.filter(|r| r.1 != batch) {
        return Err(CliError::Usage(format!(
            "--batch contradicts --replay, which holds {held} images a pass"
        )));
    }
    let micro_batch = match resumed {
        true => known.micro_batch,
        // As many at a time as leave each rank some.
        false => SdtSettings::fitting_micro_batch(&info.outline, run.guidance.is_active(), batch)
            .min(batch.div_ceil(context.ranks.size())),
    };
    let settings = SdtSettings {
        passes: args
            .passes
            .or(replayed.map(|r| r.0))
            .unwrap_or(known.passes),
        batch,
        micro_batch: args.micro_batch.unwrap_or(micro_batch),
        learning_rate: args.lr.unwrap_or(known.learning_rate),
        tau: args.tau.unwrap_or(known.tau),
        lambda_every: args.lambda_every.unwrap_or(known.lambda_every),
        proxy: args.proxy.unwrap_or(known.proxy),
        budget,
        seed: args.seed.unwrap_or(known.seed),
        gradient_checkpointing: args.gradient_checkpointing || known.gradient_checkpointing,
        // A run that is resumed without a word is of its own recipe.
        pairs: match args.recipe {
            None => known.pairs,
            Some(recipe) => recipe == Recipe::LearningToCache,
        },
    };
    let parts = batch.div_ceil(settings.micro_batch.max(1));
    if parts < context.ranks.size() {
        context.say(format!(
            "note: a pass has {}, so of {} ranks {} have nothing to do; a larger --batch, or a --micro-batch of 1, has some for more",
            counted(parts, "micro-batch"),
            context.ranks.size(),
            context.ranks.size() - parts
        ));
    }
    let options = RouterRunOptions {
        folder,
        settings: settings.clone(),
        more_targets: targets,
        max_cache,
        prompts,
        replay,
        save_every: args.save_every.unwrap_or(5),
        resume: args.resume,
        log: args.log,
        ranks: context.ranks.clone(),
    };
    context.something_is_at_stake();
    let mut training = RouterRun::open(&model, &info, run, options)?
        .with_engine(&engine)
        .with_stop(context.stop());

    let trained = (1..run.steps).filter(|s| settings.trains(*s, run.steps));
    let trained = trained.count() as u64;
    let bar = progress(context, settings.passes as u64 * trained, "iterations");
    bar.set_position(training.sdt().state().pass as u64 * trained);
    bar.reset_eta();
    let started = Instant::now();
    while !training.sdt().is_done() {
        let mut each = |progress: Progress| {
            match progress {
                Progress::Trained(_) => bar.inc(1),
                Progress::Lambda { step } => {
                    bar.set_message(format!("· lambda, step {step} of {}", run.steps))
                }
            }
            if context.check_interrupt().is_err() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        match training.pass(&mut each)? {
            Some(p) => bar.set_message(format!(
                "· loss {:.3e} · CUR {:.1} % · MACs ratio {:.2}× · beta {:.1e}",
                p.loss,
                100.0 * p.cur,
                p.macs_ratio,
                p.beta
            )),
            None => {
                bar.abandon();
                let pass = training.sdt().state().pass;
                context.say(format!(
                    "stopped after {}, saved in {}; {}",
                    counted(pass, "pass"),
                    args.out.display(),
                    go_on(&args.out, run.steps, &again)
                ));
                return Err(CliError::Interrupted);
            }
        }
    }
    if !context.ranks.leads() {
        return Ok(());
    }
    let seconds = started.elapsed().as_secs_f64();
    let now = settings.passes.saturating_sub(begun);
    bar.finish_and_clear();

    let mut written = Vec::new();
    for (path, file) in training.schedules()? {
        let measured = file.measured.clone().unwrap_or_default();
        context.say(format!(
            "{}: CUR {:.1} %, MACs ratio {:.2}×, threshold {}",
            path.display(),
            100.0 * measured.cur,
            measured.macs_ratio,
            file.threshold
                .map_or("by rank".into(), |t| format!("{t:.3}")),
        ));
        let target = file.policy.parameters.as_ref().and_then(target_of);
        if let Some(off) =
            target.and_then(|target| off_target(target, measured.cur, measured.macs_ratio))
        {
            context.say(format!(
                "warning: {:.1} % off its target; a table of this size and cache comes no nearer",
                100.0 * off
            ));
        }
        written.push(json!({ "file": path, "cur": measured.cur, "macs_ratio": measured.macs_ratio, "threshold": file.threshold }));
    }
    let peak = peak_memory_bytes();
    let memory = peak.map_or(String::new(), |bytes| {
        format!(", peak memory {:.2} GB", bytes as f64 / 1e9)
    });
    let report = engine.report();
    context.say(format!(
        "{} of {} in {seconds:.1} s on {} ({}){memory}",
        counted(now, "pass"),
        counted(run.steps, "step"),
        report.device,
        report.backend
    ));
    if let Some(path) = written.first().and_then(|file| file["file"].as_str()) {
        context.say(format!(
            "next: harmonica sample --steps {} --schedule {}{again}",
            run.steps,
            again::path(Path::new(path)),
        ));
    }
    if args.json {
        print_json(&json!({
            "device": report.device, "backend": report.backend, "model": info.outline.name, "steps": run.steps,
            "passes": settings.passes, "passes_now": now, "ranks": context.ranks.size(),
            "seconds": seconds, "peak_memory_bytes": peak, "schedules": written,
        }));
    }
    Ok(())
}

/// How a run that was stopped goes on.
fn go_on(out: &Path, steps: usize, again: &str) -> String {
    let out = again::path(out);
    format!("harmonica train router --resume --out {out} --steps {steps}{again} goes on")
}

/// What a schedule was made for, by its own words.
fn target_of(parameters: &serde_json::Value) -> Option<Budget> {
    let number = |key: &str| parameters.get(key)?.as_f64();
    let share = number("target-cur").map(Budget::TargetCur);
    share.or_else(|| number("target-speedup").map(Budget::TargetSpeedup))
}

/// How far a schedule is off its target, where that is more than the tolerance.
pub(super) fn off_target(target: Budget, cur: f64, macs_ratio: f64) -> Option<f64> {
    let (wanted, reached) = match target {
        Budget::TargetCur(share) => (share, cur),
        Budget::TargetSpeedup(ratio) => (ratio, macs_ratio),
        Budget::Beta(_) => return None,
    };
    let off = (reached / wanted - 1.0).abs();
    (off > TOLERANCE).then_some(off)
}

/// The replay, and its texts where its conditions are texts.
fn read_replay(path: &Path) -> Result<(Replay, Option<Prompts>), CliError> {
    let bad = |problem: String| CheckpointError::Settings {
        path: path.into(),
        problem,
    };
    let mut source = checkpoint::open(path)?;
    let is_text = source.get("text").is_some();
    let shape = |name: &str, axes: usize| {
        let found = source
            .get(name)
            .map(|e| e.shape.clone())
            .filter(|s| s.len() == axes && !s.contains(&0));
        found.ok_or_else(|| bad(format!("expected a tensor `{name}` with {axes} axes (a replay holds `noise` [passes,B,C,H,W], `labels` [passes,B] and `router_init` [T,N])")))
    };
    let (noise, router) = (shape("noise", 5)?, shape("router_init", 2)?);
    let (name, conditions) = match is_text {
        true => ("text", shape("text", 4)?),
        false => ("labels", shape("labels", 2)?),
    };
    if noise[..2] != conditions[..2] {
        return Err(bad(format!(
            "its `noise` is {noise:?}, its `{name}` is {conditions:?}"
        ))
        .into());
    }
    let (all, texts) = if is_text {
        let named = |text: &str, mask: &str| (text.to_owned(), mask.to_owned());
        let pool = texts_named(&mut source, named("text", "mask"))?.unwrap_or_default();
        let null = texts_named(&mut source, named("null_text", "null_mask"))?.unwrap_or_default();
        let prompts = Prompts {
            pool: pool.clone(),
            null: null.into_iter().next(),
        };
        (pool, Some(prompts))
    } else {
        let labels: Vec<usize> = source
            .read_i64("labels")?
            .into_iter()
            .map(|y| usize::try_from(y).map_err(|_| bad(format!("its label {y} is negative"))))
            .collect::<Result<_, _>>()?;
        (Condition::classes(&labels), None)
    };
    let replay = Replay {
        noise: source.read_f32("noise")?,
        conditions: all.chunks(noise[1]).map(<[Condition]>::to_vec).collect(),
        image_shape: [noise[2], noise[3], noise[4]],
        router: Router::new(router[0], router[1], source.read_f32("router_init")?)?,
    };
    Ok((replay, texts))
}

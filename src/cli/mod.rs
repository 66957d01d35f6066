//! The command: one file a subcommand, each parses, calls the library, and prints.
//!
//! Results for people and progress go to stderr; stdout carries results to pipe, with `--json` exactly one
//! JSON document.

/// A line on stdout.
macro_rules! out {
    ($($part:tt)*) => { $crate::cli::print_line(format_args!($($part)*)) };
}

mod again;
mod bench;
mod class_names;
mod compare;
mod completions;
mod convert;
mod devices;
mod doctor;
mod draw;
mod dry_run;
mod error;
mod film;
mod inspect;
mod man;
mod measure;
mod memory;
mod misplaced;
mod numbers;
mod options;
mod pictures;
mod progress;
mod pull;
mod ranks;
mod recipe;
mod sample;
mod schedule;
mod schedules;
mod signals;
mod table;
mod text;
mod train_calibrate;
mod train_dit;
mod train_ladder;
mod train_router;
mod train_table;
mod train_vae;
mod training_data;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{ranks::Ranks, sampler::Stop};
use error::CliError;
pub use memory::out_of_memory;

const EXIT_CODES: &str = "\
Examples:
  harmonica sample                            a grid of emoji into harmonica.png
  harmonica sample --classes face-3d -n 4     four faces
  harmonica help train dit                    all of one command

Exit codes:
  0    done
  1    failed: a file, a device, the network
  2    used wrongly: flags, or what they name
  130  stopped by Ctrl-C; what was finished is saved";

const TRAIN_EXAMPLES: &str = "\
Examples:
  harmonica train dit --data pictures --minutes 30
  harmonica train router --target-speedup 2";

/// Diffusion Transformers with learned feature caching, on any vendor's GPU.
///
/// `harmonica sample` without arguments draws a grid of emoji with the bundled model.
#[derive(Parser, Debug)]
#[command(
    name = "harmonica",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = EXIT_CODES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    verbosity: options::Verbosity,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List every adapter of this machine, what it can do, and which one `auto` takes
    Devices(devices::Args),
    /// Make images: with no arguments, a grid of emoji with the bundled model
    Sample(Box<sample::Args>),
    /// Train a model from pictures, or a cache router for a model, or measure one
    #[command(subcommand, after_help = TRAIN_EXAMPLES)]
    Train(Train),
    /// Measure schedules against the uncached run: one seed set, error and cost of each
    Compare(Box<compare::Args>),
    /// Time schedules against the uncached run, side by side, part by part
    Bench(Box<bench::Args>),
    /// Draw, make, import or compare schedules
    Schedule(schedule::Args),
    /// Download a pipeline from the Hugging Face hub; --model then takes its name
    Pull(pull::Args),
    /// Show what a model, router or schedule file or folder holds
    Inspect(inspect::Args),
    /// Write any model that loads as one safetensors file with its config
    Convert(convert::Args),
    /// Find out whether drivers, devices and caches are in order, and what to do where they are not
    Doctor(doctor::Args),
    /// Print what lets a shell complete this command: bash, elvish, fish, powershell, zsh
    Completions(completions::Args),
    /// Print or write manual pages
    Man(man::Args),
}

#[derive(Subcommand, Debug)]
enum Train {
    /// Train a DiT from a folder of pictures; resumable
    Dit(Box<train_dit::Args>),
    /// Train an autoencoder from a folder of pictures, for a DiT that draws its latents; resumable
    Vae(Box<train_vae::Args>),
    /// Learn what may be reused or forecast at which step, from noise alone; resumable
    Router(Box<train_router::Args>),
    /// Measure what the policies smooth, cem, mag and tea need of a model and run, from noise alone
    Calibrate(Box<train_calibrate::Args>),
}

impl Command {
    /// Whether several processes can do the command together.
    fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::Sample(_) | Self::Compare(_) | Self::Train(Train::Router(_))
        )
    }

    /// Whether the command looks for Ctrl-C by itself, so that it may save what it has.
    fn stops_cleanly(&self) -> bool {
        matches!(
            self,
            Self::Sample(_) | Self::Train(_) | Self::Compare(_) | Self::Bench(_)
        )
    }
}

/// What every subcommand gets beside its arguments.
struct Context {
    quiet: bool,
    started: Instant,
    interrupted: Arc<AtomicBool>,
    /// Whether there is something by now that Ctrl-C must not lose.
    at_stake: Arc<AtomicBool>,
    /// Who does the same command together.
    ranks: Ranks,
}

impl Context {
    /// From here on Ctrl-C waits, however long, for what is finished to be saved.
    fn something_is_at_stake(&self) {
        self.at_stake.store(true, Ordering::Relaxed);
    }

    /// Fails once Ctrl-C was pressed.
    fn check_interrupt(&self) -> Result<(), CliError> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(CliError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// The same for work that asks by itself.
    fn stop(&self) -> Stop {
        let interrupted = self.interrupted.clone();
        Arc::new(move || interrupted.load(Ordering::Relaxed))
    }

    /// A line for people.
    fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }
}

/// Whoever reads stdout may stop reading: that ends the output, not the program.
fn print_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to stdout: {error}");
            std::process::exit(1);
        }
        _ => {}
    }
}

/// What this process was asked for; a picture that is to be drawn again says the rest.
fn command_line() -> Result<Cli, CliError> {
    let line: Vec<_> = std::env::args_os().collect();
    let refused = |error| -> ! { numbers::in_plain_words(error).exit() };
    let matches = Cli::command()
        .try_get_matches_from(&line)
        .unwrap_or_else(|error| refused(error));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| refused(error));
    let (Command::Sample(args), Some(given)) = (&cli.command, matches.subcommand_matches("sample"))
    else {
        return Ok(cli);
    };
    match &args.from {
        None => Ok(cli),
        Some(picture) => {
            let recipe = recipe::Recipe::read(picture)?;
            Ok(Cli::parse_from(recipe.filled(line, given)))
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let begun = command_line().and_then(|cli| Ok((ranks::join(cli.command.is_shared())?, cli)));
    let (ranks, cli) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            eprintln!("error: {}", error.explain());
            return ExitCode::from(error.exit_code());
        }
    };
    cli.verbosity.start_logging();
    let context = Context {
        // One speaks for all.
        quiet: cli.verbosity.quiet || !ranks.leads(),
        started,
        interrupted: Arc::default(),
        at_stake: Arc::default(),
        ranks,
    };
    signals::catch(&context, cli.command.stops_cleanly());
    ranks::end(&context.ranks, || run(cli.command, &context))
}

fn run(command: Command, context: &Context) -> Result<(), CliError> {
    match command {
        Command::Devices(args) => devices::run(args, context),
        Command::Sample(args) => sample::run(*args, context),
        Command::Train(Train::Dit(args)) => train_dit::run(*args, context),
        Command::Train(Train::Vae(args)) => train_vae::run(*args, context),
        Command::Train(Train::Router(args)) => train_router::run(*args, context),
        Command::Train(Train::Calibrate(args)) => train_calibrate::run(*args, context),
        Command::Compare(args) => compare::run(*args, context),
        Command::Bench(args) => bench::run(*args, context),
        Command::Schedule(args) => schedule::run(args, context),
        Command::Pull(args) => pull::run(args, context),
        Command::Inspect(args) => inspect::run(args, context),
        Command::Convert(args) => convert::run(args, context),
        Command::Doctor(args) => doctor::run(args, context),
        Command::Completions(args) => completions::run(args, context),
        Command::Man(args) => man::run(args, context),
    }
}

//! Ctrl-C and its kin, as a flag that long work looks at.

// Whether SIGHUP is ignored can only be asked of libc.
#![allow(unsafe_code)]

use std::{
    io::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Context, error::CliError};
use crate::files;

/// How long a command that has nothing to lose may take to stop by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes Ctrl-C, SIGTERM and a terminal that closes raise the flag, or end the process at once where nobody looks at it. A
/// second signal ends it in any case, unless it comes within half a second: a terminal that closes may say so twice.
pub(super) fn catch(context: &Context, looked_at: bool) {
    let ignored = ignored();
    let (interrupted, at_stake) = (context.interrupted.clone(), context.at_stake.clone());
    let quiet = context.quiet;
    let first = Mutex::new(None::<Instant>);
    let handler = ctrlc::set_handler(move || {
        let before = interrupted.swap(true, Ordering::Relaxed);
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        let again = first.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(500);
        if again || !looked_at {
            files::exit(CliError::Interrupted.exit_code().into());
        }
        if !before {
            let at_stake = at_stake.clone();
            std::thread::spawn(move || lose_patience(&at_stake, quiet));
        }
    });
    match handler {
        Err(error) => eprintln!("note: Ctrl-C will not stop cleanly: {error}"),
        Ok(()) => ignore(&ignored),
    }
}

/// The network asks for the flag before each branch, and saving may take a while: ends the process before that where nothing is lost,
/// and says otherwise what it waits for.
fn lose_patience(at_stake: &AtomicBool, quiet: bool) {
    std::thread::sleep(PATIENCE);
    // Whoever reads stderr may have stopped reading.
    let mut stderr = std::io::stderr();
    if !at_stake.load(Ordering::Relaxed) {
        let _ = writeln!(stderr, "error: {}", CliError::Interrupted);
        files::exit(CliError::Interrupted.exit_code().into());
    }
    if !quiet {
        let _ = writeln!(
            stderr,
            "stopping as soon as what is finished can be saved; Ctrl-C again ends at once"
        );
    }
}

/// What this process was started to ignore: SIGHUP, by `nohup`.
#[cfg(unix)]
fn ignored() -> Vec<i32> {
    let is_ignored = |signal: &i32| {
        // SAFETY: the second argument may be null, and the third is written before it is read, which the result confirms.
        unsafe {
            let mut now = std::mem::zeroed::<libc::sigaction>();
            libc::sigaction(*signal, std::ptr::null(), &mut now) == 0
                && now.sa_sigaction == libc::SIG_IGN
        }
    };
    // Not SIGINT: shells ignore it for everything in the background of a script, where `kill -INT` must still save.
    let mut signals = vec![libc::SIGHUP];
    signals.retain(is_ignored);
    signals
}

/// `ctrlc` takes ignored signals too.
#[cfg(unix)]
fn ignore(signals: &[i32]) {
    for signal in signals {
        // SAFETY: SIG_IGN is a valid disposition of these signals.
        unsafe {
            libc::signal(*signal, libc::SIG_IGN);
        }
    }
}

#[cfg(not(unix))]
fn ignored() -> Vec<i32> {
    Vec::new()
}

#[cfg(not(unix))]
fn ignore(_: &[i32]) {}

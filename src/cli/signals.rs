//! Ctrl-C and its kin, as a flag that long work looks at.

// Whether SIGHUP is ignored can only be asked of libc.
#![allow(unsafe_code)]

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Makes Ctrl-C, SIGTERM and a terminal that closes raise the flag. A second signal ends the process at once.
pub(super) fn catch(interrupted: Arc<AtomicBool>) {
    let hangup_ignored = hangup_ignored();
    let first = Mutex::new(None::<Instant>);
    let handler = ctrlc::set_handler(move || {
        interrupted.store(true, Ordering::Relaxed);
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        // A terminal that closes may say so twice.
        let again = first.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(500);
        if again {
            std::process::exit(130);
        }
    });
    match handler {
        Err(error) => eprintln!("note: Ctrl-C will not stop cleanly: {error}"),
        Ok(()) if hangup_ignored => ignore_hangup(),
        Ok(()) => {}
    }
}

/// Whether this process was started to outlive its terminal, as by `nohup`.
#[cfg(unix)]
fn hangup_ignored() -> bool {
    // SAFETY: the second argument may be null, and the third is written before it is read, which the result confirms.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut now) == 0
            && now.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn hangup_ignored() -> bool {
    false
}

/// Undoes what `ctrlc` does to an ignored SIGHUP.
fn ignore_hangup() {
    #[cfg(unix)]
    // SAFETY: SIG_IGN is a valid disposition of SIGHUP.
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
    }
}

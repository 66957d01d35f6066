//! The end of a command that gets no more memory.

// Ending without a word to anybody else can only be asked of libc.
#![allow(unsafe_code)]

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::files;

/// Says that the system refused so many bytes, removes what is not finished writing, and ends the process with exit code 1. For
/// the allocator of a program: neither allocates nor waits for a lock that the caller might hold.
pub fn out_of_memory(bytes: usize) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    const CODE: i32 = 1;
    if ENDING.swap(true, Ordering::Relaxed) {
        // Another thread is at it, or this one was refused once more on the way.
        std::thread::sleep(Duration::from_secs(1));
    } else {
        // Whoever reads stderr may have stopped reading.
        let _ = writeln!(
            std::io::stderr(),
            "error: out of memory: the system refused {bytes} bytes; smaller batches (--batch) take less, and `harmonica sample --dry-run` says what a run takes"
        );
        files::remove_unfinished();
    }
    end(CODE)
}

/// Ends without what libraries do on the way out: they may want memory too.
#[cfg(unix)]
fn end(code: i32) -> ! {
    // SAFETY: it takes any number, and does not return.
    unsafe { libc::_exit(code) }
}

#[cfg(not(unix))]
fn end(code: i32) -> ! {
    std::process::exit(code)
}

//! The `harmonica` command.

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: OrEnd = OrEnd;

/// The CPU backend makes and drops large buffers all the time; the system's allocator returns each to the
/// kernel and gets it back page by page. Where there is no more memory, the command ends as it does with other errors: what Rust
/// does by itself is to abort.
struct OrEnd;

fn checked(memory: *mut u8, bytes: usize) -> *mut u8 {
    match memory.is_null() {
        true => harmonica::cli::out_of_memory(bytes),
        false => memory,
    }
}

// SAFETY: all is left to the other allocator.
unsafe impl GlobalAlloc for OrEnd {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        checked(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        checked(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        checked(unsafe { MiMalloc.realloc(memory, layout, size) }, size)
    }
}

fn main() -> std::process::ExitCode {
    if std::env::args_os().any(|argument| argument == "train") {
        keep_memory();
    }
    quiet_display_search();
    // A panic has said what it is; to the shell it is a failure like others.
    std::panic::catch_unwind(harmonica::cli::main).unwrap_or(std::process::ExitCode::FAILURE)
}

/// Keeps what is freed for what comes next, unless the user's environment (`MIMALLOC_PURGE_DELAY`) says otherwise. By default it
/// goes back to the kernel after a moment, which clears every page of the next buffer: a twelfth of a training's time.
fn keep_memory() {
    /// `mi_option_purge_delay`, in milliseconds; below 0 never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it takes two numbers.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) }
}

/// A layer that Mesa puts into every Vulkan program looks for a Wayland display, and complains on stderr where there is no
/// `XDG_RUNTIME_DIR` to look in, as on servers. Where that holds, this process has one in which nothing can lie.
#[cfg(all(unix, not(target_vendor = "apple")))]
fn quiet_display_search() {
    const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
    if std::env::var_os(RUNTIME_DIR).is_none_or(|folder| folder.is_empty()) {
        // SAFETY: nothing has started a thread yet that could read the environment.
        unsafe { std::env::set_var(RUNTIME_DIR, "/dev/null") };
    }
}

#[cfg(not(all(unix, not(target_vendor = "apple"))))]
fn quiet_display_search() {}

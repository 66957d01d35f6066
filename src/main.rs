//! The `harmonica` command.

/// The CPU backend makes and drops large buffers all the time; the system's allocator returns each to the
/// kernel and gets it back page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    quiet_display_search();
    // A panic has said what it is; to the shell it is a failure like others.
    std::panic::catch_unwind(harmonica::cli::main).unwrap_or(std::process::ExitCode::FAILURE)
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

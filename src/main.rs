//! The `harmonica` command.

/// The CPU backend makes and drops large buffers all the time; the system's allocator returns each to the
/// kernel and gets it back page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // A panic has said what it is; to the shell it is a failure like others.
    std::panic::catch_unwind(harmonica::cli::main).unwrap_or(std::process::ExitCode::FAILURE)
}

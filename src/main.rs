//! The `harmonica` command.

/// The CPU backend makes and drops large buffers all the time; the system's allocator returns each to the
/// kernel and gets it back page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    harmonica::cli::main()
}

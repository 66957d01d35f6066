//! The `harmonica` command.

fn main() -> std::process::ExitCode {
    harmonica::cli::main()
}

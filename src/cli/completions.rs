//! `harmonica completions`

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Context, error::CliError};

/// For bash: `harmonica completions bash > ~/.local/share/bash-completion/completions/harmonica`. For zsh, into a file
/// `_harmonica` in a folder of `$fpath`; for fish, into `~/.config/fish/completions/harmonica.fish`; for PowerShell, at the end
/// of `$PROFILE`; for elvish, at the end of `~/.config/elvish/rc.elv`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: Args, _: &Context) -> Result<(), CliError> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    out!("{}", String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

//! `harmonica man`

use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, Context, error::CliError};
use crate::{files::write_bytes_atomically, report::ReportError};

/// A folder where `man` looks: `harmonica man --out ~/.local/share/man/man1`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Write a page for each subcommand into this folder [default: the page of `harmonica` itself, to stdout]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A page in roff.
struct Page {
    /// Such as `harmonica-train-dit.1`.
    file: String,
    text: Vec<u8>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, &mut pages);
    let Some(folder) = args.out else {
        if let Some(page) = pages.first() {
            out!("{}", String::from_utf8_lossy(&page.text).trim_end());
        }
        return Ok(());
    };
    for page in &pages {
        let path = folder.join(&page.file);
        write_bytes_atomically(&path, &page.text)
            .map_err(|source| ReportError::Io { path, source })?;
    }
    context.say(format!(
        "wrote {} pages into {}",
        pages.len(),
        folder.display()
    ));
    Ok(())
}

/// The page of a command, and those of its subcommands.
fn add_pages(command: &Command, pages: &mut Vec<Page>) {
    let man = Man::new(command.clone())
        .source(concat!("harmonica ", env!("CARGO_PKG_VERSION")))
        .manual("harmonica");
    let mut text = Vec::new();
    // Writing to memory does not fail.
    if man.render(&mut text).is_ok() {
        pages.push(Page {
            file: man.get_filename(),
            text,
        });
    }
    for subcommand in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        add_pages(subcommand, pages);
    }
}

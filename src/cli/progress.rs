//! How far long work has got: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle, WeakProgressBar};

use super::Context;

/// Off a terminal: how soon the first line comes, and how often the others.
const FIRST: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_secs(10);

/// Position, rate and time left on stderr; nothing with `-q`.
pub(super) fn progress(context: &Context, length: u64, unit: &str) -> ProgressBar {
    let template = format!("{{bar:32}} {{pos}}/{{len}} {unit} · {{elapsed}} · ETA {{eta}} {{msg}}");
    let unit = unit.to_owned();
    bar_or_lines(context, length, &template, move |bar| line(bar, &unit))
}

/// A bar that looks like `template`, or lines that `line` makes of it.
pub(super) fn bar_or_lines(
    context: &Context,
    length: u64,
    template: &str,
    line: impl Fn(&ProgressBar) -> String + Send + 'static,
) -> ProgressBar {
    if context.quiet || !std::io::stderr().is_terminal() {
        let bar = ProgressBar::hidden();
        bar.set_length(length);
        if !context.quiet {
            let told = bar.downgrade();
            std::thread::spawn(move || tell(&told, line));
        }
        return bar;
    }
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Tells of a bar that nobody sees until it is finished or gone.
fn tell(bar: &WeakProgressBar, line: impl Fn(&ProgressBar) -> String) {
    let mut wait = FIRST;
    loop {
        std::thread::sleep(wait);
        let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) else {
            return;
        };
        // Whoever reads stderr may have stopped reading.
        let _ = writeln!(std::io::stderr(), "{}", line(&bar));
        wait = EVERY;
    }
}

/// `12/920 image steps · 10s · ETA 70s · what else is said`
fn line(bar: &ProgressBar, unit: &str) -> String {
    let mut line = bar.position().to_string();
    // A length that is not known yet is 0.
    let length = bar.length().filter(|length| *length > 0);
    if let Some(length) = length {
        line.push_str(&format!("/{length}"));
    }
    line.push_str(&format!(" {unit} · {:#}", HumanDuration(bar.elapsed())));
    if length.is_some() && bar.position() > 0 {
        line.push_str(&format!(" · ETA {:#}", HumanDuration(bar.eta())));
    }
    match bar.message() {
        message if message.is_empty() => line,
        message => format!("{line} {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_bar_shows() {
        let bar = ProgressBar::hidden();
        bar.set_length(0);
        assert_eq!(line(&bar, "moves"), "0 moves · 0s");
        bar.set_length(8);
        bar.set_message("· drawing");
        assert_eq!(line(&bar, "moves"), "0/8 moves · 0s · drawing");
        bar.set_position(8);
        let full = line(&bar, "moves");
        assert!(full.starts_with("8/8 moves · 0s · ETA "), "{full}");
    }
}

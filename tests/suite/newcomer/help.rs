//! Help: examples, headings, exit codes.

use super::says;

/// Subcommands that do something, or lead to some that do.
const COMMANDS: [&[&str]; 16] = [
    &["devices"],
    &["sample"],
    &["train"],
    &["train", "dit"],
    &["train", "router"],
    &["train", "calibrate"],
    &["compare"],
    &["bench"],
    &["schedule"],
    &["schedule", "show"],
    &["schedule", "make"],
    &["schedule", "import"],
    &["schedule", "diff"],
    &["pull"],
    &["inspect"],
    &["convert"],
];

#[test]
fn help_has_examples_that_are_understood() {
    for command in COMMANDS {
        let help = says(&[command, &["--help"]].concat(), 0, &["Examples:\n"]);
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        let lines: Vec<&str> = examples.lines().filter(|l| !l.trim().is_empty()).collect();
        assert!((2..=4).contains(&lines.len()), "{command:?}: {examples}");
        for line in lines {
            let example = line.trim().split("   ").next().unwrap();
            let words = example
                .strip_prefix("harmonica ")
                .unwrap()
                .split_whitespace();
            let mut words: Vec<&str> = words.collect();
            // Behind what is not understood no help is shown.
            words.push("--help");
            says(&words, 0, &["Usage: harmonica "]);
        }
    }
}

#[test]
fn help_has_headings_and_exit_codes() {
    says(
        &["--help"],
        0,
        &["Exit codes:", "  0 ", "  1 ", "  2 ", "  130 ", "Examples:"],
    );
    let headings: [(&[&str], &[&str]); 4] = [
        (
            &["sample"],
            &[
                "Pictures",
                "Output",
                "Reuse",
                "Model",
                "Denoising",
                "Device and memory",
            ],
        ),
        (
            &["train", "dit"],
            &["Data", "Output", "Network", "Length", "Recipe"],
        ),
        (
            &["train", "router"],
            &[
                "Learning",
                "Recipes harmonica and learning-to-cache",
                "Output",
                "Model",
                "Denoising",
            ],
        ),
        (&["compare"], &["Comparison", "Output", "Model"]),
    ];
    for (command, expected) in headings {
        let help = says(&[command, &["--help"]].concat(), 0, &[]);
        let of = |heading: &str| help.find(&format!("\n{heading}:\n"));
        for heading in expected {
            assert!(of(heading).is_some(), "{command:?} lacks {heading}: {help}");
        }
        // What everything has stands by itself: no flag of the command's own is among it.
        let (_, options) = help.split_once("\nOptions:\n").unwrap();
        let end = options.find("\n\n").map_or(options, |end| &options[..end]);
        let flags = end
            .lines()
            .filter(|line| line.trim_start().starts_with('-'));
        let flags: Vec<&str> = flags
            .map(|l| l.split_whitespace().next().unwrap())
            .collect();
        assert!(
            flags
                .iter()
                .all(|f| ["-q,", "-v,", "-h,", "-V,"].contains(f)),
            "{flags:?}"
        );
    }
}

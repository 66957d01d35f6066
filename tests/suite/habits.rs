//! What people expect of a command: completions, manual pages, exit codes.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
};

use crate::common::harmonica;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The script for a shell.
fn completions(shell: &str) -> String {
    let out = harmonica(&["completions", shell]);
    assert!(out.status.success(), "{shell}: {}", text(&out.stderr));
    text(&out.stdout)
}

#[test]
fn every_shell_gets_the_subcommands_and_their_flags() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = completions(shell);
        for word in ["sample", "schedule", "doctor", "calibrate", "cache-dtype"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    let other = harmonica(&["completions", "cmd"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(other.stdout.is_empty() && text(&other.stderr).contains("powershell"));
}

#[cfg(target_os = "linux")]
#[test]
fn bash_completes_subcommands_and_flags() {
    use std::io::Write;
    let mut script = tempfile::NamedTempFile::new().unwrap();
    script.write_all(completions("bash").as_bytes()).unwrap();
    let complete = |words: &[&str]| -> BTreeSet<String> {
        let [.., before, last] = words else {
            panic!("two words at least: {words:?}");
        };
        let ask = r#"source "$1"; shift; last="$1"; before="$2"; shift 2; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _harmonica harmonica "$last" "$before"; printf '%s\n' "${COMPREPLY[@]}""#;
        let out = Command::new("bash")
            .args(["--norc", "-c", ask, "bash"])
            .arg(script.path())
            .args([last, before])
            .args(words)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout).lines().map(str::to_owned).collect()
    };
    assert_eq!(
        complete(&["harmonica", "samp"]),
        ["sample".to_owned()].into()
    );
    assert_eq!(
        complete(&["harmonica", "train", "r"]),
        ["router".to_owned()].into()
    );
    let flags = complete(&["harmonica", "doctor", "--"]);
    assert!(
        flags.contains("--device") && flags.contains("--json"),
        "{flags:?}"
    );
    assert!(!flags.contains("--schedule"), "{flags:?}");
}

/// Subcommands by the help of a command.
fn subcommands(of: &[&str]) -> Vec<String> {
    let out = harmonica(&[of, &["--help"]].concat());
    let help = text(&out.stdout);
    let Some((_, list)) = help.split_once("Commands:\n") else {
        return Vec::new();
    };
    // What a list says over several lines stands further in than its names.
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let words = names.filter_map(|line| line.split_whitespace().next());
    words.filter(|w| *w != "help").map(str::to_owned).collect()
}

#[test]
fn every_subcommand_has_a_manual_page_with_its_flags() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("share/man/man1");
    let written = harmonica(&["man", "--out", out.to_str().unwrap()]);
    let said = text(&written.stderr);
    assert!(
        written.status.success() && written.stdout.is_empty(),
        "{said}"
    );

    let mut expected = BTreeSet::from(["harmonica.1".to_owned()]);
    for first in subcommands(&[]) {
        expected.insert(format!("harmonica-{first}.1"));
        for second in subcommands(&[&first]) {
            expected.insert(format!("harmonica-{first}-{second}.1"));
        }
    }
    assert!(expected.len() > 15, "{expected:?}");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    let found: BTreeSet<String> = std::fs::read_dir(&out).unwrap().map(name).collect();
    assert_eq!(found, expected);
    assert!(
        said.contains(&format!("wrote {} pages", found.len())),
        "{said}"
    );

    let page = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    for (name, flag) in [
        ("harmonica-sample.1", r"\-\-schedule"),
        ("harmonica-train-dit.1", r"\-\-data"),
        ("harmonica-schedule-show.1", r"\-\-png"),
    ] {
        let page = page(name);
        assert!(
            page.contains(".TH ") && page.contains(flag),
            "{name}: {page}"
        );
    }
    // The first page is what goes to stdout.
    let printed = harmonica(&["man"]);
    assert_eq!(
        text(&printed.stdout).trim_end(),
        page("harmonica.1").trim_end()
    );
}

#[test]
fn exit_codes_are_those_of_the_readme() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone.pt");
    let out = folder.path().join("out");
    let made = folder.path().join("made.schedule.json");
    let below_a_file = folder.path().join("file/x");
    std::fs::write(folder.path().join("file"), "").unwrap();
    let [gone, out, made, below_a_file] =
        [&gone, &out, &made, &below_a_file].map(|p| p.to_str().unwrap());
    let cases: &[(i32, &[&str])] = &[
        (0, &["--version"]),
        (0, &["sample", "--help"]),
        (0, &["devices"]),
        (0, &["completions", "fish"]),
        (
            0,
            &["schedule", "make", "fora:2", "--steps", "4", "--out", made],
        ),
        (1, &["inspect", gone]),
        (1, &["convert", "--model", gone, "--out", out]),
        (2, &["schedule", "show", gone]),
        (1, &["schedule", "import", gone, "--out", out]),
        (1, &["sample", "--device", "cpu", "--model", gone]),
        (1, &["bench", "--device", "cpu", "--model", gone]),
        (
            1,
            &[
                "train", "dit", "--device", "cpu", "--data", gone, "--out", out,
            ],
        ),
        (
            1,
            &["train", "calibrate", "--device", "cpu", "--model", gone],
        ),
        (1, &["man", "--out", below_a_file]),
        (2, &[]),
        (2, &["sampel"]),
        (2, &["inspect"]),
        (2, &["sample", "--steps", "many"]),
        (2, &["sample", "--device", "toaster"]),
        (2, &["sample", "--device", "cpu", "--schedule", "nonsense"]),
        (
            2,
            &["compare", "--device", "cpu", "--schedules", "nonsense"],
        ),
        (2, &["bench", "--device", "cpu", "--runs", "0"]),
        (2, &["schedule", "make", "nonsense", "--out", out]),
        (
            2,
            &[
                "train", "router", "--device", "cpu", "--passes", "0", "--out", out,
            ],
        ),
        (2, &["convert", "--dtype", "f8", "--out", out]),
        (2, &["pull", "nonsense"]),
    ];
    for (code, arguments) in cases {
        let done = harmonica(arguments);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(*code), "{arguments:?}: {said}");
        // Failures say why; bad usage may be answered by the help.
        assert!(*code == 0 || !said.is_empty(), "{arguments:?}");
    }
}

/// A release takes its notes from there.
#[test]
fn the_changelog_tells_of_this_version() {
    let changelog = include_str!("../../CHANGELOG.md");
    let head = format!("\n## [{}] - ", env!("CARGO_PKG_VERSION"));
    let (_, rest) = changelog.split_once(&head).expect("an entry");
    let entry = rest.split("\n## [").next().unwrap();
    assert!(entry.contains("### Added\n\n- "), "{entry}");
}

/// A bench saves nothing: being told to end is being interrupted.
#[cfg(unix)]
#[test]
fn a_terminated_bench_exits_with_130() {
    use std::io::{BufRead, BufReader};
    let child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(["bench", "--device", "cpu", "--runs", "10000", "-v"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = crate::common::Guard(child);
    // The first line of its log: signals are caught by then.
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    child.signal("TERM");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let code = child.0.wait().unwrap().code();
    assert_eq!(code, Some(130), "{first}\n{}", rest.join("\n"));
}

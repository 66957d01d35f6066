//! The pages: their links lead somewhere, their commands are understood, every measured table has one place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::common::harmonica;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and docs/*.md with their texts.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "md") {
            paths.push(path);
        }
    }
    paths.sort();
    assert!(paths.len() > 2, "{paths:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// What a page says outside of its code blocks, and the lines of those, commands over several lines as one.
fn prose_and_code(text: &str) -> (String, Vec<String>) {
    let (mut prose, mut code, mut in_code) = (String::new(), Vec::<String>::new(), false);
    let mut goes_on = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_code = !in_code;
            goes_on = false;
        } else if !in_code {
            prose += line;
            prose.push('\n');
        } else {
            let (part, more) = match line.strip_suffix('\\') {
                Some(part) => (part, true),
                None => (line, false),
            };
            match code.last_mut() {
                Some(last) if goes_on => last.push_str(part),
                _ => code.push(part.into()),
            }
            goes_on = more;
        }
    }
    assert!(!in_code, "a code block has no end");
    (prose, code)
}

/// What links and pictures of a page lead to.
fn targets(prose: &str) -> Vec<&str> {
    let ends = |rest: &'_ str| rest.find(')');
    prose
        .split("](")
        .skip(1)
        .map(|rest| &rest[..ends(rest).expect("a link without an end")])
        .collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(prose: &str) -> BTreeSet<String> {
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let words = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = words
                .chars()
                .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let (mut broken, mut count) = (Vec::new(), 0);
    for (page, text) in pages() {
        for target in targets(&prose_and_code(&text).0) {
            if target.contains("://") {
                continue;
            }
            count += 1;
            let (file, anchor) = match target.split_once('#') {
                Some((file, anchor)) => (file, Some(anchor)),
                None => (target, None),
            };
            let path = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let there = match (path.canonicalize(), anchor) {
                (Err(_), _) => false,
                (Ok(path), None) => path.starts_with(root().canonicalize().unwrap()),
                (Ok(path), Some(anchor)) => {
                    let linked = fs::read_to_string(path).unwrap();
                    anchors(&prose_and_code(&linked).0).contains(anchor)
                }
            };
            if !there {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(count > 30, "{count} links");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Subcommands, or flags, by what `--help` lists: names that begin a line of it.
fn listed(help: &str, flags: bool) -> BTreeSet<String> {
    // What stands further in is the text of a flag.
    const MOST_INDENTED: usize = 6;
    let mut names = BTreeSet::new();
    for line in help.lines() {
        let indent = line.len() - line.trim_start().len();
        if !(2..=MOST_INDENTED).contains(&indent) {
            continue;
        }
        let mut words = line.split_whitespace().map(|word| {
            let word = word.trim_end_matches("...");
            word.trim_end_matches(',')
        });
        match flags {
            true => names.extend(
                words
                    .take(2)
                    .filter(|w| w.starts_with('-'))
                    .map(String::from),
            ),
            false => names.extend(
                words
                    .next()
                    .filter(|w| !w.starts_with('-'))
                    .map(String::from),
            ),
        }
    }
    names
}

/// The help of every subcommand that was asked for.
#[derive(Default)]
struct Helps(BTreeMap<Vec<String>, String>);

impl Helps {
    fn of(&mut self, subcommand: &[&str]) -> &str {
        let key = subcommand.iter().map(|word| word.to_string()).collect();
        self.0.entry(key).or_insert_with(|| {
            let out = harmonica(&[subcommand, &["--help"]].concat());
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{subcommand:?} --help: {said}");
            String::from_utf8(out.stdout).unwrap()
        })
    }

    /// What is wrong with a command line that begins behind `harmonica`.
    fn problem(&mut self, words: &[&str]) -> Option<String> {
        // A page may name the program alone, or stop before a subcommand: `harmonica --help`.
        let mut subcommand = Vec::new();
        for word in words.iter().take_while(|word| !word.starts_with('-')) {
            let known = listed(self.of(&subcommand), false);
            if !known.contains(*word) {
                match subcommand[..] {
                    [] | ["train" | "schedule"] => {
                        return Some(format!("`{word}` is no subcommand"));
                    }
                    _ => break,
                }
            }
            subcommand.push(*word);
            if !matches!(subcommand[..], ["train" | "schedule"]) {
                break;
            }
        }
        let known = listed(self.of(&subcommand), true);
        let flag = |word: &&&str| {
            let name = word.trim_start_matches('-');
            word.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic())
        };
        let flags = words.iter().filter(flag);
        let mut names = flags.map(|word| word.split('=').next().unwrap_or_default());
        let unknown = names.find(|name| !known.contains(*name))?;
        Some(format!("{subcommand:?} has no `{unknown}`"))
    }
}

/// The words of a line of code, quoted ones as one, up to a comment.
fn words(line: &str) -> Vec<&str> {
    let (mut words, mut start, mut quoted) = (Vec::new(), None, false);
    for (i, c) in line.char_indices().chain([(line.len(), ' ')]) {
        match (c, start) {
            ('"', _) => {
                quoted = !quoted;
                start.get_or_insert(i);
            }
            ('#', None) => break,
            (c, Some(from)) if c.is_whitespace() && !quoted => {
                words.push(&line[from..i]);
                start = None;
            }
            (c, None) if !c.is_whitespace() => start = Some(i),
            _ => {}
        }
    }
    words
}

/// The command lines of this program in a line of code, without its name.
fn commands(line: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    if let Some((_, inner)) = line.split_once("$(") {
        found.extend(commands(inner.split(')').next().unwrap_or_default()));
    }
    let words = words(line);
    let mut rest = &words[..];
    if let ["$", after @ ..] = rest {
        rest = after;
    }
    let own = match rest {
        ["harmonica", arguments @ ..] => Some(arguments),
        ["cargo", "run", "--release", "--", arguments @ ..] => Some(arguments),
        _ => None,
    };
    found.extend(own.map(<[_]>::to_vec));
    found
}

#[test]
fn commands_are_understood() {
    let (mut helps, mut wrong, mut count) = (Helps::default(), Vec::new(), 0);
    for (page, text) in pages() {
        let (prose, code) = prose_and_code(&text);
        // Code between single backticks, on one line.
        let spans = prose
            .lines()
            .flat_map(|line| line.split('`').skip(1).step_by(2));
        let lines = code.iter().map(|line| &**line).chain(spans);
        for line in lines {
            for command in commands(line) {
                count += 1;
                if let Some(problem) = helps.problem(&command) {
                    wrong.push(format!("{}: {problem}: {line}", page.display()));
                }
            }
        }
    }
    assert!(count > 50, "{count} commands");
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The check itself sees what is wrong.
    for bad in [
        "sampel",
        "train dits",
        "sample --stepz 3",
        "schedule show x --seed 1",
    ] {
        let bad: Vec<&str> = bad.split(' ').collect();
        assert!(helps.problem(&bad).is_some(), "{bad:?}");
    }
}

/// `assets/refresh.py` puts each table where its block is, and refuses when there is not exactly one.
#[test]
fn every_measured_table_has_one_place() {
    let script = fs::read_to_string(root().join("assets/refresh.py")).unwrap();
    let names: Vec<&str> = script
        .split("    put(\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert!(names.len() > 10, "{names:?}");
    let pages = pages();
    let count = |text: &str| {
        pages
            .iter()
            .map(|(_, page)| page.matches(text).count())
            .sum::<usize>()
    };
    for name in &names {
        assert_eq!(count(&format!("<!-- refresh:{name} -->\n")), 1, "{name}");
    }
    assert_eq!(count("<!-- refresh:"), names.len());
    assert_eq!(count("<!-- /refresh -->"), names.len());
}

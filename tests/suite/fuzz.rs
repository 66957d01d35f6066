//! Seeded fuzzing of everything that is read from outside: the functions of `fuzz/src/lib.rs` on changed seeds of `fuzz/corpus`.
//!
//! The same inputs every time; `HARMONICA_FUZZ=1000` makes a thousand times as many. See `fuzz/README.md`.

#[path = "../../fuzz/src/lib.rs"]
mod bodies;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::allocations::peak_of;

/// An input takes no longer.
const MOST_TIME: Duration = Duration::from_secs(1);
/// Bytes that an input makes its thread hold at most; inputs are no larger than [`LARGEST`].
const MOST_MEMORY: usize = 64 << 20;
const LARGEST: usize = 1 << 16;

/// What formats are made of.
const WORDS: [&[u8]; 40] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[[[[[[[",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"1e-999",
    b"0.5",
    b"\"\"",
    b"\"\\u0000\"",
    b"\"\\ud800\"",
    b"18446744073709551615",
    b"9223372036854775808",
    b"4294967296",
    b"\"F64\"",
    b"\"shape\"",
    b"data_offsets",
    b"__metadata__",
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"h\x00",
    b"q\x00",
    b"(",
    b"t",
    b"R",
    b"Q",
    b"\x85",
    b"\x94",
    b"}(",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"IHDR",
];

struct Seeds {
    files: Vec<(String, Vec<u8>)>,
    /// Whether they are safetensors, whose header has its length before it.
    has_headers: bool,
}

impl Seeds {
    fn of(target: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let entries = std::fs::read_dir(folder.join(target)).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let seed = |path: PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        };
        Self {
            files: paths.into_iter().map(seed).collect(),
            has_headers: ["safetensors", "router", "state"].contains(&target),
        }
    }

    fn any(&self, rng: &mut ChaCha8Rng) -> &[u8] {
        &self.files[below(rng, self.files.len())].1
    }

    /// A seed that was changed in one place, or in up to four.
    fn changed(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let mut bytes = self.any(rng).to_vec();
        let places = [1, 1, 2, 4][below(rng, 4)];
        for _ in 0..places {
            self.change(&mut bytes, rng);
        }
        if self.has_headers && rng.next_u32().is_multiple_of(2) {
            with_length(&mut bytes);
        }
        bytes.truncate(LARGEST);
        bytes
    }

    fn change(&self, bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
        let at = below(rng, bytes.len() + 1);
        let end = at + below(rng, (bytes.len() - at).min(40) + 1);
        match below(rng, 10) {
            0 if at < bytes.len() => bytes[at] ^= 1 << below(rng, 8),
            1 if at < bytes.len() => bytes[at] = rng.next_u32() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            // The end of another.
            5 => {
                let other = self.any(rng);
                bytes.truncate(at);
                bytes.extend(&other[below(rng, other.len() + 1)..]);
            }
            // A piece of another in the place of one.
            6 => {
                let other = self.any(rng);
                let from = below(rng, other.len() + 1);
                let to = from + below(rng, (other.len() - from).min(200) + 1);
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            7 => extreme(bytes, at, rng),
            8 => number(bytes, at, rng),
            _ => {
                let word = WORDS[below(rng, WORDS.len())];
                let end = if rng.next_u32().is_multiple_of(2) {
                    at
                } else {
                    end
                };
                bytes.splice(at..end, word.iter().copied());
            }
        }
    }
}

fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    (rng.next_u64() % bound.max(1) as u64) as usize
}

/// A header that became longer or shorter, with its length.
fn with_length(bytes: &mut [u8]) {
    if let (Some(end), Some(b'{')) = (bytes.iter().rposition(|b| *b == b'}'), bytes.get(8)) {
        let length = end.saturating_sub(7) as u64;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
    }
}

/// A length or offset that is as far off as can be, or just so.
fn extreme(bytes: &mut [u8], at: usize, rng: &mut ChaCha8Rng) {
    let width = [1, 2, 4, 8][below(rng, 4)];
    let Some(field) = bytes.get_mut(at..at + width) else {
        return;
    };
    let mut wide = [0; 8];
    wide[..width].copy_from_slice(field);
    let found = u64::from_le_bytes(wide);
    let all = u64::MAX >> (64 - 8 * width as u32);
    let values = [
        0,
        1,
        all,
        all / 2,
        all / 2 + 1,
        found.wrapping_add(1),
        found.wrapping_sub(1),
        found << 1,
    ];
    let value = values[below(rng, values.len())].to_le_bytes();
    field.copy_from_slice(&value[..width]);
    if rng.next_u32().is_multiple_of(4) {
        field.reverse();
    }
}

/// The next number that stands there in figures, as another.
fn number(bytes: &mut Vec<u8>, at: usize, rng: &mut ChaCha8Rng) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit) else {
        return;
    };
    let start = at + start;
    let figures = bytes[start..].iter().take_while(|b| b.is_ascii_digit());
    let end = start + figures.count();
    let others: [&[u8]; 9] = [
        b"0",
        b"1",
        b"2",
        b"-1",
        b"65536",
        b"4294967295",
        b"9223372036854775807",
        b"18446744073709551615",
        b"1e300",
    ];
    bytes.splice(start..end, others[below(rng, others.len())].iter().copied());
}

/// Holds a body to the seeds' names, then feeds it changed ones.
fn fuzz(target: &str, inputs: usize, body: fn(&[u8]) -> bool) {
    let seeds = Seeds::of(target);
    let mut slowest = Duration::ZERO;
    let mut largest = 0;
    let mut run = |input: &[u8], what: &str| -> bool {
        let failed = |how: String| -> ! {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}"));
            std::fs::write(&path, input).unwrap();
            panic!("{target}, {what} ({}): {how}", path.display())
        };
        let timed = || {
            let started = Instant::now();
            let (accepted, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| body(input))));
            (accepted, peak, started.elapsed())
        };
        let (mut accepted, mut peak, mut took) = timed();
        // A machine with other work to do is slow once, but not again and again.
        for _ in 0..3 {
            if took > MOST_TIME {
                (accepted, peak, took) = timed();
            }
        }
        slowest = slowest.max(took);
        largest = largest.max(peak);
        if took > MOST_TIME {
            failed(format!("it takes {took:?}"));
        }
        if peak > MOST_MEMORY {
            failed(format!("it takes {peak} bytes"));
        }
        accepted.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            failed(format!("it panics: {}", text.unwrap_or_default()))
        })
    };
    // What is set up once is no input's.
    body(&seeds.files[0].1);
    for (name, bytes) in &seeds.files {
        let accepted = run(bytes, name);
        assert_eq!(accepted, !name.starts_with("bad-"), "{target}: seed {name}");
    }
    let times = std::env::var("HARMONICA_FUZZ").map_or(1, |times| times.parse().unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (inputs, mut accepted) = (inputs * times, 0);
    for number in 0..inputs {
        let input = seeds.changed(&mut rng);
        accepted += usize::from(run(&input, &format!("input {number}")));
    }
    println!(
        "fuzzed: {target}: {inputs} inputs, {accepted} accepted, at most {slowest:?} and {largest} bytes"
    );
    // Neither a reader that takes anything nor changes that nothing survives would tell much.
    assert!(accepted > 0, "{target}: none of {inputs} accepted");
    assert!(accepted < inputs, "{target}: all of {inputs} accepted");
}

/// What cargo-fuzz builds needs another compiler: here the same functions are fed, from the same seeds.
#[test]
fn every_target_of_cargo_fuzz_has_its_twin_here() {
    let here = include_str!("fuzz.rs");
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let named: Vec<_> = manifest
        .split("[[bin]]")
        .skip(1)
        .map(|bin| {
            let field = |name: &str| bin.split(&format!("{name} = \"")).nth(1).unwrap();
            let value = |name: &str| field(name).split('"').next().unwrap().to_owned();
            (value("name"), value("path"))
        })
        .collect();
    assert_eq!(named.len(), 13);
    for (target, path) in &named {
        let text = std::fs::read_to_string(fuzz.join(path)).unwrap();
        let body = text.split("harmonica_fuzz::").nth(1).unwrap();
        let body = body.split('(').next().unwrap();
        let twin = here
            .lines()
            .find(|line| line.contains(&format!("fuzz(\"{target}\", ")));
        let twin = twin.unwrap_or_else(|| panic!("{target} has no twin"));
        assert!(twin.contains(&format!("bodies::{body})")), "{twin}");
    }
    let mut seeds: Vec<_> = std::fs::read_dir(fuzz.join("corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    seeds.sort();
    let mut names: Vec<_> = named.into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(seeds, names);
}

#[test]
fn safetensors_are_read_as_their_own_crate_reads_them_or_refused() {
    fuzz("safetensors", 200_000, bodies::safetensors);
}

#[test]
fn pytorch_archives_hold_what_they_claim_or_are_refused() {
    fuzz("torch", 60_000, bodies::torch);
}

#[test]
fn pickles_are_read_or_refused() {
    fuzz("pickle", 100_000, bodies::pickle);
}

#[test]
fn released_routers_make_schedules_or_are_refused() {
    fuzz("router", 60_000, bodies::router);
}

#[test]
fn schedules_can_be_planned_and_written_or_are_refused() {
    fuzz("schedule", 10_000, bodies::schedule);
}

#[test]
fn calibrations_are_read_or_refused() {
    fuzz("calibration", 30_000, bodies::calibration);
}

#[test]
fn pipeline_folders_describe_a_network_or_are_refused() {
    fuzz("folder", 1_500, bodies::model_folder);
}

#[test]
fn texts_in_pictures_are_read_or_refused() {
    fuzz("text-chunk", 100_000, bodies::text_chunk);
}

#[test]
fn atlases_give_their_pictures_or_are_refused() {
    fuzz("atlas", 3_000, bodies::atlas);
}

#[test]
fn sentencepiece_models_tokenize_or_are_refused() {
    fuzz("spiece", 2_000, bodies::spiece);
}

#[test]
fn tokenizers_tokenize_or_are_refused() {
    fuzz("tokenizer", 1_000, bodies::tokenizer);
}

#[test]
fn training_states_are_whole_or_refused() {
    fuzz("state", 15_000, bodies::state);
}

#[cfg(all(feature = "capi", feature = "bundled"))]
#[test]
fn no_sequence_of_c_calls_ends_in_a_fault() {
    fuzz("c-interface", 300, bodies::capi::c_interface);
}

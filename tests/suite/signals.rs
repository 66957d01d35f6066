//! Commands that are ended in the middle: what they write is there wholly or not at all, and nothing else stays.
#![cfg(target_os = "linux")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use harmonica::{checkpoint, policy::Calibration, schedule::ScheduleFile};
use rand::{Rng, SeedableRng};

/// What writes, all of it below `OUT`.
const WRITERS: [&str; 9] = [
    "sample --device cpu --steps 2 --count 4 --out OUT/x.png",
    "sample --device cpu --steps 2 --count 6 --batch 2 --out OUT/pictures --save-tensors OUT/x.safetensors",
    "convert --dtype f32 --out OUT/x.safetensors",
    "schedule make fora:2 --out OUT/x.schedule.json",
    "train calibrate --device cpu --steps 3 --draws 2 --out OUT",
    "train router --device cpu --recipe forecast --steps 4 --draws 2 --sweeps 1 --target-speedup 2,1.3 --out OUT/run",
    "train router --device cpu --recipe harmonica --steps 2 --passes 4 --save-every 1 --batch 1 --target-cur 0.3 --out OUT/run",
    "train dit --data DATA --image-size 4 --blocks 1 --hidden 16 --heads 1 --batch 1 --steps 200 --save-every 0.0005 --sample-every 0 --device cpu --out OUT/run",
    "compare --device cpu --schedules fora:2 --steps 2 --count 2 --html OUT/x.html --csv OUT/x.csv --json",
];

fn start(line: &str, at: &Path) -> Child {
    let place = |word: &str| {
        let word = word.replace("OUT", &at.join("out").display().to_string());
        word.replace("DATA", &at.join("data").display().to_string())
    };
    Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(line.split(' ').map(place))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let inside = |path: PathBuf| {
        if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        }
    };
    paths.flat_map(inside).collect()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().unwrap().to_string_lossy().starts_with('.')
}

/// What is wrong with a file that was written, if anything.
fn damage(path: &Path) -> Option<String> {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let bytes = std::fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    match () {
        () if name.ends_with(".schedule.json") => {
            ScheduleFile::read(path).err().map(|e| e.to_string())
        }
        () if name.ends_with(".calibration.json") => {
            Calibration::read(path).err().map(|e| e.to_string())
        }
        () if name.ends_with(".json") => serde_json::from_str::<serde_json::Value>(&text)
            .err()
            .map(|e| e.to_string()),
        () if name.ends_with(".safetensors") => checkpoint::open(path).err().map(|e| e.to_string()),
        () if name.ends_with(".png") => image::open(path).err().map(|e| e.to_string()),
        () if name.ends_with(".html") => {
            (!text.trim_end().ends_with("</html>")).then(|| "it has no end".into())
        }
        () if name.ends_with(".csv") => (text.lines().count() < 3 || !text.ends_with('\n'))
            .then(|| format!("it has {} lines", text.lines().count())),
        // A line that was cut is cut off when the run goes on.
        () if name.ends_with(".jsonl") => None,
        () => Some("nobody writes such a file".into()),
    }
}

fn check(line: &str, signal: &str, at: &Path) {
    for path in files(&at.join("out")) {
        if is_hidden(&path) {
            assert_eq!(signal, "KILL", "{line}: {signal} leaves {}", path.display());
        } else if let Some(problem) = damage(&path) {
            panic!("{line}: {signal} leaves {}: {problem}", path.display());
        }
    }
}

/// Ends every writing command at moments that chance chooses. A killed one may leave a temporary file, which the same command
/// removes when it is run again.
#[test]
fn whatever_ends_a_command_leaves_whole_files_or_none() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let mut killed = 0;
    for line in WRITERS {
        let at = tempfile::tempdir().unwrap();
        let data = at.path().join("data");
        std::fs::create_dir(&data).unwrap();
        image::RgbImage::new(4, 4).save(data.join("a.png")).unwrap();
        let out = at.path().join("out");
        let finish = |line: &str| {
            let ended = start(line, at.path()).wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success(), "{line}: {said}");
            let left = files(&out);
            let hidden = left.iter().find(|path| is_hidden(path));
            assert_eq!(hidden, None, "{line} leaves it");
            check(line, "nothing", at.path());
        };
        let started = Instant::now();
        finish(line);
        let whole = started.elapsed();
        for signal in ["INT", "TERM", "KILL", "KILL"] {
            std::fs::remove_dir_all(&out).unwrap();
            std::fs::create_dir(&out).unwrap();
            let mut child = start(line, at.path());
            let share = f64::from(rng.next_u32()) / f64::from(u32::MAX);
            std::thread::sleep(whole.mul_f64(share).max(Duration::from_millis(10)));
            if child.try_wait().unwrap().is_none() {
                killed += 1;
            }
            let sent = Command::new("kill")
                .args([&format!("-{signal}"), &child.id().to_string()])
                .stderr(Stdio::null())
                .status();
            assert!(sent.is_ok());
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            // Before it listens, a signal ends it as any program.
            assert!(
                matches!(ended.status.code(), None | Some(0 | 130)),
                "{line}: {signal}: {said}"
            );
            assert!(!said.contains("panicked"), "{line}: {said}");
            check(line, signal, at.path());
            if signal == "KILL" {
                let state = [
                    "router.safetensors",
                    "ladder.json",
                    "checkpoint.safetensors",
                ];
                let goes_on = state.iter().any(|name| out.join("run").join(name).exists());
                let again = if goes_on {
                    format!("{line} --resume")
                } else {
                    line.to_owned()
                };
                finish(&again);
            }
        }
    }
    // Most moments lie within a run.
    assert!(killed > 12, "{killed}");
}

//! Bombs and bad places: small files that ask for more than any machine has, and places where nothing can be read or written.
//! Each gets its exact error and leaves nothing behind. `{}` stands for the folder of the test.
#![cfg(target_os = "linux")]

mod bombs;
mod limits;
mod others;
mod places;
mod states;

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// A network that trains in no time, on the pictures of `{}/data`.
const TRAIN: &str = "train dit --data {}/data --image-size 4 --blocks 1 --hidden 16 --heads 1 --batch 1 --sample-every 0 --device cpu";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn pipe(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        path
    }

    /// A folder of one picture, to train from.
    fn with_data(self) -> Self {
        self.write("data/good.png", picture());
        self
    }

    fn safetensors(&self, name: &str, header: &str, data: usize) -> PathBuf {
        let length = (header.len() as u64).to_le_bytes();
        let whole = [&length[..], header.as_bytes(), &vec![0; data]].concat();
        self.write(name, whole)
    }

    /// A PyTorch archive around a pickle of these parts, with one storage of one float.
    fn pickled(&self, name: &str, parts: &[&[u8]]) -> PathBuf {
        use std::io::Write;
        let pickle = [b"\x80\x02", &parts.concat()[..], b"."].concat();
        let mut zip = zip::ZipWriter::new(std::fs::File::create(self.path(name)).unwrap());
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        for (member, bytes) in [("a/data.pkl", &pickle[..]), ("a/data/0", &[0; 4])] {
            zip.start_file(member, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        self.path(name)
    }

    /// The words of a command, with this folder for `{}`.
    fn words(&self, line: &str) -> Vec<OsString> {
        let at = self.0.path().display().to_string();
        line.split(' ')
            .map(|word| word.replace("{}", &at).into())
            .collect()
    }

    /// Runs a command in this folder: its exit code, and what it says for people.
    fn run(&self, line: &str) -> (Option<i32>, String) {
        self.said(command(&self.words(line)).current_dir(self.0.path()))
    }

    fn said(&self, command: &mut Command) -> (Option<i32>, String) {
        let out = ends(command);
        let text = String::from_utf8_lossy(&out.stderr);
        let text = text.replace(&self.0.path().display().to_string(), "{}");
        (out.status.code(), text)
    }

    /// Everything in the folder, sorted.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        list(self.0.path(), self.0.path(), &mut names);
        names.sort();
        names
    }
}

fn list(top: &Path, folder: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            list(top, &path, names);
        } else {
            names.push(path.strip_prefix(top).unwrap().display().to_string());
        }
    }
}

fn command(words: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonica"));
    command.args(words);
    command
}

/// What a command ends with, which it must within a minute.
fn ends(command: &mut Command) -> Output {
    let piped = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// The line that says why a command failed.
fn error_of(text: &str) -> &str {
    let mut lines = text.lines();
    let error = lines.find_map(|line| {
        line.strip_prefix("error: ")
            .filter(|e| !e.contains("XDG_RUNTIME_DIR"))
    });
    error.unwrap_or(text)
}

/// 2×2 pixels.
fn picture() -> Vec<u8> {
    use harmonica::report::{PictureFormat, encode_picture, image_from_values};
    let image = image_from_values(&[0.5; 12], [3, 2, 2]);
    encode_picture(&image, PictureFormat::Png, &[]).unwrap()
}

#[track_caller]
fn all(cases: impl IntoIterator<Item = (String, String, String)>) {
    let mut wrong = Vec::new();
    for (what, found, expected) in cases {
        if found != expected {
            wrong.push(format!("{what}\n  found    {found}\n  expected {expected}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What writes files, each to `{}/out`, and the file it names when it cannot.
const WRITERS: [(&str, &str); 8] = [
    (
        "sample --device cpu --steps 2 --count 1 --out {}/out/x.png",
        "{}/out/x.png",
    ),
    (
        "sample --device cpu --steps 2 --count 2 --out {}/out/pictures",
        "{}/out/pictures",
    ),
    ("convert --out {}/out/x.safetensors", "{}/out/x.safetensors"),
    (
        "schedule make fora:2 --steps 4 --out {}/out/x.schedule.json",
        "{}/out/x.schedule.json",
    ),
    (
        "train calibrate --device cpu --steps 2 --draws 1 --out {}/out",
        "{}/out",
    ),
    (
        "train router --device cpu --recipe forecast --steps 4 --draws 2 --sweeps 0 --target-speedup 2 --out {}/out/run",
        "{}/out/run",
    ),
    (
        "train router --device cpu --recipe harmonica --steps 2 --passes 1 --batch 1 --target-cur 0.3 --out {}/out/run",
        "{}/out/run",
    ),
    (
        "compare --device cpu --schedules fora:2 --steps 2 --count 1 --html {}/out/x.html",
        "{}/out/x.html",
    ),
];

//! Bombs and bad places: small files that ask for more than any machine has, and places where nothing can be read or written.
//! Each gets its exact error and leaves nothing behind. `{}` stands for the folder of the test.
#![cfg(target_os = "linux")]

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use harmonica::{
    checkpoint::{self, ReleasedRouter},
    schedule::ScheduleFile,
    training::{network::SavedRun, router::TrainingSummary},
};
use serde_json::{Value, json};

use crate::common::{Guard, golden};

const NO_FILE: &str = "it is a pipe or a device, expected a file";
const CPU: [&str; 2] = ["--device", "cpu"];
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

#[test]
fn pipes_and_endless_devices_are_no_files() {
    let place = Place::new();
    for name in [
        "pipe.pt",
        "pipe.safetensors",
        "pipe.schedule.json",
        "pipe.png",
        "atlas/a.png",
    ] {
        std::fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
        place.pipe(name);
    }
    for name in [
        "zero.schedule.json",
        "endless/classes.json",
        "harmonica-calibrations/a.calibration.json",
    ] {
        std::fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
        symlink("/dev/zero", place.path(name)).unwrap();
    }
    place.write(
        "atlas/classes.json",
        r#"{"tile": 2, "columns": 1, "classes": [{"id": 0, "name": "a", "tiles": 1}]}"#,
    );
    let before = place.names();
    let cases = [
        ("inspect {}/pipe.pt", 1, "cannot open {}/pipe.pt: "),
        (
            "inspect {}/pipe.safetensors",
            1,
            "cannot open {}/pipe.safetensors: ",
        ),
        (
            "inspect {}/pipe.schedule.json",
            1,
            "cannot read {}/pipe.schedule.json: ",
        ),
        (
            "inspect {}/zero.schedule.json",
            1,
            "cannot read {}/zero.schedule.json: ",
        ),
        ("inspect /dev/zero", 1, "cannot open /dev/zero: "),
        (
            "sample --device cpu --model {}/pipe.pt",
            1,
            "cannot open {}/pipe.pt: ",
        ),
        (
            "sample --device cpu --schedule {}/pipe.schedule.json",
            1,
            "cannot read {}/pipe.schedule.json: ",
        ),
        (
            "sample --device cpu --schedule {}/zero.schedule.json",
            1,
            "cannot read {}/zero.schedule.json: ",
        ),
        (
            "sample --device cpu --schedule mag:0.06",
            1,
            "cannot read harmonica-calibrations/a.calibration.json: ",
        ),
        (
            "sample --device cpu --noise {}/pipe.safetensors",
            1,
            "cannot open {}/pipe.safetensors: ",
        ),
        (
            "sample --device cpu --from {}/pipe.png",
            2,
            "--from {}/pipe.png: cannot be read: ",
        ),
        (
            "sample --device cpu --from /dev/zero",
            2,
            "--from /dev/zero: cannot be read: ",
        ),
        (
            "convert --class-names /dev/zero --out {}/x.safetensors",
            1,
            "cannot read /dev/zero: ",
        ),
        (
            "train dit --device cpu --data {}/endless --out {}/run",
            1,
            "cannot read {}/endless/classes.json: ",
        ),
        (
            "train dit --device cpu --data {}/atlas --out {}/run",
            1,
            "class `a` of {}/atlas has no readable picture; {}/atlas/a.png: ",
        ),
    ];
    all(cases.map(|(line, code, expected)| {
        let (ended, text) = place.run(line);
        let found = format!("{} ({ended:?})", error_of(&text));
        (
            line.into(),
            found,
            format!("{expected}{NO_FILE} (Some({code}))"),
        )
    }));
    assert_eq!(place.names(), before);
}

#[test]
fn a_folder_in_the_place_of_a_file_is_named() {
    let place = Place::new();
    place.write("folder/x", "");
    let is_a = "Is a directory (os error 21)";
    let cases = [
        (
            "sample --device cpu --from {}/folder",
            2,
            format!("--from {{}}/folder: cannot be read: {is_a}"),
        ),
        (
            "convert --class-names {}/folder --out {}/x.safetensors",
            1,
            format!("cannot read {{}}/folder: {is_a}"),
        ),
        (
            "convert --out {}/folder",
            1,
            format!("cannot write {{}}/folder: {is_a}"),
        ),
        (
            "schedule make fora:2 --out {}/folder",
            1,
            format!("cannot write {{}}/folder: {is_a}"),
        ),
    ];
    all(cases.map(|(line, code, expected)| {
        let (ended, text) = place.run(line);
        (
            line.into(),
            format!("{} ({ended:?})", error_of(&text)),
            format!("{expected} (Some({code}))"),
        )
    }));
    assert_eq!(place.names(), ["folder/x"]);
}

#[test]
fn names_that_are_no_utf8_are_written_and_read_or_refused() {
    let place = Place::new();
    let name = OsStr::from_bytes(b"\xffpicture.png");
    let words = [
        "sample", "--device", "cpu", "--steps", "2", "--count", "1", "--quiet", "--out",
    ];
    let out = ends(command(&words).arg(name).current_dir(place.0.path()));
    assert_eq!(out.status.code(), Some(0));
    let drawn = place.0.path().join(name);
    assert_eq!(image::open(&drawn).unwrap().width(), 32);
    let again = command(&[
        "sample",
        "--device",
        "cpu",
        "--quiet",
        "--out",
        "again.png",
        "--from",
    ])
    .arg(name)
    .current_dir(place.0.path())
    .status();
    assert!(again.unwrap().success());
    assert_eq!(
        std::fs::read(&drawn).unwrap(),
        std::fs::read(place.path("again.png")).unwrap()
    );
    // A model is named by a text.
    let (code, text) = place.said(command(&["inspect"]).arg(name));
    assert_eq!(
        (code, error_of(&text)),
        (
            Some(2),
            "invalid UTF-8 was detected in one or more arguments"
        )
    );
    for class in [&b"data/\xfe"[..], b"data/\xff"] {
        let folder = place.0.path().join(OsStr::from_bytes(class));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(OsStr::from_bytes(b"\xe9.png")), picture()).unwrap();
    }
    let (code, text) = place.run(&format!("{TRAIN} --steps 1 --out {{}}/run"));
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("2 pictures of [3, 4, 4] in 2 classes"),
        "{text}"
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

/// Root may write in read-only folders, and tests may run as root: a file where the folder should be refuses everybody.
#[test]
fn a_place_that_cannot_be_written_is_named_with_what_is_in_the_way() {
    let place = Place::new().with_data();
    place.write("out", "mine");
    let before = place.names();
    let train = format!("{TRAIN} --steps 1 --out {{}}/out/run");
    let mut wrong = Vec::new();
    for (line, _) in WRITERS.into_iter().chain([(&*train, "")]) {
        let (code, text) = place.run(line);
        let error = error_of(&text);
        let named =
            error.starts_with("cannot write {}/out") && error.ends_with(": {}/out is no folder");
        if code != Some(1) || !named {
            wrong.push(format!("{line}\n  {error} ({code:?})"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(place.names(), before);
    assert_eq!(std::fs::read(place.path("out")).unwrap(), b"mine");
}

/// A limit on the size of files stands in for a disk that is full: what is written fails in the middle, with nothing of it left.
#[test]
fn a_disk_that_is_full_is_an_error_and_leaves_the_old_file() {
    let mut wrong = Vec::new();
    let train = format!("{TRAIN} --steps 1 --out {{}}/out/run");
    for (line, file) in WRITERS.into_iter().chain([(&*train, "{}/out/run")]) {
        let place = Place::new().with_data();
        std::fs::create_dir(place.path("out")).unwrap();
        let own = file.strip_prefix("{}/").filter(|file| file.contains('.'));
        if let Some(own) = own {
            place.write(own, "old");
        }
        let mut shell = Command::new("sh");
        shell
            .args([
                "-c",
                "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"",
                env!("CARGO_BIN_EXE_harmonica"),
            ])
            .args(place.words(line));
        let (code, text) = place.said(&mut shell);
        let error = error_of(&text);
        let expected = format!("cannot write {file}");
        if code != Some(1)
            || !error.starts_with(&expected)
            || !error.ends_with(": File too large (os error 27)")
        {
            wrong.push(format!("{line}\n  {error} ({code:?})"));
        }
        for name in place.names() {
            let left = std::fs::read(place.path(&name)).unwrap();
            let kept =
                name == "data/good.png" || own == Some(&*name) && left == b"old" || left.is_empty();
            if !kept || name.contains("/.") {
                wrong.push(format!("{line}\n  left {name} of {} bytes", left.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `/dev/full` is a disk that is full from the start; what links to it is written to, never replaced.
#[test]
fn a_full_device_is_an_error() {
    let place = Place::new();
    let cases = [
        (
            "sample --device cpu --steps 2 --count 1 --out {}/x.png",
            "x.png",
        ),
        ("convert --out {}/x.safetensors", "x.safetensors"),
        (
            "schedule make fora:2 --steps 4 --out {}/x.schedule.json",
            "x.schedule.json",
        ),
        (
            "compare --device cpu --schedules fora:2 --steps 2 --count 1 --html {}/x.html",
            "x.html",
        ),
    ];
    all(cases.map(|(line, name)| {
        symlink("/dev/full", place.path(name)).unwrap();
        let (code, text) = place.run(line);
        let expected =
            format!("cannot write {{}}/{name}: No space left on device (os error 28) (Some(1))");
        (
            line.into(),
            format!("{} ({code:?})", error_of(&text)),
            expected,
        )
    }));
    assert_eq!(
        place.names(),
        ["x.html", "x.png", "x.safetensors", "x.schedule.json"]
    );
}

/// A value that a pickle pushes: a text.
fn text(text: &str) -> Vec<u8> {
    let length = text.len() as u32;
    [b"X", &length.to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tensor of one storage of one float, with what pushes its shape and strides.
fn tensor(sizes: &[u8]) -> Vec<u8> {
    let storage = [
        &text("storage")[..],
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x01tQK\x00",
    ]
    .concat();
    let end = b"\x89ccollections\nOrderedDict\n)RtR";
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &storage[..],
        sizes,
        sizes,
        end,
    ]
    .concat()
}

#[test]
fn containers_that_ask_for_more_than_there_is_are_refused_in_no_time() {
    let place = Place::new();
    let dict = |entries: usize, key: &str, value: &[u8]| -> Vec<u8> {
        let entry = |i: usize| [&text(&format!("{key}{i}"))[..], value].concat();
        [
            b"}(",
            &(0..entries).flat_map(entry).collect::<Vec<_>>()[..],
            b"u",
        ]
        .concat()
    };
    let one = tensor(b"K\x01\x85");
    let tiny = |count: usize| {
        let one = |i: usize| {
            format!(
                r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
                i + 1
            )
        };
        format!("{{{}}}", (0..count).map(one).collect::<Vec<_>>().join(","))
    };
    let many = tiny((1 << 16) + 1);
    let column = many.find(r#""t65536""#).unwrap() + r#""t65536""#.len();
    let hole = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#;
    let cases = [
        ("values without number", place.pickled("values.pt", &[&vec![b')'; (1 << 22) + 2]]), "{} was refused: its pickle holds more than 4194304 values".to_owned()),
        ("a dict a thousand times in another", place.pickled("dicts.pt", &[&one, b"q\x01", &dict(600, "k", b"h\x01"), b"q\x02", &dict(600, "d", b"h\x02")]), "{} was refused: its dicts have more than 262144 entries".into()),
        ("a shape of a thousand dimensions", place.pickled("shape.pt", &[b"(", &b"K\x01".repeat(1000), b"tq\x01", &dict(3, "k", &tensor(b"h\x01"))]), "{} is damaged: tensor `k0` has more than 64 dimensions".into()),
        ("tuples in tuples", place.pickled("tuples.pt", &[&vec![b'('; 1 << 20], &vec![b't'; 1 << 20]]), "{} holds no DiT: expected a dict of tensors, found a tuple".into()),
        ("a dict in itself", place.pickled("itself.pt", &[b"}q\x01", &text("a"), b"h\x01s"]), "{} holds no DiT: expected a dict of tensors, found a dict".into()),
        ("a million tiny tensors", place.safetensors("tiny.safetensors", &many, (1 << 16) + 1), format!("{{}} is damaged: its header is not valid: it names more than 65536 tensors at line 1 column {column}")),
        ("lists in lists", place.safetensors("lists.safetensors", &format!("{{\"a\":{}", "[".repeat(1 << 20)), 0), "{} is damaged: its header is not valid: invalid type: sequence, expected a string at line 1 column 6".into()),
        ("a hole", place.safetensors("hole.safetensors", hole, 4), "{} is damaged: bytes 1 to 3 of its data, before tensor `b`, belong to no tensor".into()),
        ("a tail", place.safetensors("tail.safetensors", hole.replace("[3,4]", "[1,2]").as_str(), 9), "{} is damaged: the last 7 bytes of its data belong to no tensor".into()),
        ("a space before the header", place.safetensors("space.safetensors", " {}", 0), "{} is no model file: its first bytes are neither a zip archive's nor a safetensors header's; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder".into()),
    ];
    let started = Instant::now();
    all(cases.map(|(what, path, expected)| {
        let found = match checkpoint::open(&path) {
            Ok(_) => "it was opened".to_owned(),
            Err(error) => error.to_string(),
        };
        (
            what.into(),
            found.replace(&path.display().to_string(), "{}"),
            expected,
        )
    }));
    // As many as may be are read.
    let most = place.safetensors("most.safetensors", &tiny(1 << 16), 1 << 16);
    assert_eq!(checkpoint::open(&most).unwrap().entries().count(), 1 << 16);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn documents_in_documents_are_refused() {
    let good = std::fs::read_to_string(golden("version1.schedule.json")).unwrap();
    let name = good.find("\"policy\": {").unwrap() + "\"policy\": {".len();
    let deep = format!(
        "{}\"parameters\": {},{}",
        &good[..name],
        "[".repeat(100_000),
        &good[name..]
    );
    let error = ScheduleFile::parse(&deep, Path::new("deep"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("deep is no schedule: recursion limit exceeded at line "),
        "{error}"
    );
}

#[test]
fn pictures_that_claim_to_be_huge_are_left_out_with_the_reason() {
    let place = Place::new().with_data();
    let chunk = |kind: &[u8], data: &[u8]| -> Vec<u8> {
        let mut sum = crc(kind);
        sum = data.iter().fold(sum, step);
        [
            &(data.len() as u32).to_be_bytes()[..],
            kind,
            data,
            &(!sum).to_be_bytes(),
        ]
        .concat()
    };
    let side = 60_000u32.to_be_bytes();
    let head = chunk(b"IHDR", &[&side[..], &side, &[8, 2, 0, 0, 0]].concat());
    let png = [
        b"\x89PNG\r\n\x1a\n",
        &head[..],
        &chunk(b"IDAT", &[0x78, 1]),
        &chunk(b"IEND", b""),
    ]
    .concat();
    place.write("data/huge.png", png);
    let tables = [b"\xff\xdb\0\x43\0", &[1u8; 64][..]].concat();
    let frame = b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0";
    let jpeg = [b"\xff\xd8", &tables[..], frame, &[0; 100], b"\xff\xd9"].concat();
    place.write("data/huge.jpg", jpeg);
    let webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff";
    place.write("data/huge.webp", webp);
    place.pipe("data/pipe.png");
    std::fs::create_dir(place.path("data/folder.png")).unwrap();
    let (code, text) = place.run(&format!("{TRAIN} --steps 1 --out {{}}/run"));
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "1 picture of [3, 4, 4] in 1 class, 4 more could not be read",
        "skipped {}/data/huge.jpg: Memory limit exceeded",
        "skipped {}/data/huge.png: Memory limit exceeded",
        "skipped {}/data/huge.webp: Format error decoding WebP: Image too large",
        "skipped {}/data/pipe.png: it is a pipe or a device, expected a file",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
    let tile =
        r#"{"tile": 4294967295, "columns": 1, "classes": [{"id": 0, "name": "good", "tiles": 1}]}"#;
    place.write("data/classes.json", tile);
    let (code, text) = place.run(&format!("{TRAIN} --steps 1 --out {{}}/other"));
    let expected = "{}/data/classes.json is no atlas: its tiles have 4294967295 pixels a side, expected at most 16384";
    assert_eq!((code, error_of(&text)), (Some(1), expected));
}

/// The checksum of a PNG's chunks, inverted.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, step)
}

fn step(sum: u32, byte: &u8) -> u32 {
    (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
        (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 }
    })
}

#[test]
fn a_text_of_a_picture_that_unpacks_to_megabytes_is_refused() {
    let bomb = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/text-chunk/bad-bomb");
    let bytes = std::fs::read(&bomb).unwrap();
    let (found, peak) =
        crate::allocations::peak_of(|| harmonica::report::text_of_png(&bytes, "harmonica"));
    assert!(found.is_err(), "{found:?}");
    assert!(peak < 4 << 20, "{peak}");
    let place = Place::new();
    std::fs::copy(&bomb, place.path("bomb.png")).unwrap();
    let (code, text) = place.run("sample --device cpu --from {}/bomb.png");
    assert_eq!(code, Some(2));
    assert!(
        error_of(&text).starts_with("--from {}/bomb.png: it is no PNG that can be read: "),
        "{text}"
    );
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_an_error() {
    let place = Place::new();
    for (name, expected) in [
        (
            "tiny-c.safetensors",
            "cannot read {}: failed to fill whole buffer",
        ),
        ("tiny-a.pt", "{} is damaged: its member `tiny-a/data/"),
    ] {
        let path = place.path(name);
        std::fs::copy(golden(name), &path).unwrap();
        let mut source = checkpoint::open(&path).unwrap();
        let names: Vec<String> = source.entries().map(|e| e.name.clone()).collect();
        source.read_f32(&names[0]).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4000)
            .unwrap();
        let mut errors = names.iter().filter_map(|name| source.read_f32(name).err());
        let error = errors.next().expect("it was cut").to_string();
        let error = error.replace(&path.display().to_string(), "{}");
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn two_trainings_in_one_folder_are_one_too_many() {
    let place = Place::new().with_data();
    let runs = [
        (format!("{TRAIN} --minutes 10 --out {{}}/dit"), "dit/checkpoint.safetensors"),
        ("train router --device cpu --recipe harmonica --steps 2 --passes 100000 --save-every 1 --batch 1 --beta 0.001 --out {}/router".into(), "router/router.safetensors"),
        ("train router --device cpu --recipe forecast --steps 12 --draws 16 --sweeps 9 --target-speedup 2 --out {}/ladder".into(), "ladder/ladder.json"),
    ];
    for (line, state) in &runs {
        let first = command(&place.words(line))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut first = Guard(first.unwrap());
        first.wait_until(|| place.path(state).exists());
        let (code, text) = place.run(&format!("{line} --resume"));
        let folder = state.split('/').next().unwrap();
        let expected = format!(
            "{{}}/{folder} is being trained in by another process; wait until it ends, or choose another --out"
        );
        assert_eq!((code, error_of(&text)), (Some(2), &*expected), "{line}");
        first.signal("INT");
        first.0.wait().unwrap();
        // What the second left alone goes on.
        let mut again = Guard(
            command(&place.words(&format!("{line} --resume")))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        std::thread::sleep(Duration::from_millis(300));
        again.signal("INT");
        let ended = again.0.wait().unwrap().code();
        assert!(matches!(ended, None | Some(0 | 130)), "{line}: {ended:?}");
    }
    assert!(
        !place.names().iter().any(|name| name.contains("/.")),
        "{:?}",
        place.names()
    );
}

#[test]
fn two_that_write_one_file_leave_one_whole() {
    let place = Place::new();
    let line = "sample --device cpu --steps 2 --count 4 --quiet --out {}/x.png --seed";
    let start = |seed: &str| {
        command(&place.words(&format!("{line} {seed}")))
            .spawn()
            .unwrap()
    };
    let mut both: Vec<_> = ["1", "2", "3"].map(start).into();
    assert!(both.iter_mut().all(|child| child.wait().unwrap().success()));
    let raced = std::fs::read(place.path("x.png")).unwrap();
    let alone = |seed: &str| {
        assert_eq!(place.run(&format!("{line} {seed}")).0, Some(0));
        std::fs::read(place.path("x.png")).unwrap()
    };
    assert!(
        ["1", "2", "3"].iter().any(|seed| alone(seed) == raced),
        "it is none of theirs"
    );
    assert_eq!(place.names(), ["x.png"]);
}

/// Every field of a document, by its path.
fn fields(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut inner = |key: &str, value: &Value| {
        let path = format!("{at}/{key}");
        found.push(path.clone());
        fields(value, &path, found);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| inner(key, value)),
        Value::Array(list) => list.iter().take(1).for_each(|value| inner("0", value)),
        _ => {}
    }
}

/// A document a field, which has a value of another kind in it.
fn edited(document: &Value) -> Vec<(String, Value)> {
    let mut paths = Vec::new();
    fields(document, "", &mut paths);
    let edit = |path: String| {
        let mut other = document.clone();
        let field = other.pointer_mut(&path).unwrap();
        *field = if field.is_string() {
            json!(7)
        } else {
            json!("x")
        };
        (path, other)
    };
    paths.into_iter().map(edit).collect()
}

#[test]
fn a_training_state_with_a_wrong_field_is_refused() {
    let place = Place::new();
    for name in ["router", "network"] {
        let seed = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus/state")
            .join(name);
        let bytes = std::fs::read(seed).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let text = header["__metadata__"]["harmonica"].as_str().unwrap();
        let edits = edited(&serde_json::from_str(text).unwrap());
        assert!(edits.len() > 25, "{}", edits.len());
        for (field, state) in edits {
            // What names data or weights is compared when a run goes on, and any text is a name.
            if ["/replay", "/prompts"].contains(&&*field) {
                continue;
            }
            let mut header = header.clone();
            header["__metadata__"]["harmonica"] = state.to_string().into();
            let path = place.safetensors(
                "state.safetensors",
                &header.to_string(),
                bytes.len() - 8 - length,
            );
            let found = match name {
                "router" => TrainingSummary::read(&path).map(|_| ()),
                _ => SavedRun::read(&path).map(|_| ()),
            };
            let error = found.expect_err(&format!("{name}{field}")).to_string();
            let said = error.contains("is damaged: its training state is not valid: ");
            assert!(said, "{name}{field}: {error}");
        }
    }
}

#[test]
fn a_search_with_a_wrong_field_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let line = "train router --device cpu --recipe forecast --steps 4 --draws 2 --sweeps 0 --target-speedup 2 --out {}/run";
    let (code, text) = place.run(line);
    assert_eq!(code, Some(0), "{text}");
    let good: Value =
        serde_json::from_slice(&std::fs::read(place.path("run/ladder.json")).unwrap()).unwrap();
    let names = place.names();
    let edits = edited(&good);
    assert!(edits.len() > 40, "{}", edits.len());
    // One in three, in turn, is a test of seconds.
    for (field, state) in edits.into_iter().step_by(3) {
        let path = place.write("run/ladder.json", state.to_string());
        let (code, text) = place.run(&format!("{line} --resume"));
        let error = error_of(&text);
        let refused = error.starts_with("{}/run/ladder.json is damaged: ")
            || error.starts_with("{}/run was trained with ");
        assert!(
            matches!(code, Some(1 | 2)) && refused,
            "{field}: {error} ({code:?})"
        );
        assert_eq!(std::fs::read(path).unwrap(), state.to_string().into_bytes());
        assert_eq!(place.names(), names);
    }
}

#[test]
fn a_router_file_that_is_a_link_to_itself_is_refused() {
    let place = Place::new();
    symlink(place.path("a.pt"), place.path("a.pt")).unwrap();
    let error = ReleasedRouter::read(&place.path("a.pt"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot open ") && error.contains("Too many levels of symbolic links"),
        "{error}"
    );
    let (code, text) = place.said(
        command(&["sample", "--model"])
            .arg(place.path("a.pt"))
            .args(CPU),
    );
    assert_eq!(
        (code, error_of(&text).starts_with("cannot open {}/a.pt: ")),
        (Some(1), true),
        "{text}"
    );
}

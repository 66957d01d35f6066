//! What the tests share: devices, golden files, the command.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use harmonica::{
    checkpoint,
    device::{Api, DeviceChoice, Engine},
    models::{self, Condition, Model},
};

/// The Vulkan device. A test that needs it fails where it is missing, and says what to install.
pub fn vulkan() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let choice = Engine::open(DeviceChoice::Api(Api::Vulkan)).unwrap_or_else(|e| {
            panic!("these tests need a Vulkan driver: {e}\n(on Debian and Ubuntu: apt-get install mesa-vulkan-drivers)")
        });
        // Drivers fall back silently; the promise is about Vulkan.
        assert_eq!(choice.engine.report().backend, "vulkan");
        choice.engine
    })
}

/// Both devices that every machine of ours has.
pub fn engines() -> [(&'static str, Engine); 2] {
    [("cpu", Engine::cpu()), ("vulkan", vulkan().clone())]
}

/// Asserts a bound that is three to five times the largest error measured, and tells both: `cargo test -- --nocapture` lists them.
#[track_caller]
pub fn within(what: impl std::fmt::Display, error: impl Into<f64>, bound: f64) {
    let error = error.into();
    println!("measured: {what}: {error:.1e} (bound {bound:.0e})");
    assert!(
        error <= bound,
        "{what}: {error:.3e}, expected at most {bound:.0e}"
    );
}

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// A float tensor of a golden file.
pub fn tensor(file: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    checkpoint::read_named_tensors(&golden(file), &[name])
        .unwrap()
        .remove(0)
}

/// An integer tensor of a golden file.
pub fn integers(file: &str, name: &str) -> Vec<usize> {
    let values = checkpoint::open(&golden(file))
        .unwrap()
        .read_i64(name)
        .unwrap();
    values.into_iter().map(|v| v as usize).collect()
}

pub fn forward(model: &Model, x: &(Vec<usize>, Vec<f32>), t: &[f32], y: &[usize]) -> Vec<f32> {
    use burn::tensor::{Tensor, TensorData};
    let shape: [usize; 4] = x.0.clone().try_into().unwrap();
    let x = Tensor::from_data(TensorData::new(x.1.clone(), shape), &model.device());
    models::forward(&**model, x, t, &Condition::classes(y))
        .try_into_data()
        .unwrap()
        .try_into_vec()
        .unwrap()
}

/// Makes a training state look like one that a later program wrote.
pub fn of_a_later_format(state: &Path) {
    let mut bytes = std::fs::read(state).unwrap();
    let format = br#"\"format\":1"#;
    let at = bytes.windows(format.len()).position(|w| w == format);
    bytes[at.unwrap() + format.len() - 1] = b'2';
    std::fs::write(state, bytes).unwrap();
}

/// Runs the command.
pub fn harmonica(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs the command, which must succeed, and parses its `--json`.
pub fn harmonica_json(arguments: &[&str]) -> serde_json::Value {
    let out = harmonica(arguments);
    assert!(
        out.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Two images of the bundled model in four steps, and the run's report.
pub fn sample_bundled(
    folder: &Path,
    device: &str,
    schedule: &str,
    more: &[&str],
) -> (Vec<f32>, serde_json::Value) {
    let (picture, tensors) = (folder.join("x.png"), folder.join("x.safetensors"));
    let run = [
        "sample",
        "--device",
        device,
        "--steps",
        "4",
        "--schedule",
        schedule,
        "-n",
        "2",
        "--json",
        "--out",
        picture.to_str().unwrap(),
        "--save-tensors",
        tensors.to_str().unwrap(),
    ];
    let report = harmonica_json(&[&run[..], more].concat());
    let images = checkpoint::read_named_tensors(&tensors, &["samples"]).unwrap();
    (images.into_iter().next().unwrap().1, report)
}

/// Runs a command to its end although it is killed ten times on the way, each time after it has got so many lines of its log
/// further than it was, in moments that differ. `arguments`: of a run that goes on or, while there is no `checkpoint`,
/// begins.
pub fn kill_ten_times(
    log: &Path,
    checkpoint: &Path,
    further: usize,
    arguments: impl Fn(bool) -> Vec<String>,
) {
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_harmonica"))
            .args(arguments(checkpoint.exists()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let lines = || std::fs::read_to_string(log).map_or(0, |text| text.lines().count());
    for kill in 0..10 {
        let (mut child, started) = (start(), Instant::now());
        // What a resumed run does first is to cut its log back.
        let mut begun = lines();
        loop {
            let now = lines();
            begun = begun.min(now);
            if now >= begun + further + kill * 7 % 10 {
                break;
            }
            let ended = child.try_wait().unwrap().is_some();
            if ended || started.elapsed() > Duration::from_secs(120) {
                let _ = child.kill();
                panic!("kill {kill}: {now} lines after {begun}, ended: {ended}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let last = start().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&last.stderr);
    assert!(last.status.success(), "{said}");
}

/// That a training of so many steps ends with the same steps and `files`, byte for byte, whether it is left in peace or killed ten
/// times on the way. `words` are its command's, but for where its pictures and its folder lie.
pub fn a_killed_training_is_the_training(
    words: &str,
    pictures: &Path,
    steps: usize,
    checkpoint: &str,
    files: &[&str],
) {
    let at = tempfile::tempdir().unwrap();
    let train = |out: &Path, resume: bool| {
        let mut arguments: Vec<String> = words.split(' ').map(String::from).collect();
        for (flag, path) in [("--data", pictures), ("--out", out)] {
            arguments.extend([flag.to_owned(), path.to_str().unwrap().to_owned()]);
        }
        arguments.extend(resume.then(|| "--resume".to_owned()));
        arguments
    };
    let (whole, killed) = (at.path().join("whole"), at.path().join("killed"));
    let arguments = train(&whole, false);
    let out = harmonica(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(out.status.success());
    let checkpoint = killed.join(checkpoint);
    kill_ten_times(&killed.join("train.jsonl"), &checkpoint, 1, |resume| {
        train(&killed, resume)
    });
    assert_eq!(steps_of(&whole).len(), steps);
    assert_eq!(steps_of(&whole), steps_of(&killed));
    for name in files {
        let [whole, killed] = [&whole, &killed].map(|out| std::fs::read(out.join(name)).unwrap());
        assert!(whole == killed, "{name}");
    }
}

/// Lines of a training's log, but for their pace.
fn steps_of(run: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(run.join("train.jsonl")).unwrap();
    let step = |line: &str| {
        let mut step: serde_json::Value = serde_json::from_str(line).unwrap();
        step["images_per_second"].take();
        step.to_string()
    };
    log.lines().map(step).collect()
}

/// Runs the command, which must succeed, and says the peak of its resident set in bytes.
#[cfg(target_os = "linux")]
pub fn peak_rss(arguments: &[&str]) -> (u64, Output) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // VmHWM never falls, so the last value seen before the end is the peak up to that moment.
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with("VmHWM:"));
        let kib = line
            .and_then(|l| l.split_whitespace().nth(1))
            .and_then(|n| n.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
    (peak, out)
}

/// A folder in another, copied.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &place),
            false => drop(std::fs::copy(entry.path(), place).unwrap()),
        }
    }
}

/// Name, shape and values of tensors.
pub type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// All tensors of a file or folder.
pub fn tensors_of(path: &Path) -> Tensors {
    let mut source = checkpoint::open(path).unwrap();
    let entries: Vec<_> = source.entries().cloned().collect();
    let read = |entry: checkpoint::TensorEntry| {
        let values = source.read_f32(&entry.name).unwrap();
        (entry.name, entry.shape, values)
    };
    entries.into_iter().map(read).collect()
}

/// Writes tensors as a safetensors file.
pub fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape, values)| (&**name, shape.clone(), values.clone()))
        .collect();
    checkpoint::write_tensors(path, &tensors).unwrap();
}

/// Writes tensors into two shards with their index: `model-00001-of-00002.safetensors` of the stem `model`.
pub fn write_shards(folder: &Path, stem: &str, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let mut map = serde_json::Map::new();
    for (i, tensors) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let file = format!("{stem}-0000{}-of-00002.safetensors", i + 1);
        for (name, ..) in tensors {
            map.insert(name.clone(), file.clone().into());
        }
        write_safetensors(&folder.join(file), tensors);
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    let path = folder.join(format!("{stem}.safetensors.index.json"));
    std::fs::write(path, index).unwrap();
}

/// A process that does not outlive the test.
#[cfg(unix)]
pub struct Guard(pub std::process::Child);

#[cfg(unix)]
impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(unix)]
impl Guard {
    /// Waits until something is so, while the process runs, for two minutes at most.
    pub fn wait_until(&mut self, so: impl Fn() -> bool) {
        let started = Instant::now();
        while !so() {
            assert!(self.0.try_wait().unwrap().is_none(), "it ended by itself");
            assert!(started.elapsed() < Duration::from_secs(120), "it is stuck");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.0.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }
}

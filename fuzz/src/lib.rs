//! What fuzzing feeds: a function a format, for cargo-fuzz and for the tests, which include this file.
//!
//! Each takes bytes, says whether they were accepted, and panics where a promise is broken: about what was accepted there is more
//! to say than that nothing went wrong.

use std::{
    cell::OnceCell,
    collections::HashMap,
    fs::{self, File},
    io::{Cursor, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, PipelineFolder, ReleasedRouter, describe, open_model},
    containers::{Dtype, Format, Pickle, TensorSource, open_bytes},
    models::{
        text::{T5Config, TextTokenizer},
        vae::Vae,
    },
    plan::Plan,
    policy::Calibration,
    report::text_of_png,
    schedule::{ReleasedKind, ScheduleFile},
    training::{
        network::{Augmentation, DataOptions, Dataset, SavedRun},
        router::TrainingSummary,
    },
};
use safetensors::SafeTensors;

#[cfg(all(feature = "capi", feature = "bundled"))]
pub mod capi;

/// A name for bytes that lie in no file.
const NAME: &str = "fuzzed";

/// A folder for as long as the thread lives.
fn scratch() -> PathBuf {
    thread_local! {
        static AT: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    }
    AT.with(|at| {
        let made = at.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
        made.path().to_path_buf()
    })
}

/// A folder of a name, with these files in it.
fn folder(name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = scratch().join(name);
    for (name, bytes) in files {
        let path = folder.join(name);
        let around = path.parent().expect("files lie in the folder");
        fs::create_dir_all(around).expect("room for folders");
        fs::write(path, bytes).expect("room for files");
    }
    folder
}

/// A safetensors file. What is accepted the `safetensors` crate accepts too, and finds the same tensors in it.
pub fn safetensors(data: &[u8]) -> bool {
    let Ok(mut ours) = open_bytes(Path::new(NAME), data.to_vec()) else {
        return false;
    };
    if ours.format() != Format::Safetensors {
        return true;
    }
    let theirs = match SafeTensors::deserialize(data) {
        Ok(theirs) => theirs,
        Err(error) => panic!("accepted what the safetensors crate refuses: {error}"),
    };
    let entries: Vec<_> = ours.entries().cloned().collect();
    assert_eq!(entries.len(), theirs.len());
    for entry in entries {
        let view = theirs.tensor(&entry.name).expect("the same names");
        assert_eq!(entry.shape, view.shape());
        assert_eq!(entry.dtype.to_string(), format!("{:?}", view.dtype()));
        let own = values(&mut ours, &entry.name);
        assert_eq!(own, raw(view.data(), &entry.dtype));
    }
    let (_, header) = SafeTensors::read_metadata(data).expect("it was read before");
    let metadata: HashMap<_, _> = ours.metadata().clone().into_iter().collect();
    assert_eq!(metadata, header.metadata().clone().unwrap_or_default());
    true
}

/// A tensor as it is read, its floats as bits.
fn values(source: &mut TensorSource, name: &str) -> Vec<i64> {
    let bits = |values: Vec<f32>| values.into_iter().map(|v| canonical(v).into()).collect();
    let read = source.read_f32(name).map(bits);
    let read = read.or_else(|_| source.read_i64(name));
    read.expect("it lies in memory")
}

/// The same of its bytes.
fn raw(bytes: &[u8], dtype: &Dtype) -> Vec<i64> {
    fn of<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        bytes.as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
    }
    let float = |value: f32| canonical(value).into();
    match dtype {
        Dtype::F64 => of(bytes, |b| float(f64::from_le_bytes(b) as f32)),
        Dtype::F32 => of(bytes, |b| float(f32::from_le_bytes(b))),
        Dtype::F16 => of(bytes, |b| float(f16::from_le_bytes(b).into())),
        Dtype::BF16 => of(bytes, |b| float(bf16::from_le_bytes(b).into())),
        Dtype::I64 => of(bytes, i64::from_le_bytes),
        Dtype::I32 => of(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::U8 => of(bytes, |[b]: [u8; 1]| b.into()),
        Dtype::Other(other) => panic!("accepted the type {other}"),
    }
}

/// What is not a number has many forms, of which conversions may change one into another.
fn canonical(value: f32) -> u32 {
    if value.is_nan() {
        f32::NAN.to_bits()
    } else {
        value.to_bits()
    }
}

/// A PyTorch archive: what its tensors claim, they hold.
pub fn torch(data: &[u8]) -> bool {
    let Ok(mut source) = open_bytes(Path::new(NAME), data.to_vec()) else {
        return false;
    };
    let one_head = LoadOptions {
        heads: Some(1),
        input_size: None,
    };
    let _ = describe(&source, one_head);
    let entries: Vec<_> = source.entries().take(64).cloned().collect();
    for entry in entries {
        let numbers = match entry.dtype.is_float() {
            true => source.read_f32(&entry.name).map(|values| values.len()),
            false => source.read_i64(&entry.name).map(|values| values.len()),
        };
        // A checksum may be wrong, but never a length.
        assert!(numbers.is_err() || numbers.is_ok_and(|n| n == entry.elements()));
    }
    true
}

/// A pickle, by itself and inside an archive without fault, where no checksum stands before it.
pub fn pickle(data: &[u8]) -> bool {
    let held = torch(&archived(data).expect("an archive in memory"));
    match Pickle::parse(data) {
        Err(_) => assert!(!held, "tensors of a pickle that cannot be read"),
        Ok(pickle) => {
            let root = pickle.root();
            assert!(!pickle.kind(root).is_empty());
            let named = pickle.lookup(root, "model").is_some();
            assert!(!named || pickle.entries(root).is_some());
        }
    }
    held
}

/// A PyTorch archive around a pickle, with three storages of twelve floats each.
fn archived(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("a/data.pkl", stored)?;
    archive.write_all(pickle)?;
    for storage in ["0", "1", "2"] {
        archive.start_file(format!("a/data/{storage}"), stored)?;
        archive.write_all(&[1; 48])?;
    }
    Ok(archive.finish()?.into_inner())
}

/// A router of another project: rows of one length, of which a threshold makes a schedule.
pub fn router(data: &[u8]) -> bool {
    let source = open_bytes(Path::new(NAME), data.to_vec());
    let Some(router) = source
        .ok()
        .and_then(|source| ReleasedRouter::of(source).ok())
    else {
        return false;
    };
    let kind = ReleasedKind::guess(&router.rows);
    let schedule = kind.schedule(&router.rows, 0.1).expect("rows of a table");
    assert_eq!(schedule.steps(), router.rows.len());
    true
}

/// A schedule: what is accepted can be planned, and is the same when it is written and read again.
pub fn schedule(data: &[u8]) -> bool {
    let read = |text: &str| ScheduleFile::parse(text, Path::new(NAME));
    let Some(file) = str::from_utf8(data).ok().and_then(|text| read(text).ok()) else {
        return false;
    };
    let again = read(&file.to_text()).expect("what was written can be read");
    assert_eq!(again, file);
    let schedule = file.schedule().expect("it was checked");
    file.router().expect("it was checked");
    let cur = schedule.cur();
    assert!((0.0..=1.0).contains(&cur), "{cur}");
    let figures = Plan::of(&schedule.into(), &file.model.graph).accounting();
    assert!(figures.macs <= figures.macs_full, "{figures:?}");
    true
}

/// A calibration.
pub fn calibration(data: &[u8]) -> bool {
    let read = |text: &str| Calibration::parse(text, Path::new(NAME));
    let Some(read) = str::from_utf8(data).ok().and_then(|text| read(text).ok()) else {
        return false;
    };
    assert_eq!(read.not_finite(), None, "JSON has no such numbers");
    assert!(read.fits(&read.model, &read.run));
    true
}

/// A pipeline folder: `== NAME` before each file; of weights the header, and behind the name how many bytes follow it.
pub fn model_folder(data: &[u8]) -> bool {
    const FILES: [&str; 7] = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    let _ = fs::remove_dir_all(scratch().join("model"));
    let at = folder("model", &[("transformer/config.json", b"")]);
    let text = String::from_utf8_lossy(data);
    for section in text.split("== ").skip(1) {
        let (head, text) = section.split_once('\n').unwrap_or((section, ""));
        let (name, more) = head.split_once(' ').unwrap_or((head, ""));
        if !FILES.contains(&name) {
            continue;
        }
        let path = at.join(name);
        let around = path.parent().expect("files lie in the folder");
        fs::create_dir_all(around).expect("room for folders");
        let text = text.trim_end().as_bytes();
        let mut file = File::create(path).expect("room for files");
        if name.ends_with(".json") {
            file.write_all(text).expect("room for files");
            continue;
        }
        let length = text.len() as u64;
        let zeros = more.parse().unwrap_or(0).min(1 << 20);
        let whole = [&length.to_le_bytes(), text].concat();
        file.write_all(&whole).expect("room for files");
        file.set_len(8 + length + zeros).expect("room for files");
    }
    let _ = PipelineFolder::read(&at);
    let _ = T5Config::read(&at.join("text_encoder/config.json"));
    let _ = Vae::outline(&at.join("vae"));
    let options = LoadOptions {
        heads: None,
        input_size: None,
    };
    let opened = open_model(&ModelSpec::Path(at));
    let described = opened.and_then(|opened| opened.describe(options));
    described.is_ok_and(|found| {
        let outline = found.architecture.outline();
        assert!(outline.graph.branches() > 0 && outline.parameters > 0);
        let names = found.class_names.len();
        assert!(names == 0 || outline.conditioning.classes() == Some(names));
        true
    })
}

/// The text in a PNG that says how it was drawn.
pub fn text_chunk(data: &[u8]) -> bool {
    matches!(text_of_png(data, "harmonica"), Ok(Some(_)))
}

/// The index of an atlas, beside two pictures of 2×2 pixels.
pub fn atlas(data: &[u8]) -> bool {
    let tile: &[u8] = include_bytes!("tile.png");
    let at = folder(
        "atlas",
        &[("a.png", tile), ("b.png", tile), ("classes.json", data)],
    );
    let options = DataOptions {
        memory: 1 << 16,
        ..DataOptions::default()
    };
    let mut go_on = |_, _| ControlFlow::Continue(());
    let Ok(data) = Dataset::open(&at, &options, &mut go_on) else {
        return false;
    };
    let mut picture = vec![f32::NAN; data.shape().iter().product()];
    for index in 0..data.len() {
        assert!(data.label(index) < data.classes());
        data.read(index, Augmentation::default(), &mut picture)
            .expect("it was read before");
        assert!(picture.iter().all(|v| (-1.0..=1.0).contains(v)));
    }
    true
}

/// A SentencePiece model.
pub fn spiece(data: &[u8]) -> bool {
    tokenizes(&folder("spiece", &[("spiece.model", data)]))
}

/// A tokenizer as JSON.
pub fn tokenizer(data: &[u8]) -> bool {
    tokenizes(&folder("tokenizer", &[("tokenizer.json", data)]))
}

fn tokenizes(folder: &Path) -> bool {
    let Ok(tokenizer) = TextTokenizer::open(folder) else {
        return false;
    };
    for text in [
        "",
        "a photo of a cat",
        " \u{ff21}\u{301}  née <pad></s>\0\u{1f600}",
    ] {
        if let Ok(made) = tokenizer.tokenize(text, 1, 8) {
            assert!(
                made.ids.len() <= 8 && made.ids.last() == Some(&1),
                "{made:?}"
            );
        }
    }
    true
}

/// The state of a training, of a router or of a network.
pub fn state(data: &[u8]) -> bool {
    let path = folder("state", &[("state.safetensors", data)]).join("state.safetensors");
    if let Ok(Some(summary)) = TrainingSummary::read(&path) {
        let router = &summary.router;
        assert_eq!(router.logits().len(), router.steps() * router.branches());
        assert_eq!(summary.lambda.len(), router.steps());
        assert!(!summary.targets.is_empty());
        return true;
    }
    SavedRun::find(&path).is_ok_and(|found| {
        found.is_some_and(|run| {
            assert_eq!(run.config.check(), Ok(()));
            true
        })
    })
}

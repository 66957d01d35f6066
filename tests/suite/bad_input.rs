//! Bad input and the exact error it gets. `{}` stands for the path of the file.

use std::path::{Path, PathBuf};

use harmonica::{
    checkpoint::{
        self, LoadOptions, ModelSpec, ReleasedRouter, load_model, read_named_tensors, write_tensors,
    },
    device::Engine,
    schedule::ScheduleFile,
};

use crate::common::{golden, harmonica};

/// Files made wrong on purpose, in a folder of their own.
struct Workshop(tempfile::TempDir);

impl Workshop {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// A safetensors file with this header and `data` bytes of zeros.
    fn safetensors(&self, name: &str, header: &str, data: usize) -> PathBuf {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        self.write(name, &bytes)
    }

    /// A copy of a good safetensors file with its header's text edited.
    fn edited(&self, name: &str, edit: impl Fn(String) -> String) -> PathBuf {
        let good = std::fs::read(golden("tiny-c.safetensors")).unwrap();
        let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let header = edit(String::from_utf8(good[8..8 + length].to_vec()).unwrap());
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&good[8 + length..]);
        self.write(name, &bytes)
    }

    /// A PyTorch archive around a pickle.
    fn pickled(&self, name: &str, pickle: &[u8]) -> PathBuf {
        use std::io::Write;
        let mut zip = zip::ZipWriter::new(std::fs::File::create(self.path(name)).unwrap());
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        zip.start_file("archive/data.pkl", stored).unwrap();
        zip.write_all(pickle).unwrap();
        zip.finish().unwrap();
        self.path(name)
    }
}

fn load(path: &Path, heads: Option<usize>) -> Result<(), String> {
    let options = LoadOptions {
        heads,
        input_size: None,
    };
    load_model(
        &ModelSpec::Path(path.into()),
        options,
        Engine::cpu().device(),
    )
    .map(drop)
    .map_err(|e| e.to_string())
}

#[test]
fn every_bad_weight_file_is_refused_with_its_reason() {
    let w = Workshop(tempfile::tempdir().unwrap());
    let good = std::fs::read(golden("tiny-c.safetensors")).unwrap();
    let torch = std::fs::read(golden("tiny-a.pt")).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = torch.clone();
        bytes[at] ^= byte;
        bytes
    };
    let bias = r#""x_embedder.proj.bias":{"dtype":"F32","shape":[64]"#;
    let system = b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00true\x85R.";
    let cases: Vec<(&str, PathBuf, &str)> = vec![
        ("missing file", w.path("nothing.pt"), "cannot open {}: No such file or directory (os error 2)"),
        ("empty file", w.write("empty.pt", b""), "{} is no model file: it is empty; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder"),
        ("empty folder", { std::fs::create_dir(w.path("folder")).unwrap(); w.path("folder") }, "{} is no model file: the folder holds neither diffusion_pytorch_model.safetensors nor diffusion_pytorch_model.safetensors.index.json; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder"),
        ("a picture", w.write("a.png", b"\x89PNG\r\n\x1a\n"), "{} is no model file: it is a PNG picture; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder"),
        ("plain text", w.write("a.txt", b"hello, world"), "{} is no model file: its first bytes are neither a zip archive's nor a safetensors header's; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder"),
        ("bare pickle", w.write("old.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), "{} is no model file: it is a bare pickle, as PyTorch before 1.6 wrote (load it in PyTorch and torch.save it again); expected a .pt of the DiT release, a .safetensors file, or a diffusers folder"),
        ("safetensors cut in the header", w.write("cut1.safetensors", &good[..200]), "{} is damaged: its header claims 2872 bytes, the file has 192"),
        ("safetensors cut in the data", w.write("cut2.safetensors", &good[..good.len() - 100]), "{} is damaged: tensor `y_embedder.embedding_table.weight` lies at bytes 913152 to 913664, the file has 913564 bytes of data; was it cut off?"),
        ("safetensors cut in the length", w.write("cut3.safetensors", &good[..5]), "{} is no model file: its first bytes are neither a zip archive's nor a safetensors header's; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder"),
        ("huge header length", w.write("huge.safetensors", &[&[0xff; 8], &b"{}"[..]].concat()), "{} is damaged: its header claims 18446744073709551615 bytes, the format allows 100000000"),
        ("header longer than the file", w.write("long.safetensors", &[&5000u64.to_le_bytes(), &b"{}"[..]].concat()), "{} is damaged: its header claims 5000 bytes, the file has 2"),
        ("flipped byte in the header", { let mut b = good.clone(); b[10] ^= 0x80; w.write("flip.safetensors", &b) }, "{} is damaged: its header is not valid: invalid unicode code point at line 1 column 3"),
        ("duplicate keys", w.edited("twice.safetensors", |h| h.replace("x_embedder.proj.bias", "x_embedder.proj.weight")), "{} is damaged: its header is not valid: tensor `x_embedder.proj.weight` appears twice at line 1 column 2704"),
        ("negative offsets", w.safetensors("negative.safetensors", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}"#, 4), "{} is damaged: tensor `a` lies at negative offsets [-4, 0]"),
        ("negative dimension", w.safetensors("dimension.safetensors", r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4), "{} is damaged: tensor `a` has the negative dimension -1"),
        ("shape beyond any memory", w.safetensors("absurd.safetensors", r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4), "{} is damaged: tensor `a` of F32 [4294967296, 4294967296] has 4 bytes, expected more than a file can hold"),
        ("overlapping tensors", w.safetensors("overlap.safetensors", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4), "{} is damaged: tensors `a` and `b` overlap"),
        ("unknown dtype", w.edited("dtype.safetensors", |h| h.replacen("F32", "F8_E4M3", 1)), "{}: tensor `blocks.0.adaLN_modulation.1.bias` is F8_E4M3, expected F32, F16, BF16 or F64"),
        ("integer weights", w.edited("integer.safetensors", |h| h.replace(bias, &bias.replace("F32", "I32"))), "{}: tensor `x_embedder.proj.bias` is I32, expected F32, F16, BF16 or F64"),
        ("no DiT", w.safetensors("other.safetensors", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4), "{} holds no DiT: it has no tensor `x_embedder.proj.weight`, but `a`"),
        ("missing tensor", w.edited("missing.safetensors", |h| h.replace("blocks.1.mlp.fc2.bias", "blocks.1.mlp.fc9.bias")), "{}: tensor `blocks.1.mlp.fc2.bias` [64] is missing (1 missing in all)"),
        ("misshapen tensor", w.edited("shape.safetensors", |h| h.replace(r#""blocks.0.attn.proj.weight":{"dtype":"F32","shape":[64,64]"#, r#""blocks.0.attn.proj.weight":{"dtype":"F32","shape":[32,128]"#)), "{}: tensor `blocks.0.attn.proj.weight` has shape [32, 128], expected [64, 64]"),
        ("more tokens than memory", w.edited("tokens.safetensors", |h| {
            let metadata = r#"{"__metadata__":{"harmonica":"{\"format\":1,\"family\":\"DiT\",\"config\":{\"input_size\":[16384,16384],\"patch\":8,\"channels\":4,\"hidden\":64,\"blocks\":2,\"heads\":1,\"classes\":1,\"learned_sigma\":true},\"fingerprint\":\"0\"}"},"#;
            format!("{metadata}{}", h.trim_start_matches('{'))
        }), "{}: it describes no DiT: number of tokens is 4194304, expected 1 to 65536"),
        ("unknown family", w.edited("family.safetensors", |h| {
            let metadata = r#"{"__metadata__":{"harmonica":"{\"format\":2}"},"#;
            format!("{metadata}{}", h.trim_start_matches('{'))
        }), "{} cannot be understood: its model description is not valid: missing field `family` at line 1 column 12"),
        ("archive cut in the middle", w.write("cut.pt", &torch[..torch.len() / 2]), "{} is damaged: it starts as a zip archive but has no valid directory (invalid Zip archive: Could not find EOCD); was it cut off?"),
        ("archive without its last byte", w.write("cut-end.pt", &torch[..torch.len() - 1]), "{} is damaged: it starts as a zip archive but has no valid directory (invalid Zip archive: Unexpected end of zip::format::blocks::Zip32CDEBlock); was it cut off?"),
        ("archive with a flipped data byte", w.write("flip.pt", &with(torch.len() / 2, 1)), "{} is damaged: its member `tiny-a/data/15` cannot be read: Invalid checksum"),
        ("archive without a pickle", { use std::io::Write; let mut z = zip::ZipWriter::new(std::fs::File::create(w.path("zip.pt")).unwrap()); z.start_file("readme", zip::write::SimpleFileOptions::default()).unwrap(); z.write_all(b"hi").unwrap(); z.finish().unwrap(); w.path("zip.pt") }, "{} is damaged: the archive holds no data.pkl, so it is no PyTorch file"),
        ("pickle that is no state dict", w.pickled("list.pt", b"\x80\x02]q\x00K\x01a."), "{} holds no DiT: expected a dict of tensors, found a list"),
        ("pickle that asks for code", w.pickled("code.pt", system), "{} was refused: its pickle asks for `os.system`, which no tensor file needs and which could run code"),
        ("pickle that ends early", w.pickled("short.pt", b"\x80\x02}q\x00X\x10\x00\x00\x00abc"), "{} is damaged: its pickle ends in the middle of an instruction (byte 13)"),
        ("pickle with an empty stack", w.pickled("stack.pt", b"\x80\x02R."), "{} is damaged: its pickle takes a value from an empty stack"),
        ("pickle with a strange instruction", w.pickled("strange.pt", b"\x80\x02i."), "{} was refused: its pickle uses instruction 0x69 at byte 2, which no tensor file needs"),
    ];
    let mut wrong = Vec::new();
    for (name, path, expected) in &cases {
        let found = load(path, Some(1)).expect_err(name);
        let found = found.replace(&path.display().to_string(), "{}");
        if found != *expected {
            wrong.push(format!("{name}\n  found    {found}\n  expected {expected}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn heads_that_shapes_cannot_tell_are_asked_for() {
    let path = golden("tiny-a.pt");
    let found = load(&path, None)
        .unwrap_err()
        .replace(&path.display().to_string(), "{}");
    assert_eq!(
        found,
        "{}: the number of attention heads cannot be told from shapes, and hidden size 32 is none of the published ones (384, 768, 1024, 1152)"
    );
    let rectangular = golden("tiny-b.pt");
    let found = load(&rectangular, Some(3))
        .unwrap_err()
        .replace(&rectangular.display().to_string(), "{}");
    assert_eq!(found, "{}: 6 tokens form no square");
    let found = load(&path, Some(5))
        .unwrap_err()
        .replace(&path.display().to_string(), "{}");
    assert_eq!(
        found,
        "{}: it describes no DiT: hidden size 32 is no multiple of heads 5"
    );
}

/// Damage anywhere in a file either shows or leaves a model that loads; it never panics.
#[test]
fn random_damage_never_panics() {
    use rand::{Rng, SeedableRng};
    let w = Workshop(tempfile::tempdir().unwrap());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    type Reader = fn(&Path) -> bool;
    let model: Reader = |path| load(path, Some(1)).is_ok();
    let router: Reader = |path| ReleasedRouter::read(path).is_ok();
    for (source, reads) in [
        ("tiny-a.pt", model),
        ("tiny-c.safetensors", model),
        ("harmonica-router.pt", router),
    ] {
        let good = std::fs::read(golden(source)).unwrap();
        assert!(reads(&w.write("whole", &good)), "{source}");
        let mut refused = 0;
        for _ in 0..60 {
            let mut bytes = good.clone();
            for _ in 0..1 + rng.next_u32() % 4 {
                // Half of the damage goes to where the structure is: the first and last kilobytes.
                let span = if rng.next_u32() % 2 == 0 {
                    bytes.len()
                } else {
                    4096.min(bytes.len())
                };
                let at = rng.next_u32() as usize % span;
                let at = if rng.next_u32() % 2 == 0 {
                    at
                } else {
                    bytes.len() - 1 - at
                };
                bytes[at] = rng.next_u32() as u8;
            }
            bytes.truncate(
                bytes.len()
                    - if rng.next_u32() % 3 == 0 {
                        rng.next_u32() as usize % bytes.len()
                    } else {
                        0
                    },
            );
            refused += usize::from(!reads(&w.write("damaged", &bytes)));
        }
        assert!(refused > 15, "{source}: {refused} of 60 refused");
    }
}

#[test]
fn a_weight_that_is_no_number_and_weights_that_changed() {
    let w = Workshop(tempfile::tempdir().unwrap());
    let mut bytes = std::fs::read(golden("tiny-c.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = w.write("nan.safetensors", &bytes);
    let found = load(&path, Some(1)).unwrap_err();
    assert!(
        found.contains("holds a value that is not finite at position"),
        "{found}"
    );

    let out = w.path("ours.safetensors");
    let made = harmonica(&[
        "convert",
        "--model",
        golden("tiny-c.safetensors").to_str().unwrap(),
        "--heads",
        "1",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert!(made.status.success());
    let mut bytes = std::fs::read(&out).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&out, &bytes).unwrap();
    let found = load(&out, None).unwrap_err();
    assert!(
        found.contains("its weights have fingerprint") && found.contains("but it was written with"),
        "{found}"
    );
}

#[test]
fn bad_usage_ends_with_code_2_and_its_reason() {
    let w = Workshop(tempfile::tempdir().unwrap());
    let noise = w.path("noise.safetensors");
    write_tensors(&noise, &[("noise", vec![1, 4, 8, 8], vec![0.0; 256])]).unwrap();
    let noise = noise.to_str().unwrap();
    let foreign_noise = ["--noise", noise];
    let cases: Vec<(&[&str], i32, &str)> = vec![
        (
            &["--steps", "0"],
            2,
            "error: cannot sample in 0 steps: expected 1 to 1000, the number of training timesteps; pass --steps between them",
        ),
        (
            &["--steps", "1001"],
            2,
            "error: cannot sample in 1001 steps: expected 1 to 1000, the number of training timesteps; pass --steps between them",
        ),
        (
            &["--guidance", "NaN"],
            2,
            "error: cannot guide with scale NaN: expected a finite number of at least 0; 1 means no guidance, 1.5 to 4 is usual",
        ),
        (
            &["--guidance", "-1"],
            2,
            "error: cannot guide with scale -1: expected a finite number of at least 0; 1 means no guidance, 1.5 to 4 is usual",
        ),
        (
            &["--guidance-channels", "4"],
            2,
            "error: unknown guidance channels `4`: expected `3` (the public DiT release) or `all` (textbook)",
        ),
        (
            &["--solver", "heun"],
            2,
            "error: unknown solver `heun`: expected `ddim`, `ddim:ETA` (0 to 1), `ddpm`, `euler`, `dpm++2m`, `dpm++3m`, `dpm++2m-sde` or `sa-solver`",
        ),
        (
            &["--spacing", "linear"],
            2,
            "error: unknown spacing `linear`: expected `even`, `ddim`, `dpm`, `flow` or `flow:SHIFT` (above 0)",
        ),
        (
            &["--steps", "300", "--spacing", "ddim"],
            2,
            "error: cannot space 300 steps as `ddim`: expected as many as a whole stride makes of 1000, such as 250",
        ),
        (
            &["--steps", "1000", "--spacing", "dpm"],
            2,
            "error: cannot space 1000 steps as `dpm`: expected at most 999",
        ),
        (
            &["--spacing", "flow:3"],
            2,
            "error: cannot space steps as `flow:3` for a network that predicts noise: expected `flow` for one that predicts a flow, another spacing for others",
        ),
        (
            &["--spacing", "flow:-1"],
            2,
            "error: cannot shift a flow by -1: expected a finite number above 0; 1 means no shift, 3 is usual",
        ),
        (
            &["--eta", "1.5"],
            2,
            "error: cannot run DDIM with eta 1.5: expected a number from 0 (deterministic) to 1 (as noisy as DDPM)",
        ),
        (
            &["--solver", "ddpm", "--eta", "0.5"],
            2,
            "error: --eta belongs to the ddim solver, not to ddpm",
        ),
        (
            &["--classes", "46"],
            2,
            "error: unknown class `46`: the model has 0 to 45 or animal-flat, bird-flat,",
        ),
        (
            &["--classes", "unicorn"],
            2,
            "error: unknown class `unicorn`: the model has 0 to 45 or animal-flat, bird-flat,",
        ),
        (
            &["--count", "0"],
            2,
            "error: --count is 0, expected at least 1 image",
        ),
        (
            &["--batch", "0"],
            2,
            "error: cannot run batches of 0 images: pass --batch of at least 1, or none to have it chosen",
        ),
        (
            &["--device", "cuda"],
            2,
            "error: unknown device `cuda`: expected auto, vulkan, metal, dx12, gl, cpu, or an index from `harmonica devices`",
        ),
        (
            &["--device", "99"],
            2,
            "error: there is no device 99: `harmonica devices` lists",
        ),
        (
            &["--schedule", "teacache"],
            2,
            "error: unknown policy `teacache`: expected none, fora:N, taylor:N[:ORDER], foca:N, spectrum:N[:GROWTH[:BLEND]], delta:N[:CUTOFF[:BLOCKS]], pab[:SELF[:CROSS]], scm:BITS, smooth:ALPHA, cem:K, mag:THRESHOLD, tea:THRESHOLD, fb:THRESHOLD, db:FRONT:REAR:THRESHOLD, di:THRESHOLD, easy:THRESHOLD[:WARMUP], random:CUR[:SEED], steps:K[:SOLVER], learned[:SPEED], or a *.schedule.json file, or folder of such files, that exists",
        ),
        (
            &["--schedule", "fora:0"],
            2,
            "error: policy `fora:0`: expected fora:N with a whole number N of at least 1",
        ),
        (
            &["--schedule", "delta:2:9:99"],
            2,
            "error: policy `delta:2:9:99`: expected a cutoff of 0 to 20, the run's steps, and 1 to 12 of the network's blocks",
        ),
        (
            &["--schedule", "easy:0"],
            2,
            "error: policy `easy:0`: expected easy:THRESHOLD[:WARMUP] with a number above 0 and the steps that are computed first",
        ),
        (
            &[
                "--schedule",
                "mag:0.06",
                "--steps",
                "7",
                "--guidance",
                "2.5",
            ],
            2,
            "error: policy `mag:0.06` needs a calibration of this model and run, and there is none in harmonica-calibrations: `harmonica train calibrate --model bundled --steps 7 --spacing even --solver ddim --guidance 2.5 --guidance-channels 3 --clip-x0 on` makes it",
        ),
        (
            &["--schedule", "nothing.json"],
            1,
            "error: cannot read nothing.json: No such file or directory (os error 2)",
        ),
        (
            &foreign_noise,
            2,
            "error: {}: its `noise` is [1, 4, 8, 8], expected [B, 3, 32, 32]",
        ),
        (
            &["--model", "random:DiT-H/2@256"],
            2,
            "error: cannot build `random:DiT-H/2@256`: unknown size `DiT-H/2`: expected DiT-S/P, DiT-B/P, DiT-L/P or DiT-XL/P with patch P of 2, 4 or 8; expected random:SIZE/PATCH@TOKENS such as random:DiT-S/2@256",
        ),
        (
            &["--model", "random:DiT-S/2@250"],
            2,
            "error: cannot build `random:DiT-S/2@250`: its token count is no square from 1 to 65536; expected random:SIZE/PATCH@TOKENS such as random:DiT-S/2@256",
        ),
        (
            &["--steps", "many"],
            2,
            "error: invalid value 'many' for '--steps <T>': expected a whole number",
        ),
    ];
    let mut wrong = Vec::new();
    for (flags, code, expected) in &cases {
        let device: &[&str] = if flags.contains(&"--device") {
            &[]
        } else {
            &["--device", "cpu"]
        };
        let out = harmonica(&[&["sample"], *flags, device].concat());
        let text = String::from_utf8_lossy(&out.stderr).replace(noise, "{}");
        let line = text
            .lines()
            .find(|l| l.starts_with("error: ") && !l.contains("XDG_RUNTIME_DIR"))
            .unwrap_or_default();
        if !line.starts_with(expected) || out.status.code() != Some(*code) {
            wrong.push(format!(
                "{flags:?}\n  found    {line} ({:?})\n  expected {expected} ({code})",
                out.status.code()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

/// The first bytes of a safetensors file are a length, which may look like any other format's mark.
#[test]
fn a_header_length_that_looks_like_another_format_is_read() {
    let w = Workshop(tempfile::tempdir().unwrap());
    for length in [640usize, 896, 19280, 19280 + 65536] {
        let mut header = r#"{"noise":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned();
        header.push_str(&" ".repeat(length - header.len()));
        let path = w.safetensors(&format!("{length}.safetensors"), &header, 4);
        let source = harmonica::checkpoint::open(&path).unwrap_or_else(|e| panic!("{length}: {e}"));
        assert!(source.get("noise").is_some());
    }
}

/// A `config.json` beside a file with the release's names is somebody else's.
#[test]
fn a_foreign_config_beside_the_weights_is_left_alone() {
    let w = Workshop(tempfile::tempdir().unwrap());
    let source = checkpoint::open(&golden("tiny-c.safetensors")).unwrap();
    let names: Vec<String> = source.entries().map(|e| e.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let tensors = read_named_tensors(&golden("tiny-c.safetensors"), &names).unwrap();
    let tensors: Vec<_> = names
        .iter()
        .zip(tensors)
        .map(|(name, (shape, values))| (*name, shape, values))
        .collect();
    let bare = w.0.path().join("bare.safetensors");
    write_tensors(&bare, &tensors).unwrap();
    load(&bare, Some(1)).unwrap();
    for config in [r#"{"_class_name": "Other"}"#, "{broken"] {
        w.write("config.json", config.as_bytes());
        load(&bare, Some(1)).unwrap_or_else(|e| panic!("{config}: {e}"));
    }
}

#[test]
fn a_schedule_of_a_network_beyond_counting_is_refused() {
    let text = std::fs::read_to_string(golden("version1.schedule.json"));
    let huge = text
        .unwrap()
        .replacen("\"hidden\": 192", "\"hidden\": 65536", 1)
        .replacen("\"tokens\": 64", "\"tokens\": 65536", 1);
    let found = ScheduleFile::parse(&huge, Path::new("huge")).unwrap_err();
    let expected =
        "huge is no schedule: 12 blocks of 65536 with 65536 tokens are no network that can be run";
    assert!(found.to_string().starts_with(expected), "{found}");
}

/// A file of version 1, which knew DiTs alone, says the same of its network as those of today.
#[test]
fn version_1_of_a_schedule_still_loads() {
    let read = |name: &str| ScheduleFile::read(&golden(name)).unwrap();
    let old = read("version1.schedule.json");
    let new = read("../../assets/routers/ddim20-cur0.25-cache0.5.schedule.json");
    assert_eq!(old.model, new.model);
    assert_eq!(old.run, new.run);
    assert_eq!(old.schedule().unwrap().to_rows(), old.compute);
}

#[cfg(unix)]
#[test]
fn a_reader_that_stops_reading_ends_nothing() {
    use std::process::{Command, Stdio};
    let model = golden("tiny-c.safetensors");
    let mut child = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(["inspect", model.to_str().unwrap(), "--tensors"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

//! From published files to a picture: every layout of files that is read, through the whole command, on the CPU and on Vulkan.
//! Layouts of the same weights draw the same picture, and folders that are damaged are refused before anything is drawn.

mod autoencoder;
mod damaged;
mod dry_run;
mod layouts;
mod writers;

use std::{
    collections::HashSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Output,
};

use half::f16;
use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, model_outline},
    models::Naming,
    report::text_of_png,
};
use image::RgbImage;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::{
    common::{Tensors, copy_tree, golden, tensors_of, within, write_safetensors, write_shards},
    hub_server::command_with_cache,
};

use writers::{write_halves, write_hollow, write_torch};

const WEIGHTS: &str = "diffusion_pytorch_model";

/// What a run left.
struct Drawn {
    picture: RgbImage,
    /// What the network made, before the autoencoder.
    latents: Vec<f32>,
    /// Of the file.
    bytes: Vec<u8>,
}

/// A folder of published files, in which `{}` stands for its path.
struct Place(tempfile::TempDir);

/// A way in which files of a model lie, as the flags that name it.
struct Layout {
    name: &'static str,
    flags: &'static str,
    /// How far its picture may lie from the first one of its kind, in bytes: weights that were rounded to f16 draw another.
    off: u8,
    /// Whether it is drawn on Vulkan, too.
    vulkan: bool,
}

/// The same weights as those of the first layout, to the bit.
const fn same(name: &'static str, flags: &'static str) -> Layout {
    Layout {
        name,
        flags,
        off: 0,
        vulkan: false,
    }
}

/// The same, on both devices.
const fn on_both(name: &'static str, flags: &'static str) -> Layout {
    Layout {
        vulkan: true,
        ..same(name, flags)
    }
}

/// Weights that were rounded to f16.
const fn rounded(name: &'static str, flags: &'static str) -> Layout {
    Layout {
        off: 3,
        ..same(name, flags)
    }
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A golden file under another name.
    fn copy(&self, from: &str, to: &str) {
        fs::copy(golden(from), self.path(to)).unwrap();
    }

    /// A folder, made.
    fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn words(&self, flags: &str) -> Vec<String> {
        let at = self.0.path().display().to_string();
        let words = flags.split(' ').filter(|word| !word.is_empty());
        words.map(|word| word.replace("{}", &at)).collect()
    }

    /// Runs the command with a cache of the hub that is this folder's, and without encoded texts of earlier runs.
    fn run(&self, flags: &str) -> Output {
        let words = self.words(flags);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = command_with_cache(&self.path("cache"), &words);
        // The driver's own cache of shaders is kept where it is.
        let usual = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let usual = usual.or_else(|| Some(std::env::home_dir()?.join(".cache")));
        if let Some(usual) = usual.filter(|_| std::env::var_os("MESA_SHADER_CACHE_DIR").is_none()) {
            command.env("MESA_SHADER_CACHE_DIR", usual);
        }
        let texts = self.path("texts");
        let _ = fs::remove_dir_all(&texts);
        command.env("XDG_CACHE_HOME", texts).output().unwrap()
    }

    /// Two steps of a layout on a device.
    fn draw(&self, flags: &str, device: &str) -> Drawn {
        let file = self.path("x.png");
        let _ = fs::remove_file(&file);
        let run = format!(
            "sample --device {device} --steps 2 --seed 5 -n 1 --out {{}}/x.png --save-tensors {{}}/x.safetensors"
        );
        let out = self.run(&format!("{run} {flags}"));
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{flags} on {device}: {said}");
        assert!(!said.contains("rough preview"), "{flags}: {said}");
        let latents = tensors_of(&self.path("x.safetensors")).remove(0).2;
        Drawn {
            picture: image::open(&file).unwrap().to_rgb8(),
            latents,
            bytes: fs::read(&file).unwrap(),
        }
    }

    /// Draws all layouts of the same weights, as pictures of this many pixels a side. On Vulkan one of each kind, or all where
    /// `HARMONICA_LAYOUTS_ON_VULKAN` says `all`: what differs between them is read before a device is touched.
    fn check(&self, side: u32, layouts: &[Layout]) {
        let all = std::env::var_os("HARMONICA_LAYOUTS_ON_VULKAN").is_some_and(|word| word == "all");
        let mut first: Option<Drawn> = None;
        for layout in layouts {
            let drawn = self.draw(layout.flags, "cpu");
            let what = format!("{}, on cpu", layout.name);
            assert_eq!(drawn.picture.dimensions(), (side, side), "{what}");
            let values: HashSet<u8> = drawn.picture.iter().copied().collect();
            assert!(values.len() > 32, "{what}: {} values", values.len());
            self.check_texts(layout, &drawn.bytes);
            if layout.vulkan || all {
                let other = self.draw(layout.flags, "vulkan");
                let off = distance(&drawn.picture, &other.picture);
                let what = format!("{}, between devices, bytes", layout.name);
                within(what, off, 3.0);
            }
            let Some(first) = &first else {
                first = Some(drawn);
                continue;
            };
            let same = drawn.latents == first.latents && drawn.picture == first.picture;
            assert_eq!(same, layout.off == 0, "{what}: the first one to the bit");
            let off = distance(&drawn.picture, &first.picture);
            within(format!("{what}, bytes"), off, layout.off.into());
        }
    }

    /// What the PNG says of itself is what the flags said, and enough to draw it again.
    fn check_texts(&self, layout: &Layout, bytes: &[u8]) {
        let text = |keyword: &str| text_of_png(bytes, keyword).unwrap().unwrap();
        let recipe: Value = serde_json::from_str(&text("harmonica")).unwrap();
        let what = format!("{}: {recipe}", layout.name);
        assert!(text("Software").starts_with("harmonica "), "{what}");
        let description = text("Description");
        assert!(
            description.contains("seed 5, image 0, 2 steps of "),
            "{what}: {description}"
        );
        assert!(description.contains(&text("Title")), "{what}");
        assert_eq!((&recipe["steps"], &recipe["seed"]), (&2.into(), &5.into()));
        let mut words = self.words(layout.flags).into_iter();
        while let Some(flag) = words.next() {
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), value.to_owned()),
                None => (flag, words.next().unwrap()),
            };
            let said = match &*flag {
                "--prompt" => recipe["prompts"][0].clone(),
                "--classes" => recipe["classes"][0].clone(),
                flag => recipe[flag[2..].replace('-', "_")].clone(),
            };
            let said = match said {
                Value::String(said) => said,
                other => other.to_string(),
            };
            // A class goes by the first of its names.
            let is_class = flag == "--classes" && said != "null";
            assert!(said == value || is_class, "{flag}: {what}");
        }
        fs::write(self.path("drawn.png"), bytes).unwrap();
        let out = self.run("sample --device cpu --from {}/drawn.png --out {}/again.png");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}: {said}", layout.name);
        assert!(
            fs::read(self.path("again.png")).unwrap() == bytes,
            "{}: drawn again, it is another",
            layout.name
        );
    }

    /// Runs a command that must succeed and prepares something.
    fn prepare(&self, flags: &str) {
        let out = self.run(flags);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{flags}: {said}");
    }

    /// A folder as the hub's tools keep it: files are links to what lies under its checksum.
    #[cfg(unix)]
    fn cache(&self, from: &str, name: &str) {
        let folder = self.folder(&format!("cache/models--{}", name.replace('/', "--")));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::create_dir_all(folder.join("blobs")).unwrap();
        fs::write(folder.join("refs/main"), commit).unwrap();
        link_tree(
            &self.path(from),
            &folder.join("snapshots").join(commit),
            &folder.join("blobs"),
        );
    }

    /// Changes a key of a JSON file.
    fn set(&self, file: &str, key: &str, value: Value) {
        let path = self.path(file);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[key] = value;
        fs::write(path, json.to_string()).unwrap();
    }
}

#[cfg(unix)]
fn link_tree(from: &Path, to: &Path, blobs: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        if path.is_dir() {
            link_tree(&path, &place, blobs);
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let blob = blobs.join(crate::hub_server::sha256(&bytes));
        fs::write(&blob, bytes).unwrap();
        std::os::unix::fs::symlink(blob, place).unwrap();
    }
}

/// The largest difference of two pictures, in bytes.
fn distance(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    let pairs = a.iter().zip(b.iter());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// A PixArt's pipeline folder of golden parts.
fn pixart(folder: &Path, class: &str, transformer: &str) {
    copy_tree(&golden(transformer), folder);
    for (from, part) in [
        ("vae/kl", "vae"),
        ("hub-forms/scheduler", "scheduler"),
        ("text/text_encoder", "text_encoder"),
        ("text/tokenizer", "tokenizer"),
    ] {
        copy_tree(&golden(from), &folder.join(part));
    }
    let index = json!({
        "_class_name": class, "_diffusers_version": "0.22.0",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
    // The class that published configs name.
    let config = folder.join("transformer/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let old = text.replace("PixArtTransformer2DModel", "Transformer2DModel");
    assert_ne!(text, old);
    fs::write(config, old).unwrap();
}

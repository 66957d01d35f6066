//! From published files to a picture: every layout of files that is read, through the whole command, on the CPU and on Vulkan.
//! Layouts of the same weights draw the same picture, and folders that are damaged are refused before anything is drawn.

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

    /// Draws all layouts of the same weights, as pictures of this many pixels a side.
    fn check(&self, side: u32, layouts: &[Layout]) {
        let mut first: Option<Drawn> = None;
        for layout in layouts {
            let drawn = self.draw(layout.flags, "cpu");
            let what = format!("{}, on cpu", layout.name);
            assert_eq!(drawn.picture.dimensions(), (side, side), "{what}");
            let values: HashSet<u8> = drawn.picture.iter().copied().collect();
            assert!(values.len() > 32, "{what}: {} values", values.len());
            self.check_texts(layout, &drawn.bytes);
            if layout.vulkan {
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

/// The start of a safetensors file of one type, and the bytes of its data.
fn header_of(tensors: &[(String, Vec<usize>)], dtype: &str, width: u64) -> (Vec<u8>, u64) {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + width * shape.iter().map(|n| *n as u64).product::<u64>();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] });
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string().into_bytes();
    let length = (header.len() as u64).to_le_bytes();
    ([&length[..], &header].concat(), at)
}

/// Writes tensors in f16, as variants of published folders are.
fn write_halves(path: &Path, tensors: &Tensors) {
    let shapes: Vec<_> = tensors
        .iter()
        .map(|(name, shape, _)| (name.clone(), shape.clone()))
        .collect();
    let (mut bytes, _) = header_of(&shapes, "F16", 2);
    for (.., values) in tensors {
        let halves = values.iter().map(|v| f16::from_f32(*v).to_le_bytes());
        bytes.extend(halves.flatten());
    }
    fs::write(path, bytes).unwrap();
}

/// A file that claims to hold tensors, and takes no room: nothing is written behind its header.
fn write_hollow(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let (header, data) = header_of(tensors, "F32", 4);
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(header.len() as u64 + data).unwrap();
}

/// Writes tensors as `torch.save` does, inside of dicts of these keys.
fn write_torch(path: &Path, wrappers: &[&str], tensors: &Tensors) {
    let text = |text: &str| {
        [
            b"X",
            &(text.len() as u32).to_le_bytes()[..],
            text.as_bytes(),
        ]
        .concat()
    };
    let int = |n: usize| [b"J", &(n as u32).to_le_bytes()[..]].concat();
    let tuple = |numbers: &[usize]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| int(*n)).collect();
        [b"(", &numbers[..], b"t"].concat()
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    for wrapper in wrappers {
        pickle.extend([&text(wrapper)[..], b"}("].concat());
    }
    let file = fs::File::create(path).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        pickle.extend(
            [
                &text(name)[..],
                b"ctorch._utils\n_rebuild_tensor_v2\n((",
                &text("storage"),
                b"ctorch\nFloatStorage\n",
                &text(&i.to_string()),
                &text("cpu"),
                &int(values.len()),
                b"tQK\x00",
                &tuple(shape),
                &tuple(&strides),
                b"\x89ccollections\nOrderedDict\n)RtR",
            ]
            .concat(),
        );
        archive
            .start_file(format!("archive/data/{i}"), stored)
            .unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        archive.write_all(&bytes).unwrap();
    }
    pickle.extend(vec![b'u'; 1 + wrappers.len()]);
    pickle.push(b'.');
    archive.start_file("archive/data.pkl", stored).unwrap();
    archive.write_all(&pickle).unwrap();
    archive.finish().unwrap();
}

/// Tensors of an AutoencoderKL, in diffusers' names and in the latent-diffusion release's.
#[derive(Default)]
struct Autoencoder(Vec<[(String, Vec<usize>); 2]>);

impl Autoencoder {
    /// Of these widths, from the picture inwards.
    fn new(widths: &[usize], layers: usize) -> Self {
        let (latents, deep, last) = (4, *widths.last().unwrap(), widths.len() - 1);
        let mut all = Self::default();
        for (half, side) in [("encoder", "down"), ("decoder", "up")] {
            let up = side == "up";
            let of = |name: &str| format!("{half}.{name}");
            let both = |ours: &str, theirs: &str| [of(ours), of(theirs)];
            let [from, to] = if up { [latents, deep] } else { [3, widths[0]] };
            all.layer(both("conv_in", "conv_in"), &[to, from, 3, 3]);
            for n in 0..2 {
                let theirs = format!("mid.block_{}", n + 1);
                let names = both(&format!("mid_block.resnets.{n}"), &theirs);
                all.block(names, [deep; 2]);
            }
            let attention = |ours: &str, theirs: &str| {
                let ours = format!("mid_block.attentions.0.{ours}");
                both(&ours, &format!("mid.attn_1.{theirs}"))
            };
            all.layer(attention("group_norm", "norm"), &[deep]);
            for part in ["q", "k", "v"] {
                let names = attention(&format!("to_{part}"), part);
                all.layer(names, &[deep; 2]);
            }
            all.layer(attention("to_out.0", "proj_out"), &[deep; 2]);
            let mut width = if up { deep } else { widths[0] };
            for i in 0..=last {
                // The release counts the decoder's stages from the picture.
                let stage = if up { last - i } else { i };
                let to = widths[stage];
                for j in 0..layers + usize::from(up) {
                    let ours = format!("{side}_blocks.{i}.resnets.{j}");
                    let theirs = format!("{side}.{stage}.block.{j}");
                    all.block(both(&ours, &theirs), [width, to]);
                    width = to;
                }
                if i < last {
                    let ours = format!("{side}_blocks.{i}.{side}samplers.0.conv");
                    let theirs = format!("{side}.{stage}.{side}sample.conv");
                    all.layer(both(&ours, &theirs), &[to, to, 3, 3]);
                }
            }
            all.layer(both("conv_norm_out", "norm_out"), &[width]);
            let outputs = if up { 3 } else { 2 * latents };
            all.layer(both("conv_out", "conv_out"), &[outputs, width, 3, 3]);
        }
        for (name, channels) in [("quant_conv", 2 * latents), ("post_quant_conv", latents)] {
            let shape = [channels, channels, 1, 1];
            all.layer([name.to_owned(), name.to_owned()], &shape);
        }
        all
    }

    /// Weights and bias of a layer.
    fn layer(&mut self, [ours, theirs]: [String; 2], shape: &[usize]) {
        // The release has the products of its attention as convolutions.
        let of_theirs = match shape {
            [out, input] => vec![*out, *input, 1, 1],
            shape => shape.to_vec(),
        };
        self.0.push([
            (format!("{ours}.weight"), shape.to_vec()),
            (format!("{theirs}.weight"), of_theirs),
        ]);
        let bias = |name: String| (format!("{name}.bias"), vec![shape[0]]);
        self.0.push([bias(ours), bias(theirs)]);
    }

    /// A residual block.
    fn block(&mut self, [ours, theirs]: [String; 2], [from, to]: [usize; 2]) {
        let of = |part: &str| [format!("{ours}.{part}"), format!("{theirs}.{part}")];
        self.layer(of("norm1"), &[from]);
        self.layer(of("conv1"), &[to, from, 3, 3]);
        self.layer(of("norm2"), &[to]);
        self.layer(of("conv2"), &[to, to, 3, 3]);
        if from != to {
            let names = [
                format!("{ours}.conv_shortcut"),
                format!("{theirs}.nin_shortcut"),
            ];
            self.layer(names, &[to, from, 1, 1]);
        }
    }
}

/// Random weights that switch nothing off.
fn random(rng: &mut rand_chacha::ChaCha8Rng, name: &str, shape: &[usize]) -> Vec<f32> {
    let inputs: usize = shape[1..].iter().product();
    let (middle, bound) = match shape.len() {
        1 if name.contains("norm") && name.ends_with("weight") => (1.0, 0.3),
        1 => (0.0, 0.2),
        _ => (0.0, (3.0 / inputs as f32).sqrt()),
    };
    let mut one = || rng.next_u32() as i32 as f32 / (1u32 << 31) as f32;
    let numbers = shape.iter().product();
    (0..numbers).map(|_| middle + bound * one()).collect()
}

fn kl_config(widths: &[usize], layers: usize) -> Value {
    let blocks = |kind: &str| vec![kind.to_owned(); widths.len()];
    json!({
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": widths, "in_channels": 3, "out_channels": 3,
        "latent_channels": 4, "layers_per_block": layers, "norm_num_groups": 32, "sample_size": 256, "scaling_factor": 0.18215,
        "down_block_types": blocks("DownEncoderBlock2D"), "up_block_types": blocks("UpDecoderBlock2D"),
    })
}

#[test]
fn every_layout_of_a_dit_pipeline_becomes_the_same_picture() {
    let place = Place::new();
    copy_tree(&golden("hub"), &place.path("whole"));
    for form in ["sharded", "bin", "bin-sharded", "fp16", "fp16-sharded"] {
        copy_tree(&golden("hub"), &place.path(form));
        let transformer = place.path(form).join("transformer");
        fs::remove_dir_all(&transformer).unwrap();
        copy_tree(&golden("hub-forms").join(form), &transformer);
    }
    copy_tree(&golden("hub"), &place.path("both"));
    let half = "diffusion_pytorch_model.fp16.safetensors";
    let beside = place.path("both/transformer").join(half);
    fs::copy(golden("hub-forms/fp16").join(half), beside).unwrap();
    place.prepare("convert --model {}/whole --dtype f32 --out {}/own.safetensors");
    place.prepare("convert --model {}/whole --dtype f16 --out {}/own-f16.safetensors");
    let layouts = [
        on_both("pipeline folder", "--model {}/whole --classes man-eater"),
        same("shards", "--model {}/sharded --classes man-eater"),
        same("pickle", "--model {}/bin --classes man-eater"),
        same(
            "pickled shards",
            "--model {}/bin-sharded --classes man-eater",
        ),
        same("both precisions", "--model {}/both --classes man-eater"),
        same(
            "transformer's folder",
            "--model {}/whole/transformer --classes 2",
        ),
        same(
            "transformer's file",
            "--model {}/whole/transformer/diffusion_pytorch_model.safetensors --vae {}/whole/vae --classes 2",
        ),
        same(
            "transformer's pickle",
            "--model {}/bin/transformer/diffusion_pytorch_model.bin --vae {}/whole --classes 2",
        ),
        on_both(
            "own file",
            "--model {}/own.safetensors --vae {}/whole/vae --classes man-eater",
        ),
        rounded("fp16 alone", "--model {}/fp16 --classes man-eater"),
        rounded(
            "fp16 shards alone",
            "--model {}/fp16-sharded --classes man-eater",
        ),
        rounded(
            "fp16 asked for",
            "--model {}/both --variant fp16 --classes man-eater",
        ),
        rounded(
            "own file in f16",
            "--model {}/own-f16.safetensors --vae {}/whole/vae --classes man-eater",
        ),
    ];
    place.check(8, &layouts);
    // However they are stored, numbers that were rounded are the same numbers.
    let halves = layouts.iter().filter(|layout| layout.off > 0);
    let mut halves = halves.map(|layout| place.draw(layout.flags, "cpu").latents);
    let first = halves.next().unwrap();
    assert!(halves.all(|latents| latents == first));
    #[cfg(unix)]
    {
        place.cache("both", "tiny/pipeline");
        let layouts = [
            same("pipeline folder", "--model {}/whole --classes man-eater"),
            on_both(
                "name of the hub",
                "--model tiny/pipeline --classes man-eater",
            ),
            rounded(
                "name of the hub, fp16",
                "--model tiny/pipeline@main --variant fp16 --classes man-eater",
            ),
        ];
        place.check(8, &layouts);
    }
}

#[test]
fn every_layout_of_the_release_and_of_an_autoencoder_becomes_the_same_picture() {
    let place = Place::new();
    fs::copy(golden("tiny-a.pt"), place.path("release.pt")).unwrap();
    let dit = tensors_of(&golden("tiny-a.pt"));
    write_torch(&place.path("training.pt"), &["ema"], &dit);
    write_safetensors(&place.path("bare.safetensors"), &dit);
    place.prepare("convert --model {}/release.pt --heads 4 --dtype f32 --out {}/own.safetensors");

    let widths = [32, 64];
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (mut ours, mut theirs) = (Tensors::new(), Tensors::new());
    for [(name, shape), (other, of_other)] in Autoencoder::new(&widths, 2).0 {
        let values = random(&mut rng, &name, &shape);
        ours.push((name, shape, values.clone()));
        theirs.push((other, of_other, values));
    }
    let config = kl_config(&widths, 2).to_string();
    let folder = |name: &str| {
        let folder = place.folder(name);
        fs::write(folder.join("config.json"), &config).unwrap();
        folder
    };
    write_safetensors(
        &folder("kl").join("diffusion_pytorch_model.safetensors"),
        &ours,
    );
    write_safetensors(
        &folder("pipeline/vae").join("diffusion_pytorch_model.safetensors"),
        &ours,
    );
    write_torch(
        &folder("kl-bin").join("diffusion_pytorch_model.bin"),
        &[],
        &ours,
    );
    write_shards(&folder("kl-shards"), WEIGHTS, &ours);
    write_halves(
        &folder("kl-fp16").join("diffusion_pytorch_model.fp16.safetensors"),
        &ours,
    );
    write_safetensors(&place.path("kl-file.safetensors"), &ours);
    let mut old = ours;
    for (name, ..) in &mut old {
        for (new, old) in [
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ] {
            *name = name.replace(&format!(".0.{new}."), &format!(".0.{old}."));
        }
    }
    assert!(old.iter().any(|(name, ..)| name.contains("proj_attn")));
    write_safetensors(
        &folder("kl-old").join("diffusion_pytorch_model.safetensors"),
        &old,
    );
    write_safetensors(&place.path("ldm.safetensors"), &theirs);
    write_torch(&place.path("ldm.ckpt"), &["state_dict"], &theirs);
    // A whole checkpoint has other networks beside it.
    for (name, ..) in &mut theirs {
        name.insert_str(0, "first_stage_model.");
    }
    theirs.push((
        "model.diffusion_model.out.2.weight".into(),
        vec![2],
        vec![1.0; 2],
    ));
    write_torch(&place.path("ldm-whole.ckpt"), &["state_dict"], &theirs);
    place.check(
        16,
        &[
            on_both(
                "release's .pt, diffusers' autoencoder",
                "--model {}/release.pt --heads 4 --vae {}/kl --classes 2",
            ),
            same(
                "training's .pt",
                "--model {}/training.pt --heads 4 --vae {}/kl --classes 2",
            ),
            same(
                "bare safetensors",
                "--model {}/bare.safetensors --heads 4 --vae {}/kl --classes 2",
            ),
            same(
                "own safetensors",
                "--model {}/own.safetensors --vae {}/kl --classes 2",
            ),
            same(
                "autoencoder in a pipeline",
                "--model {}/own.safetensors --vae {}/pipeline --classes 2",
            ),
            same(
                "pickled autoencoder",
                "--model {}/own.safetensors --vae {}/kl-bin --classes 2",
            ),
            same(
                "autoencoder in shards",
                "--model {}/own.safetensors --vae {}/kl-shards --classes 2",
            ),
            same(
                "autoencoder's file",
                "--model {}/own.safetensors --vae {}/kl-file.safetensors --classes 2",
            ),
            same(
                "autoencoder of 2022",
                "--model {}/own.safetensors --vae {}/kl-old --classes 2",
            ),
            on_both(
                "original safetensors of an autoencoder",
                "--model {}/own.safetensors --vae {}/ldm.safetensors --classes 2",
            ),
            same(
                "original .ckpt of an autoencoder",
                "--model {}/own.safetensors --vae {}/ldm.ckpt --classes 2",
            ),
            same(
                "autoencoder in a whole .ckpt",
                "--model {}/own.safetensors --vae {}/ldm-whole.ckpt --classes 2",
            ),
            rounded(
                "autoencoder in fp16",
                "--model {}/own.safetensors --vae {}/kl-fp16 --classes 2",
            ),
        ],
    );
    let decoder = tensors_of(&golden("vae/tiny-decoder.safetensors"));
    write_torch(&place.path("taesd_decoder.pth"), &[], &decoder);
    copy_tree(&golden("vae/tiny"), &place.path("taesd"));
    write_safetensors(&place.path("taesd_decoder.safetensors"), &decoder);
    place.check(
        64,
        &[
            on_both(
                "TAESD's folder",
                "--model {}/release.pt --heads 4 --vae {}/taesd --classes 2",
            ),
            same(
                "TAESD's .pth",
                "--model {}/release.pt --heads 4 --vae {}/taesd_decoder.pth --classes 2",
            ),
            same(
                "TAESD's safetensors",
                "--model {}/release.pt --heads 4 --vae {}/taesd_decoder.safetensors --classes 2",
            ),
        ],
    );
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

#[test]
fn every_layout_of_pixart_alpha_becomes_the_same_picture() {
    let place = Place::new();
    let named = |name: &str| {
        pixart(&place.path(name), "PixArtAlphaPipeline", "pixart-ms");
        place.path(name)
    };
    let whole = named("whole");
    let parts = [
        ("transformer", WEIGHTS, WEIGHTS),
        ("vae", WEIGHTS, WEIGHTS),
        ("text_encoder", "model", "pytorch_model"),
    ];
    // All parts in another kind of file.
    let written = |name: &str, write: &dyn Fn(&Path, [&str; 2], &Tensors)| {
        let folder = named(name);
        for (part, stem, pickle) in parts {
            let tensors = tensors_of(&whole.join(part));
            let part = folder.join(part);
            fs::remove_file(part.join(format!("{stem}.safetensors"))).unwrap();
            write(&part, [stem, pickle], &tensors);
        }
    };
    written("fp16", &|part, [stem, _], tensors| {
        write_halves(&part.join(format!("{stem}.fp16.safetensors")), tensors);
    });
    written("shards", &|part, [stem, _], tensors| {
        write_shards(part, stem, tensors);
    });
    written("pickles", &|part, [_, stem], tensors| {
        write_torch(&part.join(format!("{stem}.bin")), &[], tensors);
    });
    fs::remove_file(named("spiece").join("tokenizer/tokenizer.json")).unwrap();
    fs::remove_file(named("json").join("tokenizer/spiece.model")).unwrap();
    // The files of encoder and tokenizer in one folder.
    copy_tree(&golden("text/text_encoder"), &place.path("flat"));
    copy_tree(&golden("text/tokenizer"), &place.path("flat"));
    let original = golden("pixart-ms-original.pth");
    fs::copy(original, place.path("original.pth")).unwrap();
    place.prepare("convert --model {}/whole --dtype f32 --out {}/own.safetensors");
    let layouts = [
        on_both("pipeline folder", "--model {}/whole --prompt lighthouse"),
        same("shards", "--model {}/shards --prompt lighthouse"),
        same("pickles", "--model {}/pickles --prompt lighthouse"),
        same(
            "spiece.model alone",
            "--model {}/spiece --prompt lighthouse",
        ),
        same(
            "tokenizer.json alone",
            "--model {}/json --prompt lighthouse",
        ),
        same(
            "transformer's folder",
            "--model {}/whole/transformer --solver dpm++2m --spacing dpm --prompt lighthouse",
        ),
        same(
            "own file",
            "--model {}/own.safetensors --vae {}/whole/vae --text-encoder {}/flat --prompt lighthouse",
        ),
        on_both(
            "original .pth",
            "--model {}/original.pth --heads 3 --vae {}/whole --text-encoder {}/whole --solver dpm++2m --spacing dpm --negative-prompt= --prompt lighthouse",
        ),
        rounded("every part in fp16", "--model {}/fp16 --prompt lighthouse"),
    ];
    place.check(32, &layouts);
    #[cfg(unix)]
    {
        place.cache("whole", "PixArt-alpha/tiny");
        let layouts = [
            same("pipeline folder", "--model {}/whole --prompt lighthouse"),
            same(
                "name of the hub",
                "--model PixArt-alpha/tiny --prompt lighthouse",
            ),
        ];
        place.check(32, &layouts);
    }
}

#[test]
fn every_layout_of_pixart_sigma_becomes_the_same_picture() {
    let place = Place::new();
    pixart(&place.path("whole"), "PixArtSigmaPipeline", "pixart-alpha");
    // Σ decodes with the autoencoder of SDXL.
    place.set("whole/vae/config.json", "scaling_factor", json!(0.13025));
    let original = golden("pixart-original.pth");
    fs::copy(original, place.path("original.pth")).unwrap();
    place.prepare("convert --model {}/whole --dtype f32 --out {}/own.safetensors");
    place.check(
        32,
        &[
            on_both("pipeline folder", "--model {}/whole --prompt lighthouse"),
            same(
                "own file",
                "--model {}/own.safetensors --vae {}/whole --text-encoder {}/whole --prompt lighthouse",
            ),
            same(
                "original .pth",
                "--model {}/original.pth --heads 3 --vae {}/whole/vae --text-encoder {}/whole --solver dpm++2m --spacing dpm --negative-prompt= --prompt lighthouse",
            ),
        ],
    );
}

/// T5-XXL's encoder (v1.1), and what a dry run says of the pipeline around it.
#[cfg(target_os = "linux")]
#[test]
fn a_dry_run_counts_t5_xxl_without_reading_it() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    pixart(&place.path("m"), "PixArtAlphaPipeline", "pixart-ms");
    for part in ["transformer", "vae", "text_encoder"] {
        fs::remove_dir_all(place.path("m").join(part)).unwrap();
    }

    let [width, inner, vocabulary, layers] = [4096, 10240, 32128, 24];
    let mut tensors = vec![
        ("shared.weight".to_owned(), vec![vocabulary, width]),
        ("encoder.final_layer_norm.weight".into(), vec![width]),
        (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".into(),
            vec![32, 64],
        ),
    ];
    for i in 0..layers {
        let of = |part: &str| format!("encoder.block.{i}.layer.{part}.weight");
        for part in ["0.layer_norm", "1.layer_norm"] {
            tensors.push((of(part), vec![width]));
        }
        for part in ["q", "k", "v", "o"] {
            tensors.push((of(&format!("0.SelfAttention.{part}")), vec![width; 2]));
        }
        for part in ["wi_0", "wi_1"] {
            let name = of(&format!("1.DenseReluDense.{part}"));
            tensors.push((name, vec![inner, width]));
        }
        tensors.push((of("1.DenseReluDense.wo"), vec![width, inner]));
    }
    let encoder = place.folder("m/text_encoder");
    let config = json!({
        "architectures": ["T5EncoderModel"], "d_ff": inner, "d_kv": 64, "d_model": width, "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6, "model_type": "t5", "num_heads": 64, "num_layers": layers,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "vocab_size": vocabulary,
    });
    fs::write(encoder.join("config.json"), config.to_string()).unwrap();
    let mut map = serde_json::Map::new();
    for (i, tensors) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        write_hollow(&encoder.join(&file), tensors);
        let names = tensors.iter().map(|(name, _)| name.clone());
        map.extend(names.map(|name| (name, file.clone().into())));
    }
    // As published indices do, it names the twin of the embeddings, which no shard has.
    map.insert(
        "encoder.embed_tokens.weight".into(),
        "model-00001-of-00002.safetensors".into(),
    );
    let index = json!({ "weight_map": map }).to_string();
    fs::write(encoder.join("model.safetensors.index.json"), index).unwrap();

    // The transformer and the autoencoder at their published sizes.
    let published: ModelSpec = "random:PixArt-XL/2@4096".parse().unwrap();
    let published = model_outline(&published, LoadOptions::default()).unwrap();
    let mut all = Vec::new();
    for tensor in published.architecture.tensors() {
        let names = tensor.stored(Naming::Diffusers);
        let mut shape = tensor.shape.clone();
        shape[0] /= names.len().max(1);
        let optional = |name: &String| name.starts_with("pos_embed.pos");
        all.extend(
            names
                .into_iter()
                .filter(|name| !optional(name))
                .map(|name| (name, shape.clone())),
        );
    }
    let transformer = place.folder("m/transformer");
    write_hollow(
        &transformer.join("diffusion_pytorch_model.safetensors"),
        &all,
    );
    let config = json!({
        "_class_name": "Transformer2DModel", "activation_fn": "gelu-approximate", "attention_head_dim": 72,
        "caption_channels": width, "cross_attention_dim": 1152, "in_channels": 4, "norm_type": "ada_norm_single",
        "num_attention_heads": 16, "num_layers": 28, "out_channels": 8, "patch_size": 2, "sample_size": 128,
    });
    fs::write(transformer.join("config.json"), config.to_string()).unwrap();
    let widths = [128, 256, 512, 512];
    let autoencoder: Vec<_> = Autoencoder::new(&widths, 2).0;
    let autoencoder: Vec<_> = autoencoder.into_iter().map(|[ours, _]| ours).collect();
    let vae = place.folder("m/vae");
    write_hollow(
        &vae.join("diffusion_pytorch_model.safetensors"),
        &autoencoder,
    );
    fs::write(vae.join("config.json"), kl_config(&widths, 2).to_string()).unwrap();

    let bytes = |tensors: &[(String, Vec<usize>)]| -> u64 {
        let numbers = tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>());
        4 * numbers.sum::<usize>() as u64
    };
    let whole = bytes(&tensors);
    assert_eq!(whole, 19_049_242_624);
    let written: u64 = fs::read_dir(&encoder)
        .unwrap()
        .map(|entry| 512 * entry.unwrap().metadata().unwrap().blocks())
        .sum();
    assert!(written < 1 << 20, "{written} bytes on the disk");
    let run = "sample --dry-run --device cpu --model {}/m --prompt lighthouse";
    let words = place.words(&format!("{run} --json"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (peak, out) = crate::common::peak_rss(&words);
    println!(
        "measured: dry run of a PixArt with T5-XXL: {:.0} MB at most (bound 200)",
        peak as f64 / 1e6
    );
    assert!(peak > 0 && peak < 200_000_000, "{peak}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["text_encoder_bytes"], whole);
    let part = |what: &str, key: &str| -> u64 {
        let parts = report["memory"]["parts"].as_array().unwrap();
        let part = parts.iter().find(|part| part["what"] == what);
        part.unwrap()[key].as_u64().unwrap()
    };
    let block: Vec<_> = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("encoder.block.0."))
        .cloned()
        .collect();
    assert_eq!(part("text encoder", "device_bytes"), bytes(&block));
    let table = 4 * (vocabulary * width) as u64;
    assert_eq!(part("text encoder", "host_bytes"), table);
    let of_half: Vec<_> = autoencoder
        .into_iter()
        .filter(|(name, _)| name.starts_with("decoder.") || name.starts_with("post_quant"))
        .collect();
    assert_eq!(part("autoencoder", "device_bytes"), bytes(&of_half));
    let weights = part("weights", "device_bytes");
    assert!(
        (2_400_000_000..2_500_000_000).contains(&weights),
        "{weights}"
    );
    let out = place.run(run);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains(
            "text encoder: 19.049 GB in f32, of which one block at a time is read onto the device"
        ),
        "{said}"
    );
}

/// A folder that was damaged, the run that meets it, and what is said.
struct Damage {
    what: &'static str,
    /// The folder that is copied to `{}/m`: `dit`, `sharded`, `bin` or `pixart`.
    of: &'static str,
    damage: Box<dyn Fn(&Place)>,
    flags: &'static str,
    code: i32,
    said: String,
    /// Whether a dry run finds it, which reads no weights and no texts.
    dry: bool,
}

/// One that a dry run finds, too.
fn damage(
    what: &'static str,
    of: &'static str,
    damage: impl Fn(&Place) + 'static,
    flags: &'static str,
    (code, said): (i32, &str),
) -> Damage {
    Damage {
        what,
        of,
        damage: Box::new(damage),
        flags,
        code,
        said: said.into(),
        dry: true,
    }
}

/// One that shows in values alone.
fn of_values(
    what: &'static str,
    of: &'static str,
    values: impl Fn(&Place) + 'static,
    flags: &'static str,
    said: (i32, &str),
) -> Damage {
    Damage {
        dry: false,
        ..damage(what, of, values, flags, said)
    }
}

#[test]
fn every_damaged_pipeline_is_refused_before_anything_is_drawn() {
    const PARTS: &str = "though its model_index.json names it; expected the whole pipeline folder, or at least its transformer and scheduler (of a folder of the hub, `harmonica pull` fetches parts)";
    const OTHER: &str =
        "; --text-encoder DIR names another folder, with text_encoder/ and tokenizer/";
    const WHOLE: &str = "was the folder copied or downloaded wholly?";
    const POINTER: &str = "is damaged: it is a Git LFS pointer in the place of the weights; `git lfs pull` in the folder, or `harmonica pull`, fetches them";
    const OF_DIT: &str = "m/transformer/diffusion_pytorch_model.safetensors";
    const OF_VAE: &str = "m/vae/diffusion_pytorch_model.safetensors";
    const OF_TEXT: &str = "m/text_encoder/model.safetensors";
    let no_file = "No such file or directory (os error 2)";
    let remove = |name: &'static str| {
        move |place: &Place| {
            let path = place.path(name);
            match path.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
    };
    let cut = |name: &'static str| {
        move |place: &Place| {
            let bytes = fs::read(place.path(name)).unwrap();
            fs::write(place.path(name), &bytes[..bytes.len() - 100]).unwrap();
        }
    };
    let pointer = |name: &'static str| {
        move |place: &Place| {
            assert!(place.path(name).is_file());
            let text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2\n";
            fs::write(place.path(name), text).unwrap();
        }
    };
    // Changes the tensors of a safetensors file.
    let change = |name: &'static str, edit: fn(&mut Tensors)| {
        move |place: &Place| {
            let path = place.path(name);
            let mut tensors = tensors_of(&path);
            edit(&mut tensors);
            write_safetensors(&path, &tensors);
        }
    };
    let nan = |tensors: &mut Tensors| *tensors[0].2.last_mut().unwrap() = f32::NAN;
    let instead = |name: &'static str, from: &'static str| {
        move |place: &Place| {
            fs::remove_dir_all(place.path(name)).unwrap();
            copy_tree(&golden(from), &place.path(name));
        }
    };
    let nothing = |_: &Place| {};
    let set = |name: &'static str, key: &'static str, value: Value| {
        move |place: &Place| place.set(name, key, value.clone())
    };
    // The weights of the encoder in two shards.
    let text_shards = |place: &Place| {
        let folder = place.path("m/text_encoder");
        let tensors = tensors_of(&folder.join("model.safetensors"));
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        write_shards(&folder, "model", &tensors);
    };
    let cases = [
        damage(
            "no transformer",
            "dit",
            remove("m/transformer"),
            "",
            (1, &format!("{{}}/m has no `transformer/`, {PARTS}")),
        ),
        damage(
            "no scheduler",
            "dit",
            remove("m/scheduler"),
            "",
            (1, &format!("{{}}/m has no `scheduler/`, {PARTS}")),
        ),
        damage(
            "no autoencoder",
            "dit",
            remove("m/vae"),
            "",
            (1, &format!("{{}}/m has no `vae/`, {PARTS}")),
        ),
        damage(
            "no text encoder",
            "pixart",
            remove("m/text_encoder"),
            "--prompt lighthouse",
            (
                2,
                "no text encoder lies beside the model {}/m: pass --text-encoder DIR, a folder with text_encoder/ and tokenizer/, or --texts with a file of encoded texts",
            ),
        ),
        damage(
            "no tokenizer",
            "pixart",
            remove("m/tokenizer"),
            "--prompt lighthouse",
            (
                2,
                &format!(
                    "{{}}/m holds no tokenizer: expected tokenizer.json or spiece.model in it{OTHER}"
                ),
            ),
        ),
        damage(
            "no weights of the encoder",
            "pixart",
            remove(OF_TEXT),
            "--prompt lighthouse",
            (
                2,
                &format!(
                    "{{}}/m/text_encoder holds no weights of a text encoder: expected model.safetensors, its shards with an index, or pytorch_model.bin in it{OTHER}"
                ),
            ),
        ),
        damage(
            "no config of the autoencoder",
            "dit",
            remove("m/vae/config.json"),
            "",
            (1, &format!("cannot open {{}}/m/vae/config.json: {no_file}")),
        ),
        damage(
            "missing shard",
            "sharded",
            remove("m/transformer/diffusion_pytorch_model-00003-of-00003.safetensors"),
            "",
            (
                1,
                &format!(
                    "{{}}/m/transformer/diffusion_pytorch_model.safetensors.index.json names the shard `diffusion_pytorch_model-00003-of-00003.safetensors`, which does not lie beside it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "missing shard of the encoder",
            "pixart",
            move |place| {
                text_shards(place);
                remove("m/text_encoder/model-00002-of-00002.safetensors")(place);
            },
            "--prompt lighthouse",
            (
                1,
                &format!(
                    "{{}}/m/text_encoder/model.safetensors.index.json names the shard `model-00002-of-00002.safetensors`, which does not lie beside it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "shard without a tensor of the index",
            "sharded",
            change(
                "m/transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
                |tensors| drop(tensors.pop()),
            ),
            "",
            (
                1,
                &format!(
                    "{{}}/m/transformer/diffusion_pytorch_model.safetensors.index.json places tensor `transformer_blocks.1.ff.net.2.weight` in `diffusion_pytorch_model-00003-of-00003.safetensors`, which does not hold it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "shard of the encoder without a tensor",
            "pixart",
            move |place| {
                text_shards(place);
                change(
                    "m/text_encoder/model-00001-of-00002.safetensors",
                    |tensors| drop(tensors.pop()),
                )(place);
            },
            "--prompt lighthouse",
            (
                1,
                &format!(
                    "{{}}/m/text_encoder/model.safetensors.index.json places tensor `encoder.block.1.layer.0.SelfAttention.k.weight` in `model-00001-of-00002.safetensors`, which does not hold it; {WHOLE}"
                ),
            ),
        ),
        damage(
            "missing tensor",
            "dit",
            change(OF_DIT, |tensors| {
                tensors.retain(|(name, ..)| name != "transformer_blocks.1.ff.net.2.bias")
            }),
            "",
            (
                1,
                "{}/m/transformer: tensor `transformer_blocks.1.ff.net.2.bias` [8] is missing (1 missing in all)",
            ),
        ),
        damage(
            "tensor of another network",
            "dit",
            change(OF_DIT, |tensors| {
                tensors.push(("lora.weight".into(), vec![1], vec![0.0]))
            }),
            "",
            (
                1,
                "{}/m/transformer: tensor `lora.weight` [1] belongs to no part of DiT with 2 blocks of 8 (2 heads), patch 2 (1 such tensors in all)",
            ),
        ),
        damage(
            "another class of transformer",
            "dit",
            set(
                "m/transformer/config.json",
                "_class_name",
                json!("SD3Transformer2DModel"),
            ),
            "",
            (
                1,
                "{}/m/transformer/config.json cannot be understood: it describes a `SD3Transformer2DModel`, expected a DiTTransformer2DModel",
            ),
        ),
        damage(
            "another class of PixArt's transformer",
            "pixart",
            set(
                "m/transformer/config.json",
                "_class_name",
                json!("FluxTransformer2DModel"),
            ),
            "--prompt lighthouse",
            (
                1,
                "{}/m/transformer/config.json cannot be understood: it describes a `FluxTransformer2DModel`, expected a PixArtTransformer2DModel",
            ),
        ),
        damage(
            "another class of autoencoder",
            "dit",
            set(
                "m/vae/config.json",
                "_class_name",
                json!("AsymmetricAutoencoderKL"),
            ),
            "",
            (
                1,
                "{}/m/vae cannot be understood: as an autoencoder: its config.json describes a `AsymmetricAutoencoderKL`, expected `AutoencoderKL` or `AutoencoderTiny`",
            ),
        ),
        damage(
            "another class of encoder",
            "pixart",
            set(
                "m/text_encoder/config.json",
                "feed_forward_proj",
                json!("gated-silu"),
            ),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder/config.json cannot be understood: it describes no T5 encoder: unknown variant `gated-silu`, expected `relu` or `gated-gelu` at line 1 column 205",
            ),
        ),
        damage(
            "pipeline of another family",
            "pixart",
            set("m/model_index.json", "_class_name", json!("DiTPipeline")),
            "--prompt lighthouse",
            (
                1,
                "{}/m/model_index.json cannot be understood: it is a DiTPipeline, whose transformer is a DiT, but the one there is a PixArt",
            ),
        ),
        damage(
            "heads that do not divide",
            "dit",
            set("m/transformer/config.json", "num_attention_heads", json!(3)),
            "",
            (
                2,
                "{}/m/transformer: it describes no DiT: hidden size 8 is no multiple of heads 3",
            ),
        ),
        damage(
            "autoencoder of other latents",
            "dit",
            instead("m/vae", "vae/xl"),
            "",
            (
                2,
                "{}/m: the autoencoder has 3 latent channels, DiT with 2 blocks of 8 (2 heads), patch 2 draws 4; expected the one that it was trained with",
            ),
        ),
        damage(
            "half of an autoencoder",
            "dit",
            |place| place.copy("vae/tiny-encoder.safetensors", "taesd_encoder.safetensors"),
            "--vae {}/taesd_encoder.safetensors",
            (
                2,
                "{}/taesd_encoder.safetensors: it holds an encoder alone; expected a decoder",
            ),
        ),
        damage(
            "autoencoder of other groups",
            "dit",
            |place| place.copy("vae/kl-ldm.safetensors", "ldm.safetensors"),
            "--vae {}/ldm.safetensors",
            (
                1,
                "{}/ldm.safetensors cannot be understood: as an autoencoder: its width 4 is no multiple of the 32 groups of its norms",
            ),
        ),
        damage(
            "transformer as the autoencoder",
            "dit",
            nothing,
            "--vae {}/m/transformer",
            (
                1,
                "{}/m/transformer cannot be understood: as an autoencoder: expected the tensors of an AutoencoderKL or of TAESD, found `pos_embed.proj.bias`, `pos_embed.proj.weight`, `proj_out_1.bias`",
            ),
        ),
        damage(
            "encoder of another width",
            "pixart",
            instead("m/text_encoder", "text/relu"),
            "--prompt lighthouse",
            (
                2,
                &format!(
                    "the encoder in {{}}/m/text_encoder makes tokens of 16 numbers, the model takes tokens of 32: it belongs to another model{OTHER}"
                ),
            ),
        ),
        damage(
            "encoder of another depth",
            "pixart",
            set("m/text_encoder/config.json", "num_layers", json!(3)),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder: tensor `encoder.block.2.layer.0.layer_norm.weight` [32] is missing (9 missing in all)",
            ),
        ),
        damage(
            "tokenizer cut off",
            "pixart",
            cut("m/tokenizer/tokenizer.json"),
            "--prompt lighthouse",
            (
                1,
                "the tokenizer {}/m/tokenizer/tokenizer.json cannot be used: EOF while parsing a list at line 511 column 4",
            ),
        ),
        damage(
            "weights cut off",
            "dit",
            cut(OF_DIT),
            "",
            (
                1,
                "{}/m/transformer/diffusion_pytorch_model.safetensors is damaged: tensor `transformer_blocks.1.norm1.linear.weight` lies at bytes 28320 to 29856, the file has 29756 bytes of data; was it cut off?",
            ),
        ),
        damage(
            "autoencoder cut off",
            "dit",
            cut(OF_VAE),
            "",
            (
                1,
                "{}/m/vae/diffusion_pytorch_model.safetensors is damaged: tensor `quant_conv.weight` lies at bytes 12284 to 12540, the file has 12440 bytes of data; was it cut off?",
            ),
        ),
        damage(
            "encoder cut off",
            "pixart",
            cut(OF_TEXT),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder/model.safetensors is damaged: tensor `shared.weight` lies at bytes 56128 to 68928, the file has 68828 bytes of data; was it cut off?",
            ),
        ),
        damage(
            "pointer to the weights",
            "dit",
            pointer(OF_DIT),
            "",
            (1, &format!("{{}}/{OF_DIT} {POINTER}")),
        ),
        damage(
            "pointer to pickled weights",
            "bin",
            pointer("m/transformer/diffusion_pytorch_model.bin"),
            "",
            (
                1,
                &format!("{{}}/m/transformer/diffusion_pytorch_model.bin {POINTER}"),
            ),
        ),
        damage(
            "pointer to the autoencoder",
            "dit",
            pointer(OF_VAE),
            "--vae {}/m/vae/diffusion_pytorch_model.safetensors",
            (1, &format!("{{}}/{OF_VAE} {POINTER}")),
        ),
        damage(
            "pointer to the encoder",
            "pixart",
            pointer(OF_TEXT),
            "--prompt lighthouse",
            (1, &format!("{{}}/{OF_TEXT} {POINTER}")),
        ),
        damage(
            "no such variant",
            "dit",
            nothing,
            "--variant bf16",
            (
                2,
                "{}/m/transformer: it holds no variant `bf16`, but diffusion_pytorch_model.safetensors",
            ),
        ),
        of_values(
            "a weight that is no number",
            "dit",
            change(OF_DIT, nan),
            "",
            (
                1,
                "{}/m/transformer: tensor `pos_embed.proj.bias` holds a value that is not finite at position 7; the model cannot be used",
            ),
        ),
        of_values(
            "an autoencoder's weight that is no number",
            "dit",
            change(OF_VAE, |tensors| {
                tensors
                    .iter_mut()
                    .filter(|(name, ..)| name == "decoder.conv_in.bias")
                    .for_each(|(.., values)| values[1] = f32::INFINITY)
            }),
            "",
            (
                1,
                "{}/m/vae: tensor `decoder.conv_in.bias` holds a value that is not finite at position 1; the model cannot be used",
            ),
        ),
        of_values(
            "an encoder's weight that is no number",
            "pixart",
            change(OF_TEXT, nan),
            "--prompt lighthouse",
            (
                1,
                "{}/m/text_encoder: tensor `encoder.block.0.layer.0.SelfAttention.k.weight` holds a value that is not finite at position 767; the model cannot be used",
            ),
        ),
        of_values(
            "a weight beyond f16",
            "dit",
            change(OF_DIT, |tensors| {
                tensors
                    .iter_mut()
                    .filter(|(name, ..)| name == "transformer_blocks.0.attn1.to_k.weight")
                    .for_each(|(.., values)| values[3] = 1e6)
            }),
            "--dtype f16",
            (
                1,
                "{}/m: tensor `blocks.0.attn.qkv.weight` holds 1000000, which is beyond f16; keep the weights in f32 (--dtype f32)",
            ),
        ),
        of_values(
            "tokenizer of another encoder",
            "pixart",
            |place| {
                let path = place.path(OF_TEXT);
                let mut tensors = tensors_of(&path);
                for (name, shape, values) in &mut tensors {
                    if name == "shared.weight" {
                        shape[0] = 4;
                        values.truncate(4 * shape[1]);
                    }
                }
                write_safetensors(&path, &tensors);
                place.set("m/text_encoder/config.json", "vocab_size", json!(4));
            },
            "--prompt lighthouse",
            (
                1,
                "token 23 is none of the encoder's 4: its tokenizer belongs to another encoder; --text-encoder DIR names another folder, with text_encoder/ and tokenizer/",
            ),
        ),
    ];
    let mut wrong = Vec::new();
    for case in &cases {
        let place = Place::new();
        let model = place.path("m");
        match case.of {
            "pixart" => pixart(&model, "PixArtAlphaPipeline", "pixart-ms"),
            form => {
                copy_tree(&golden("hub"), &model);
                if form != "dit" {
                    fs::remove_dir_all(model.join("transformer")).unwrap();
                    copy_tree(&golden("hub-forms").join(form), &model.join("transformer"));
                }
            }
        }
        (case.damage)(&place);
        for dry in [" --dry-run", ""]
            .iter()
            .filter(|dry| case.dry || dry.is_empty())
        {
            let run =
                format!("sample --device cpu --steps 2 -n 1 --model {{}}/m --out {{}}/x.png{dry}");
            let out = place.run(&format!("{run} {}", case.flags));
            let text = String::from_utf8_lossy(&out.stderr);
            let text = text.replace(&place.0.path().display().to_string(), "{}");
            let said = text.lines().find_map(|line| line.strip_prefix("error: "));
            let found = (out.status.code(), said.unwrap_or(&text));
            if found != (Some(case.code), &case.said) {
                let what = case.what;
                wrong.push(format!(
                    "{what}{dry}\n  found    {found:?}\n  expected {:?}",
                    (case.code, &case.said)
                ));
            }
            assert!(!place.path("x.png").exists(), "{}", case.what);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(cases.len() >= 20);
}

/// On machines where every device has f16, the unit test of `residence` is what says so; Mesa's OpenGL has none.
#[test]
fn f16_on_a_device_without_it_is_refused() {
    let devices = crate::common::harmonica_json(&["devices", "--json"]);
    let adapters = devices["adapters"].as_array().unwrap();
    assert!(!adapters.is_empty(), "these tests need a Vulkan driver");
    let place = Place::new();
    for adapter in adapters {
        println!(
            "measured: {} by {}: f16 {}",
            adapter["name"], adapter["api"], adapter["f16"]
        );
        if adapter["f16"] == true {
            continue;
        }
        let index = &adapter["index"];
        for dry in ["--dry-run", ""] {
            let run = format!("sample {dry} --dtype f16 --device {index} --out {{}}/x.png");
            let out = place.run(&run);
            let said = String::from_utf8_lossy(&out.stderr);
            let expected =
                "error: bundled: this device has no f16; keep the weights in f32 (--dtype f32)";
            assert!(said.lines().any(|line| line == expected), "{said}");
            assert_eq!(out.status.code(), Some(1));
        }
    }
}

//! Prompts: T5's tokenizer and encoder against SentencePiece and transformers, and the command that draws what they say.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use harmonica::{
    checkpoint,
    device::Engine,
    metrics::max_abs_error,
    models::{
        TextEmbedding,
        text::{T5Encoder, TextError, TextTokenizer},
    },
};
use serde_json::Value;

use crate::common::{
    copy_tree, engines, golden, integers, tensor, tensors_of, within, write_shards,
};

const ENCODER_BOUND: f64 = 1e-5;
const END: u32 = 1;

/// The strings of the golden file with their ids, by the tokenizer of a kind.
fn coded(kind: &str) -> Vec<(String, Vec<u32>)> {
    let text = std::fs::read_to_string(golden("text.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let list = |name: &str| json[name].as_array().unwrap().clone();
    let ids = |ids: &Value| -> Vec<u32> { serde_json::from_value(ids.clone()).unwrap() };
    let texts = list("texts");
    let texts = texts.iter().map(|text| text.as_str().unwrap().to_owned());
    texts.zip(list(kind).iter().map(ids)).collect()
}

/// The token ids of `text.io.safetensors`, without padding.
fn golden_ids() -> Vec<Vec<u32>> {
    let file = "text.io.safetensors";
    let (ids, mask) = (integers(file, "ids"), integers(file, "mask"));
    let texts = ids.chunks(60).zip(mask.chunks(60));
    let of_text = |(ids, mask): (&[usize], &[usize])| {
        let counts = mask.iter().sum();
        ids[..counts].iter().map(|id| *id as u32).collect()
    };
    texts.map(of_text).collect()
}

fn encode(folder: &Path, ids: &[Vec<u32>], engine: &Engine) -> Vec<TextEmbedding> {
    let encoder = T5Encoder::open(folder).unwrap();
    let each = &mut |_| ControlFlow::Continue(());
    encoder.encode(ids, engine.device(), each).unwrap()
}

#[test]
fn tokens_are_those_of_sentencepiece_and_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let spiece = golden("text/tokenizer/spiece.model");
    std::fs::copy(spiece, folder.path().join("spiece.model")).unwrap();
    for (kind, folder) in [
        ("json", golden("text/tokenizer")),
        ("spiece", folder.path().into()),
    ] {
        let tokenizer = TextTokenizer::open(&folder).unwrap();
        let texts = coded(kind);
        assert_eq!(texts.len(), 16);
        for (text, ids) in texts {
            let found = tokenizer.tokenize(&text, END, 300).unwrap();
            assert_eq!(found.ids, ids, "{kind}: {text:?}");
            assert_eq!(found.cut, None, "{kind}: {text:?}");
        }
        // What SentencePiece takes for the end of a text is that for transformers in the middle of one too.
        let marked = tokenizer.tokenize("a</s>", END, 300).unwrap();
        assert_eq!(&marked.ids[marked.ids.len() - 2..], [END, END], "{kind}");
    }
}

#[test]
fn long_texts_are_cut_and_what_was_cut_is_told() {
    let tokenizer = TextTokenizer::open(&golden("text/tokenizer")).unwrap();
    let (text, ids) = coded("json").pop().unwrap();
    for most in [1, 10, 120, ids.len() - 1] {
        let found = tokenizer.tokenize(&text, END, most).unwrap();
        assert_eq!(found.ids[..most - 1], ids[..most - 1]);
        assert_eq!(found.ids[most - 1..], [END]);
        let cut = found.cut.unwrap();
        assert!(!cut.is_empty() && text.ends_with(&cut), "{most}: {cut}");
        // Kept and cut make the whole again.
        let rest = tokenizer.tokenize(&cut, END, 300).unwrap();
        assert!(most - 1 + rest.ids.len() >= ids.len(), "{most}: {cut}");
    }
    let whole = tokenizer.tokenize(&text, END, ids.len()).unwrap();
    assert_eq!((whole.ids, whole.cut), (ids, None));
    let unicode = tokenizer.tokenize("灯台 在 夜 a 🦊 in the snow", END, 4);
    assert!(unicode.unwrap().cut.unwrap().ends_with("in the snow"));
}

/// Single files, shards, and PyTorch's; gated and with ReLU; on both devices.
#[test]
fn hidden_states_are_those_of_transformers() {
    let shards = tempfile::tempdir().unwrap();
    shard(&golden("text/text_encoder"), shards.path());
    let ids = golden_ids();
    for (device, engine) in engines() {
        for (folder, name) in [
            (golden("text/text_encoder"), "hidden"),
            (golden("text/pickled"), "hidden"),
            (shards.path().into(), "hidden"),
            (golden("text/relu"), "relu.hidden"),
        ] {
            let (shape, expected) = tensor("text.io.safetensors", name);
            let [4, 60, width] = shape[..] else {
                panic!("{shape:?}")
            };
            let found = encode(&folder, &ids, &engine);
            assert_eq!(found.len(), 4);
            let texts = expected.chunks(60 * width).zip(&ids).zip(&found);
            let errors = texts.map(|((expected, ids), found)| {
                assert_eq!((found.tokens(), found.width()), (ids.len(), width));
                assert!(found.mask().iter().all(|counts| *counts));
                max_abs_error(found.values(), &expected[..ids.len() * width])
            });
            let error = errors.fold(0.0, f32::max);
            within(
                format!("T5, {}, {device}", folder.display()),
                error,
                ENCODER_BOUND,
            );
        }
    }
}

/// The weights of a folder in two files with an index.
fn shard(from: &Path, to: &Path) {
    write_shards(to, "model", &tensors_of(&from.join("model.safetensors")));
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
}

#[test]
fn a_text_does_not_depend_on_its_company() {
    let ids = golden_ids();
    let folder = golden("text/text_encoder");
    let together = encode(&folder, &ids, &Engine::cpu());
    for (ids, together) in ids.iter().zip(&together) {
        let alone = encode(&folder, std::slice::from_ref(ids), &Engine::cpu()).remove(0);
        let error = max_abs_error(alone.values(), together.values());
        within(format!("{} tokens alone", ids.len()), error, ENCODER_BOUND);
    }
    assert!(encode(&folder, &[], &Engine::cpu()).is_empty());
}

#[test]
fn an_encoder_can_be_broken_off_and_checks_its_tokens() {
    let open = || T5Encoder::open(&golden("text/text_encoder")).unwrap();
    let device = Engine::cpu().device().clone();
    let mut heard = Vec::new();
    let stopped = open().encode(&golden_ids(), &device, &mut |block| {
        heard.push(block);
        match block {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    });
    assert!(matches!(stopped, Err(TextError::Stopped)));
    assert_eq!(heard, [0, 1]);
    let each = &mut |_| ControlFlow::Continue(());
    let unknown = open().encode(&[vec![5, 100, 1]], &device, each);
    assert!(matches!(
        unknown,
        Err(TextError::Token {
            token: 100,
            vocabulary: 100
        })
    ));
    assert!(open().encode(&[vec![]], &device, each).is_err());
}

/// The same weights are the same encoder in any file; others are not.
#[test]
fn encoders_have_fingerprints() {
    let of = |name: &str| {
        T5Encoder::open(&golden(name))
            .unwrap()
            .fingerprint()
            .unwrap()
    };
    assert_eq!(of("text/text_encoder"), of("text/pickled"));
    assert_ne!(of("text/text_encoder"), of("text/relu"));
}

#[test]
fn damaged_folders_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("folder");
    let refused = |name: &str, damage: &dyn Fn(&Path), reason: &str| {
        let _ = std::fs::remove_dir_all(&place);
        copy_tree(&golden(name), &place);
        damage(&place);
        let tokenizer = name.ends_with("tokenizer");
        let error = match tokenizer {
            true => TextTokenizer::open(&place).map(drop).unwrap_err(),
            false => T5Encoder::open(&place).map(drop).unwrap_err(),
        };
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    };
    let remove =
        |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let write = |name: &'static str, text: &'static str| {
        move |folder: &Path| std::fs::write(folder.join(name), text).unwrap()
    };
    let halve = |name: &'static str| {
        move |folder: &Path| {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            std::fs::write(folder.join(name), &bytes[..bytes.len() / 2]).unwrap();
        }
    };
    let change = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let config = folder.join("config.json");
            let text = std::fs::read_to_string(&config).unwrap();
            assert!(text.contains(from));
            std::fs::write(&config, text.replace(from, to)).unwrap();
        }
    };
    let encoder = "text/text_encoder";
    refused(encoder, &remove("config.json"), "holds no text encoder");
    refused(
        encoder,
        &remove("model.safetensors"),
        "holds no weights of a text encoder",
    );
    refused(encoder, &halve("model.safetensors"), "was it cut off?");
    refused(
        encoder,
        &write("config.json", "{}"),
        "missing field `d_model`",
    );
    refused(encoder, &change("gated-gelu", "gated-silu"), "gated-silu");
    refused(
        encoder,
        &change("gated-gelu", "relu"),
        "`encoder.block.0.layer.1.DenseReluDense.wi.weight`",
    );
    refused(
        encoder,
        &change("\"num_layers\": 2", "\"num_layers\": 3"),
        "encoder.block.2",
    );
    refused(
        encoder,
        &change("\"d_ff\": 40", "\"d_ff\": 41"),
        "has shape [40, 32], expected [41, 32]",
    );
    refused(
        encoder,
        &change("\"num_heads\": 3", "\"num_heads\": 0"),
        "num_heads is 0",
    );
    refused(
        "text/pickled",
        &halve("pytorch_model.bin"),
        "pytorch_model.bin is damaged",
    );

    let tokenizer = "text/tokenizer";
    refused(
        tokenizer,
        &halve("tokenizer.json"),
        "tokenizer.json cannot be used",
    );
    refused(
        tokenizer,
        &write("tokenizer.json", "{}"),
        "tokenizer.json cannot be used",
    );
    let alone = |damage: &'static dyn Fn(&Path)| {
        move |folder: &Path| {
            remove("tokenizer.json")(folder);
            damage(folder);
        }
    };
    refused(
        tokenizer,
        &alone(&|folder| std::fs::remove_file(folder.join("spiece.model")).unwrap()),
        "holds no tokenizer: expected tokenizer.json or spiece.model",
    );
    refused(
        tokenizer,
        &alone(&|folder| std::fs::write(folder.join("spiece.model"), "").unwrap()),
        "it has 0 pieces",
    );
    refused(
        tokenizer,
        &alone(&|folder| std::fs::write(folder.join("spiece.model"), "words").unwrap()),
        "it is no SentencePiece model",
    );
}

/// A byte that is off makes other tokens or an error, nothing else.
#[test]
fn no_damaged_spiece_model_is_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spiece.model");
    let bytes = std::fs::read(golden("text/tokenizer/spiece.model")).unwrap();
    let mut refused = 0;
    for at in (0..bytes.len()).step_by(17) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        std::fs::write(&path, &damaged).unwrap();
        let tokens = TextTokenizer::open(folder.path())
            .and_then(|tokenizer| tokenizer.tokenize("a\tcafe\u{301} ﬁ™ 🦊", END, 300));
        refused += usize::from(tokens.is_err());
        std::fs::write(&path, &bytes[..at]).unwrap();
        let _ = TextTokenizer::open(folder.path());
    }
    assert!(refused > 5, "{refused}");
}

/// A pipeline's folder with a text encoder, and a cache that is its own.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        copy_tree(&golden("pixart-alpha"), &model);
        copy_tree(&golden("text/text_encoder"), &model.join("text_encoder"));
        copy_tree(&golden("text/tokenizer"), &model.join("tokenizer"));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `sample`, with the pipeline's folder as the model unless another is named.
    fn sample(&self, arguments: &[&str]) -> Output {
        let model = self.path("model");
        let mut command = Command::new(env!("CARGO_BIN_EXE_harmonica"));
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command.args(["sample", "--device", "cpu", "--steps", "4"]);
        if !arguments.contains(&"--model") {
            command.arg("--model").arg(model);
        }
        if !arguments.contains(&"--out") {
            command.arg("--out").arg(self.path("pictures"));
        }
        command.args(arguments).output().unwrap()
    }

    /// What `sample` draws, `[images, C, H, W]`.
    fn drawn(&self, arguments: &[&str]) -> (Vec<usize>, Vec<f32>) {
        let tensors = self.path("samples.safetensors");
        let save = ["--save-tensors", tensors.to_str().unwrap()];
        let out = self.sample(&[arguments, &save].concat());
        assert!(out.status.success(), "{arguments:?}: {}", said(&out));
        let read = checkpoint::read_named_tensors(&tensors, &["samples"]);
        read.unwrap().remove(0)
    }

    fn cached(&self) -> Vec<PathBuf> {
        let folder = std::fs::read_dir(self.path("cache/harmonica/texts")).unwrap();
        let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

const PROMPTS: [&str; 4] = [
    "--prompt",
    "A Lighthouse on a cliff, at  NIGHT",
    "--prompt",
    "two foxes in the snow",
];

#[test]
fn prompts_are_drawn_as_their_encoded_texts_are() {
    let place = Place::new();
    let texts = golden("text-prompts.safetensors");
    let (shape, expected) = place.drawn(&["--texts", texts.to_str().unwrap()]);
    let (found_shape, found) = place.drawn(&PROMPTS);
    assert_eq!((&shape, &found_shape), (&vec![2, 4, 8, 8], &shape));
    let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let error = max_abs_error(&found, &expected) / largest;
    within("pictures of prompts", error, 2e-5);
    for name in [
        "00000-a-lighthouse-on-a-cliff-at-night.png",
        "00001-two-foxes-in-the-snow.png",
    ] {
        assert!(place.path("pictures").join(name).is_file(), "{name}");
    }
    // A prompt and what it leads away from both show.
    let other = [&PROMPTS[..], &["--negative-prompt", "a red lighthouse"]].concat();
    let (_, other) = place.drawn(&other);
    assert!(max_abs_error(&other, &found) > 1e-3);
    let one = place.drawn(&["--prompt", "two foxes in the snow"]).1;
    assert_eq!(one.len(), found.len() / 2);
}

#[test]
fn encoded_texts_are_kept() {
    let place = Place::new();
    let first = place.drawn(&PROMPTS);
    let files = place.cached();
    assert_eq!(files.len(), 3, "two prompts and the empty text");
    let bytes = |files: &[PathBuf]| -> Vec<Vec<u8>> {
        files
            .iter()
            .map(|file| std::fs::read(file).unwrap())
            .collect()
    };
    let kept = bytes(&files);

    // A damaged file is made anew, the same.
    std::fs::write(&files[0], &kept[0][..kept[0].len() / 2]).unwrap();
    let mut changed = kept[1].clone();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&files[1], changed).unwrap();
    std::fs::write(&files[2], "nothing").unwrap();
    assert_eq!(place.drawn(&PROMPTS), first);
    assert_eq!(bytes(&place.cached()), kept);

    // An encoder that cannot run is not asked for what is kept.
    spoil(&place.path("model/text_encoder/model.safetensors"));
    assert_eq!(place.drawn(&PROMPTS), first);
    let refused = place.sample(&["--prompt", "a bird"]);
    assert!(said(&refused).contains("not finite"), "{}", said(&refused));
}

/// Makes a weight of the second block a NaN.
fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let entry = &header["encoder.block.1.layer.1.DenseReluDense.wo.weight"];
    let start = entry["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + length + start..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn sizes_in_pixels_are_those_that_the_model_has() {
    let place = Place::new();
    let prompt = ["--prompt", "a bird", "--size"];
    let (shape, _) = place.drawn(&[&prompt[..], &["96x64"]].concat());
    assert_eq!(shape, [1, 4, 8, 12]);
    let out = place.sample(&[&prompt[..], &["100x64"]].concat());
    assert!(
        out.status.success() && said(&out).contains("drawing 96x64 instead of 100x64"),
        "{}",
        said(&out)
    );
    let out = place.sample(&[&prompt[..], &["96x64", "--input-size", "8x8"]].concat());
    assert_eq!(out.status.code(), Some(2), "{}", said(&out));
}

#[test]
fn the_command_says_what_a_prompt_needs() {
    let place = Place::new();
    let golden = |name: &str| golden(name).to_str().unwrap().to_owned();
    let (bare, dit) = (golden("pixart-ms"), golden("tiny-a.pt"));
    let (relu, texts) = (golden("text/relu"), golden("text-prompts.safetensors"));
    let long = "a small fox ".repeat(60);
    let (prompt, own) = (["--prompt", "a bird"], golden("text"));
    for (flags, reason) in [
        (
            vec!["--model", &dit, "--heads", "4"],
            "this one draws classes",
        ),
        (
            vec!["--model", &dit, "--heads", "4", "--size", "64x64"],
            "--size is for models that draw several sizes",
        ),
        (vec!["--model", &bare], "pass --text-encoder DIR"),
        (
            vec!["--model", &bare, "--text-encoder", &bare],
            "holds no text encoder",
        ),
        (
            vec!["--text-encoder", &relu],
            "makes tokens of 16 numbers, the model takes tokens of 32",
        ),
        (vec!["--texts", &texts], "--texts"),
        (vec!["--classes", "1"], "the model draws texts, not classes"),
        (vec!["--size", "0x64"], "expected WIDTHxHEIGHT in pixels"),
    ] {
        let refused = place.sample(&[&prompt[..], &flags].concat());
        assert_eq!(
            refused.status.code(),
            Some(2),
            "{flags:?}: {}",
            said(&refused)
        );
        assert!(
            said(&refused).contains(reason),
            "{flags:?}: {}",
            said(&refused)
        );
    }
    let refused = place.sample(&["--negative-prompt", "a bird"]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));

    // The encoder of another folder, and what was too long for PixArt-α.
    let out = place.sample(&["--model", &bare, "--text-encoder", &own, "--prompt", &long]);
    let warning = said(&out);
    assert!(out.status.success(), "{warning}");
    assert!(
        warning.contains("the model takes 120 tokens; of `a small fox")
            && warning.contains("this was cut off: `"),
        "{warning}"
    );
}

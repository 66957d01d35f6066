//! Pipeline folders as they lie on the hub, names of the hub, and downloads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use harmonica::{
    checkpoint::{
        LoadOptions, ModelInfo, ModelSpec, Part, PipelineFolder, SaveOptions, SchedulerConfig,
        StoredDtype, load_model, model_info, open_model, save_model,
    },
    device::Engine,
    diffusion::{BetaCurve, NoiseSchedule, Prediction, Process, Solver},
    metrics::max_abs_error,
    models::Model,
    pipeline::Pipeline,
};
use serde_json::{Value, json};

use crate::{
    common::{copy_tree, engines, forward, golden, integers, tensor, within},
    hub_server::{COMMIT, Fault, Hub, NAME, WEIGHTS, command_with_cache, sha256},
};

const IO: &str = "hub.io.safetensors";
const SAFETENSORS: &str = "diffusion_pytorch_model.safetensors";
const BIN: &str = "diffusion_pytorch_model.bin";

/// A copy of the pipeline to change.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_tree(&golden("hub"), folder.path());
        Self(folder)
    }

    /// The same with the transformer in another form.
    fn of_form(form: &str) -> Self {
        let copy = Self::new();
        fs::remove_dir_all(copy.path("transformer")).unwrap();
        copy_tree(&golden("hub-forms").join(form), &copy.path("transformer"));
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn spec(&self) -> ModelSpec {
        ModelSpec::Path(self.0.path().into())
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        let path = self.path(name);
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    /// Cuts a file off.
    fn cut(&self, name: &str, length: usize) {
        let bytes = fs::read(self.path(name)).unwrap();
        fs::write(self.path(name), &bytes[..length]).unwrap();
    }

    /// Sets a key of a JSON file, or of an object in it.
    fn set(&self, name: &str, keys: &[&str], value: Value) {
        let mut json: Value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        let (last, outer) = keys.split_last().unwrap();
        let mut object = &mut json;
        for key in outer {
            object = &mut object[key];
        }
        match value {
            Value::Null => drop(object.as_object_mut().unwrap().shift_remove(*last)),
            value => object[last] = value,
        }
        self.write(name, &json.to_string());
    }

    fn set_scheduler(&self, key: &str, value: Value) {
        self.set("scheduler/scheduler_config.json", &[key], value);
    }
}

fn load(spec: &ModelSpec, engine: &Engine) -> Result<(Model, ModelInfo), String> {
    load_model(spec, LoadOptions::default(), engine.device()).map_err(|e| e.to_string())
}

fn info(spec: &ModelSpec) -> ModelInfo {
    model_info(spec, LoadOptions::default()).unwrap_or_else(|e| panic!("{spec}: {e}"))
}

/// The largest distance from diffusers' own output.
fn distance(model: &Model, out: &str) -> f32 {
    let (x, t) = (tensor(IO, "x"), tensor(IO, "t").1);
    let found = forward(model, &x, &t, &integers(IO, "y"));
    max_abs_error(&found, &tensor(IO, out).1)
}

#[test]
fn every_published_form_is_the_same_model() {
    let whole = info(&ModelSpec::Path(golden("hub")));
    for (device, engine) in engines() {
        for (form, out) in [
            ("sharded", "out"),
            ("bin", "out"),
            ("bin-sharded", "out"),
            ("fp16", "out_fp16"),
            ("fp16-sharded", "out_fp16"),
        ] {
            let folder = Folder::of_form(form);
            let (model, info) = load(&folder.spec(), &engine).unwrap();
            // Fingerprints are of values rounded to f16.
            assert_eq!(info.fingerprint, whole.fingerprint, "{form}");
            assert_eq!(info.class_names, whole.class_names, "{form}");
            let error = distance(&model, out);
            within(format!("forward, hub form {form}, {device}"), error, 1e-5);
        }
        let (model, _) = load(&ModelSpec::Path(golden("hub")), &engine).unwrap();
        let error = distance(&model, "out");
        within(format!("forward, hub, {device}"), error, 1e-5);
    }
    // The transformer's folder and its one file are models too, without what the pipeline says.
    for path in [
        golden("hub/transformer"),
        golden("hub/transformer").join(SAFETENSORS),
        golden("hub-forms/bin").join(BIN),
    ] {
        let alone = info(&ModelSpec::Path(path));
        assert_eq!(alone.fingerprint, whole.fingerprint);
        assert_eq!((alone.class_names.len(), alone.solver), (0, None));
    }
}

#[test]
fn full_precision_goes_first_and_a_variant_is_asked_for() {
    let both = Folder::new();
    let half = "diffusion_pytorch_model.fp16.safetensors";
    fs::copy(
        golden("hub-forms/fp16").join(half),
        both.path("transformer").join(half),
    )
    .unwrap();
    let engine = Engine::cpu();
    let (full, _) = load(&both.spec(), &engine).unwrap();
    let (half, info) = load(&both.spec().with_variant("fp16").unwrap(), &engine).unwrap();
    assert!(info.folder.is_some());
    assert!(distance(&full, "out") < 1e-5 && distance(&half, "out_fp16") < 1e-5);
    assert!(distance(&half, "out") > 1e-5);
    // Without a pipeline around it, too.
    both.remove("model_index.json");
    let (half, _) = load(&both.spec().with_variant("fp16").unwrap(), &engine).unwrap();
    assert!(distance(&half, "out_fp16") < 1e-5);

    let other = golden("hub");
    let spec = ModelSpec::Path(other.clone()).with_variant("bf16").unwrap();
    let found = load(&spec, &engine).unwrap_err();
    assert_eq!(
        found,
        format!(
            "{}/transformer: it holds no variant `bf16`, but diffusion_pytorch_model.safetensors",
            other.display()
        )
    );
    let found = ModelSpec::Bundled.with_variant("fp16").unwrap_err();
    assert_eq!(found.to_string(), "bundled: it has no variant `fp16`");
}

#[test]
fn a_folder_says_what_it_has_and_how_it_is_drawn() {
    let copy = Folder::new();
    let read = || PipelineFolder::read(copy.0.path()).unwrap().unwrap();
    let folder = read();
    assert_eq!((folder.class, folder.family), ("DiTPipeline", "DiT"));
    let parts: Vec<_> = folder
        .parts
        .iter()
        .map(|p| (p.part, &*p.class, p.there))
        .collect();
    let expected = [
        (Part::Transformer, "DiTTransformer2DModel", true),
        (Part::Scheduler, "DDIMScheduler", true),
        (Part::Vae, "AutoencoderKL", true),
    ];
    assert_eq!(parts, expected);
    assert_eq!(folder.part(Part::Vae).unwrap(), Some(&*copy.path("vae")));
    assert_eq!(folder.part(Part::TextEncoder).unwrap(), None);
    let scheduler = folder.scheduler().unwrap().unwrap();
    assert_eq!(scheduler.solver, Some(Solver::Ddim { eta: 0.0 }));
    assert!(scheduler.process.is_usual() && !scheduler.clip_x0);
    assert_eq!(
        scheduler.notes,
        [r#"`timestep_spacing` is "leading" there, runs here have "linspace""#]
    );

    // PixArt's, as diffusers writes it, with the `-Infinity` that JSON does not know.
    let path = golden("hub-forms/scheduler/scheduler_config.json");
    let dpm = SchedulerConfig::read(&path).unwrap();
    assert_eq!(dpm.solver, Some(Solver::Dpm2m));
    assert!(dpm.process.is_usual() && !dpm.clip_x0);
    assert_eq!(dpm.notes, Vec::<String>::new());

    // A transformer is enough to sample; what decodes its latents may come later.
    copy.remove("vae");
    let info = info(&copy.spec());
    let folder = info.folder.as_ref().unwrap();
    assert_eq!(
        folder.part(Part::Vae).unwrap_err().to_string(),
        format!(
            "{} has no `vae/`, though its model_index.json names it; expected the whole pipeline folder, or at least its transformer and scheduler (of a folder of the hub, `harmonica pull` fetches parts)",
            copy.0.path().display()
        )
    );
    let found = [
        "TENCH",
        "Tinca tinca",
        "man-eater",
        "lifting machine",
        "crane",
        "4",
    ];
    let found = found.map(|name| info.class_by_name(name));
    assert_eq!(
        found,
        [Some(0), Some(0), Some(2), Some(4), Some(3), Some(4)]
    );
    assert_eq!(info.class_name(2), "great white shark");
    assert!(
        PipelineFolder::read(&golden("diffusers-single"))
            .unwrap()
            .is_none()
    );
}

/// What a network predicts of which noise decides every step, and survives conversion.
#[test]
fn other_noise_and_predictions_reach_the_steps_of_a_run() {
    let copy = Folder::new();
    copy.set_scheduler("beta_schedule", json!("scaled_linear"));
    copy.set_scheduler("beta_start", json!(0.00085));
    copy.set_scheduler("beta_end", json!(0.012));
    copy.set_scheduler("prediction_type", json!("v_prediction"));
    copy.set_scheduler("_class_name", json!("DPMSolverMultistepScheduler"));
    copy.set_scheduler("timestep_spacing", json!("linspace"));
    let process = Process {
        prediction: Prediction::Velocity,
        noise: NoiseSchedule::new(BetaCurve::ScaledLinear, 0.00085, 0.012).unwrap(),
    };
    let engine = Engine::cpu();
    let open = |spec: &ModelSpec| Pipeline::open(&engine, spec, LoadOptions::default()).unwrap();
    let pipeline = open(&copy.spec());
    // The network itself says so, since samplers ask it.
    assert_eq!(pipeline.model.outline().latents.process, process);
    assert_eq!(pipeline.info.notes, Vec::<String>::new());
    let settings = pipeline.usual_settings();
    assert_eq!(settings.solver, Solver::Dpm2m);
    let steps = settings.numbers(&pipeline.info.outline.latents).unwrap();
    // √ᾱ of the noisiest timestep, from diffusers' formula.
    let product = (0..1000).fold(1.0, |product, t| {
        let root = 0.00085f64.sqrt() + (0.012f64.sqrt() - 0.00085f64.sqrt()) * t as f64 / 999.0;
        product * (1.0 - root * root)
    });
    assert!((steps[0].predict[0] - product.sqrt()).abs() < 1e-9);

    let out = copy.path("converted.safetensors");
    let save = SaveOptions::default();
    save_model(
        &copy.spec(),
        LoadOptions::default(),
        save,
        StoredDtype::F32,
        &out,
    )
    .unwrap();
    let again = open(&ModelSpec::Path(out)).info;
    assert_eq!(again.outline, pipeline.info.outline);
    assert_eq!((again.solver, again.clip_x0), (Some(Solver::Dpm2m), false));
    assert_eq!(again.class_names, pipeline.info.class_names);
}

#[test]
fn every_damaged_folder_is_refused_with_its_reason() {
    const INDEX: &str = "transformer/diffusion_pytorch_model.safetensors.index.json";
    const BIN_INDEX: &str = "transformer/diffusion_pytorch_model.bin.index.json";
    const BAD_SCHEDULER: &str = "{}/scheduler/scheduler_config.json cannot be understood: ";
    const BAD_FOLDER: &str = "{}/model_index.json cannot be understood: ";
    let parts = "though its model_index.json names it; expected the whole pipeline folder, or at least its transformer and scheduler (of a folder of the hub, `harmonica pull` fetches parts)";
    let whole = "which does not lie beside it; was the folder copied or downloaded wholly?";
    let no_file = "No such file or directory (os error 2)";
    let scheduler = |key: &str, value: Value, problem: &str| {
        let folder = Folder::new();
        folder.set_scheduler(key, value);
        (folder, format!("{BAD_SCHEDULER}{problem}"))
    };
    let index = |keys: &[&str], value: Value, problem: &str| {
        let folder = Folder::new();
        folder.set("model_index.json", keys, value);
        (folder, format!("{BAD_FOLDER}{problem}"))
    };
    let form = |form: &str, damage: &dyn Fn(&Folder), text: String| {
        let folder = Folder::of_form(form);
        damage(&folder);
        (folder, text)
    };
    let header = {
        let bytes = fs::read(golden(
            "hub-forms/sharded/diffusion_pytorch_model-00002-of-00003.safetensors",
        ));
        u64::from_le_bytes(bytes.unwrap()[..8].try_into().unwrap())
    };
    let cases: Vec<(&str, (Folder, String))> = vec![
        ("no transformer", form("sharded", &|f| f.remove("transformer"), format!("{{}} has no `transformer/`, {parts}"))),
        ("no scheduler", form("sharded", &|f| f.remove("scheduler"), format!("{{}} has no `scheduler/`, {parts}"))),
        ("no scheduler config", form("bin", &|f| f.remove("scheduler/scheduler_config.json"), format!("cannot open {{}}/scheduler/scheduler_config.json: {no_file}"))),
        ("no transformer config", form("bin", &|f| f.remove("transformer/config.json"), format!("cannot open {{}}/transformer/config.json: {no_file}"))),
        ("no weights", form("bin", &|f| f.remove("transformer/diffusion_pytorch_model.bin"), "{}/transformer is no model file: the folder holds neither diffusion_pytorch_model.safetensors nor diffusion_pytorch_model.safetensors.index.json; expected a .pt of the DiT release, a .safetensors file, or a diffusers folder".into())),
        ("missing shard", form("sharded", &|f| f.remove("transformer/diffusion_pytorch_model-00002-of-00003.safetensors"), format!("{{}}/{INDEX} names the shard `diffusion_pytorch_model-00002-of-00003.safetensors`, {whole}"))),
        ("missing shard of a pickle", form("bin-sharded", &|f| f.remove("transformer/diffusion_pytorch_model-00003-of-00003.bin"), format!("{{}}/{BIN_INDEX} names the shard `diffusion_pytorch_model-00003-of-00003.bin`, {whole}"))),
        ("index of a file that never was", form("sharded", &|f| f.set(INDEX, &["weight_map", "pos_embed.proj.bias"], json!("nothing.safetensors")), format!("{{}}/{INDEX} names the shard `nothing.safetensors`, {whole}"))),
        ("index that leaves the folder", form("sharded", &|f| f.set(INDEX, &["weight_map", "pos_embed.proj.bias"], json!("../vae/diffusion_pytorch_model.safetensors")), format!("{{}}/{INDEX} cannot be understood: tensor `pos_embed.proj.bias` is placed in \"../vae/diffusion_pytorch_model.safetensors\", which is no file name"))),
        ("index of a pickle that leaves the folder", form("bin-sharded", &|f| f.set(BIN_INDEX, &["weight_map", "pos_embed.proj.bias"], json!("/etc/passwd")), format!("{{}}/{BIN_INDEX} cannot be understood: tensor `pos_embed.proj.bias` is placed in \"/etc/passwd\", which is no file name"))),
        ("index of nothing", form("sharded", &|f| f.write(INDEX, "{\"weight_map\": {}}"), format!("{{}}/{INDEX} cannot be understood: `weight_map` is empty"))),
        ("index without a map", form("sharded", &|f| f.write(INDEX, "[]"), format!("{{}}/{INDEX} cannot be understood: expected an object `weight_map` from tensor names to file names"))),
        ("shard cut off", form("sharded", &|f| f.cut("transformer/diffusion_pytorch_model-00002-of-00003.safetensors", 200), format!("{{}}/transformer/diffusion_pytorch_model-00002-of-00003.safetensors is damaged: its header claims {header} bytes, the file has 192"))),
        ("pickle cut off", form("bin", &|f| f.cut("transformer/diffusion_pytorch_model.bin", 20000), "{}/transformer/diffusion_pytorch_model.bin is damaged: it starts as a zip archive but has no valid directory (invalid Zip archive: Could not find EOCD); was it cut off?".into())),
        ("other transformer", form("bin", &|f| f.set("transformer/config.json", &["_class_name"], json!("UNet2DModel")), "{}/transformer/config.json cannot be understood: it describes a `UNet2DModel`, expected a DiTTransformer2DModel".into())),
        ("broken transformer config", form("bin", &|f| f.write("transformer/config.json", "{"), "{}/transformer/config.json cannot be understood: it is no valid JSON: EOF while parsing an object at line 1 column 1".into())),
        ("broken index", form("bin", &|f| f.write("model_index.json", "no"), format!("{BAD_FOLDER}it is no valid JSON: expected ident at line 1 column 2"))),
        ("other pipeline", index(&["_class_name"], json!("StableDiffusionPipeline"), "its `_class_name` is \"StableDiffusionPipeline\", expected DiTPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline")),
        ("no class", index(&["_class_name"], Value::Null, "its `_class_name` is null, expected DiTPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline")),
        ("pipeline of another family", index(&["_class_name"], json!("PixArtSigmaPipeline"), "it is a PixArtSigmaPipeline, whose transformer is a PixArt, but the one there is a DiT")),
        ("no transformer in the index", index(&["transformer"], Value::Null, "it names no `transformer`")),
        ("too few names", index(&["id2label", "4"], Value::Null, "its `id2label` names 4 classes, the transformer has 5")),
        ("a name for no class", index(&["id2label", "7"], json!("unicorn"), "its `id2label` has \"7\": \"unicorn\", expected an object from class numbers to names of 0 to 5, each once")),
        ("a name that is none", index(&["id2label", "0"], json!(3), "its `id2label` has \"0\": 3, expected an object from class numbers to names of 0 to 4, each once")),
        ("names in a list", index(&["id2label"], json!([]), "its `id2label` is [], expected an object from class numbers to names")),
        ("unknown scheduler", scheduler("_class_name", json!("FlowMatchEulerDiscreteScheduler"), "its `_class_name` is \"FlowMatchEulerDiscreteScheduler\", expected DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SASolverScheduler or another of diffusers' schedulers of β")),
        ("scheduler without a class", scheduler("_class_name", Value::Null, "expected a `_class_name` such as DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SASolverScheduler")),
        ("unknown prediction", scheduler("prediction_type", json!("flow_prediction"), "its `prediction_type` is \"flow_prediction\", expected \"epsilon\", \"v_prediction\" or \"sample\"")),
        ("unknown curve", scheduler("beta_schedule", json!("squaredcos_cap_v2"), "its `beta_schedule` is \"squaredcos_cap_v2\", expected \"linear\" or \"scaled_linear\"")),
        ("impossible noise", scheduler("beta_end", json!(2.0), "its `beta_start` and `beta_end`: cannot make noise of β from 0.0001 to 2: expected 0 < first ≤ last < 1")),
        ("noise that is no number", scheduler("beta_start", json!("small"), "its `beta_start` is \"small\", expected a number")),
        ("other training steps", scheduler("num_train_timesteps", json!(50), "its `num_train_timesteps` is 50, expected 1000")),
        ("rescaled noise", scheduler("rescale_betas_zero_snr", json!(true), "its `rescale_betas_zero_snr` is true, expected false")),
        ("clipping that is no switch", scheduler("clip_sample", json!("yes"), "its `clip_sample` is \"yes\", expected true or false")),
        ("wide clipping", { let (folder, text) = scheduler("clip_sample", json!(true), "its `clip_sample_range` is 2.0, expected 1"); folder.set_scheduler("clip_sample_range", json!(2.0)); (folder, text) }),
    ];
    let engine = Engine::cpu();
    let mut wrong = Vec::new();
    for (name, (folder, expected)) in &cases {
        let found = load(&folder.spec(), &engine).expect_err(name);
        let found = found.replace(&folder.0.path().display().to_string(), "{}");
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

/// A weight that two shards hold would be read from one of them, who knows which.
#[test]
fn shards_that_hold_the_same_tensor_are_refused() {
    for (form, ending) in [("sharded", "safetensors"), ("bin-sharded", "bin")] {
        let folder = Folder::of_form(form);
        let shard = |n: usize| {
            folder.path(&format!(
                "transformer/diffusion_pytorch_model-0000{n}-of-00003.{ending}"
            ))
        };
        fs::copy(shard(1), shard(2)).unwrap();
        let found = open_model(&folder.spec())
            .map(drop)
            .unwrap_err()
            .to_string();
        let told = found.starts_with(&format!("{} is damaged: tensor `", shard(2).display()));
        assert!(
            told && found.ends_with("` lies in another shard too"),
            "{found}"
        );
    }
}

fn run(mut command: std::process::Command) -> Output {
    command.output().unwrap()
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn stdout(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The line of the error, of a command that must fail.
fn error_of(out: &Output, code: i32) -> String {
    let text = stderr(out);
    assert_eq!(out.status.code(), Some(code), "{text}");
    let line = text.lines().find(|line| line.starts_with("error: "));
    line.unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// Fills a cache as the hub's tools do.
fn cached(cache: &Path, revision: &str, commit: &str) -> PathBuf {
    let folder = cache.join("models--tiny--pipeline");
    copy_tree(&golden("hub"), &folder.join("snapshots").join(commit));
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs").join(revision), commit).unwrap();
    folder
}

#[test]
fn names_of_the_hub_come_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("hub");
    cached(&cache, "main", "c0ffee");
    cached(&cache, "v1", "decade");
    let inspect = |name: &str| run(command_with_cache(&cache, &["inspect", name, "--json"]));
    for name in [NAME, "tiny/pipeline@v1", "tiny/pipeline@decade"] {
        let out = inspect(name);
        assert!(out.status.success(), "{}", stderr(&out));
        let json: Value = serde_json::from_str(&stdout(&out)).unwrap();
        assert_eq!(json["folder"]["class"], "DiTPipeline", "{name}");
        assert_eq!(json["folder"]["parts"][2]["part"], "vae");
        assert_eq!(json["model"]["solver"], "ddim");
        assert_eq!(json["model"]["classes"][0], "tench, Tinca tinca");
    }
    for name in ["tiny/other", "tiny/pipeline@v2"] {
        assert_eq!(
            error_of(&inspect(name), 1),
            format!(
                "error: `{name}` is neither a file or folder nor in the cache of the hub, {}; `harmonica pull {name}` downloads it",
                cache.display()
            )
        );
    }
    // The same place, by the variable of the folder around it.
    let mut command = command_with_cache(&cache, &["inspect", NAME, "--classes"]);
    command
        .env_remove("HF_HUB_CACHE")
        .env("HF_HOME", home.path());
    let out = run(command);
    let listed = "   0  tench, Tinca tinca\n   1  goldfish, Carassius auratus\n   2  great white shark, white shark, man-eater\n   3  crane\n   4  crane, lifting machine\n";
    assert_eq!(stdout(&out), listed, "{}", stderr(&out));
}

#[test]
fn classes_go_by_any_of_their_names() {
    let folder = Folder::new();
    let path = folder.0.path().to_str().unwrap();
    let picture = folder.path("drawn");
    let sample = |classes: &str| {
        let out = picture.to_str().unwrap();
        let arguments = [
            "sample",
            "--model",
            path,
            "--device",
            "cpu",
            "--steps",
            "2",
            "--classes",
            classes,
            "--out",
            out,
        ];
        run(command_with_cache(folder.0.path(), &arguments))
    };
    let out = sample("Tinca Tinca,man-eater,4");
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(stderr(&out).contains(
        "note: the model's scheduler: `timestep_spacing` is \"leading\" there, runs here have \"linspace\"\n"
    ));
    for name in ["00000-tench", "00001-great_white_shark", "00002-crane"] {
        assert!(picture.join(format!("{name}.png")).is_file(), "{name}");
    }
    assert_eq!(
        error_of(&sample("tnch"), 2),
        "error: unknown class `tnch`: did you mean `tench`?"
    );
    assert_eq!(
        error_of(&sample("unicorn"), 2),
        "error: unknown class `unicorn`: the model has 0 to 4 or tench, Tinca tinca, goldfish, Carassius auratus, great white shark, white shark, man-eater, crane, crane, lifting machine"
    );
    folder.set("model_index.json", &["id2label", "3"], json!("crane, bird"));
    assert_eq!(
        error_of(&sample("crane"), 2),
        "error: `crane` names several classes: 3 (crane, bird), 4 (crane, lifting machine); pass a number"
    );
}

/// Pulls and checks that the cache holds the pipeline and nothing that is under way.
fn pull_whole(hub: &Hub, cache: &Path) {
    let out = run(hub.command(cache, &["pull", NAME]));
    assert!(out.status.success(), "{}", stderr(&out));
    let snapshot = cache.join("models--tiny--pipeline/snapshots").join(COMMIT);
    assert_eq!(stdout(&out).trim(), snapshot.display().to_string());
    let reference = cache.join("models--tiny--pipeline/refs/main");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
    let pulled = info(&ModelSpec::Path(snapshot.clone()));
    let expected = info(&ModelSpec::Path(golden("hub")));
    assert_eq!(pulled.fingerprint, expected.fingerprint);
    let weights = fs::read(golden("hub").join(WEIGHTS)).unwrap();
    let blob = cache
        .join("models--tiny--pipeline/blobs")
        .join(sha256(&weights));
    #[cfg(unix)]
    {
        let target = fs::canonicalize(snapshot.join(WEIGHTS)).unwrap();
        assert_eq!(target, fs::canonicalize(&blob).unwrap());
    }
    assert_eq!(fs::read(blob).unwrap(), weights);
    assert!(!cache.join(".harmonica/models--tiny--pipeline").exists());
}

#[test]
fn a_pull_fills_the_cache_once() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::of(&golden("hub"), &[]);
    pull_whole(&hub, cache.path());
    assert_eq!(hub.ranges(WEIGHTS), ["bytes=0-"]);
    // What is there is not downloaded again, and the name is a model.
    pull_whole(&hub, cache.path());
    assert_eq!(hub.ranges(WEIGHTS), ["bytes=0-"]);
    let arguments = ["inspect", NAME];
    let out = run(command_with_cache(cache.path(), &arguments));
    assert!(
        stdout(&out).contains("pipeline    DiTPipeline"),
        "{}",
        stderr(&out)
    );
}

#[test]
fn parts_can_be_pulled_alone() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::of(&golden("hub"), &[]);
    let out = run(hub.command(cache.path(), &["pull", NAME, "--only", "vae,scheduler"]));
    assert!(out.status.success(), "{}", stderr(&out));
    let snapshot = PathBuf::from(stdout(&out).trim());
    assert!(snapshot.join("vae").join(SAFETENSORS).is_file());
    assert!(!snapshot.join("transformer").exists());
    let out = run(command_with_cache(cache.path(), &["inspect", NAME]));
    let expected = format!(
        "error: {} has no `transformer/`, though",
        snapshot.display()
    );
    assert!(error_of(&out, 1).starts_with(&expected), "{}", stderr(&out));
    let listed = "    transformer   DiTTransformer2DModel, not there\n    scheduler     DDIMScheduler\n    vae           AutoencoderKL\n";
    assert!(stdout(&out).ends_with(listed), "{}", stdout(&out));
    let out = run(hub.command(cache.path(), &["pull", NAME, "--only", "tokenizer"]));
    assert_eq!(
        error_of(&out, 1),
        "error: tiny/pipeline has no `tokenizer/`, but `model_index.json`, `scheduler/scheduler_config.json`, `transformer/config.json`"
    );
}

/// A hub of shards: their index says which.
#[test]
fn shards_are_pulled_by_their_index() {
    for form in ["sharded", "bin-sharded", "fp16-sharded"] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::of(Folder::of_form(form).0.path(), &[]);
        let out = run(hub.command(cache.path(), &["pull", NAME]));
        assert!(out.status.success(), "{form}: {}", stderr(&out));
        let pulled = info(&ModelSpec::Path(stdout(&out).trim().into()));
        let expected = info(&ModelSpec::Path(golden("hub")));
        assert_eq!(pulled.fingerprint, expected.fingerprint, "{form}");
    }
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::of(&golden("hub"), &[Fault::Cut(20000), Fault::Cut(4000)]);
    pull_whole(&hub, cache.path());
    let ranges = ["bytes=0-", "bytes=20000-", "bytes=24000-"];
    assert_eq!(hub.ranges(WEIGHTS), ranges);
    // A server that knows no ranges sends all, behind what is there; that is noticed.
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::of(&golden("hub"), &[Fault::Cut(20000), Fault::Whole]);
    pull_whole(&hub, cache.path());
    let ranges = ["bytes=0-", "bytes=20000-", "bytes=0-"];
    assert_eq!(hub.ranges(WEIGHTS), ranges);
}

#[test]
fn a_connection_that_brings_nothing_is_given_up() {
    let cache = tempfile::tempdir().unwrap();
    let faults = [
        Fault::Cut(20000),
        Fault::Cut(0),
        Fault::Cut(0),
        Fault::Cut(0),
    ];
    let hub = Hub::of(&golden("hub"), &faults);
    let out = run(hub.command(cache.path(), &["pull", NAME]));
    let error = error_of(&out, 1);
    let expected = format!("error: {WEIGHTS} broke off after 20000 bytes: ");
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.ends_with("; what has come is kept, the same command goes on from there"));
    // The fifth download has no fault.
    pull_whole(&hub, cache.path());
    assert_eq!(hub.ranges(WEIGHTS).last().unwrap(), "bytes=20000-");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_what_can_be_resumed_and_no_file_under_its_name() {
    use crate::common::Guard;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::of(&golden("hub"), &[Fault::Stall(20000)]);
    let mut command = hub.command(cache.path(), &["-q", "pull", NAME]);
    let mut child = Guard(command.spawn().unwrap());
    let folder = cache.path().join("models--tiny--pipeline");
    let weights = fs::read(golden("hub").join(WEIGHTS)).unwrap();
    let part = format!(
        ".harmonica/models--tiny--pipeline/blobs/{}.part",
        sha256(&weights)
    );
    let part = cache.path().join(part);
    let length = || fs::metadata(&part).map_or(0, |found| found.len());
    child.wait_until(|| length() == 20000);
    child.signal("INT");
    assert_eq!(child.0.wait().unwrap().code(), Some(130));
    assert!(!folder.join("snapshots").join(COMMIT).join(WEIGHTS).exists());
    assert!(!folder.join("blobs").join(sha256(&weights)).exists());
    assert!(!folder.join("refs/main").exists());
    pull_whole(&hub, cache.path());
    assert_eq!(hub.ranges(WEIGHTS), ["bytes=0-", "bytes=20000-"]);
}

#[test]
fn a_file_of_another_checksum_is_thrown_away() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::with_wrong_sum(&golden("hub"));
    let out = run(hub.command(cache.path(), &["pull", NAME]));
    let found = sha256(&fs::read(golden("hub").join(WEIGHTS)).unwrap());
    let expected = sha256(b"another file");
    assert_eq!(
        error_of(&out, 1),
        format!(
            "error: {WEIGHTS} came damaged: its sha256 is {found}, the hub says {expected}; it was thrown away, the same command downloads it anew"
        )
    );
    let folder = cache.path().join("models--tiny--pipeline");
    assert!(!folder.join("blobs").join(&expected).exists());
    assert!(!folder.join("refs/main").exists());
    let staged = cache
        .path()
        .join(".harmonica/models--tiny--pipeline/blobs")
        .join(expected);
    assert!(!staged.exists() && !staged.with_extension("part").exists());
}

#[test]
fn a_hub_that_refuses_says_why() {
    let cache = tempfile::tempdir().unwrap();
    for status in [401, 403] {
        let hub = Hub::refusing(status);
        let mut command = hub.command(cache.path(), &["pull", NAME]);
        command.env("HF_TOKEN", " hf_secret\n");
        let expected = format!(
            "error: {} does not let this user read {NAME} (status {status}): it is private or gated, or there is no such repository; accept its terms on its page, and set HF_TOKEN to a token that may read it",
            hub.endpoint
        );
        assert_eq!(error_of(&run(command), 1), expected);
        assert_eq!(hub.authorization(), "Bearer hf_secret");
    }
    let hub = Hub::refusing(404);
    let out = run(hub.command(cache.path(), &["pull", "tiny/pipeline@v2"]));
    let expected = format!(
        "error: {} has no tiny/pipeline@v2: check the spelling and the revision",
        hub.endpoint
    );
    assert_eq!(error_of(&out, 1), expected);
    assert_eq!(hub.authorization(), "");
    let hub = Hub::refusing(503);
    let out = run(hub.command(cache.path(), &["pull", NAME]));
    let expected = format!(
        "error: {} answered with status 503; try again later",
        hub.endpoint
    );
    assert_eq!(error_of(&out, 1), expected);
}

#[test]
fn without_a_network_a_pull_says_so_and_the_cache_still_serves() {
    let cache = tempfile::tempdir().unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let mut command = command_with_cache(cache.path(), &["pull", NAME]);
    command.env("HF_ENDPOINT", &endpoint);
    let error = error_of(&run(command), 1);
    assert!(
        error.starts_with(&format!("error: cannot reach {endpoint}: ")),
        "{error}"
    );
    assert!(
        error.ends_with("; check the network (HF_ENDPOINT names another server)"),
        "{error}"
    );

    let mut command = command_with_cache(cache.path(), &["pull", NAME]);
    command.env("HF_HUB_OFFLINE", "1");
    assert_eq!(
        error_of(&run(command), 1),
        "error: HF_HUB_OFFLINE is set, so nothing is downloaded"
    );
    cached(cache.path(), "main", "c0ffee");
    let mut command = command_with_cache(cache.path(), &["inspect", NAME]);
    command.env("HF_HUB_OFFLINE", "1");
    assert!(run(command).status.success());

    let out = run(command_with_cache(cache.path(), &["pull", "pipeline"]));
    assert_eq!(
        error_of(&out, 2),
        "error: `pipeline` is no name of the hub: it has no owner; expected OWNER/NAME or OWNER/NAME@REVISION, such as facebook/DiT-XL-2-256"
    );
}

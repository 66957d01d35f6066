//! Layouts that hold the same weights become the same picture.

use super::{
    autoencoder::{Autoencoder, kl_config, random},
    *,
};

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

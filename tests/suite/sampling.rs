//! Whole runs: against the golden run, between devices, between batch sizes.

use burn::tensor::{Tensor, TensorData};
use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, load_model, read_named_tensors, write_tensors},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    kernels::solver_step_of_images,
    metrics::{max_abs_error, psnr},
    models::{self, Condition, ConditionError},
    sampler::{Event, Request, SampleError, Sampler, Settings},
    schedule::Schedule,
};

use crate::common::{engines, golden, harmonica, harmonica_json, tensor, within};

fn settings(steps: usize, guidance: f64) -> Settings {
    Settings {
        steps,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(guidance, GuidedChannels::Three).unwrap(),
        clip_x0: true,
    }
}

fn bundled(engine: &Engine) -> harmonica::models::Model {
    load_model(&ModelSpec::Bundled, LoadOptions::default(), engine.device())
        .unwrap()
        .0
}

#[test]
fn fifty_step_ddim_matches_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let noise = golden("bundled.safetensors");
    let out = folder.path().join("out.safetensors");
    let picture = folder.path().join("out.png");
    for (clip, name) in [("off", "samples"), ("on", "samples_clipped")] {
        let report = harmonica_json(&[
            "sample",
            "--device",
            "cpu",
            "--steps",
            "50",
            "--guidance",
            "2",
            "--schedule",
            "none",
            "--clip-x0",
            clip,
            "--noise",
            noise.to_str().unwrap(),
            "--save-tensors",
            out.to_str().unwrap(),
            "--out",
            picture.to_str().unwrap(),
            "--json",
        ]);
        assert_eq!(
            (&report["backend"], &report["images"]),
            (&"cpu".into(), &4.into())
        );
        let samples = read_named_tensors(&out, &["samples"]).unwrap().remove(0);
        let error = max_abs_error(&samples.1, &tensor("bundled.safetensors", name).1);
        within(format!("50 DDIM steps, {name}"), error, 1.5e-4);
        assert!(image::open(&picture).unwrap().width() > 96);
    }
}

#[test]
fn cpu_and_vulkan_draw_the_same_images() {
    let images = engines().map(|(_, engine)| {
        let model = bundled(&engine);
        let request = Request {
            conditions: Condition::classes(&[6, 29]),
            seed: 5,
            first: 0,
            noise: None,
            batch: 2,
        };
        Sampler::new(&model, settings(6, 3.0), None)
            .unwrap()
            .sample(request)
            .unwrap()
    });
    let error = max_abs_error(&images[0], &images[1]);
    within("CPU and Vulkan, 6 uncached steps", error, 1e-3);
}

#[test]
fn batch_size_does_not_change_an_image() {
    let model = bundled(&Engine::cpu());
    let labels: Vec<usize> = (0..8).map(|i| i * 5).collect();
    let images = [1, 3, 8].map(|batch| {
        let request = Request {
            conditions: Condition::classes(&labels),
            seed: 11,
            first: 0,
            noise: None,
            batch,
        };
        Sampler::new(&model, settings(10, 3.0), None)
            .unwrap()
            .sample(request)
            .unwrap()
    });
    for other in &images[1..] {
        assert_eq!(&images[0], other);
    }
}

#[test]
fn stochastic_solvers_repeat_whatever_the_batch() {
    let model = bundled(&Engine::cpu());
    let solvers = [
        Solver::Ddpm,
        Solver::ddim(1.0).unwrap(),
        Solver::Dpm2mSde,
        Solver::SaSolver,
    ];
    for solver in solvers {
        let run = |batch, seed| {
            let settings = Settings {
                solver,
                ..settings(5, 2.0)
            };
            let request = Request {
                conditions: Condition::classes(&[1, 2, 3]),
                seed,
                first: 0,
                noise: None,
                batch,
            };
            Sampler::new(&model, settings, None)
                .unwrap()
                .sample(request)
                .unwrap()
        };
        assert_eq!(run(3, 1), run(1, 1), "{solver}");
        assert!(max_abs_error(&run(3, 1), &run(3, 2)) > 0.1);
    }
}

/// The sampler's plans, fused steps and conditioning ahead of time against nothing but network, guidance and solver.
#[test]
fn a_run_that_reuses_nothing_is_the_plain_loop() {
    for (device, engine) in engines() {
        let model = bundled(&engine);
        let settings = settings(3, 3.0);
        let noise: Vec<f32> = tensor("bundled.safetensors", "noise").1[..3 * 32 * 32].to_vec();
        let run = |schedule| {
            let request = Request {
                conditions: Condition::classes(&[7]),
                seed: 3,
                first: 0,
                noise: Some(noise.clone()),
                batch: 1,
            };
            Sampler::new(&model, settings, schedule)
                .unwrap()
                .sample(request)
                .unwrap()
        };
        let data = TensorData::new(noise.clone(), [1, 3, 32, 32]);
        let mut x = Tensor::<4>::from_data(data, engine.device());
        for step in settings.numbers(&model.outline().latents).unwrap() {
            let output = models::forward(
                &*model,
                x.clone().repeat_dim(0, 2),
                &[step.timestep as f32; 2],
                &[Condition::Class(7), model.null().unwrap()],
            );
            let output = settings.guidance.guide(output, 3);
            x = solver_step_of_images(x, Some(output), &[], None, &step).0;
        }
        let plain = x.into_data().try_into_vec::<f32>().unwrap();
        // A GPU cuts the products of many steps' conditions, which the sampler makes ahead, another way than those of one.
        match engine.report().software || device == "cpu" {
            true => assert_eq!(run(None), plain, "{device}"),
            false => within(
                format!("sampler and plain loop, {device}"),
                max_abs_error(&run(None), &plain),
                1e-4,
            ),
        }
        assert_eq!(
            run(None),
            run(Some(Schedule::full(3, 24).unwrap())),
            "{device}"
        );
        let reuse = Schedule::from_rule(3, 24, |s, _| s != 1).unwrap();
        let error = max_abs_error(&run(Some(reuse)), &plain);
        assert!(error > 1e-3, "{device}: reuse must show, not {error}");
    }
}

#[test]
fn a_run_pauses_cancels_and_refuses_bad_requests() {
    let model = bundled(&Engine::cpu());
    let sampler = Sampler::new(&model, settings(3, 1.0), None).unwrap();
    let request = |labels: Vec<usize>, batch| Request {
        conditions: Condition::classes(&labels),
        seed: 0,
        first: 0,
        noise: None,
        batch,
    };
    let mut run = sampler.run(request(vec![0, 1, 2], 2)).unwrap();
    let events: Vec<_> = run.by_ref().take(5).map(Result::unwrap).collect();
    assert!(matches!(
        events[0],
        Event::Started {
            images: 3,
            steps: 3
        }
    ));
    assert!(matches!(
        events[3],
        Event::Step {
            first_image: 0,
            images: 2,
            step: 2,
            x0: None,
            reused: false,
        }
    ));
    assert!(matches!(
        events[4],
        Event::Images {
            first_image: 0,
            images: 2,
            ..
        }
    ));
    let last = run.last().unwrap().unwrap();
    assert!(matches!(last, Event::Done(totals) if totals.macs == totals.macs_full));
    assert!(matches!(
        sampler.run(request(vec![], 1)),
        Err(SampleError::NoImages)
    ));
    assert!(matches!(
        sampler.run(request(vec![47], 1)),
        Err(SampleError::Condition(ConditionError::Label {
            label: 47,
            classes: 46
        }))
    ));
    assert!(matches!(
        sampler.run(request(vec![0], 0)),
        Err(SampleError::Batch)
    ));
    let short = Request {
        noise: Some(vec![0.0; 7]),
        ..request(vec![0], 1)
    };
    assert!(matches!(
        sampler.run(short),
        Err(SampleError::Noise { found: 7, .. })
    ));
}

#[test]
fn infinite_noise_is_reported_as_such() {
    let model = bundled(&Engine::cpu());
    let sampler = Sampler::new(&model, settings(2, 1.0), None).unwrap();
    let mut noise = vec![0.0; 2 * 3 * 32 * 32];
    noise[3 * 32 * 32 + 5] = f32::NAN;
    let request = Request {
        conditions: Condition::classes(&[0, 1]),
        seed: 0,
        first: 0,
        noise: Some(noise),
        batch: 2,
    };
    assert!(matches!(
        sampler.sample(request),
        Err(SampleError::NotFinite { image: 1, step: 0 })
    ));
}

#[test]
fn a_folder_holds_single_images_named_by_class() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pictures");
    let done = harmonica(&[
        "sample",
        "--device",
        "cpu",
        "--steps",
        "2",
        "--classes",
        "face-flat,FLAG-3D,0",
        "--count",
        "4",
        "--out",
        out.to_str().unwrap(),
        "-q",
    ]);
    assert!(
        done.status.success() && done.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let mut names: Vec<_> = std::fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "00000-face-flat.png",
            "00001-flag-3d.png",
            "00002-animal-flat.png",
            "00003-face-flat.png"
        ]
    );
    let picture = image::open(out.join(&names[0])).unwrap();
    assert_eq!((picture.width(), picture.height()), (32, 32));
}

#[test]
fn noise_file_labels_choose_the_classes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("noise.safetensors");
    write_tensors(
        &file,
        &[("noise", vec![2, 3, 32, 32], vec![0.5; 2 * 3 * 32 * 32])],
    )
    .unwrap();
    let report = harmonica_json(&[
        "sample",
        "--device",
        "cpu",
        "--steps",
        "1",
        "--noise",
        file.to_str().unwrap(),
        "--out",
        folder.path().join("a.png").to_str().unwrap(),
        "--json",
    ]);
    assert_eq!(report["images"], 2);
}

/// A host keeps a run beside its model, and polls it from whatever thread is at hand.
#[test]
fn a_run_lives_on_its_own_and_moves_between_threads() {
    let sampler = {
        let model = bundled(&Engine::cpu());
        Sampler::new(&model, settings(4, 3.0), None).unwrap()
    };
    let request = Request {
        conditions: Condition::classes(&[6, 7]),
        seed: 4,
        first: 0,
        noise: None,
        batch: 2,
    };
    let expected = sampler.sample(request.clone()).unwrap();
    let mut run = sampler.run(request).unwrap();
    drop(sampler);
    for _ in 0..3 {
        run.next().unwrap().unwrap();
    }
    let found = std::thread::spawn(move || {
        run.find_map(|event| match event.unwrap() {
            Event::Images { x0, .. } => Some(x0),
            _ => None,
        })
    });
    assert_eq!(found.join().unwrap().unwrap(), expected);
}

#[test]
fn previews_show_the_predicted_image_of_each_step() {
    let model = bundled(&Engine::cpu());
    let sampler = Sampler::new(&model, settings(3, 3.0), None).unwrap();
    let request = Request {
        conditions: Condition::classes(&[6]),
        seed: 4,
        first: 0,
        noise: None,
        batch: 1,
    };
    let mut previews = Vec::new();
    let mut last = Vec::new();
    for event in sampler.with_preview(true).run(request).unwrap() {
        match event.unwrap() {
            Event::Step { x0, .. } => {
                let values = x0.unwrap().try_into_data().unwrap();
                previews.push(values.try_into_vec::<f32>().unwrap());
            }
            Event::Images { x0, on_device, .. } => {
                assert_eq!(on_device.dims(), [1, 3, 32, 32]);
                last = x0;
            }
            _ => {}
        }
    }
    // The last step's prediction is the image.
    assert_eq!(previews.len(), 3);
    assert_eq!(previews[2], last);
    assert!(psnr(&previews[1], &last) > psnr(&previews[0], &last));
    assert!(previews.iter().flatten().all(|v| v.abs() <= 1.0));
}

#[test]
fn a_run_resumes_where_it_stood() {
    let model = bundled(&Engine::cpu());
    let request = Request {
        conditions: Condition::classes(&[6, 7, 8]),
        seed: 4,
        first: 0,
        noise: None,
        batch: 2,
    };
    let solvers = [
        Solver::ddim(0.0).unwrap(),
        Solver::Ddpm,
        Solver::Euler,
        Solver::Dpm2m,
        Solver::Dpm3m,
        Solver::Dpm2mSde,
        Solver::SaSolver,
    ];
    for solver in solvers {
        let settings = Settings {
            solver,
            ..settings(5, 3.0)
        };
        let sampler = Sampler::new(&model, settings, None).unwrap();
        let expected = sampler.sample(request.clone()).unwrap();
        let sampler = sampler.with_recovery(true);
        // The start, five steps and the images of the first batch; then two steps of the second.
        let mut run = sampler.run(request.clone()).unwrap();
        for _ in 0..7 {
            run.next().unwrap().unwrap();
        }
        let between = run.state().unwrap().clone();
        assert_eq!((between.first_image(), between.step()), (2, 0));
        let rest = sampler.resume(between).unwrap();
        let delivered: Vec<_> = rest
            .filter_map(|event| match event.unwrap() {
                Event::Images { first_image, .. } => Some(first_image),
                _ => None,
            })
            .collect();
        assert_eq!(delivered, [2]);
        for _ in 0..2 {
            run.next().unwrap().unwrap();
        }
        let state = run.state().unwrap().clone();
        assert_eq!((state.first_image(), state.step()), (2, 2));
        let others = Settings {
            steps: 4,
            ..settings
        };
        let other = Sampler::new(&model, others, None).unwrap();
        assert!(matches!(
            other.resume(state.clone()),
            Err(SampleError::State)
        ));
        let resumed: Vec<f32> = sampler
            .resume(state)
            .unwrap()
            .filter_map(|event| match event.unwrap() {
                Event::Images { x0, .. } => Some(x0),
                _ => None,
            })
            .flatten()
            .collect();
        let expected = &expected[2 * 3 * 32 * 32..];
        assert_eq!(resumed, expected, "{solver}");
    }
}

/// A run of thousands of pictures into a folder, and how many there are.
#[cfg(unix)]
fn long_run(out: &std::path::Path, shell: &str) -> crate::common::Guard {
    use std::process::{Command, Stdio};
    let command = format!(
        "{shell} exec {} sample --device cpu --count 5000 --batch 1 --steps 2 --out {}",
        env!("CARGO_BIN_EXE_harmonica"),
        out.display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).stderr(Stdio::piped());
    crate::common::Guard(shell.spawn().unwrap())
}

#[cfg(unix)]
fn pictures(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_the_pictures_that_were_done() {
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pictures");
    let mut run = long_run(&out, "");
    run.wait_until(|| pictures(&out) >= 4);
    run.signal("INT");
    let mut said = String::new();
    let mut stderr = run.0.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(run.0.wait().unwrap().code(), Some(130), "{said}");
    let left = format!("{} of 5000 images lie in", pictures(&out));
    assert!(said.contains(&left), "{said}");
}

/// A grid of what there is; the picture says of how many.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_grid_of_what_was_done() {
    use std::{io::Read, time::Instant};
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("grid.png");
    let mut run = long_run(&out, "");
    let started = Instant::now();
    run.wait_until(|| started.elapsed().as_secs() >= 4);
    run.signal("INT");
    let mut said = String::new();
    let mut stderr = run.0.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(run.0.wait().unwrap().code(), Some(130), "{said}");
    let bytes = std::fs::read(&out).unwrap();
    let recipe = harmonica::report::text_of_png(&bytes, "harmonica").unwrap();
    let recipe: serde_json::Value = serde_json::from_str(&recipe.unwrap()).unwrap();
    let left = format!("{} of 5000 images lie in", recipe["count"]);
    assert!(said.contains(&left), "{said}");
}

/// `nohup` means that a closing terminal ends nothing.
#[cfg(unix)]
#[test]
fn an_ignored_hangup_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pictures");
    let mut run = long_run(&out, "trap '' HUP;");
    run.wait_until(|| pictures(&out) >= 2);
    run.signal("HUP");
    run.signal("HUP");
    let seen = pictures(&out);
    run.wait_until(|| pictures(&out) >= seen + 4);
}

#[test]
fn the_learned_schedule_can_be_asked_for_and_a_plan_be_read_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("one.png");
    let sampled = |steps: &str| {
        harmonica_json(&[
            "sample",
            "--device",
            "cpu",
            "--schedule",
            "learned",
            "--classes",
            "face-flat",
            "--steps",
            steps,
            "--out",
            out.to_str().unwrap(),
            "--json",
        ])
    };
    assert_eq!(sampled("20")["schedule"], "learned:2.00");
    // What is not there is not silently something else.
    let refused = harmonica(&[
        "sample",
        "--device",
        "cpu",
        "--schedule",
        "learned",
        "--steps",
        "3",
    ]);
    let said = String::from_utf8_lossy(&refused.stderr);
    let text = "there is no learned schedule for this model and run";
    assert!(
        refused.status.code() == Some(2) && said.contains(text),
        "{said}"
    );
    let file = golden("../../assets/routers/ddim20-cur0.5.schedule.json");
    let show = ["schedule", "show", file.to_str().unwrap(), "--json"];
    let plan = harmonica_json(&[&show[..], &["--plan"]].concat());
    assert_eq!(plan["plan"].as_array().unwrap().len(), 20);
    assert!(harmonica_json(&show).get("plan").is_none());
}

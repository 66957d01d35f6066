//! Others who write, cut or replace the same files meanwhile.

use std::{
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use harmonica::{
    checkpoint::{self, LoadOptions, ModelSpec, load_model},
    device::Engine,
};

use super::{Place, TRAIN, command, error_of};
use crate::common::{Guard, golden};

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

/// The old weights, or an error: never a mixture of what lies there from moment to moment.
#[test]
fn weights_that_are_written_anew_while_they_are_read_are_whole_or_refused() {
    let place = Place::new();
    let weights = golden("tiny-c.safetensors");
    let line = format!("convert --model {} --heads 1", weights.display());
    let (code, text) = place.run(&format!("{line} --out {{}}/x.safetensors"));
    assert_eq!(code, Some(0), "{text}");
    let path = place.path("x.safetensors");
    let load = || {
        load_model(
            &ModelSpec::Path(path.clone()),
            LoadOptions::default(),
            Engine::cpu().device(),
        )
    };
    let fingerprint = load().unwrap().1.fingerprint;
    let good = std::fs::read(&path).unwrap();
    let mut other = good.clone();
    let half = other.len() / 2;
    // Zeros are weights too: only the fingerprint tells.
    other[half..].fill(0);
    let (done, started) = (AtomicBool::new(false), Instant::now());
    let (mut loaded, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (number, bytes) in [&other, &good].into_iter().cycle().enumerate() {
                // In place, as `cp` does.
                std::fs::write(&path, bytes).unwrap();
                // Some last for a whole reading, some do not.
                std::thread::sleep(Duration::from_millis(5 * (number as u64 / 2 % 8)));
                // An assertion that fails leaves it undone.
                let late = started.elapsed() > Duration::from_secs(90);
                if late || done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        while started.elapsed() < Duration::from_secs(60) && (loaded < 20 || refused < 20) {
            match load() {
                Ok((_, info)) => {
                    assert_eq!(info.fingerprint, fingerprint);
                    loaded += 1;
                }
                Err(_) => refused += 1,
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(
        loaded >= 20 && refused >= 20,
        "{loaded} loaded, {refused} refused"
    );
}

#[test]
fn two_that_write_one_folder_leave_whole_files() {
    let place = Place::new();
    let lines = |out: &str| {
        [
            format!(
                "sample --device cpu --steps 2 --count 6 --batch 2 --quiet --seed 1 --out {{}}/{out}"
            ),
            format!(
                "sample --device cpu --steps 2 --count 6 --batch 2 --quiet --seed 2 --out {{}}/{out}"
            ),
            format!("convert --quiet --dtype f16 --out {{}}/{out}/x.safetensors"),
            format!("convert --quiet --dtype f32 --out {{}}/{out}/x.safetensors"),
        ]
    };
    let start = |line: String| command(&place.words(&line)).spawn().unwrap();
    let mut all: Vec<_> = lines("both").map(start).into();
    assert!(all.iter_mut().all(|child| child.wait().unwrap().success()));
    for (out, mine) in ["one", "two"].into_iter().zip([[0, 2], [1, 3]]) {
        for number in mine {
            let (code, text) = place.run(&lines(out)[number]);
            assert_eq!(code, Some(0), "{text}");
        }
    }
    let names = place.names();
    let of_both: Vec<_> = names
        .iter()
        .filter_map(|name| name.strip_prefix("both/"))
        .collect();
    assert_eq!(of_both.len(), 7, "{names:?}");
    for name in of_both {
        let read = |folder: &str| std::fs::read(place.path(folder).join(name)).unwrap();
        let raced = read("both");
        assert!(
            raced == read("one") || raced == read("two"),
            "{name} is none of theirs"
        );
    }
}

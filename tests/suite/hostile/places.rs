//! Places where nothing can be read or written, and names that are none.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt, fs::symlink},
};

use harmonica::checkpoint::ReleasedRouter;

use super::{Place, TRAIN, WRITERS, all, command, ends, error_of, picture};

const NO_FILE: &str = "it is a pipe or a device, expected a file";

const CPU: [&str; 2] = ["--device", "cpu"];

#[test]
fn pipes_and_endless_devices_are_no_files() {
    let place = Place::new();
    for name in [
        "pipe.pt",
        "pipe.safetensors",
        "pipe.schedule.json",
        "pipe.png",
        "atlas/a.png",
    ] {
        std::fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
        place.pipe(name);
    }
    for name in [
        "zero.schedule.json",
        "endless/classes.json",
        "harmonica-calibrations/a.calibration.json",
    ] {
        std::fs::create_dir_all(place.path(name).parent().unwrap()).unwrap();
        symlink("/dev/zero", place.path(name)).unwrap();
    }
    place.write(
        "atlas/classes.json",
        r#"{"tile": 2, "columns": 1, "classes": [{"id": 0, "name": "a", "tiles": 1}]}"#,
    );
    let before = place.names();
    let cases = [
        ("inspect {}/pipe.pt", 1, "cannot open {}/pipe.pt: "),
        (
            "inspect {}/pipe.safetensors",
            1,
            "cannot open {}/pipe.safetensors: ",
        ),
        (
            "inspect {}/pipe.schedule.json",
            1,
            "cannot read {}/pipe.schedule.json: ",
        ),
        (
            "inspect {}/zero.schedule.json",
            1,
            "cannot read {}/zero.schedule.json: ",
        ),
        ("inspect /dev/zero", 1, "cannot open /dev/zero: "),
        (
            "sample --device cpu --model {}/pipe.pt",
            1,
            "cannot open {}/pipe.pt: ",
        ),
        (
            "sample --device cpu --schedule {}/pipe.schedule.json",
            1,
            "cannot read {}/pipe.schedule.json: ",
        ),
        (
            "sample --device cpu --schedule {}/zero.schedule.json",
            1,
            "cannot read {}/zero.schedule.json: ",
        ),
        (
            "sample --device cpu --schedule mag:0.06",
            1,
            "cannot read harmonica-calibrations/a.calibration.json: ",
        ),
        (
            "sample --device cpu --noise {}/pipe.safetensors",
            1,
            "cannot open {}/pipe.safetensors: ",
        ),
        (
            "sample --device cpu --from {}/pipe.png",
            1,
            "{}/pipe.png: cannot be read: ",
        ),
        (
            "sample --device cpu --from /dev/zero",
            1,
            "/dev/zero: cannot be read: ",
        ),
        (
            "convert --class-names /dev/zero --out {}/x.safetensors",
            1,
            "cannot read /dev/zero: ",
        ),
        (
            "train dit --device cpu --data {}/endless --out {}/run",
            1,
            "cannot read {}/endless/classes.json: ",
        ),
        (
            "train dit --device cpu --data {}/atlas --out {}/run",
            1,
            "class `a` of {}/atlas has no readable picture; {}/atlas/a.png: ",
        ),
    ];
    all(cases.map(|(line, code, expected)| {
        let (ended, text) = place.run(line);
        let found = format!("{} ({ended:?})", error_of(&text));
        (
            line.into(),
            found,
            format!("{expected}{NO_FILE} (Some({code}))"),
        )
    }));
    assert_eq!(place.names(), before);
}

#[test]
fn a_folder_in_the_place_of_a_file_is_named() {
    let place = Place::new();
    place.write("folder/x", "");
    let is_a = "Is a directory (os error 21)";
    let cases = [
        (
            "sample --device cpu --from {}/folder",
            1,
            format!("{{}}/folder: cannot be read: {is_a}"),
        ),
        (
            "convert --class-names {}/folder --out {}/x.safetensors",
            1,
            format!("cannot read {{}}/folder: {is_a}"),
        ),
        (
            "convert --out {}/folder",
            1,
            format!("cannot write {{}}/folder: {is_a}"),
        ),
        (
            "schedule make fora:2 --out {}/folder",
            1,
            format!("cannot write {{}}/folder: {is_a}"),
        ),
    ];
    all(cases.map(|(line, code, expected)| {
        let (ended, text) = place.run(line);
        (
            line.into(),
            format!("{} ({ended:?})", error_of(&text)),
            format!("{expected} (Some({code}))"),
        )
    }));
    assert_eq!(place.names(), ["folder/x"]);
}

#[test]
fn names_that_are_no_utf8_are_written_and_read_or_refused() {
    let place = Place::new();
    let name = OsStr::from_bytes(b"\xffpicture.png");
    let words = [
        "sample", "--device", "cpu", "--steps", "2", "--count", "1", "--quiet", "--out",
    ];
    let out = ends(command(&words).arg(name).current_dir(place.0.path()));
    assert_eq!(out.status.code(), Some(0));
    let drawn = place.0.path().join(name);
    assert_eq!(image::open(&drawn).unwrap().width(), 32);
    let again = command(&[
        "sample",
        "--device",
        "cpu",
        "--quiet",
        "--out",
        "again.png",
        "--from",
    ])
    .arg(name)
    .current_dir(place.0.path())
    .status();
    assert!(again.unwrap().success());
    assert_eq!(
        std::fs::read(&drawn).unwrap(),
        std::fs::read(place.path("again.png")).unwrap()
    );
    // A model is named by a text.
    let (code, text) = place.said(command(&["inspect"]).arg(name));
    assert_eq!(
        (code, error_of(&text)),
        (
            Some(2),
            "invalid UTF-8 was detected in one or more arguments"
        )
    );
    for class in [&b"data/\xfe"[..], b"data/\xff"] {
        let folder = place.0.path().join(OsStr::from_bytes(class));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(OsStr::from_bytes(b"\xe9.png")), picture()).unwrap();
    }
    let (code, text) = place.run(&format!("{TRAIN} --steps 1 --out {{}}/run"));
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("2 pictures of [3, 4, 4] in 2 classes"),
        "{text}"
    );
}

#[test]
fn a_router_file_that_is_a_link_to_itself_is_refused() {
    let place = Place::new();
    symlink(place.path("a.pt"), place.path("a.pt")).unwrap();
    let error = ReleasedRouter::read(&place.path("a.pt"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot open ") && error.contains("Too many levels of symbolic links"),
        "{error}"
    );
    let (code, text) = place.said(
        command(&["sample", "--model"])
            .arg(place.path("a.pt"))
            .args(CPU),
    );
    assert_eq!(
        (code, error_of(&text).starts_with("cannot open {}/a.pt: ")),
        (Some(1), true),
        "{text}"
    );
}

/// Root may write in read-only folders, and tests may run as root: a file where the folder should be refuses everybody.
#[test]
fn a_place_that_cannot_be_written_is_named_with_what_is_in_the_way() {
    let place = Place::new().with_data();
    place.write("out", "mine");
    let before = place.names();
    let train = format!("{TRAIN} --steps 1 --out {{}}/out/run");
    let mut wrong = Vec::new();
    for (line, _) in WRITERS.into_iter().chain([(&*train, "")]) {
        let (code, text) = place.run(line);
        let error = error_of(&text);
        let named =
            error.starts_with("cannot write {}/out") && error.ends_with(": {}/out is no folder");
        if code != Some(1) || !named {
            wrong.push(format!("{line}\n  {error} ({code:?})"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(place.names(), before);
    assert_eq!(std::fs::read(place.path("out")).unwrap(), b"mine");
}

/// `/dev/full` is a disk that is full from the start; what links to it is written to, never replaced.
#[test]
fn a_full_device_is_an_error() {
    let place = Place::new();
    let cases = [
        (
            "sample --device cpu --steps 2 --count 1 --out {}/x.png",
            "x.png",
        ),
        ("convert --out {}/x.safetensors", "x.safetensors"),
        (
            "schedule make fora:2 --steps 4 --out {}/x.schedule.json",
            "x.schedule.json",
        ),
        (
            "compare --device cpu --schedules fora:2 --steps 2 --count 1 --html {}/x.html",
            "x.html",
        ),
    ];
    all(cases.map(|(line, name)| {
        symlink("/dev/full", place.path(name)).unwrap();
        let (code, text) = place.run(line);
        let expected =
            format!("cannot write {{}}/{name}: No space left on device (os error 28) (Some(1))");
        (
            line.into(),
            format!("{} ({code:?})", error_of(&text)),
            expected,
        )
    }));
    assert_eq!(
        place.names(),
        ["x.html", "x.png", "x.safetensors", "x.schedule.json"]
    );
}

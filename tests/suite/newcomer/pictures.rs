//! Pictures, and the classes they are of.

use std::fs;

use super::{Place, QUICK, said, says};

#[test]
fn out_is_a_file_where_it_looks_like_one() {
    let place = Place::new();
    let out = place.run(&[&QUICK[..], &["-n", "1", "--out", "pic.jpg"]].concat());
    assert!(out.status.success(), "{}", said(&out).1);
    let format = image::guess_format(&fs::read(place.path("pic.jpg")).unwrap()).unwrap();
    assert_eq!(format, image::ImageFormat::Jpeg);
    let out = place.run(&[&QUICK[..], &["-n", "1", "--out", "-"]].concat());
    assert!(out.status.success());
    let format = image::guess_format(&out.stdout).unwrap();
    assert_eq!(format, image::ImageFormat::Png);
    let names = fs::read_dir(place.0.path()).unwrap();
    assert_eq!(names.count(), 1, "only pic.jpg");
}

#[test]
fn classes_that_count_leaves_out_are_named() {
    let place = Place::new();
    let out = place.at("x.png");
    let asked = ["--classes", "face-3d,bird-3d,clock-3d", "--out", &out];
    let warning = "--count 1 leaves out 2 of the 3 classes: bird-3d, clock-3d";
    says(
        &[&QUICK[..], &asked, &["--count", "1"]].concat(),
        0,
        &[&format!("warning: {warning}")],
    );
    let all = says(&[&QUICK[..], &asked, &["--count", "3"]].concat(), 0, &[]);
    assert!(!all.contains("leaves out"), "{all}");
}

#[test]
fn part_of_a_class_name_is_understood_as_a_question() {
    for (asked, meant) in [
        ("face", "did you mean `face-flat` or `face-3d`?"),
        ("Clok", "did you mean `clock-flat` or `clock-3d`?"),
        ("animal-fat", "did you mean `animal-flat`"),
    ] {
        says(
            &[&QUICK[..], &["--classes", asked]].concat(),
            2,
            &[&format!("unknown class `{asked}`: {meant}")],
        );
    }
}

#[test]
fn inspect_lists_classes_and_says_so() {
    let listed = says(&["inspect", "bundled", "--classes"], 0, &["  45  "]);
    assert_eq!(listed.lines().count(), 46, "{listed}");
    assert_eq!(listed.lines().next(), Some("   0  animal-flat"));
    says(&["inspect", "bundled"], 0, &["--classes every class"]);
}

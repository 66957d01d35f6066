//! Disks, address spaces and tables of files that are full.

use std::process::Command;

use super::{Place, TRAIN, WRITERS, error_of};

/// A limit on the size of files stands in for a disk that is full: what is written fails in the middle, with nothing of it left.
#[test]
fn a_disk_that_is_full_is_an_error_and_leaves_the_old_file() {
    let mut wrong = Vec::new();
    let train = format!("{TRAIN} --steps 1 --out {{}}/out/run");
    for (line, file) in WRITERS.into_iter().chain([(&*train, "{}/out/run")]) {
        let place = Place::new().with_data();
        std::fs::create_dir(place.path("out")).unwrap();
        let own = file.strip_prefix("{}/").filter(|file| file.contains('.'));
        if let Some(own) = own {
            place.write(own, "old");
        }
        let mut shell = Command::new("sh");
        shell
            .args([
                "-c",
                "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"",
                env!("CARGO_BIN_EXE_harmonica"),
            ])
            .args(place.words(line));
        let (code, text) = place.said(&mut shell);
        let error = error_of(&text);
        let expected = format!("cannot write {file}");
        if code != Some(1)
            || !error.starts_with(&expected)
            || !error.ends_with(": File too large (os error 27)")
        {
            wrong.push(format!("{line}\n  {error} ({code:?})"));
        }
        for name in place.names() {
            let left = std::fs::read(place.path(&name)).unwrap();
            let kept =
                name == "data/good.png" || own == Some(&*name) && left == b"old" || left.is_empty();
            if !kept || name.contains("/.") {
                wrong.push(format!("{line}\n  left {name} of {} bytes", left.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

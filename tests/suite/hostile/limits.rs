//! Disks, address spaces and tables of files that are full.

use std::process::Command;

use super::{Place, TRAIN, WRITERS, error_of};
use crate::common::golden;

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

/// A disk of its own, full to the last page, where a process may have one; elsewhere the limit above stands for it alone.
#[test]
fn a_disk_without_room_is_an_error_and_leaves_the_old_file() {
    const FULL: &str = "mount -t tmpfs -o size=64k none out || exit 77
        [ -z \"$OWN\" ] || printf old >\"$OWN\"
        cat /dev/zero >out/full 2>/dev/null
        \"$@\"
        code=$?
        find out -type f -printf '%P %s\\n' >left
        exit $code";
    let mut wrong = Vec::new();
    let train = format!("{TRAIN} --steps 1 --out {{}}/out/run");
    for (line, file) in WRITERS.into_iter().chain([(&*train, "{}/out/run")]) {
        let place = Place::new().with_data();
        std::fs::create_dir(place.path("out")).unwrap();
        let own = file.strip_prefix("{}/").filter(|file| file.contains('.'));
        let mut shell = Command::new("unshare");
        shell
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", FULL])
            .args(["sh", env!("CARGO_BIN_EXE_harmonica")])
            .args(place.words(line))
            .env("OWN", own.unwrap_or_default())
            .current_dir(place.path(""));
        let (code, text) = place.said(&mut shell);
        if code == Some(77) || text.starts_with("unshare: ") {
            println!("NOT TRIED, no disk may be mounted here: {text}");
            return;
        }
        let error = error_of(&text);
        let named = error.starts_with(&format!("cannot write {file}"));
        if code != Some(1) || !named || !error.ends_with(": No space left on device (os error 28)")
        {
            wrong.push(format!("{line}\n  {error} ({code:?})"));
        }
        let left = std::fs::read_to_string(place.path("left")).unwrap();
        assert!(left.contains("full 6"), "{left}");
        let kept = own.map(|own| format!("{} 3", own.strip_prefix("out/").unwrap()));
        for file in left.lines().filter(|file| !file.starts_with("full ")) {
            let is_kept = kept.as_deref() == Some(file) || file.ends_with(" 0");
            if !is_kept || file.starts_with('.') || file.contains("/.") {
                wrong.push(format!("{line}\n  left {file}"));
            }
        }
        if let Some(kept) = kept
            && !left.lines().any(|file| file == kept)
        {
            wrong.push(format!("{line}\n  lost {kept}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a command says under a limit that the shell sets.
fn under(limit: &str, place: &Place, line: &str) -> (Option<i32>, String) {
    // What runs the tests may leave files open, and load libraries of its own.
    let script = format!("exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; {limit}; exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .arg(env!("CARGO_BIN_EXE_harmonica"))
        .args(place.words(line))
        .env_remove("LD_PRELOAD")
        .current_dir(place.path(""));
    place.said(&mut shell)
}

/// With fewer than four the system cannot start a program.
#[test]
fn few_descriptors_are_enough_or_an_error() {
    let (mut wrong, mut refused) = (Vec::new(), 0);
    let train = format!("{TRAIN} --steps 1 --out {{}}/out/run");
    let weights = golden("tiny-c.safetensors");
    let inspect = format!("inspect {} --heads 1", weights.display());
    let more = [(&*train, ""), (&*inspect, "")];
    for (line, _) in WRITERS.into_iter().chain(more) {
        for most in [4, 5] {
            let place = Place::new().with_data();
            let (code, text) = under(&format!("ulimit -n {most}"), &place, line);
            let error = error_of(&text);
            let is_so = error.ends_with(": Too many open files (os error 24)");
            refused += usize::from(is_so);
            if code != Some(0) && !(code == Some(1) && is_so) {
                wrong.push(format!("{most} for {line}\n  {error} ({code:?})"));
            }
            let names = place.names();
            if names.iter().any(|name| name.contains("/.")) {
                wrong.push(format!("{most} for {line}\n  leaves {names:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The test knows what it is after.
    assert!(refused >= 2, "{refused} were refused");
}

/// More and more memory until it is enough: whatever lacks it ends as a command does, not as a crash.
#[test]
fn too_little_memory_is_an_error_and_leaves_the_old_file() {
    const STEP: usize = 6_000;
    let limit = |kilobytes: usize| format!("ulimit -v {kilobytes}");
    // Less is too little for the system to load the program.
    let starts = (40_000..).step_by(STEP).find(|kilobytes| {
        let (code, _) = under(&limit(*kilobytes), &Place::new(), "--version");
        code == Some(0)
    });
    let train = format!("{TRAIN} --steps 1 --out {{}}/out/run");
    for (line, file) in WRITERS.into_iter().take(3).chain([(&*train, "{}/out/run")]) {
        let mut refused = 0;
        for kilobytes in (starts.unwrap()..).step_by(STEP) {
            let place = Place::new().with_data();
            let own = file.strip_prefix("{}/").filter(|file| file.contains('.'));
            if let Some(own) = own {
                place.write(own, "old");
            }
            let (code, text) = under(&limit(kilobytes), &place, line);
            if code == Some(0) {
                break;
            }
            assert!(kilobytes < 4_000_000, "{line} gets never enough: {text}");
            // A thread without room for its stack is burn's and rayon's panic, which the command survives.
            let said = error_of(&text).starts_with("out of memory: the system refused ")
                || text.contains("Resource temporarily unavailable");
            // Where the C library gets no memory of its own, it aborts.
            let aborted = code.is_none() && text.contains("glibc error");
            assert!(
                (code == Some(1) && said) || aborted,
                "{kilobytes} kB for {line}: {text} ({code:?})"
            );
            refused += 1;
            for name in place.names().into_iter().filter(|_| !aborted) {
                assert!(!name.contains("/."), "{line} leaves {name}");
            }
            if let Some(own) = own {
                assert_eq!(std::fs::read(place.path(own)).unwrap(), b"old");
            }
        }
        println!("{line}: refused {refused} times");
        assert!(refused > 0, "{line}: anything is enough");
    }
}

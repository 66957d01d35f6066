//! `tests/c/misuse.c`: what C can get wrong with the C interface, under the sanitizers of addresses and undefined behaviour.
//!
//! The library is the one in this program. The C program becomes a shared object whose calls go through pointers, and a
//! second run of this very test, which the sanitizer's runtime is loaded into first, fills them and runs it.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    process::Command,
};

use harmonica::capi::*;

use crate::common::golden;

macro_rules! functions {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), $name as *const c_void)),*]
    };
}

/// Every function of the interface and where it lies in this program.
fn functions() -> [(&'static str, *const c_void); 21] {
    functions![
        hm_abi_version,
        hm_version,
        hm_last_error,
        hm_engine_open,
        hm_engine_device,
        hm_engine_backend,
        hm_engine_notice,
        hm_engine_free,
        hm_model_load,
        hm_model_get_info,
        hm_model_class_name,
        hm_model_class_by_name,
        hm_model_free,
        hm_schedule_open,
        hm_schedule_from_table,
        hm_schedule_get_figures,
        hm_schedule_free,
        hm_settings_init,
        hm_sample,
        hm_rgb8,
        hm_write_png,
    ]
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The header with every function as a pointer to one, and their names.
fn header_of_pointers() -> (String, Vec<String>) {
    let header = std::fs::read_to_string(root().join("include/harmonica.h")).unwrap();
    let (mut out, mut names) = (String::new(), Vec::new());
    for line in header.lines() {
        let is_function = line.ends_with(");") && !line.starts_with("typedef");
        match line.split_once('(').filter(|_| is_function) {
            Some((head, parameters)) => {
                let name = head.rsplit([' ', '*']).next().unwrap();
                let result = head.strip_suffix(name).unwrap();
                out.push_str(&format!("{result}(*{name})({parameters}\n"));
                names.push(name.to_owned());
            }
            None => out.push_str(&format!("{line}\n")),
        }
    }
    (out, names)
}

/// What the system's C compiler answers; it must be there, and succeed.
fn compiler(arguments: &[&str]) -> String {
    let name = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let out = Command::new(&name).args(arguments).output();
    let out = out.unwrap_or_else(|e| {
        panic!("`{name}`: {e}; this test needs a C compiler (Debian and Ubuntu: apt-get install build-essential)")
    });
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name} {arguments:?}: {said}");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// The program as a shared object, and the runtime that must be loaded before it.
fn build(folder: &Path) -> (PathBuf, String) {
    let (header, mut declared) = header_of_pointers();
    let mut known = functions().map(|(name, _)| name).to_vec();
    known.sort_unstable();
    declared.sort_unstable();
    assert_eq!(declared, known, "functions of the header, and of this test");
    std::fs::write(folder.join("harmonica.h"), header).unwrap();

    let runtime = compiler(&["-print-file-name=libasan.so"]);
    assert!(
        Path::new(&runtime).is_absolute(),
        "this test needs gcc with its address sanitizer (Debian and Ubuntu: apt-get install gcc; CC=gcc picks it)"
    );
    let object = folder.join("misuse.so");
    let source = root().join("tests/c/misuse.c");
    compiler(&[
        "-std=gnu11",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-Dmain=misuse",
        "-I",
        folder.to_str().unwrap(),
        source.to_str().unwrap(),
        "-o",
        object.to_str().unwrap(),
        "-pthread",
    ]);
    (object, runtime)
}

const OBJECT: &str = "HARMONICA_TEST_MISUSE_OBJECT";
const DEVICE: &str = "HARMONICA_TEST_MISUSE_DEVICE";

/// Runs the shared object in this process: its exit code.
fn run_here(object: &str, device: &str, cycles: &str) -> c_int {
    let model = golden("diffusers-single");
    let arguments = ["misuse", model.to_str().unwrap(), device, cycles];
    let owned = arguments.map(|argument| CString::new(argument).unwrap());
    let mut pointers = owned
        .each_ref()
        .map(|argument| argument.as_ptr().cast_mut());
    let path = CString::new(object).unwrap();
    // SAFETY: the object was made by `build` of a source whose `main` has this type, and whose pointers have those of the
    // functions that they are filled with: header and functions are kept together by `header.rs`.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "{object} cannot be loaded");
        for (name, address) in functions() {
            let name = CString::new(name).unwrap();
            let place = libc::dlsym(library, name.as_ptr()).cast::<*const c_void>();
            assert!(!place.is_null(), "{name:?} is nowhere");
            place.write(address);
        }
        let main = libc::dlsym(library, c"misuse".as_ptr());
        assert!(!main.is_null());
        type Main = extern "C" fn(c_int, *mut *mut c_char) -> c_int;
        let main = std::mem::transmute::<*mut c_void, Main>(main);
        main(pointers.len() as c_int, pointers.as_mut_ptr())
    }
}

/// Runs the test of this name again, sanitized, on a device.
fn run_sanitized(test: &str, device: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (object, runtime) = build(folder.path());
    let out = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(OBJECT, &object)
        .env(DEVICE, device)
        .env("LD_PRELOAD", runtime)
        // What burn and drivers keep to the end of the process is not lost; growth is measured by the program.
        .env("ASAN_OPTIONS", "detect_leaks=0:quarantine_size_mb=16")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = [&out.stdout, &out.stderr].map(|text| String::from_utf8_lossy(text));
    println!("{}", said[0]);
    assert!(out.status.success(), "{}\n{}", said[0], said[1]);
    assert!(
        said[0].contains(" checks, 0 failures"),
        "nothing was run: {}",
        said[0]
    );
    // Nothing that was refused left a file behind.
    assert!(!folder.path().join("x.png").exists());
}

#[test]
fn no_misuse_from_c_harms_a_program_on_the_cpu() {
    match std::env::var(OBJECT) {
        Ok(object) => assert_eq!(
            run_here(&object, &std::env::var(DEVICE).unwrap(), "1000"),
            0
        ),
        Err(_) => run_sanitized("misuse::no_misuse_from_c_harms_a_program_on_the_cpu", "cpu"),
    }
}

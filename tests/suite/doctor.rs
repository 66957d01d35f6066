//! `harmonica doctor`, and the kernels' own check.

use std::{
    path::Path,
    process::{Command, Output},
};

use harmonica::{device::Engine, kernels::check_kernels};
use serde_json::Value;

use crate::common::{engines, harmonica, vulkan, within};

/// The command in a home of its own, without variables that steer drivers.
fn doctor(home: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonica"));
    command.arg("doctor").args(arguments);
    for name in [
        "VK_DRIVER_FILES",
        "VK_ICD_FILENAMES",
        "VK_ADD_DRIVER_FILES",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
    ] {
        command.env_remove(name);
    }
    command
        .env("HF_HOME", home.join("hub-home"))
        .env("XDG_CACHE_HOME", home.join("cache"))
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one document on stdout.
fn document(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)))
}

/// The shaders of the repository, by their files.
fn shaders() -> Vec<String> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")).unwrap();
    let stem = |path: std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    folder.map(|entry| stem(entry.unwrap().path())).collect()
}

#[test]
fn every_kernel_is_checked_on_each_device_and_agrees_with_its_formula() {
    for (name, engine) in engines() {
        let checks = check_kernels(&engine);
        let mut missing: Vec<String> = shaders()
            .into_iter()
            .filter(|shader| !checks.iter().any(|c| c.kernel.starts_with(&**shader)))
            .collect();
        missing.sort();
        let mut expected = Vec::new();
        if !engine.hardware().matrix_units {
            expected.push("matrix_product");
        }
        // The CPU draws into no textures.
        if name == "cpu" {
            expected.push("paint_image");
        }
        assert_eq!(missing, expected, "{name}");
        for check in checks {
            let difference = check.difference.unwrap_or_else(|fault| {
                panic!("{} on {name}: {fault}", check.kernel);
            });
            let bound = match check.kernel {
                "paint_image" => 1.0 / 255.0,
                "matrix_product" => 1e-3,
                kernel if kernel.ends_with("f16") => 1e-3,
                _ => 2e-5,
            };
            within(
                format!("check of {}, {name}", check.kernel),
                difference,
                bound,
            );
        }
    }
}

#[test]
fn a_machine_in_order_is_well_on_the_cpu_and_on_vulkan() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join("hub-home/hub/models--a--b")).unwrap();
    for device in ["cpu", "vulkan"] {
        let out = doctor(home.path(), &["--device", device, "--json"], &[]);
        let said = document(&out);
        assert_eq!(out.status.code(), Some(0), "{said:#}");
        assert_eq!(said["problems"], Value::Array(vec![]));
        assert_eq!(
            (&said["well"], &said["device"]["backend"]),
            (&true.into(), &device.into())
        );

        let kernels = said["device"]["kernels"].as_array().unwrap();
        assert!(kernels.len() > 10, "{kernels:?}");
        for kernel in kernels {
            assert!(
                kernel["difference"].is_f64() && kernel["fault"].is_null(),
                "{kernel}"
            );
        }

        let speed = &said["device"]["speed"];
        let seconds = |value: &Value| value.as_f64().unwrap();
        let product = &speed["product"];
        let [shortest, median, longest] =
            ["shortest_s", "median_s", "longest_s"].map(|name| seconds(&product[name]));
        assert!(
            0.0 < shortest && shortest <= median && median <= longest,
            "{product}"
        );
        let picture = &speed["picture"];
        assert!(seconds(&picture["second_s"]) > 0.0, "{picture}");
        match device {
            "cpu" => assert!(picture["difference_to_cpu"].is_null(), "{picture}"),
            _ => within(
                "a picture in four steps, CPU and Vulkan",
                seconds(&picture["difference_to_cpu"]),
                1e-3,
            ),
        }

        let adapters = said["adapters"].as_array().unwrap();
        let name = &vulkan().report().device;
        let is_ours = |a: &&Value| a["api"] == "vulkan" && a["name"] == **name;
        let ours = adapters.iter().find(is_ours).unwrap();
        assert_eq!(ours["shortfalls"], Value::Array(vec![]));
        let [models, texts] = &said["caches"].as_array().unwrap()[..] else {
            panic!("{said:#}");
        };
        assert_eq!(
            (&models["entries"], &models["writable"]),
            (&1.into(), &true.into())
        );
        assert!(
            texts["entries"].is_null() && texts["path"].is_string(),
            "{texts}"
        );
    }
}

#[test]
fn the_page_is_aligned_and_ends_in_a_verdict() {
    let home = tempfile::tempdir().unwrap();
    let out = doctor(home.path(), &["--device", "cpu"], &[]);
    let page = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{page}");
    assert!(page.ends_with("\nall is well\n"), "{page}");
    let at = |name: &str| {
        let found = page.lines().position(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name}: {page}"))
    };
    let sections = ["system", "adapters", "device", "kernels", "speed", "caches"];
    let places = sections.map(at);
    assert!(places.is_sorted(), "{places:?}");
    // Verdicts of kernels stand below each other.
    let kernels = &page.lines().collect::<Vec<_>>()[at("kernels")..at("speed")];
    let columns: Vec<_> = kernels.iter().map(|line| line.find("ok, off by")).collect();
    assert!(kernels.len() > 10 && columns[0].is_some(), "{page}");
    assert!(columns.iter().all(|column| *column == columns[0]), "{page}");
    assert!(page.lines().all(|line| line.trim_end() == line));
}

/// A driver that vanishes: whoever set the variable is told, and how to get it back.
#[cfg(target_os = "linux")]
#[test]
fn a_driver_file_that_is_not_there_is_told_with_the_way_out() {
    let home = tempfile::tempdir().unwrap();
    let nonsense = [("VK_DRIVER_FILES", "/nonsense")];
    let told = "VK_DRIVER_FILES names /nonsense, which is not there";
    let out = doctor(home.path(), &["--device", "auto"], &nonsense);
    let page = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{page}");
    assert!(page.contains(&format!("✗ {told}")), "{page}");
    assert!(
        page.contains("unset VK_DRIVER_FILES") && page.contains(".json"),
        "{page}"
    );
    assert!(!page.contains("all is well"), "{page}");
    let last = text(&out.stderr).lines().last().unwrap().to_owned();
    assert!(last.starts_with("error: 1 problem: see above"), "{last}");

    let out = doctor(home.path(), &["--device", "vulkan", "--json"], &nonsense);
    let said = document(&out);
    assert_eq!((out.status.code(), &said["well"]), (Some(1), &false.into()));
    assert!(said["device"].is_null(), "{said:#}");
    assert_eq!(said["drivers"]["variables"]["VK_DRIVER_FILES"], "/nonsense");
    let [of_driver, of_device] = &said["problems"].as_array().unwrap()[..] else {
        panic!("{said:#}");
    };
    assert!(of_driver.as_str().unwrap().starts_with(told), "{of_driver}");
    let missing = "no vulkan adapter on this machine: install the GPU's Vulkan driver";
    assert!(
        of_device.as_str().unwrap().starts_with(missing),
        "{of_device}"
    );
}

#[test]
fn a_device_that_no_list_has_is_bad_usage() {
    for (device, expected) in [
        ("99", "there is no device 99"),
        ("toaster", "unknown device `toaster`"),
    ] {
        let out = harmonica(&["doctor", "--device", device]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains(expected) && out.stdout.is_empty(), "{said}");
    }
}

#[test]
fn the_library_checks_the_cpu_without_any_driver() {
    let checks = check_kernels(&Engine::cpu());
    assert!(checks.iter().any(|check| check.kernel == "product"));
    assert!(
        checks.iter().all(|check| check.difference.is_ok()),
        "{checks:?}"
    );
}

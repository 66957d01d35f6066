//! Choosing and listing devices.

use harmonica::device::{DeviceChoice, Engine};

use crate::common::{harmonica, harmonica_json, vulkan};

#[test]
fn the_list_names_the_vulkan_adapter_and_marks_what_auto_takes() {
    let name = &vulkan().report().device;
    let list = harmonica_json(&["devices", "--json"]);
    let adapters = list["adapters"].as_array().unwrap();
    let ours = adapters
        .iter()
        .find(|a| a["api"] == "vulkan" && a["name"] == **name)
        .unwrap();
    assert!(ours["max_buffer_bytes"].as_u64().unwrap() > 0 && ours["driver"].as_str().is_some());
    let marked = adapters.iter().filter(|a| a["auto"] == true).count();
    assert_eq!(marked + usize::from(list["cpu"]["auto"] == true), 1);
    assert!(
        adapters
            .iter()
            .all(|a| a["auto"] == false || a["kind"] != "software")
    );
}

#[test]
fn an_index_opens_the_adapter_of_the_list() {
    let list = harmonica_json(&["devices", "--json"]);
    let adapters = list["adapters"].as_array().unwrap();
    let place = adapters.iter().position(|a| a["api"] == "vulkan").unwrap();
    let opened = Engine::open(DeviceChoice::Index(place)).unwrap();
    assert_eq!(opened.engine.report().backend, "vulkan");
    assert_eq!(adapters[place]["name"], opened.engine.report().device);
}

#[test]
fn a_missing_vulkan_driver_is_an_error_that_says_what_to_install() {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .args(["sample", "--device", "vulkan", "--steps", "1"])
        .env("VK_DRIVER_FILES", "/nonexistent/driver.json")
        .env("VK_ICD_FILENAMES", "/nonexistent/driver.json")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(
        text.contains("no vulkan adapter on this machine: install the GPU's Vulkan driver"),
        "{text}"
    );
}

#[test]
fn the_command_explains_itself() {
    let out = harmonica(&["sample", "--help"]);
    let text = String::from_utf8_lossy(&out.stdout);
    for flag in [
        "--model",
        "--heads",
        "--schedule",
        "--device",
        "--steps",
        "--solver",
        "--guidance",
        "--guidance-channels",
        "--classes",
        "--count",
        "--seed",
        "--out",
        "--json",
        "--noise",
        "--save-tensors",
        "--batch",
        "--clip-x0",
    ] {
        assert!(text.contains(flag), "{flag}");
    }
}

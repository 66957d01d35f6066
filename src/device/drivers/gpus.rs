//! The graphics hardware that the kernel knows of, driver or not.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::device::adapter_vendor;

/// A GPU of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// As [`AdapterReport::vendor`](crate::device::AdapterReport::vendor) has it.
    pub vendor: String,
    /// The file that drivers open to use it.
    pub node: Option<PathBuf>,
    /// Whether this user may not open that file.
    pub closed: bool,
}

/// The GPUs of AMD, Intel and NVIDIA that Linux knows of; none on other systems, and none in containers that hide them.
pub fn gpus() -> Vec<Gpu> {
    gpus_below(Path::new("/"))
}

fn gpus_below(root: &Path) -> Vec<Gpu> {
    let cards = names_in(&root.join("sys/class/drm"));
    let is_card = |name: &&String| {
        let number = name.strip_prefix("card");
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
    };
    let mut found: Vec<Gpu> = Vec::new();
    for card in cards.iter().filter(is_card) {
        let device = root.join("sys/class/drm").join(card).join("device");
        let vendor = std::fs::read_to_string(device.join("vendor")).unwrap_or_default();
        let number = vendor.trim().trim_start_matches("0x");
        let vendor = adapter_vendor(u32::from_str_radix(number, 16).unwrap_or(0));
        if !["AMD", "Intel", "NVIDIA"].contains(&&*vendor) {
            // What servers draw their consoles with, and virtual displays.
            continue;
        }
        let nodes = names_in(&device.join("drm"));
        let render = nodes.iter().find(|name| name.starts_with("renderD"));
        let node = render.map(|name| root.join("dev/dri").join(name));
        let closed = node.as_deref().is_some_and(is_closed);
        found.push(Gpu {
            vendor,
            node,
            closed,
        });
    }
    // NVIDIA's own driver works without those, in containers above all.
    let node = root.join("dev/nvidia0");
    if node.exists() && found.iter().all(|gpu| gpu.vendor != "NVIDIA") {
        found.push(Gpu {
            vendor: "NVIDIA".into(),
            closed: is_closed(&node),
            node: Some(node),
        });
    }
    found
}

fn is_closed(node: &Path) -> bool {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(node);
    opened.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
}

/// The names in a folder, in order; none where there is no such folder.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_told_from_displays_and_connectors() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(gpus_below(root.path()), []);
        for (card, vendor) in [
            ("card0", "0x1a03"),
            ("card1", "0x1002"),
            ("card2", "0x8086"),
        ] {
            write(
                &format!("sys/class/drm/{card}/device/vendor"),
                &format!("{vendor}\n"),
            );
        }
        write("sys/class/drm/card1/device/drm/renderD128/dev", "");
        write("sys/class/drm/card1-HDMI-A-1/device/vendor", "0x1002");
        write("dev/dri/renderD128", "");
        write("dev/nvidia0", "");
        let found = gpus_below(root.path());
        let vendors: Vec<&str> = found.iter().map(|gpu| &*gpu.vendor).collect();
        assert_eq!(vendors, ["AMD", "Intel", "NVIDIA"]);
        assert_eq!(found[0].node, Some(root.path().join("dev/dri/renderD128")));
        assert!(found[1].node.is_none() && found.iter().all(|gpu| !gpu.closed));
    }
}

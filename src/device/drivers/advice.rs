//! What to install where there is no driver.

/// What brings a driver for this machine, for a GPU of `vendor` or, without one, for any.
pub fn what_to_install(vendor: Option<&str>) -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    advice(std::env::consts::OS, &release, vendor)
}

/// `release`: the text of `/etc/os-release`.
fn advice(os: &str, release: &str, vendor: Option<&str>) -> String {
    match os {
        "windows" => format!(
            "install {} driver from its maker's page, or by Windows Update; both bring DirectX 12 and Vulkan",
            vendor.map_or("the GPU's".into(), |vendor| format!("{vendor}'s"))
        ),
        "macos" | "ios" => {
            "Metal comes with the system: a machine without it is too old, or a virtual one that is given no GPU".into()
        }
        "linux" => format!("install {}", of_linux(release, vendor)),
        _ => "install Mesa's Vulkan drivers and Vulkan's loader".into(),
    }
}

fn of_linux(release: &str, vendor: Option<&str>) -> String {
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_matches('"').to_lowercase()
    };
    let names = format!("{} {}", value("ID="), value("ID_LIKE="));
    let is = |name: &str| names.split_whitespace().any(|word| word == name);
    let nvidia = vendor == Some("NVIDIA");
    let command = if is("debian") || is("ubuntu") {
        match (nvidia, is("ubuntu")) {
            (false, _) => "apt-get install mesa-vulkan-drivers libvulkan1",
            (true, false) => "apt-get install nvidia-driver nvidia-vulkan-icd (from non-free)",
            (true, true) => "ubuntu-drivers install",
        }
    } else if is("arch") {
        match vendor {
            Some("NVIDIA") => "pacman -S nvidia-utils vulkan-icd-loader",
            Some("AMD") => "pacman -S vulkan-radeon vulkan-icd-loader",
            Some("Intel") => "pacman -S vulkan-intel vulkan-icd-loader",
            _ => "pacman -S vulkan-swrast vulkan-icd-loader",
        }
    } else if is("fedora") || is("rhel") {
        match nvidia {
            false => "dnf install mesa-vulkan-drivers vulkan-loader",
            true => "dnf install akmod-nvidia (from RPM Fusion)",
        }
    } else if is("suse") || is("opensuse") {
        match vendor {
            Some("NVIDIA") => "zypper install nvidia-gl-G06 (from NVIDIA's repository)",
            Some("AMD") => "zypper install libvulkan_radeon libvulkan1",
            Some("Intel") => "zypper install libvulkan_intel libvulkan1",
            _ => "zypper install libvulkan_lvp libvulkan1",
        }
    } else {
        return match vendor {
            Some("NVIDIA") => "NVIDIA's driver with Vulkan, and Vulkan's loader".into(),
            _ => "Mesa's Vulkan drivers and Vulkan's loader".into(),
        };
    };
    match vendor {
        Some(vendor) => format!("{vendor}'s driver: {command}"),
        None => format!("Vulkan's drivers: {command}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_has_its_own_command() {
        let mint = "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
        for (os, release, vendor, expected) in [
            (
                "linux",
                "ID=debian\n",
                None,
                "apt-get install mesa-vulkan-drivers",
            ),
            ("linux", "ID=debian\n", Some("NVIDIA"), "nvidia-vulkan-icd"),
            ("linux", mint, Some("NVIDIA"), "ubuntu-drivers install"),
            ("linux", "ID=arch", Some("AMD"), "vulkan-radeon"),
            ("linux", "ID=arch", Some("Intel"), "vulkan-intel"),
            (
                "linux",
                "ID=fedora",
                Some("AMD"),
                "dnf install mesa-vulkan-drivers",
            ),
            ("linux", "ID_LIKE=\"suse opensuse\"", None, "libvulkan_lvp"),
            ("linux", "", Some("NVIDIA"), "NVIDIA's driver with Vulkan"),
            ("linux", "", None, "Mesa's Vulkan drivers"),
            ("windows", "", Some("AMD"), "install AMD's driver"),
            ("macos", "", None, "Metal comes with the system"),
            ("freebsd", "", None, "Mesa's Vulkan drivers"),
        ] {
            let text = advice(os, release, vendor);
            assert!(
                text.contains(expected),
                "{os}, {release}, {vendor:?}: {text}"
            );
        }
    }
}

//! What is wrong, and what to do.

use super::{Folder, Tried};
use crate::device::{
    AdapterReport, Api, DeviceError,
    drivers::{DriverProblem, Gpu, VulkanDrivers, what_to_install},
};

/// How far the small picture may be from the CPU's, of values in [-1, 1]: less than a step between two colours.
const FAR: f32 = 5e-3;

#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What fails.
    pub problems: Vec<String>,
    /// What could be better.
    pub advice: Vec<String>,
}

impl Findings {
    pub fn of_drivers(&mut self, drivers: &VulkanDrivers, gpus: &[Gpu], found: &[AdapterReport]) {
        for problem in &drivers.problems {
            match problem {
                DriverProblem::NamesNothing { .. } => self.problems.push(problem.to_string()),
                _ => self.advice.push(problem.to_string()),
            }
        }
        let hardware = |vendor: &str| {
            let mut own = found.iter().filter(|a| !a.is_software());
            own.any(|a| a.vendor == vendor)
        };
        for gpu in gpus.iter().filter(|gpu| !hardware(&gpu.vendor)) {
            let vendor = &gpu.vendor;
            self.advice.push(match &gpu.node {
                Some(node) if gpu.closed => format!(
                    "a GPU of {vendor} is here, but this user may not open {}: join the group that owns it (sudo usermod -aG render $USER), and log in again",
                    node.display()
                ),
                _ => format!(
                    "a GPU of {vendor} is here, but no driver offers it: {}",
                    what_to_install(Some(vendor))
                ),
            });
        }
        for adapter in found {
            let shortfalls = adapter.shortfalls().join(", ");
            if !shortfalls.is_empty() {
                self.advice.push(format!(
                    "device {}, {} ({}), cannot be used: {shortfalls}",
                    adapter.index, adapter.name, adapter.api
                ));
            }
        }
        let vulkan = found.iter().any(|a| a.api == Api::Vulkan);
        if !vulkan && !drivers.found.is_empty() {
            self.advice.push(format!(
                "{} drivers of Vulkan are listed and none offers a device: Vulkan's loader is missing, or they find no GPU of theirs; {}",
                drivers.found.len(),
                what_to_install(None)
            ));
        }
        if found.iter().all(|a| a.is_software()) && gpus.is_empty() {
            let install = what_to_install(None);
            self.advice.push(match found.first() {
                Some(software) => format!(
                    "no GPU is seen, so that auto is the CPU: where there is one, {install}; the software device {} is used where asked for",
                    software.index
                ),
                None => format!(
                    "no GPU is seen, so that auto is the CPU: where there is one, {install}"
                ),
            });
        }
    }

    pub fn not_opened(&mut self, error: &DeviceError) {
        self.problems.push(error.to_string());
    }

    pub fn of_device(&mut self, tried: &Tried) {
        for check in &tried.kernels {
            if let Err(fault) = &check.difference {
                self.problems
                    .push(format!("kernel {}: {fault}", check.kernel));
            }
        }
        match &tried.speed {
            Err(fault) => self
                .problems
                .push(format!("a product and a picture: {fault}")),
            Ok(speed) => {
                let off = speed.picture.as_ref().and_then(|p| p.difference_to_cpu);
                // What is no number is far.
                if let Some(off) = off.filter(|off| !off.is_finite() || *off > FAR) {
                    self.problems.push(format!(
                        "a picture drawn on {} is {off:.1e} away from the CPU's, expected at most {FAR:.0e} (of values in [-1, 1]): update the driver, or use another device",
                        tried.report.device
                    ));
                }
            }
        }
    }

    pub fn of_caches(&mut self, folders: &[Folder]) {
        for folder in folders {
            match (&folder.path, folder.writable) {
                (None, _) => self.advice.push(format!(
                    "there is no place for {}: set {}",
                    folder.holds, folder.variable
                )),
                (Some(path), Some(false)) => self.advice.push(format!(
                    "{} cannot be written, where {} go: make it this user's, or set {}",
                    path.display(),
                    folder.holds,
                    folder.variable
                )),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_without_a_driver_says_what_to_install_and_a_closed_one_who_may_open_it() {
        let gpu = |closed| Gpu {
            vendor: "AMD".into(),
            node: Some("/dev/dri/renderD128".into()),
            closed,
        };
        for (closed, expected) in [(false, "no driver offers it"), (true, "usermod -aG render")] {
            let mut findings = Findings::default();
            findings.of_drivers(&VulkanDrivers::default(), &[gpu(closed)], &[]);
            assert_eq!(findings.problems, [""; 0]);
            assert!(
                matches!(&findings.advice[..], [one] if one.contains(expected)),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn a_place_that_is_not_there_or_cannot_be_written_is_told() {
        let folder = |path: Option<&str>, writable| Folder {
            holds: "models of the hub",
            variable: "HF_HOME",
            path: path.map(Into::into),
            entries: None,
            writable,
        };
        let mut findings = Findings::default();
        findings.of_caches(&[folder(None, None), folder(Some("/r"), Some(false))]);
        findings.of_caches(&[folder(Some("/new"), None), folder(Some("/w"), Some(true))]);
        let [nowhere, closed] = &findings.advice[..] else {
            panic!("{findings:?}");
        };
        assert!(nowhere.contains("set HF_HOME") && closed.starts_with("/r cannot be written"));
    }
}

//! `harmonica doctor`

mod findings;
mod page;
mod speed;
mod system;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::json;

use super::{
    Context,
    error::CliError,
    options::{DeviceArgs, print_json},
};
use crate::{
    device::{
        AdapterReport, Choice, DeviceChoice, DeviceError, DeviceFault, DeviceReport, Engine, Watch,
        adapters,
        drivers::{Gpu, VulkanDrivers, gpus, vulkan_drivers},
    },
    kernels::{KernelCheck, check_kernels},
};
use findings::Findings;
use speed::Speed;
use system::{Folder, System, cache_folders};

/// It looks at drivers, adapters and caches, runs every kernel of the device once against its formula, and draws a small
/// picture. Exit code 1 where something is wrong; what to do is said at the end.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

/// What was seen.
struct Examination {
    system: System,
    drivers: VulkanDrivers,
    gpus: Vec<Gpu>,
    adapters: Vec<AdapterReport>,
    /// What was tried; none where it did not open.
    device: Option<Tried>,
    caches: Vec<Folder>,
    findings: Findings,
}

/// What a device did.
struct Tried {
    report: DeviceReport,
    /// The CPU has no limits.
    adapter: Option<AdapterReport>,
    /// Whether a processor has units for bf16.
    bf16_units: bool,
    kernels: Vec<KernelCheck>,
    speed: Result<Speed, String>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let name = &args.device.device;
    let choice: DeviceChoice = name.parse()?;
    let mut seen = Examination::of_machine();
    match Engine::open(choice) {
        Ok(Choice { engine, failed, .. }) => {
            if let Some(error) = &failed {
                seen.findings.not_opened(error);
            }
            context.say(format!("trying {} …", engine.report().device));
            seen.try_device(&engine);
        }
        Err(error @ DeviceError::NoSuchIndex { .. }) => return Err(error.into()),
        Err(error) => seen.findings.not_opened(&error),
    }
    seen.caches = cache_folders();
    seen.findings.of_caches(&seen.caches);
    match args.json {
        true => print_json(&seen.json()),
        false => page::print(&seen, name),
    }
    match seen.findings.problems.len() {
        0 => Ok(()),
        1 => Err(CliError::Unwell("1 problem".into())),
        count => Err(CliError::Unwell(format!("{count} problems"))),
    }
}

/// The machine, its drivers, and what the kernels do on this engine's device; nothing of the user's own.
pub(super) fn document_of(engine: &Engine) -> serde_json::Value {
    let mut seen = Examination::of_machine();
    seen.try_device(engine);
    let mut document = seen.json();
    if let Some(fields) = document.as_object_mut() {
        fields.remove("caches");
    }
    document
}

impl Tried {
    fn on(engine: &Engine, adapters: &[AdapterReport]) -> Self {
        let report = engine.report().clone();
        let is_it =
            |a: &&AdapterReport| a.name == report.device && a.api.to_string() == report.backend;
        let kernels = check_kernels(engine);
        let watch = Watch::new(engine);
        // Some faults of a device come out of burn as panics.
        let speed = catch_unwind(AssertUnwindSafe(|| Speed::of(engine)))
            .unwrap_or_else(|panic| Err(DeviceFault::of_panic(&*panic).to_string()));
        let speed = match watch.fault() {
            Some(fault) => Err(fault.to_string()),
            None => speed,
        };
        Self {
            adapter: adapters.iter().find(is_it).cloned(),
            report,
            bf16_units: engine.hardware().bf16_units,
            kernels,
            speed,
        }
    }
}

impl Examination {
    /// Without a device and caches.
    fn of_machine() -> Self {
        let mut seen = Self {
            system: System::of_this(),
            drivers: vulkan_drivers(),
            gpus: gpus(),
            adapters: adapters(),
            device: None,
            caches: Vec::new(),
            findings: Findings::default(),
        };
        seen.findings
            .of_drivers(&seen.drivers, &seen.gpus, &seen.adapters);
        seen
    }

    fn try_device(&mut self, engine: &Engine) {
        let tried = Tried::on(engine, &self.adapters);
        self.findings.of_device(&tried);
        self.device = Some(tried);
    }

    fn json(&self) -> serde_json::Value {
        let adapters = self.adapters.iter().map(|adapter| {
            let mut value = json!(adapter);
            value["shortfalls"] = json!(adapter.shortfalls());
            value
        });
        let variables = self.drivers.variables.iter();
        let variables: serde_json::Map<_, _> = variables
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let kernels = |tried: &Tried| -> Vec<_> {
            let row = |check: &KernelCheck| match &check.difference {
                Ok(difference) => json!({ "kernel": check.kernel, "difference": difference }),
                Err(fault) => json!({ "kernel": check.kernel, "fault": fault.to_string() }),
            };
            tried.kernels.iter().map(row).collect()
        };
        let device = self.device.as_ref().map(|tried| {
            let mut value = json!(tried.report);
            value["kernels"] = kernels(tried).into();
            value["speed"] = match &tried.speed {
                Ok(speed) => json!(speed),
                Err(fault) => json!({ "fault": fault }),
            };
            value
        });
        let cpu = Engine::cpu();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "system": self.system,
            "drivers": { "vulkan": self.drivers.found, "variables": variables, "gpus": self.gpus },
            "adapters": adapters.collect::<Vec<_>>(),
            "cpu": { "device": cpu.report().device, "auto": self.auto_is_cpu() },
            "device": device,
            "caches": self.caches,
            "problems": self.findings.problems,
            "advice": self.findings.advice,
            "well": self.findings.problems.is_empty(),
        })
    }

    fn auto_is_cpu(&self) -> bool {
        self.adapters.iter().all(|adapter| !adapter.auto)
    }
}

//! An open device.

use burn::tensor::Device;
use burn_wgpu::{WgpuInitError, WgpuSetup};
use serde::Serialize;

use super::{
    AdapterReport, DeviceError,
    adapters::{self, DeviceChoice, choose, usable},
};

/// What an [`Engine`] runs on.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceReport {
    /// The adapter's name, or the CPU's thread count.
    pub device: String,
    /// `vulkan`, `metal`, `dx12`, `gl` or `cpu`.
    pub backend: String,
    /// Whether it is a software rasteriser.
    pub software: bool,
    /// Bytes of the largest buffer, where there is a limit.
    pub max_buffer_bytes: Option<u64>,
}

/// A device to run models on.
#[derive(Debug, Clone)]
pub struct Engine {
    device: Device,
    report: DeviceReport,
}

/// What a [`DeviceChoice`] led to.
#[derive(Debug)]
pub struct Choice {
    pub engine: Engine,
    /// One line for the user, where the choice was not the obvious one.
    pub notice: Option<String>,
}

impl Engine {
    /// burn's CPU backend.
    pub fn cpu() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            device: Device::flex(),
            report: DeviceReport {
                device: format!("CPU, {threads} threads"),
                backend: "cpu".into(),
                software: false,
                max_buffer_bytes: None,
            },
        }
    }

    /// A device the program already has.
    pub fn from_device(device: Device, report: DeviceReport) -> Self {
        Self { device, report }
    }

    /// The program's own wgpu device.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`] or [`DeviceError::Driver`] if burn cannot run on it.
    pub fn from_wgpu(setup: WgpuSetup) -> Result<Self, DeviceError> {
        let name = setup.adapter.get_info().name;
        let report = DeviceReport {
            device: name.clone(),
            backend: setup.backend.to_str().to_owned(),
            software: setup.adapter.get_info().device_type == wgpu::DeviceType::Cpu,
            max_buffer_bytes: Some(setup.device.limits().max_storage_buffer_binding_size),
        };
        let device = Device::wgpu_options()
            .setup(setup)
            .init()
            .map_err(|e| failed(&name, e))?;
        Ok(Self { device, report })
    }

    /// Opens what `choice` means on this machine.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    pub fn open(choice: DeviceChoice) -> Result<Choice, DeviceError> {
        if choice == DeviceChoice::Cpu {
            return Ok(Choice {
                engine: Self::cpu(),
                notice: None,
            });
        }
        // Asking one API wakes no other driver.
        let apis = match choice {
            DeviceChoice::Api(api) => api.to_wgpu(),
            _ => wgpu::Backends::all(),
        };
        let (instance, mut found) = adapters::enumerate(apis);
        let reports: Vec<AdapterReport> = found.iter().map(|a| a.report.clone()).collect();
        let Some(index) = choose(choice, &reports)? else {
            let notice = match reports.iter().find(|a| a.is_software()) {
                Some(software) => format!(
                    "no usable GPU here, only the software adapter {}; running on the CPU (--device {} would use it)",
                    software.name, software.index
                ),
                None => "no usable GPU here; running on the CPU".to_owned(),
            };
            return Ok(Choice {
                engine: Self::cpu(),
                notice: Some(notice),
            });
        };
        usable(&reports[index])?;
        let adapter = found.swap_remove(index);
        let report = DeviceReport {
            device: adapter.report.name.clone(),
            backend: adapter.report.api.to_string(),
            software: adapter.report.is_software(),
            max_buffer_bytes: Some(adapter.report.max_buffer_bytes),
        };
        let device = open_adapter(instance, adapter.handle, &adapter.report)?;
        tracing::debug!(adapter = %report.device, backend = %report.backend, "opened");
        Ok(Choice {
            engine: Self { device, report },
            notice: None,
        })
    }

    /// The burn device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it runs on.
    pub fn report(&self) -> &DeviceReport {
        &self.report
    }
}

/// A wgpu device on the adapter, registered with burn under an identity of its own.
#[cfg(not(any(feature = "spirv", feature = "msl")))]
fn open_adapter(
    instance: wgpu::Instance,
    adapter: wgpu::Adapter,
    report: &AdapterReport,
) -> Result<Device, DeviceError> {
    let features = adapter
        .features()
        .difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
        .difference(wgpu::Features::all_experimental_mask());
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("harmonica"),
        required_features: features,
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| {
        DeviceError::Driver {
            adapter: report.name.clone(),
            message: e.to_string(),
        }
    })?;
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup {
        instance,
        adapter,
        device,
        queue,
        backend,
    };
    Device::wgpu_options()
        .setup(setup)
        .init()
        .map_err(|e| failed(&report.name, e))
}

/// Native shader compilers need device extensions that burn itself asks for.
#[cfg(any(feature = "spirv", feature = "msl"))]
fn open_adapter(
    instance: wgpu::Instance,
    adapter: wgpu::Adapter,
    report: &AdapterReport,
) -> Result<Device, DeviceError> {
    use burn::tensor::{DeviceKind, wgpu::WgpuBackend};

    use super::Api;
    let same_kind = |a: &wgpu::AdapterInfo| a.device_type == adapter.get_info().device_type;
    let place = pollster::block_on(instance.enumerate_adapters(adapter.get_info().backend.into()))
        .iter()
        .map(wgpu::Adapter::get_info)
        .filter(same_kind)
        .position(|a| a.name == report.name)
        .unwrap_or(0);
    let kind = match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(place),
        wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(place),
        wgpu::DeviceType::VirtualGpu => DeviceKind::VirtualGpu(place),
        wgpu::DeviceType::Cpu => DeviceKind::Cpu,
        wgpu::DeviceType::Other => DeviceKind::DefaultDevice,
    };
    let api = match report.api {
        Api::Vulkan => WgpuBackend::Vulkan,
        Api::Metal => WgpuBackend::Metal,
        Api::Dx12 => WgpuBackend::Dx12,
        Api::Gl => WgpuBackend::Gl,
        Api::WebGpu => WgpuBackend::WebGpu,
    };
    Device::wgpu_options()
        .device_kind(kind)
        .graphics_api(api)
        .init()
        .map_err(|e| failed(&report.name, e))
}

fn failed(adapter: &str, error: WgpuInitError) -> DeviceError {
    let (adapter, message) = (adapter.to_owned(), error.to_string());
    match error {
        WgpuInitError::InvalidConfiguration { .. } => DeviceError::Unusable {
            adapter,
            problem: message,
        },
        _ => DeviceError::Driver { adapter, message },
    }
}

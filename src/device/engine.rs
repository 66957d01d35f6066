//! An open device.

use std::{sync::Arc, thread::ThreadId};

#[cfg(target_family = "wasm")]
use burn::tensor::Tensor;
use burn::{
    backend::{DispatchDevice, ExecutionError},
    tensor::Device,
};
use burn_wgpu::{WgpuInitError, WgpuSetup};
use cubecl_common::device_handle::DeviceHandle;
use serde::Serialize;

use super::{
    AdapterReport, DeviceError, DeviceFault,
    adapters::{self, DeviceChoice, MATRIX_FEATURES, choose, has_matrix_units, usable},
    fault::{FaultLog, FaultMark},
    sharing::check_device,
};
use crate::kernels::Hardware;

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

/// A device to run models on. Clones share it.
///
/// What burn keeps for a device – threads, compiled shaders, free memory – outlives the engine, until [`Engine::close`] or
/// the end of the process.
#[derive(Debug, Clone)]
pub struct Engine {
    device: Device,
    report: DeviceReport,
    /// The wgpu device beneath, where the engine opened it or was given it.
    wgpu: Option<OnWgpu>,
}

#[derive(Debug, Clone)]
struct OnWgpu {
    setup: WgpuSetup,
    faults: FaultLog,
}

impl OnWgpu {
    fn new(setup: WgpuSetup, device: &Device) -> Self {
        let faults = FaultLog::install(&setup.device, burns_thread(device));
        Self { setup, faults }
    }
}

/// The thread on which burn calls wgpu for this device; `None` where it has none of its own.
fn burns_thread(device: &Device) -> Option<ThreadId> {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return None;
    };
    let thread = device
        .client()
        .exclusive(|| std::thread::current().id())
        .ok()?;
    (thread != std::thread::current().id()).then_some(thread)
}

/// Has kernels know what the device is.
fn note_hardware(report: &DeviceReport, setup: &WgpuSetup, device: &Device) {
    let asked_for = setup.device.features().contains(MATRIX_FEATURES);
    let hardware = Hardware {
        software: report.software,
        matrix_units: asked_for && has_matrix_units(&setup.adapter, &setup.adapter.get_info()),
        bf16_units: false,
    };
    hardware.note(device);
}

/// What a [`DeviceChoice`] led to.
#[derive(Debug)]
pub struct Choice {
    pub engine: Engine,
    /// One line for the user, where the choice was not the obvious one.
    pub notice: Option<String>,
    /// Why the GPU that `auto` would have taken did not open.
    pub failed: Option<DeviceError>,
}

impl Choice {
    fn of(engine: Engine, notice: Option<String>) -> Self {
        Self {
            engine,
            notice,
            failed: None,
        }
    }
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
            wgpu: None,
        }
    }

    /// A burn device the program already has. Faults are told less precisely, and [`super::interop`] has no textures for it.
    pub fn from_device(device: Device, report: DeviceReport) -> Self {
        Self {
            device,
            report,
            wgpu: None,
        }
    }

    /// The program's own wgpu device, made with [`super::required_features`] and [`super::required_limits`].
    ///
    /// Takes over the device's `on_uncaptured_error` and `set_device_lost_callback`; set neither afterwards. Errors of the
    /// host's own calls outside error scopes go to [`Engine::on_host_error`]; a lost device shows in [`Engine::fault`]. Give
    /// a device to one engine only. Matrix units ([`Hardware`]) are used where it was made with
    /// `EXPERIMENTAL_COOPERATIVE_MATRIX` and `SHADER_F16`.
    ///
    /// # Errors
    /// [`DeviceError::Unshared`], [`DeviceError::Unusable`] or [`DeviceError::Driver`] if burn cannot run on it.
    pub fn from_wgpu(
        instance: wgpu::Instance,
        adapter: wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
    ) -> Result<Self, DeviceError> {
        check_device(&adapter, &device)?;
        let (info, limits) = (adapter.get_info(), device.limits());
        let report = DeviceReport {
            device: info.name.clone(),
            backend: info.backend.to_str().to_owned(),
            software: info.device_type == wgpu::DeviceType::Cpu,
            max_buffer_bytes: Some(
                limits
                    .max_storage_buffer_binding_size
                    .min(limits.max_buffer_size),
            ),
        };
        let setup = WgpuSetup {
            instance,
            adapter,
            device,
            queue,
            backend: info.backend,
        };
        let device = Device::wgpu_options()
            .setup(setup.clone())
            .init()
            .map_err(|e| failed(&info.name, e))?;
        note_hardware(&report, &setup, &device);
        let wgpu = Some(OnWgpu::new(setup, &device));
        Ok(Self {
            device,
            report,
            wgpu,
        })
    }

    /// Opens what `choice` means on this machine, waiting for it.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    #[cfg(not(target_family = "wasm"))]
    pub fn open(choice: DeviceChoice) -> Result<Choice, DeviceError> {
        pollster::block_on(Self::open_async(choice))
    }

    /// Opens what `choice` means on this machine, or in this browser.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    pub async fn open_async(choice: DeviceChoice) -> Result<Choice, DeviceError> {
        if choice == DeviceChoice::Cpu {
            return Ok(Choice::of(Self::cpu(), None));
        }
        // Asking one API wakes no other driver.
        let apis = match choice {
            DeviceChoice::Api(api) => api.to_wgpu(),
            _ => wgpu::Backends::all(),
        };
        let (instance, mut found) = adapters::enumerate(apis).await;
        let reports: Vec<AdapterReport> = found.iter().map(|a| a.report.clone()).collect();
        let Some(index) = choose(choice, &reports)? else {
            // A GPU that lacks something is named with what it lacks.
            let lacking = reports.iter().filter(|a| !a.is_software());
            let reason = match lacking.map(usable).find_map(Result::err) {
                Some(error) => error.to_string(),
                None => "no GPU here".into(),
            };
            return Ok(Choice::of(
                Self::cpu(),
                Some(format!("{reason}; running on the CPU")),
            ));
        };
        usable(&reports[index])?;
        let adapter = found.swap_remove(index);
        let report = DeviceReport {
            device: adapter.report.name.clone(),
            backend: adapter.report.api.to_string(),
            software: adapter.report.is_software(),
            max_buffer_bytes: Some(adapter.report.max_buffer_bytes),
        };
        let opened = open_adapter(instance, adapter.handle, &adapter.report).await;
        let (device, setup) = match opened {
            // Some drivers promise what they cannot keep, such as OpenGL where Vulkan's driver is gone.
            Err(error) if choice == DeviceChoice::Auto => {
                let notice = format!("{error}; running on the CPU");
                return Ok(Choice {
                    failed: Some(error),
                    ..Choice::of(Self::cpu(), Some(notice))
                });
            }
            opened => opened?,
        };
        note_hardware(&report, &setup, &device);
        let wgpu = Some(OnWgpu::new(setup, &device));
        tracing::debug!(adapter = %report.device, backend = %report.backend, "opened");
        let engine = Self {
            device,
            report,
            wgpu,
        };
        Ok(Choice::of(engine, None))
    }

    /// The burn device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it runs on.
    pub fn report(&self) -> &DeviceReport {
        &self.report
    }

    /// What kernels know of the device.
    pub fn hardware(&self) -> Hardware {
        Hardware::of_device(&self.device)
    }

    /// The wgpu handles beneath; `None` on the CPU and for [`Engine::from_device`].
    pub fn wgpu(&self) -> Option<&WgpuSetup> {
        self.wgpu.as_ref().map(|wgpu| &wgpu.setup)
    }

    /// Waits for the work issued so far, and tells what went wrong since the last call.
    ///
    /// A fault of memory or validation may have left wrong values in anything made since. After
    /// [`DeviceFault::Lost`], drop what lives on the device, open an engine again and load the model onto it.
    #[cfg(not(target_family = "wasm"))]
    pub fn fault(&self) -> Option<DeviceFault> {
        pollster::block_on(self.fault_async())
    }

    /// What went wrong since the last call, once the work issued so far is done. See [`Engine::fault`].
    pub async fn fault_async(&self) -> Option<DeviceFault> {
        self.synced_fault(FaultLog::untold).await
    }

    async fn synced_fault(
        &self,
        noted: impl FnOnce(&FaultLog) -> Option<DeviceFault>,
    ) -> Option<DeviceFault> {
        let seen = self.synced().await;
        let noted = self.wgpu.as_ref().and_then(|wgpu| noted(&wgpu.faults));
        let fault = match seen {
            Some(fault) if fault.is_lost() => return Some(fault),
            other => noted.or(other)?,
        };
        // What a lost device refuses is told before the loss itself.
        let lost = self.synced().await.filter(DeviceFault::is_lost);
        lost.or(Some(fault))
    }

    /// The device once its work is done: what burn makes of a number that is made last.
    #[cfg(target_family = "wasm")]
    async fn synced(&self) -> Option<DeviceFault> {
        let number = Tensor::<1>::zeros([1], &self.device);
        super::read(number).await.err()
    }

    /// Waits for the device: what burn makes of that.
    #[cfg(not(target_family = "wasm"))]
    async fn synced(&self) -> Option<DeviceFault> {
        if let Some(wgpu) = &self.wgpu {
            // A device that was destroyed is marked as lost by a poll that finds its queue empty.
            let _ = wgpu.setup.device.poll(wgpu::PollType::wait_indefinitely());
        }
        let synced = self.device.sync();
        synced.err().map(|e| DeviceFault::from_execution(&e))
    }

    /// What an error of burn's on this device means.
    #[cfg(not(target_family = "wasm"))]
    pub fn fault_of(&self, error: &ExecutionError) -> DeviceFault {
        pollster::block_on(explained(
            DeviceFault::from_execution(error),
            self.fault_async(),
        ))
    }

    /// What becomes of uncaptured wgpu errors that the host's own calls raise on a shared device; without a handler they are
    /// logged.
    pub fn on_host_error(&self, handler: impl Fn(&wgpu::Error) + Send + Sync + 'static) {
        if let Some(wgpu) = &self.wgpu {
            wgpu.faults.set_host_handler(Arc::new(handler));
        }
    }

    /// Gives memory that nothing uses back to the driver: after a model was dropped, or when a host needs room. Waits for
    /// the work issued so far.
    #[cfg(not(target_family = "wasm"))]
    pub fn release_memory(&self) {
        // What fails here fails again, and is told, where results are read.
        let _ = self.device.sync();
        self.device.memory_cleanup();
    }

    /// Ends all that burn keeps for this device; on the CPU there is nothing to end. For programs that open devices again and
    /// again, as after [`DeviceFault::Lost`].
    ///
    /// Drop everything that lives on the device first: models, samplers, runs, tensors. Anything left makes this wait for
    /// half a minute, and cannot be used any more. In builds with `spirv` or `msl`, [`Engine::open`] gives one device to all
    /// engines of an adapter: they are closed together.
    pub fn close(self) {
        if let (Some(_), DispatchDevice::Cube(device)) = (&self.wgpu, self.device.as_dispatch()) {
            // burn's fusion and cubecl's server know the device by an id each.
            let server = device.client().service_id().device;
            for id in [device.to_id(), server] {
                // Ends every service of the id, whatever type the handle is of.
                DeviceHandle::<()>::shutdown(id);
            }
        }
    }
}

/// A wgpu device on the adapter, registered with burn under an identity of its own.
#[cfg(not(any(feature = "spirv", feature = "msl")))]
#[expect(
    unsafe_code,
    reason = "wgpu vouches for no feature that it calls an experiment"
)]
async fn open_adapter(
    instance: wgpu::Instance,
    adapter: wgpu::Adapter,
    report: &AdapterReport,
) -> Result<(Device, WgpuSetup), DeviceError> {
    let mut features = adapter
        .features()
        .difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
        .difference(wgpu::Features::all_experimental_mask());
    let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
    if report.matrix_units {
        features |= MATRIX_FEATURES;
        // SAFETY: the one experiment is used by one shader of ours, on devices that have fragments of its form.
        experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
    }
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("harmonica"),
        required_features: features,
        experimental_features,
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..Default::default()
    };
    let (device, queue) =
        adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| DeviceError::Driver {
                adapter: report.name.clone(),
                message: e.to_string(),
            })?;
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup {
        instance,
        adapter,
        device,
        queue,
        backend,
    };
    let device = Device::wgpu_options()
        .setup(setup.clone())
        .init()
        .map_err(|e| failed(&report.name, e))?;
    Ok((device, setup))
}

/// Native shader compilers need device extensions that burn itself asks for.
#[cfg(any(feature = "spirv", feature = "msl"))]
async fn open_adapter(
    instance: wgpu::Instance,
    adapter: wgpu::Adapter,
    report: &AdapterReport,
) -> Result<(Device, WgpuSetup), DeviceError> {
    use burn::tensor::{DeviceKind, wgpu::WgpuBackend};

    use super::Api;
    let same_kind = |a: &wgpu::AdapterInfo| a.device_type == adapter.get_info().device_type;
    let place = instance
        .enumerate_adapters(adapter.get_info().backend.into())
        .await
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
        .init_with_setup_async()
        .await
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

/// A fault, or where only the engine knows more of it, what it knows.
async fn explained(
    fault: DeviceFault,
    known: impl Future<Output = Option<DeviceFault>>,
) -> DeviceFault {
    match fault {
        // A loss shows first as a read-back that failed for no good reason, and so does a refused allocation.
        DeviceFault::Failed { .. } => known.await.unwrap_or(fault),
        known => known,
    }
}

/// An engine in the eyes of one run: what went wrong before it began is not its concern.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    engine: Engine,
    since: FaultMark,
}

impl Watch {
    /// From now on.
    pub fn new(engine: &Engine) -> Self {
        Self::since(engine, FaultLog::mark)
    }

    /// From the first fault on that nobody was told of: what a run did before it was given its engine is its own too.
    pub fn of_what_was_done(engine: &Engine) -> Self {
        Self::since(engine, FaultLog::told)
    }

    fn since(engine: &Engine, mark: impl FnOnce(&FaultLog) -> FaultMark) -> Self {
        let log = engine.wgpu.as_ref().map(|wgpu| &wgpu.faults);
        Self {
            engine: engine.clone(),
            since: log.map_or(FaultMark::default(), mark),
        }
    }

    /// What has gone wrong since the run began, once the work issued so far is done.
    pub async fn fault_async(&self) -> Option<DeviceFault> {
        self.engine.synced_fault(|log| log.since(self.since)).await
    }

    /// A fault, or what the engine knows of it.
    pub async fn explained_async(&self, fault: DeviceFault) -> DeviceFault {
        explained(fault, self.fault_async()).await
    }

    /// [`Self::fault_async`], waiting for it.
    #[cfg(not(target_family = "wasm"))]
    pub fn fault(&self) -> Option<DeviceFault> {
        pollster::block_on(self.fault_async())
    }

    /// [`Self::explained_async`], waiting for it.
    #[cfg(not(target_family = "wasm"))]
    pub fn explained(&self, fault: DeviceFault) -> DeviceFault {
        pollster::block_on(self.explained_async(fault))
    }
}

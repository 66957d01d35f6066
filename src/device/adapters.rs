//! The adapters of this machine, and which one a choice means.

use std::{fmt, str::FromStr};

use serde::Serialize;

use super::DeviceError;

/// A graphics API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    Vulkan,
    Metal,
    Dx12,
    Gl,
    WebGpu,
}

impl Api {
    /// `None` for wgpu's no-op backend.
    fn from_wgpu(backend: wgpu::Backend) -> Option<Self> {
        match backend {
            wgpu::Backend::Vulkan => Some(Self::Vulkan),
            wgpu::Backend::Metal => Some(Self::Metal),
            wgpu::Backend::Dx12 => Some(Self::Dx12),
            wgpu::Backend::Gl => Some(Self::Gl),
            wgpu::Backend::BrowserWebGpu => Some(Self::WebGpu),
            wgpu::Backend::Noop => None,
        }
    }

    /// The one backend of wgpu that this is.
    pub(super) fn to_wgpu(self) -> wgpu::Backends {
        match self {
            Self::Vulkan => wgpu::Backends::VULKAN,
            Self::Metal => wgpu::Backends::METAL,
            Self::Dx12 => wgpu::Backends::DX12,
            Self::Gl => wgpu::Backends::GL,
            Self::WebGpu => wgpu::Backends::BROWSER_WEBGPU,
        }
    }

    /// What to do where this API has no adapter.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Vulkan => {
                "install the GPU's Vulkan driver (Debian and Ubuntu: mesa-vulkan-drivers, which also brings a software one)"
            }
            Self::Metal => "Metal is there on Apple systems only",
            Self::Dx12 => "DirectX 12 is there on Windows only",
            Self::Gl => {
                "install an OpenGL ES 3.1 driver (Debian and Ubuntu: libegl1 and libgl1-mesa-dri)"
            }
            Self::WebGpu if cfg!(target_family = "wasm") => {
                "this browser offers none: update it, or switch WebGPU on"
            }
            Self::WebGpu => "WebGPU is there in browsers only",
        }
    }

    /// Among equal adapters the native API goes before OpenGL.
    fn rank(self) -> u8 {
        u8::from(self == Self::Gl)
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
            Self::Gl => "gl",
            Self::WebGpu => "webgpu",
        })
    }
}

/// What `--device` can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best GPU; the CPU where there is only a software adapter or none.
    #[default]
    Auto,
    /// burn's CPU backend.
    Cpu,
    /// The best adapter of one API, a software one if there is no other.
    Api(Api),
    /// An adapter by its place in [`adapters`].
    Index(usize),
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(match name {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "vulkan" => Self::Api(Api::Vulkan),
            "metal" => Self::Api(Api::Metal),
            "dx12" => Self::Api(Api::Dx12),
            "gl" => Self::Api(Api::Gl),
            _ => Self::Index(
                name.parse()
                    .map_err(|_| DeviceError::Unknown { name: name.into() })?,
            ),
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Api(api) => api.fmt(f),
            Self::Index(index) => index.fmt(f),
        }
    }
}

/// An adapter and what it can do.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterReport {
    /// Its place in the list, what `--device` takes.
    pub index: usize,
    pub name: String,
    pub vendor: String,
    pub api: Api,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    pub driver: String,
    /// Bytes of the largest buffer a shader can bind.
    pub max_buffer_bytes: u64,
    /// Storage buffers a shader stage can bind.
    pub max_storage_buffers: u32,
    /// Invocations of the largest workgroup.
    pub max_workgroup: u32,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    pub f16: bool,
    pub subgroups: bool,
    /// Whether it has matrix units that [`crate::kernels::Hardware`] tells of.
    pub matrix_units: bool,
    /// Whether `auto` takes it.
    pub auto: bool,
}

impl AdapterReport {
    /// Whether it is a software rasteriser.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }

    /// Which of its limits are below what the compute kernels need, WebGPU's defaults, in words; none: it can be used.
    pub fn shortfalls(&self) -> Vec<String> {
        let (bindings, threads, bytes) = (
            self.max_storage_buffers,
            self.max_workgroup,
            self.workgroup_bytes,
        );
        let mut found = Vec::new();
        if bindings < 8 {
            found.push(format!(
                "it binds {bindings} storage buffers to a shader, 8 are needed"
            ));
        }
        if threads < 256 {
            found.push(format!(
                "its workgroups have {threads} invocations, 256 are needed"
            ));
        }
        if bytes < 16384 {
            found.push(format!(
                "its workgroups have {bytes} bytes of memory, 16384 are needed"
            ));
        }
        found
    }
}

/// An adapter with the handles to open it.
pub(super) struct Adapter {
    pub handle: wgpu::Adapter,
    pub report: AdapterReport,
    rank: u8,
}

/// The adapters of the given APIs, in a stable order.
pub(super) async fn enumerate(apis: wgpu::Backends) -> (wgpu::Instance, Vec<Adapter>) {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = apis;
    let instance = wgpu::Instance::new(descriptor);
    let mut found: Vec<Adapter> = handles(&instance, apis)
        .await
        .into_iter()
        .filter_map(|handle| {
            let info = handle.get_info();
            let api = Api::from_wgpu(info.backend)?;
            let (kind, rank) = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => ("discrete", 0),
                wgpu::DeviceType::IntegratedGpu => ("integrated", 1),
                wgpu::DeviceType::VirtualGpu => ("virtual", 2),
                wgpu::DeviceType::Other => ("other", 3),
                wgpu::DeviceType::Cpu => ("software", 4),
            };
            let (limits, features) = (handle.limits(), handle.features());
            let matrix_units = has_matrix_units(&handle, &info);
            let driver = [info.driver, info.driver_info];
            let report = AdapterReport {
                index: 0,
                name: named(info.name, api),
                vendor: adapter_vendor(info.vendor),
                api,
                kind,
                driver: driver
                    .iter()
                    .filter(|d| !d.is_empty())
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(" "),
                max_buffer_bytes: limits
                    .max_storage_buffer_binding_size
                    .min(limits.max_buffer_size),
                max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
                max_workgroup: limits.max_compute_invocations_per_workgroup,
                workgroup_bytes: limits.max_compute_workgroup_storage_size,
                f16: features.contains(wgpu::Features::SHADER_F16),
                subgroups: features.contains(wgpu::Features::SUBGROUP),
                matrix_units,
                auto: false,
            };
            Some(Adapter {
                handle,
                report,
                rank,
            })
        })
        .collect();
    let best = found
        .iter()
        .enumerate()
        .filter(|(_, a)| !a.report.is_software() && usable(&a.report).is_ok())
        .min_by_key(|(i, a)| (a.rank, a.report.api.rank(), *i))
        .map(|(i, _)| i);
    for (index, adapter) in found.iter_mut().enumerate() {
        adapter.report.index = index;
        adapter.report.auto = Some(index) == best;
    }
    (instance, found)
}

/// Browsers tell no name.
fn named(name: String, api: Api) -> String {
    match name.is_empty() {
        true => format!("the GPU by {api}"),
        false => name,
    }
}

#[cfg(not(target_family = "wasm"))]
async fn handles(instance: &wgpu::Instance, apis: wgpu::Backends) -> Vec<wgpu::Adapter> {
    instance.enumerate_adapters(apis).await
}

/// A browser has no list: it is asked for its best.
#[cfg(target_family = "wasm")]
async fn handles(instance: &wgpu::Instance, _: wgpu::Backends) -> Vec<wgpu::Adapter> {
    let best = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    };
    instance.request_adapter(&best).await.into_iter().collect()
}

/// The adapters of this machine.
#[cfg(not(target_family = "wasm"))]
pub fn adapters() -> Vec<AdapterReport> {
    pollster::block_on(enumerate(wgpu::Backends::all()))
        .1
        .into_iter()
        .map(|a| a.report)
        .collect()
}

/// The adapter a choice means, as an index into `adapters`; `None` is the CPU backend.
///
/// # Errors
/// [`DeviceError::NoAdapter`], [`DeviceError::NoSuchIndex`].
pub fn choose(
    choice: DeviceChoice,
    adapters: &[AdapterReport],
) -> Result<Option<usize>, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(None),
        DeviceChoice::Auto => Ok(adapters.iter().position(|a| a.auto)),
        DeviceChoice::Index(index) if index < adapters.len() => Ok(Some(index)),
        DeviceChoice::Index(index) => Err(DeviceError::NoSuchIndex {
            index,
            count: adapters.len(),
        }),
        DeviceChoice::Api(api) => {
            let order = ["discrete", "integrated", "virtual", "other", "software"];
            adapters
                .iter()
                .filter(|a| a.api == api)
                .min_by_key(|a| order.iter().position(|kind| *kind == a.kind))
                .map(|a| Some(a.index))
                .ok_or(DeviceError::NoAdapter {
                    api,
                    advice: api.advice(),
                })
        }
    }
}

/// What a choice means to the process of this number among those of a job on this machine: GPUs like the chosen one are dealt to
/// them in turn.
pub fn dealt(choice: DeviceChoice, adapters: &[AdapterReport], number: usize) -> DeviceChoice {
    let by_index = matches!(choice, DeviceChoice::Index(_));
    let chosen = choose(choice, adapters).ok().flatten();
    let Some(chosen) = chosen
        .map(|index| &adapters[index])
        .filter(|a| !a.is_software() && !by_index)
    else {
        return choice;
    };
    let alike = |a: &&AdapterReport| {
        (&a.name, &a.driver, a.api, a.kind)
            == (&chosen.name, &chosen.driver, chosen.api, chosen.kind)
    };
    let alike: Vec<_> = adapters.iter().filter(alike).collect();
    DeviceChoice::Index(alike[number % alike.len()].index)
}

/// What a device is made with to use its matrix units.
pub(super) const MATRIX_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Whether an adapter multiplies fragments as `shaders/matrix_product.wgsl` has them. That shader counts on subgroups of 32.
pub(super) fn has_matrix_units(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let of_16 = |p: &wgpu::CooperativeMatrixProperties| {
        [p.m_size, p.n_size, p.k_size] == [16; 3] && (p.ab_type, p.cr_type) == (F16, F32)
    };
    adapter.features().contains(MATRIX_FEATURES)
        && (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && adapter.cooperative_matrix_properties().iter().any(of_16)
}

/// Whether an adapter has what the compute kernels need.
pub(super) fn usable(report: &AdapterReport) -> Result<(), DeviceError> {
    let problem = report.shortfalls().join(", ");
    match problem.is_empty() {
        true => Ok(()),
        false => Err(DeviceError::Unusable {
            adapter: format!("{} ({})", report.name, report.api),
            problem,
        }),
    }
}

/// The name behind a PCI vendor number.
pub fn adapter_vendor(vendor: u32) -> String {
    match vendor {
        0x1002 | 0x1022 => "AMD".into(),
        0x10de => "NVIDIA".into(),
        0x8086 => "Intel".into(),
        0x13b5 => "Arm".into(),
        0x5143 => "Qualcomm".into(),
        0x106b => "Apple".into(),
        0x1010 => "Imagination".into(),
        0x14e4 => "Broadcom".into(),
        0x1414 => "Microsoft".into(),
        0x1ae0 => "Google".into(),
        0x10005 => "Mesa".into(),
        0 => "–".into(),
        other => format!("0x{other:04x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, api: Api, kind: &'static str, auto: bool) -> AdapterReport {
        AdapterReport {
            index,
            name: format!("adapter {index}"),
            vendor: "–".into(),
            api,
            kind,
            driver: String::new(),
            max_buffer_bytes: 1 << 30,
            max_storage_buffers: 8,
            max_workgroup: 256,
            workgroup_bytes: 16384,
            f16: false,
            matrix_units: false,
            subgroups: false,
            auto,
        }
    }

    #[test]
    fn auto_never_takes_a_software_adapter() {
        let software = [
            adapter(0, Api::Vulkan, "software", false),
            adapter(1, Api::Gl, "software", false),
        ];
        assert_eq!(choose(DeviceChoice::Auto, &software).unwrap(), None);
        assert_eq!(
            choose(DeviceChoice::Api(Api::Vulkan), &software).unwrap(),
            Some(0)
        );
    }

    #[test]
    fn an_api_means_its_best_adapter_and_none_is_an_error() {
        let list = [
            adapter(0, Api::Vulkan, "software", false),
            adapter(1, Api::Vulkan, "integrated", true),
        ];
        assert_eq!(
            choose(DeviceChoice::Api(Api::Vulkan), &list).unwrap(),
            Some(1)
        );
        assert_eq!(choose(DeviceChoice::Index(0), &list).unwrap(), Some(0));
        let error = choose(DeviceChoice::Api(Api::Metal), &list).unwrap_err();
        assert!(
            error.to_string().contains("on Apple systems only"),
            "{error}"
        );
        assert!(matches!(
            choose(DeviceChoice::Index(2), &list),
            Err(DeviceError::NoSuchIndex { index: 2, count: 2 })
        ));
    }

    #[test]
    fn equal_gpus_are_dealt_in_turn() {
        let mut list = [
            adapter(0, Api::Vulkan, "discrete", true),
            adapter(1, Api::Vulkan, "integrated", false),
            adapter(2, Api::Vulkan, "discrete", false),
            adapter(3, Api::Gl, "discrete", false),
            adapter(4, Api::Vulkan, "software", false),
        ];
        list[2].name = list[0].name.clone();
        list[3].name = list[0].name.clone();
        let dealt = |choice, number| dealt(choice, &list, number);
        let vulkan = DeviceChoice::Api(Api::Vulkan);
        for choice in [DeviceChoice::Auto, vulkan] {
            let places = [0, 1, 2].map(|number| dealt(choice, number));
            assert_eq!(places, [0, 2, 0].map(DeviceChoice::Index));
        }
        for choice in [
            DeviceChoice::Index(1),
            DeviceChoice::Cpu,
            DeviceChoice::Api(Api::Metal),
        ] {
            assert_eq!(dealt(choice, 1), choice);
        }
        // A software adapter is one however many compute on it.
        let software = [adapter(0, Api::Vulkan, "software", false)];
        assert_eq!(super::dealt(vulkan, &software, 1), vulkan);
    }

    #[test]
    fn an_adapter_below_webgpu_limits_is_refused() {
        let mut weak = adapter(0, Api::Gl, "integrated", false);
        (weak.max_storage_buffers, weak.workgroup_bytes) = (4, 8192);
        let refused = usable(&weak).unwrap_err().to_string();
        assert!(
            refused.contains("4 storage buffers") && refused.contains("8192 bytes of memory"),
            "{refused}"
        );
        assert_eq!(weak.shortfalls().len(), 2);
    }
}

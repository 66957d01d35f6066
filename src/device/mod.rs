//! Which GPU, or the CPU: listing adapters, choosing one, opening it.
//!
//! The library opens nothing by itself: a program makes an [`Engine`] from a choice, or hands in the
//! wgpu or burn device it has. [`interop`] gives results back on that device; [`DeviceFault`] is what can go
//! wrong on it.

mod adapters;
pub mod drivers;
mod engine;
mod fault;
#[cfg(not(target_family = "wasm"))]
pub mod interop;
mod launches;
mod sharing;

#[cfg(not(target_family = "wasm"))]
pub use adapters::adapters;
pub use adapters::{AdapterReport, Api, DeviceChoice, adapter_vendor, choose, dealt};
pub(crate) use engine::Watch;
pub use engine::{Choice, DeviceReport, Engine};
pub use fault::DeviceFault;
#[cfg(not(target_family = "wasm"))]
pub(crate) use fault::read_back;
pub(crate) use fault::{caught, read};
pub use launches::LaunchCount;
pub use sharing::{device_descriptor, required_features, required_limits};

/// Why no device came up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A name that is none of the choices.
    #[error(
        "unknown device `{name}`: expected auto, vulkan, metal, dx12, gl, cpu, or an index from `harmonica devices`"
    )]
    Unknown { name: String },
    /// The graphics API has no adapter on this machine.
    #[error("no {api} adapter on this machine: {advice}")]
    NoAdapter { api: Api, advice: &'static str },
    /// An index beyond the list.
    #[error(
        "there is no device {index}: `harmonica devices` lists {count}; pass one of their indices, or `cpu`"
    )]
    NoSuchIndex { index: usize, count: usize },
    /// The adapter is there, but it cannot run compute shaders as we need them.
    #[error("{adapter} cannot be used: {problem}")]
    Unusable { adapter: String, problem: String },
    /// A host's device that was made without what burn uses.
    #[error(
        "the device made on {adapter} cannot be shared: {problem}; make it with device::required_features and device::required_limits"
    )]
    Unshared { adapter: String, problem: String },
    /// The driver failed.
    #[error(
        "the driver of {adapter} failed to open it: {message}; update the driver, or use another device"
    )]
    Driver { adapter: String, message: String },
}

//! What a host's own wgpu device must have for burn to run on it.

use super::DeviceError;

/// Features that burn's WGSL compiler uses where the *adapter* has them: the device must have been made with them.
const USED: wgpu::Features = wgpu::Features::SHADER_F16
    .union(wgpu::Features::SHADER_INT64)
    .union(wgpu::Features::SHADER_F64)
    .union(wgpu::Features::SHADER_FLOAT32_ATOMIC)
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::TIMESTAMP_QUERY);

/// The features to ask of `adapter` when making a device that [`super::Engine::from_wgpu`] is to share, beside the host's own.
pub fn required_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    adapter.features().intersection(USED)
}

/// The limits to ask of `adapter` when making a device to share: all it has. Kernels are laid out by the adapter's
/// workgroup limits, and weights need its largest buffers.
pub fn required_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    adapter.limits()
}

/// Both, for a host with no wishes of its own.
///
/// ```no_run
/// # async fn open(adapter: wgpu::Adapter) -> Result<(), wgpu::RequestDeviceError> {
/// let descriptor = harmonica::device::device_descriptor(&adapter);
/// let (device, queue) = adapter.request_device(&descriptor).await?;
/// # Ok(())
/// # }
/// ```
pub fn device_descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
    wgpu::DeviceDescriptor {
        label: Some("shared with harmonica"),
        required_features: required_features(adapter),
        required_limits: required_limits(adapter),
        // burn allocates large pages and slices them itself.
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..Default::default()
    }
}

/// Whether burn can run on a device that the host made.
pub(super) fn check_device(
    adapter: &wgpu::Adapter,
    device: &wgpu::Device,
) -> Result<(), DeviceError> {
    let unusable = |problem: String| DeviceError::Unshared {
        adapter: adapter.get_info().name,
        problem,
    };
    let missing = required_features(adapter).difference(device.features());
    if !missing.is_empty() {
        return Err(unusable(format!(
            "it lacks the features {missing:?}, which its adapter has"
        )));
    }
    let (has, full) = (device.limits(), adapter.limits());
    for (name, has, needed) in [
        (
            "max_storage_buffers_per_shader_stage",
            has.max_storage_buffers_per_shader_stage,
            8,
        ),
        (
            "max_compute_workgroup_storage_size",
            has.max_compute_workgroup_storage_size,
            16384,
        ),
        (
            "max_compute_invocations_per_workgroup",
            has.max_compute_invocations_per_workgroup,
            full.max_compute_invocations_per_workgroup,
        ),
        (
            "max_compute_workgroup_size_x",
            has.max_compute_workgroup_size_x,
            full.max_compute_workgroup_size_x,
        ),
        (
            "max_compute_workgroup_size_y",
            has.max_compute_workgroup_size_y,
            full.max_compute_workgroup_size_y,
        ),
        (
            "max_compute_workgroup_size_z",
            has.max_compute_workgroup_size_z,
            full.max_compute_workgroup_size_z,
        ),
        (
            "max_compute_workgroups_per_dimension",
            has.max_compute_workgroups_per_dimension,
            full.max_compute_workgroups_per_dimension,
        ),
    ] {
        if has < needed {
            return Err(unusable(format!("its {name} is {has}, expected {needed}")));
        }
    }
    Ok(())
}

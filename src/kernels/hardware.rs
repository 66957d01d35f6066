//! What kernels want to know of a device and burn does not tell.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use burn::{backend::DispatchDevice, cubecl, tensor::Device};

use super::units::Unit;

/// A device as kernels see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hardware {
    /// A software rasteriser: its threads are a processor's.
    pub software: bool,
    /// Matrix units that multiply fragments of 16×16 in f16 and sum in f32, for subgroups of 32.
    pub matrix_units: bool,
    /// What a processor has to multiply in bf16 and sum in f32, faster than in f32: AMX, or AVX-512's part for bf16.
    pub bf16_units: bool,
}

/// By burn's names of devices, which are the process's.
static KNOWN: RwLock<Option<HashMap<cubecl::Device, Hardware>>> = RwLock::new(None);

impl Hardware {
    /// Notes what a device is. Of a device of which nothing was noted, nothing is assumed.
    pub fn note(self, device: &Device) {
        if let DispatchDevice::Cube(device) = device.as_dispatch() {
            let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
            known.get_or_insert_default().insert(device.clone(), self);
        }
    }

    /// What was noted of the device.
    pub fn of_device(device: &Device) -> Self {
        match device.clone().inner().as_dispatch() {
            DispatchDevice::Cube(device) => Self::of(device),
            DispatchDevice::Flex(_) => Self {
                bf16_units: Unit::here().is_some(),
                ..Self::default()
            },
            _ => Self::default(),
        }
    }

    pub(super) fn of(device: &cubecl::Device) -> Self {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.as_ref().and_then(|known| known.get(device).copied());
        found.unwrap_or_default()
    }
}

//! Whether a device computes what it should: every kernel once, on seeded numbers, against its formula on the CPU in f64.
//!
//! The sizes are odd and small: a whole check takes less than a second. A driver that errs mostly errs on all sizes.

mod cases;
mod paint;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{on_cpu, runs_kernels};
use crate::device::{DeviceFault, Engine, Watch};

/// What a kernel did.
#[derive(Debug)]
pub struct KernelCheck {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The largest difference to its formula, as a share of the largest value.
    pub difference: Result<f64, KernelFault>,
}

/// Why a kernel cannot be relied on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KernelFault {
    /// It computes something else.
    #[error(
        "it differs from its formula by {difference:.1e} of the largest value, expected at most {most:.0e}: update the driver, or use another device"
    )]
    Differs { difference: f64, most: f64 },
    /// It computes nothing.
    #[error("{count} of its values are no numbers: update the driver, or use another device")]
    NotFinite { count: usize },
    /// It gave back something of another size.
    #[error(
        "it made {found} values, expected {expected}: update the driver, or use another device"
    )]
    Size { found: usize, expected: usize },
    /// It did not run.
    #[error(transparent)]
    Device(#[from] DeviceFault),
}

/// A kernel at work, and what should come of it.
struct Case {
    kernel: &'static str,
    expected: Vec<f64>,
    /// Share of the largest value that a right one may differ by.
    most: f64,
    run: Run,
}

/// What a device makes of it.
type Run = Box<dyn Fn(&Engine) -> Result<Vec<f32>, DeviceFault>>;

/// Runs every kernel that this build has for the engine's device; after a device was lost, no more.
pub fn check_kernels(engine: &Engine) -> Vec<KernelCheck> {
    let mut cases = cases::of_both_forms();
    if runs_kernels(engine.device()) {
        cases.extend(cases::of_arenas());
    }
    if engine.hardware().matrix_units {
        cases.push(cases::of_matrix_product());
    }
    if on_cpu(engine.device()) {
        cases.push(cases::of_bf16_product());
    }
    if engine.wgpu().is_some() {
        cases.push(paint::case());
    }
    let mut checks = Vec::new();
    for case in cases {
        let difference = checked(&case, engine);
        let lost = matches!(&difference, Err(KernelFault::Device(fault)) if fault.is_lost());
        checks.push(KernelCheck {
            kernel: case.kernel,
            difference,
        });
        if lost {
            break;
        }
    }
    checks
}

fn checked(case: &Case, engine: &Engine) -> Result<f64, KernelFault> {
    let watch = Watch::new(engine);
    // Some faults of a device come out of burn as panics.
    let found = catch_unwind(AssertUnwindSafe(|| (case.run)(engine)))
        .unwrap_or_else(|panic| Err(DeviceFault::of_panic(&*panic)))
        .map_err(|fault| watch.explained(fault))?;
    match watch.fault() {
        Some(fault) => Err(fault.into()),
        None => compared(&found, &case.expected, case.most),
    }
}

fn compared(found: &[f32], expected: &[f64], most: f64) -> Result<f64, KernelFault> {
    if found.len() != expected.len() {
        return Err(KernelFault::Size {
            found: found.len(),
            expected: expected.len(),
        });
    }
    let count = found.iter().filter(|v| !v.is_finite()).count();
    if count > 0 {
        return Err(KernelFault::NotFinite { count });
    }
    let pairs = found.iter().zip(expected);
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let difference = pairs.fold(0.0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs()));
    let difference = difference / largest.max(f64::MIN_POSITIVE);
    match difference <= most {
        true => Ok(difference),
        false => Err(KernelFault::Differs { difference, most }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told() {
        let expected = [1.0, -2.0];
        let of = |found: &[f32]| compared(found, &expected, 1e-3);
        assert_eq!(of(&[1.0, -2.0]), Ok(0.0));
        assert!(of(&[1.001, -2.0]).unwrap() > 4e-4);
        let far = of(&[1.0, -1.9]).unwrap_err();
        assert!(
            far.to_string().contains("by 5.0e-2 of the largest value"),
            "{far}"
        );
        assert_eq!(
            of(&[f32::NAN, -2.0]),
            Err(KernelFault::NotFinite { count: 1 })
        );
        assert_eq!(
            of(&[1.0]),
            Err(KernelFault::Size {
                found: 1,
                expected: 2
            })
        );
    }

    #[test]
    fn a_kernel_that_panics_is_a_fault_of_its_device() {
        let case = Case {
            kernel: "none",
            expected: vec![],
            most: 0.0,
            run: Box::new(|_| std::panic::resume_unwind(Box::new("no such shader"))),
        };
        let fault = checked(&case, &Engine::cpu()).unwrap_err();
        assert_eq!(
            fault,
            KernelFault::Device(DeviceFault::failed("no such shader"))
        );
    }
}

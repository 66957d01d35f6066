//! What goes wrong on a device, as types.
//!
//! burn installs handlers of its own on a wgpu device: the one for a lost device marks it, and every read-back after
//! that fails; the one for other errors panics, wherever they come from. [`FaultLog`] replaces the second.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    thread::ThreadId,
};

use burn::{backend::ExecutionError, tensor::Tensor};

/// Why a device did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// The device is gone, and everything on it: driver reset, GPU unplugged, `wgpu::Device::destroy`.
    #[error("the device was lost ({reason}): open an engine again and load the model onto it")]
    Lost { reason: String },
    /// No memory for an allocation. The device lives on.
    #[error("the device has no memory left ({message}): run fewer images at a time")]
    OutOfMemory { message: String },
    /// An allocation that no buffer of this device can hold, however much is free.
    #[error(
        "a tensor is larger than the device's largest buffer ({message}): run fewer images at a time"
    )]
    TooLarge { message: String },
    /// wgpu refused a call.
    #[error("the device refused a command: {message}")]
    Validation { message: String },
    /// Anything else.
    #[error("the device failed: {message}")]
    Failed { message: String },
}

impl DeviceFault {
    /// Whether nothing can be done on the device any more.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// What cannot be told apart.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::Failed {
            message: message.to_string(),
        }
    }

    /// What came out of burn as a panic.
    pub(crate) fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let message = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given")
            .to_owned();
        Self::Failed { message }
    }

    pub(super) fn from_wgpu(error: &wgpu::Error) -> Self {
        match error {
            wgpu::Error::OutOfMemory { source } => Self::OutOfMemory {
                message: source.to_string(),
            },
            wgpu::Error::Validation { description, .. } => Self::Validation {
                message: description.clone(),
            },
            wgpu::Error::Internal {
                description,
                source,
            } => Self::Failed {
                message: match source.source() {
                    Some(cause) => format!("{description}: {cause}"),
                    None => description.clone(),
                },
            },
        }
    }

    /// What burn's error says by itself.
    pub(crate) fn from_execution(error: &ExecutionError) -> Self {
        let message = first_cause(error.reason());
        if error.is_device_poisoned() {
            return Self::Lost { reason: message };
        }
        // burn hands on a text; these are the two of cubecl's `IoError` that a smaller run avoids.
        if error.reason().contains("can't allocate buffer of size") {
            Self::TooLarge { message }
        } else if error.reason().contains("out of device memory") {
            Self::OutOfMemory { message }
        } else {
            Self::Failed { message }
        }
    }
}

/// The values of a tensor, row-major.
///
/// # Errors
/// What the device failed with, if it did.
pub(crate) async fn read<const D: usize>(x: Tensor<D>) -> Result<Vec<f32>, DeviceFault> {
    let data = x.into_data_async().await;
    let data = data.map_err(|e| DeviceFault::from_execution(&e))?;
    let values = data.try_into_vec::<f32>();
    values.map_err(|e| DeviceFault::failed(format!("{e:?}")))
}

/// [`read`], waiting for it: nothing that a browser runs may.
///
/// # Errors
/// As [`read`].
#[cfg(not(target_family = "wasm"))]
pub(crate) fn read_back<const D: usize>(x: Tensor<D>) -> Result<Vec<f32>, DeviceFault> {
    pollster::block_on(read(x))
}

/// What `work` comes to, or the panic that ended it: some faults of a device come out of burn as panics.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut work = pin!(work);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

/// The innermost line of cubecl's report, without headings and the backtrace, or the word that there is none.
fn first_cause(report: &str) -> String {
    report
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Backtrace") && *line != "No backtrace available")
        .filter(|line| !line.is_empty() && *line != "Caused by:")
        .last()
        .unwrap_or("no reason given")
        .to_owned()
}

/// A moment in the life of an engine: what went wrong before it is nobody's concern who came after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FaultMark(u64);

/// The latest faults.
#[derive(Debug, Default)]
struct Noted {
    latest: VecDeque<DeviceFault>,
    count: u64,
    /// How many of them [`FaultLog::untold`] has been asked for.
    told: u64,
}

/// Faults that are remembered.
const REMEMBERED: usize = 64;

impl Noted {
    fn push(&mut self, fault: DeviceFault) {
        if self.latest.len() == REMEMBERED {
            self.latest.pop_front();
        }
        self.latest.push_back(fault);
        self.count += 1;
    }
}

/// What a host does with the errors of its own calls on a shared device.
type HostHandler = Arc<dyn Fn(&wgpu::Error) + Send + Sync>;

/// The errors of a wgpu device that no error scope caught.
#[derive(Clone)]
pub(super) struct FaultLog {
    noted: Arc<Mutex<Noted>>,
    host: Arc<Mutex<Option<HostHandler>>>,
}

impl FaultLog {
    /// Takes over the device's uncaptured errors. One raised on burn's thread is written down, and ends the launch or
    /// allocation that raised it, so that what it was to make cannot be read; all others are the host's.
    pub(super) fn install(device: &wgpu::Device, burns: Option<ThreadId>) -> Self {
        let log = Self {
            noted: Arc::default(),
            host: Arc::default(),
        };
        let handler = log.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let here = std::thread::current().id();
            if burns.is_some_and(|thread| thread != here) {
                let host = lock(&handler.host).clone();
                match host {
                    Some(host) => host(&error),
                    None => tracing::error!("uncaptured wgpu error of the host's: {error}"),
                }
                return;
            }
            tracing::debug!("uncaptured wgpu error: {error}");
            lock(&handler.noted).push(DeviceFault::from_wgpu(&error));
            // burn catches what unwinds on its thread, and marks the buffers that were not written. Resuming rather than
            // panicking keeps the host's panic hook out of it.
            if cfg!(panic = "unwind") && burns.is_some() && !std::thread::panicking() {
                resume_unwind(Box::new(error.to_string()));
            }
        }));
        log
    }

    /// How many there were so far.
    pub(super) fn mark(&self) -> FaultMark {
        FaultMark(lock(&self.noted).count)
    }

    /// Before those that nobody was told of.
    pub(super) fn told(&self) -> FaultMark {
        FaultMark(lock(&self.noted).told)
    }

    /// The first fault after a mark: what follows it is mostly its consequence. [`FaultLog::untold`] will not tell it again.
    pub(super) fn since(&self, mark: FaultMark) -> Option<DeviceFault> {
        let mut noted = lock(&self.noted);
        let oldest = noted.count - noted.latest.len() as u64;
        let skipped = mark.0.saturating_sub(oldest) as usize;
        let fault = noted.latest.get(skipped).cloned()?;
        noted.told = noted.count;
        Some(fault)
    }

    /// The first fault since the last call.
    pub(super) fn untold(&self) -> Option<DeviceFault> {
        self.since(self.told())
    }

    pub(super) fn set_host_handler(&self, handler: HostHandler) {
        *lock(&self.host) = Some(handler);
    }
}

/// The data of these locks is whole at every moment, whatever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for FaultLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultLog")
            .field("noted", &*lock(&self.noted))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_to_whom_it_befell() {
        let log = FaultLog {
            noted: Arc::default(),
            host: Arc::default(),
        };
        let fault = |n: usize| DeviceFault::failed(n);
        let early = log.mark();
        assert_eq!(log.since(early), None);
        lock(&log.noted).push(fault(0));
        assert_eq!((log.untold(), log.untold()), (Some(fault(0)), None));
        let late = log.mark();
        // Being told takes nothing away from others.
        assert_eq!((log.since(early), log.since(late)), (Some(fault(0)), None));
        for n in 1..=2 * REMEMBERED {
            lock(&log.noted).push(fault(n));
        }
        assert_eq!(log.since(log.mark()), None);
        assert_eq!(log.untold(), Some(fault(REMEMBERED + 1)));
        assert_eq!(log.since(early), Some(fault(REMEMBERED + 1)));
    }

    #[test]
    fn burns_errors_are_told_apart() {
        let poisoned = ExecutionError::device_poisoned("Destroyed: \nBacktrace:\n  0: somewhere");
        assert_eq!(
            DeviceFault::from_execution(&poisoned),
            DeviceFault::Lost {
                reason: "Destroyed:".into()
            }
        );
        for trace in ["Backtrace:\n  0: x", "No backtrace available"] {
            let report = format!(
                "An IO error happened\nCaused by:\n  can't allocate buffer of size: 99\n{trace}"
            );
            let message = "can't allocate buffer of size: 99".into();
            assert_eq!(
                DeviceFault::from_execution(&ExecutionError::with_context(&report)),
                DeviceFault::TooLarge { message }
            );
        }
        let other = ExecutionError::with_context("the fusion server failed to run a task");
        assert!(matches!(
            DeviceFault::from_execution(&other),
            DeviceFault::Failed { .. }
        ));
    }
}

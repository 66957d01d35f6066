//! Counting what a device was asked to run.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use burn::cubecl::logging::{LaunchObservation, LaunchObserver};

use super::Engine;

/// Counts kernel dispatches on GPUs from its making until [`LaunchCount::finish`]. All devices of the process
/// are counted together; the CPU backend dispatches nothing.
pub struct LaunchCount {
    counter: Arc<Counter>,
    _observation: LaunchObservation,
}

#[derive(Default)]
struct Counter(AtomicU64);

impl LaunchObserver for Counter {
    fn launched(&self, kernel: &'static str) {
        tracing::trace!(kernel, "dispatch");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for LaunchCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LaunchCount").field(&self.so_far()).finish()
    }
}

impl LaunchCount {
    /// Starts to count.
    pub fn start() -> Self {
        let counter = Arc::new(Counter::default());
        let observation = LaunchObservation::new(counter.clone());
        Self {
            counter,
            _observation: observation,
        }
    }

    /// Dispatches so far, of what the device has been given already.
    pub fn so_far(&self) -> u64 {
        self.counter.0.load(Ordering::Relaxed)
    }

    /// Waits for `engine` to finish what it was given, and tells the count.
    pub fn finish(self, engine: &Engine) -> u64 {
        // A device that fails here has failed its results too, which are reported where they are read.
        let _ = engine.device().sync();
        self.so_far()
    }
}

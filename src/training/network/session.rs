//! What runs in folders have in common, whatever they train.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    device::Engine,
    training::run::{DeviceWatch, TrainingError, guarded, hold_folder},
};

/// A run's time, what is not saved of it, and its folder.
#[derive(Debug)]
pub(super) struct Session {
    /// Seconds trained, over all sessions.
    pub seconds: f64,
    saved: Instant,
    unsaved: u64,
    watch: DeviceWatch,
    ended: bool,
    /// Keeps other processes out of the folder.
    #[expect(dead_code, reason = "holding it is its use")]
    held: Option<File>,
}

impl Session {
    /// Begins to work in a folder, which no other process may do then.
    ///
    /// # Errors
    /// [`TrainingError::Busy`], [`TrainingError::Io`].
    pub fn begin(folder: &Path) -> Result<Self, TrainingError> {
        Ok(Self {
            seconds: 0.0,
            saved: Instant::now(),
            unsaved: 0,
            watch: DeviceWatch::default(),
            ended: false,
            held: hold_folder(folder)?,
        })
    }

    /// Asks the engine that the network lives on what an error of the device means, and before every save whether there was
    /// one: some faults leave wrong values and a read-back that succeeds.
    pub fn watch(&mut self, engine: &Engine) {
        self.watch = DeviceWatch::of_what_was_done(engine);
    }

    /// That nothing went wrong on the device.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn check_device(&self) -> Result<(), TrainingError> {
        self.watch.check()
    }

    /// A step was done.
    pub fn stepped(&mut self) {
        self.unsaved += 1;
    }

    /// All steps are saved.
    pub fn saved(&mut self) {
        (self.saved, self.unsaved) = (Instant::now(), 0);
    }

    /// Whether steps are to be saved: at the end, and this long after the last time.
    pub fn is_due(&self, done: bool, every: Duration) -> bool {
        self.unsaved > 0 && (done || self.saved.elapsed() >= every)
    }
}

/// A run that does one thing a poll.
pub(super) trait Polled {
    type Event;

    fn session(&mut self) -> &mut Session;

    /// The next thing to do; `None` when all is done and written.
    fn advance(&mut self) -> Result<Option<Self::Event>, TrainingError>;

    /// Does the next thing, and counts its time; nothing more after an error.
    fn poll(&mut self) -> Option<Result<Self::Event, TrainingError>> {
        if self.session().ended {
            return None;
        }
        let started = Instant::now();
        let event = guarded(|| self.advance());
        let session = self.session();
        let event = event.map_err(|error| session.watch.explained(error));
        let event = event.transpose();
        session.seconds += started.elapsed().as_secs_f64();
        session.ended = !matches!(event, Some(Ok(_)));
        event
    }
}

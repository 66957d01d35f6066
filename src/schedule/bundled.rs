//! The learned schedules inside the library.

use std::path::Path;

use super::{ModelIdentity, RunSettings, ScheduleFile};

/// Routers of the bundled model, trained by `harmonica train router`, in order of preference.
#[cfg(feature = "bundled")]
const BUNDLED: [&str; 2] = [
    include_str!("../../assets/routers/ddim20-cur0.375.schedule.json"),
    include_str!("../../assets/routers/ddim50-cur0.375.schedule.json"),
];
#[cfg(not(feature = "bundled"))]
const BUNDLED: [&str; 0] = [];

/// The learned schedule that was made for this model and run, if the library has one.
pub fn bundled_schedule(model: &ModelIdentity, run: &RunSettings) -> Option<ScheduleFile> {
    BUNDLED.iter().find_map(|text| {
        let file = ScheduleFile::parse(text, Path::new("the bundled router")).ok()?;
        file.check_fits(model, run).is_ok().then_some(file)
    })
}

#[cfg(all(test, feature = "bundled"))]
mod tests {
    use super::*;

    #[test]
    fn every_bundled_schedule_parses_and_is_found_for_its_own_run_only() {
        for text in BUNDLED {
            let file = ScheduleFile::parse(text, Path::new("the bundled router")).unwrap();
            assert_eq!(bundled_schedule(&file.model, &file.run), Some(file.clone()));
            let other = RunSettings {
                solver: "ddpm".into(),
                ..file.run
            };
            assert_eq!(bundled_schedule(&file.model, &other), None);
        }
    }
}

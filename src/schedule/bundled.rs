//! The learned schedules inside the library, and the choice of one by its speed.

use std::path::Path;

use super::{ModelIdentity, RunSettings, ScheduleFile};

/// What `harmonica train router` made for the bundled model: forecasts of every speed, and HarmoniCa's routers.
#[cfg(feature = "bundled")]
const BUNDLED: [&str; 13] = [
    include_str!("../../assets/routers/ddim20-speedup1.25.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup1.33.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup1.6.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup2.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup2.5.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup3.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup4.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup1.33.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup1.6.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup2.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup3.schedule.json"),
    include_str!("../../assets/routers/ddim20-cur0.375.schedule.json"),
    include_str!("../../assets/routers/ddim50-cur0.375.schedule.json"),
];
#[cfg(not(feature = "bundled"))]
const BUNDLED: [&str; 0] = [];

/// The MACs ratio of a learned schedule where none is named.
pub const USUAL_SPEED: f64 = 2.0;
/// How far the MACs ratio of a schedule may be off a speed that is asked for, as factors.
pub const SPEED_RANGE: [f64; 2] = [0.96, 1.15];

/// All learned schedules of the library that were made for this model and run.
pub fn bundled_schedules(model: &ModelIdentity, run: &RunSettings) -> Vec<ScheduleFile> {
    let files = BUNDLED.iter().filter_map(|text| {
        let file = ScheduleFile::parse(text, Path::new("a bundled schedule")).ok()?;
        file.check_fits(model, run).is_ok().then_some(file)
    });
    files.collect()
}

/// The learned schedule for this model and run, if the library has one: that of the usual speed, or nearest to it.
pub fn bundled_schedule(model: &ModelIdentity, run: &RunSettings) -> Option<ScheduleFile> {
    nearest(bundled_schedules(model, run), USUAL_SPEED)
}

/// The file whose MACs ratio is nearest to `speed`; of equal ones the first.
pub fn nearest(files: Vec<ScheduleFile>, speed: f64) -> Option<ScheduleFile> {
    let off = |file: &ScheduleFile| (speed_of(file) / speed).ln().abs();
    files.into_iter().min_by(|a, b| off(a).total_cmp(&off(b)))
}

/// A file's MACs ratio.
pub fn speed_of(file: &ScheduleFile) -> f64 {
    let schedule = file.schedule();
    schedule.map_or(f64::NAN, |table| table.macs_ratio(&file.model.graph))
}

#[cfg(all(test, feature = "bundled"))]
mod tests {
    use super::*;

    #[test]
    fn every_bundled_schedule_parses_and_is_found_for_its_own_run_only() {
        for text in BUNDLED {
            let file = ScheduleFile::parse(text, Path::new("a bundled schedule")).unwrap();
            let found = bundled_schedules(&file.model, &file.run);
            assert!(found.contains(&file));
            assert_eq!(nearest(found, speed_of(&file)).unwrap(), file);
            let other = RunSettings {
                solver: "ddpm".into(),
                ..file.run
            };
            assert_eq!(bundled_schedule(&file.model, &other), None);
        }
    }
}

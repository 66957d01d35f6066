//! The learned schedules inside the library, and the choice of one by its speed.

use std::path::Path;

use super::{ModelIdentity, RunSettings, ScheduleFile};

/// What `harmonica train router` made for the bundled model: forecasts of every speed, and HarmoniCa's routers.
#[cfg(feature = "schedules")]
const BUNDLED: [&str; 20] = [
    include_str!("../../assets/routers/ddim20-speedup1.25.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup1.33.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup1.6.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup2.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup2.5.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup3.schedule.json"),
    include_str!("../../assets/routers/ddim20-speedup4.schedule.json"),
    include_str!("../../assets/routers/ddim50-speedup1.25.schedule.json"),
    include_str!("../../assets/routers/ddim50-speedup1.33.schedule.json"),
    include_str!("../../assets/routers/ddim50-speedup1.6.schedule.json"),
    include_str!("../../assets/routers/ddim50-speedup2.schedule.json"),
    include_str!("../../assets/routers/ddim50-speedup2.5.schedule.json"),
    include_str!("../../assets/routers/ddim50-speedup3.schedule.json"),
    include_str!("../../assets/routers/ddim50-speedup4.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup1.33.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup1.6.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup2.schedule.json"),
    include_str!("../../assets/routers/dpmpp2m20-speedup3.schedule.json"),
    include_str!("../../assets/routers/ddim20-cur0.375.schedule.json"),
    include_str!("../../assets/routers/ddim50-cur0.375.schedule.json"),
];
#[cfg(not(feature = "schedules"))]
const BUNDLED: [&str; 0] = [];

/// The MACs ratio of a learned schedule where none is named.
pub const USUAL_SPEED: f64 = 2.0;
/// How far the MACs ratio of a schedule may be off a speed that is asked for, as factors.
pub const SPEED_RANGE: [f64; 2] = [0.96, 1.15];

/// All learned schedules of the library that were made for this model and run.
pub fn bundled_schedules(model: &ModelIdentity, run: &RunSettings) -> Vec<ScheduleFile> {
    let files = bundled().filter(|file| file.check_fits(model, run).is_ok());
    files.collect()
}

/// All learned schedules of the library that were made for this model, whatever the run.
pub fn bundled_schedules_of(model: &ModelIdentity) -> Vec<ScheduleFile> {
    let files = bundled().filter(|file| file.check_fits(model, &file.run).is_ok());
    files.collect()
}

fn bundled() -> impl Iterator<Item = ScheduleFile> {
    let parsed = |text: &&str| ScheduleFile::parse(text, Path::new("a bundled schedule")).ok();
    BUNDLED.iter().filter_map(parsed)
}

/// The learned schedule for this model and run, if the library has one: the best of about the usual speed, or the nearest to it.
pub fn bundled_schedule(model: &ModelIdentity, run: &RunSettings) -> Option<ScheduleFile> {
    let files = bundled_schedules(model, run);
    learned_at(&files, None).cloned()
}

/// Of the files, the best of about `speed` (see [`best_at`]); where none is named, of about the usual speed, or else the nearest to it.
pub fn learned_at(files: &[ScheduleFile], speed: Option<f64>) -> Option<&ScheduleFile> {
    match speed {
        Some(speed) => best_at(files, speed),
        None => best_at(files, USUAL_SPEED).or_else(|| nearest(files, USUAL_SPEED)),
    }
}

/// Of the files whose MACs ratio is about `speed`, within [`SPEED_RANGE`], or that were made for it: of each policy the nearest, and
/// of those the one of the lowest measured error.
pub fn best_at(files: &[ScheduleFile], speed: f64) -> Option<&ScheduleFile> {
    let [least, most] = SPEED_RANGE;
    let made_for = |file: &ScheduleFile| {
        let target = file.policy.parameters.as_ref()?.get("target-speedup")?;
        target.as_f64()
    };
    let fits = |file: &&ScheduleFile| {
        (least..=most).contains(&(speed_of(file) / speed)) || made_for(file) == Some(speed)
    };
    let within: Vec<&ScheduleFile> = files.iter().filter(fits).collect();
    let of_policy = |name: &str| {
        let same = within
            .iter()
            .copied()
            .filter(|file| file.policy.name == name);
        nearest(same, speed)
    };
    let error = |file: &ScheduleFile| {
        let measured = file.measured.as_ref().and_then(|measured| measured.mse);
        measured.unwrap_or(f64::INFINITY)
    };
    let candidates = within
        .iter()
        .filter_map(|file| of_policy(&file.policy.name));
    candidates.min_by(|a, b| error(a).total_cmp(&error(b)))
}

/// The file whose MACs ratio is nearest to `speed`; of equal ones the first.
pub fn nearest<'a>(
    files: impl IntoIterator<Item = &'a ScheduleFile>,
    speed: f64,
) -> Option<&'a ScheduleFile> {
    let off = |file: &ScheduleFile| (speed_of(file) / speed).ln().abs();
    files.into_iter().min_by(|a, b| off(a).total_cmp(&off(b)))
}

/// A file's MACs ratio.
pub fn speed_of(file: &ScheduleFile) -> f64 {
    let schedule = file.schedule();
    schedule.map_or(f64::NAN, |table| table.macs_ratio(&file.model.graph))
}

#[cfg(all(test, feature = "schedules"))]
mod tests {
    use super::*;

    /// HarmoniCa's router at 1.60× is nearer to 1.6 than the forecast at 1.67×, which is better.
    #[test]
    fn the_best_of_a_speed_is_taken() {
        let of = |text: &str| ScheduleFile::parse(text, Path::new("a schedule")).unwrap();
        let files: Vec<_> = BUNDLED.into_iter().map(of).collect();
        let run = files[0].run.clone();
        let fitting = bundled_schedules(&files[0].model, &run);
        let best = best_at(&fitting, 1.6).unwrap();
        assert_eq!(best.policy.name, "forecast");
        assert!(speed_of(best) > 1.6 && best_at(&fitting, 9.0).is_none());
    }

    #[test]
    fn every_bundled_schedule_parses_and_is_found_for_its_own_run_only() {
        for text in BUNDLED {
            let file = ScheduleFile::parse(text, Path::new("a bundled schedule")).unwrap();
            let found = bundled_schedules(&file.model, &file.run);
            assert!(found.contains(&file));
            assert_eq!(
                speed_of(nearest(&found, speed_of(&file)).unwrap()),
                speed_of(&file)
            );
            let other = RunSettings {
                solver: "ddpm".into(),
                ..file.run
            };
            assert_eq!(bundled_schedule(&file.model, &other), None);
        }
    }
}

//! The C interface does what the library does, refuses what C can get wrong, and lets nothing through.

use std::{
    ffi::{CStr, CString, c_void},
    ptr,
};

use harmonica::{
    capi::*,
    checkpoint::{LoadOptions, ModelSpec, load_model},
    device::Engine,
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    models::Condition,
    sampler::{Request, Sampler, Settings},
};

fn last() -> String {
    // SAFETY: the text of this thread's last error, which nothing replaces meanwhile.
    unsafe { CStr::from_ptr(hm_last_error()) }
        .to_string_lossy()
        .into_owned()
}

/// An engine and the bundled model on the CPU, freed at the end.
struct Opened(*mut hm_engine, *mut hm_model);

impl Opened {
    fn new() -> Self {
        let (mut engine, mut model) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: strings and places of this frame.
        unsafe {
            assert_eq!(
                hm_engine_open(c"cpu".as_ptr(), &mut engine),
                hm_status::HM_OK
            );
            assert_eq!(
                hm_model_load(engine, c"bundled".as_ptr(), 0, &mut model),
                hm_status::HM_OK
            );
        }
        Self(engine, model)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // The engine first, which a model must survive.
        hm_engine_free(self.0);
        hm_model_free(self.1);
    }
}

fn settings(model: *const hm_model, steps: u32) -> hm_settings {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: the model is loaded; the settings are written before they are read.
    let settings = unsafe {
        assert_eq!(
            hm_settings_init(model, settings.as_mut_ptr()),
            hm_status::HM_OK
        );
        settings.assume_init()
    };
    hm_settings { steps, ..settings }
}

unsafe extern "C" fn count_to(user: *mut c_void, progress: *const hm_progress) -> i32 {
    // SAFETY: the tests hand in a pair of counters, and the library a progress that lives during the call.
    let ((told, limit), progress) = unsafe { (&mut *user.cast::<(u32, u32)>(), &*progress) };
    assert_eq!(progress.step, *told % progress.steps);
    *told += 1;
    (told == limit).into()
}

#[test]
fn c_and_rust_make_the_same_images() {
    let opened = Opened::new();
    let settings = settings(opened.1, 4);
    let labels = [3u32, 5];
    let mut values = vec![0f32; 2 * 3 * 32 * 32];
    let mut counters = (0u32, u32::MAX);
    let mut schedule = ptr::null_mut();
    // SAFETY: opened handles, and memory of this frame with its own lengths.
    unsafe {
        assert_eq!(
            hm_schedule_open(opened.1, &settings, c"fora:2".as_ptr(), &mut schedule),
            hm_status::HM_OK
        );
        let status = hm_sample(
            opened.1,
            &settings,
            schedule,
            labels.as_ptr(),
            labels.len(),
            values.as_mut_ptr(),
            values.len(),
            Some(count_to),
            (&raw mut counters).cast(),
        );
        assert_eq!(status, hm_status::HM_OK, "{}", last());
        hm_schedule_free(schedule);
    }
    assert_eq!(counters.0, 4);

    let (model, info) = load_model(
        &ModelSpec::Bundled,
        LoadOptions::default(),
        Engine::cpu().device(),
    )
    .unwrap();
    let run = Settings {
        steps: 4,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(3.0, GuidedChannels::Three).unwrap(),
        clip_x0: info.clip_x0,
    };
    let schedule = harmonica::policy::Policy::from(harmonica::policy::Fora { interval: 2 })
        .schedule(4, &info.outline.graph)
        .unwrap();
    let expected = Sampler::new(&model, run, Some(schedule))
        .unwrap()
        .sample(Request {
            conditions: Condition::classes(&[3, 5]),
            seed: 0,
            first: 0,
            noise: None,
            batch: 2,
        })
        .unwrap();
    assert_eq!(values, expected);
}

#[test]
fn a_callback_cancels_within_a_step() {
    let opened = Opened::new();
    let settings = settings(opened.1, 6);
    let mut values = vec![0f32; 3 * 32 * 32];
    let mut counters = (0u32, 2);
    // SAFETY: an open handle, and memory of this frame with its own lengths.
    let status = unsafe {
        hm_sample(
            opened.1,
            &settings,
            ptr::null(),
            &0u32,
            1,
            values.as_mut_ptr(),
            values.len(),
            Some(count_to),
            (&raw mut counters).cast(),
        )
    };
    assert_eq!(status, hm_status::HM_CANCELLED);
    assert_eq!(counters.0, 2);
}

#[test]
fn what_c_can_get_wrong_is_an_error_with_its_reason() {
    let opened = Opened::new();
    let good = settings(opened.1, 4);
    let label = 0u32;
    let mut values = vec![0f32; 3 * 32 * 32];
    let mut engine: *mut hm_engine = ptr::null_mut();
    let mut model: *mut hm_model = ptr::null_mut();
    let mut schedule: *mut hm_schedule = ptr::null_mut();
    let latin1 = CString::new([0xe9u8]).unwrap();
    let check = |status: hm_status, expected: hm_status, text: &str| {
        assert_eq!(status, expected, "{text}");
        assert!(last().contains(text), "{} lacks {text}", last());
    };
    use hm_status::{HM_DEVICE, HM_INVALID_ARGUMENT, HM_MODEL, HM_SCHEDULE};
    // SAFETY: pointers are null, where that is what is tried, or into this frame with their own lengths.
    unsafe {
        check(
            hm_engine_open(ptr::null(), &mut engine),
            HM_INVALID_ARGUMENT,
            "`device` is null",
        );
        check(
            hm_engine_open(c"cpu".as_ptr(), ptr::null_mut()),
            HM_INVALID_ARGUMENT,
            "`engine` is null",
        );
        check(
            hm_engine_open(latin1.as_ptr(), &mut engine),
            HM_INVALID_ARGUMENT,
            "no UTF-8",
        );
        check(
            hm_engine_open(c"abacus".as_ptr(), &mut engine),
            HM_DEVICE,
            "unknown device `abacus`",
        );
        assert!(engine.is_null());
        check(
            hm_model_load(opened.0, c"/no/such.pt".as_ptr(), 0, &mut model),
            HM_MODEL,
            "/no/such.pt",
        );
        check(
            hm_model_load(ptr::null(), c"bundled".as_ptr(), 0, &mut model),
            HM_INVALID_ARGUMENT,
            "`engine` is null",
        );
        assert!(model.is_null());
        check(
            hm_schedule_open(opened.1, &good, c"fora:0".as_ptr(), &mut schedule),
            HM_SCHEDULE,
            "fora:0",
        );
        check(
            hm_schedule_from_table(opened.1, [0u8; 8].as_ptr(), 8, 4, &mut schedule),
            HM_SCHEDULE,
            "entries",
        );
        assert!(schedule.is_null());
        let sample = |settings: &hm_settings, label: &u32, values: &mut [f32]| {
            hm_sample(
                opened.1,
                settings,
                ptr::null(),
                label,
                1,
                values.as_mut_ptr(),
                values.len(),
                None,
                ptr::null_mut(),
            )
        };
        check(
            sample(&good, &label, &mut values[1..]),
            HM_INVALID_ARGUMENT,
            "expected exactly 3072",
        );
        check(
            sample(&good, &1_000_000, &mut values),
            HM_INVALID_ARGUMENT,
            "there is no class 1000000",
        );
        let bad = hm_settings { steps: 0, ..good };
        check(
            sample(&bad, &label, &mut values),
            HM_INVALID_ARGUMENT,
            "0 steps",
        );
        let bad = hm_settings { solver: 9, ..good };
        check(
            sample(&bad, &label, &mut values),
            HM_INVALID_ARGUMENT,
            "settings.solver is 9",
        );
        // Nothing is there, and that is no error.
        hm_engine_free(ptr::null_mut());
        hm_model_free(ptr::null_mut());
        hm_schedule_free(ptr::null_mut());
        assert!(hm_engine_device(ptr::null()).is_null());
        assert!(hm_model_class_name(opened.1, u32::MAX).is_null());
    }
}

//! Calls of the C interface, one after the other, as C may make them within its promises.

use std::{
    ffi::{CStr, CString, c_void},
    mem::MaybeUninit,
    ptr,
    sync::LazyLock,
};

use harmonica::capi::*;

/// A model that is opened once.
struct Model(*mut hm_model);

// SAFETY: a handle may be used by several threads at once, and this one is never freed.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let (mut engine, mut model) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: strings and places of this frame.
    unsafe {
        fine(hm_engine_open(c"cpu".as_ptr(), &mut engine));
        let status = hm_model_load(engine, c"bundled".as_ptr(), 0, &mut model);
        assert_eq!(status, hm_status::HM_OK);
        hm_engine_free(engine);
    }
    Model(model)
});

/// Values of one image of the model.
const IMAGE: usize = 3 * 32 * 32;

/// Whether a call did what it should; a fault of the library is no answer.
fn fine(status: hm_status) -> bool {
    // SAFETY: the text of this thread's last error, which nothing replaces meanwhile.
    let text = unsafe { CStr::from_ptr(hm_last_error()) };
    assert_ne!(status, hm_status::HM_INTERNAL, "{text:?}");
    assert!(status == hm_status::HM_OK || !text.is_empty());
    status == hm_status::HM_OK
}

/// What is left of the input.
struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_off_first() {
            Some(byte) => *byte,
            None => 0,
        }
    }

    /// Up to a zero.
    fn text(&mut self) -> CString {
        let end = self.0.iter().position(|b| *b == 0);
        let (text, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest.get(1..).unwrap_or_default();
        CString::new(text).expect("no zero is in it")
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::from(self.byte()) % values.len()]
    }
}

/// Cancels a run that is long after its first step.
unsafe extern "C" fn cancels(_: *mut c_void, progress: *const hm_progress) -> i32 {
    // SAFETY: the library's, and it lives while this is called.
    let progress = unsafe { &*progress };
    assert!(progress.step < progress.steps && progress.images > 0);
    i32::from(progress.steps > 3)
}

/// A sequence of calls; whether one of them made pictures, or a schedule, or found a name.
pub fn c_interface(data: &[u8]) -> bool {
    let model = MODEL.0.cast_const();
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the model stays, and the settings are written before they are read.
    let usual = unsafe {
        assert!(fine(hm_settings_init(model, settings.as_mut_ptr())));
        settings.assume_init()
    };
    let mut settings = hm_settings { steps: 2, ..usual };
    let mut schedule: *mut hm_schedule = ptr::null_mut();
    let (mut input, mut did, mut drawn) = (Input(data), false, false);
    let extreme = [1.0, 3.0, 0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 0.5];
    while !input.0.is_empty() {
        match input.byte() % 15 {
            0 => settings.steps = input.of(&[0, 1, 2, 3, 20, 1000, 1001, u32::MAX]),
            1 => settings.batch = input.of(&[0, 1, 2, u32::MAX]),
            2 => settings.solver = u32::from(input.byte()),
            3 => settings.guidance = input.of(&extreme),
            4 => settings.eta = input.of(&extreme),
            5 => {
                settings.guidance_channels = input.of(&[0, 1, 2]);
                settings.clip_x0 = input.of(&[0, 1, 2]);
                settings.seed = input.of(&[0, 1, u64::MAX]);
            }
            6 => {
                let spec = input.text();
                let mut made = ptr::null_mut();
                // SAFETY: the model stays, the rest is of this frame.
                if fine(unsafe { hm_schedule_open(model, &settings, spec.as_ptr(), &mut made) }) {
                    hm_schedule_free(std::mem::replace(&mut schedule, made));
                    did = true;
                }
            }
            7 => {
                let length = usize::from(input.byte()).min(input.0.len());
                let (table, rest) = input.0.split_at(length);
                input.0 = rest;
                let mut made = ptr::null_mut();
                let steps = settings.steps;
                // SAFETY: the model stays, the rest is of this frame with its own length.
                let status = unsafe {
                    hm_schedule_from_table(model, table.as_ptr(), length, steps, &mut made)
                };
                if fine(status) {
                    hm_schedule_free(std::mem::replace(&mut schedule, made));
                    did = true;
                }
            }
            8 => {
                let labels = [7, 46, 47, u32::MAX];
                let count = usize::from(input.byte() % 3);
                let first = usize::from(input.byte() % 4).min(labels.len() - count);
                let mut values = vec![f32::NAN; count * IMAGE];
                // A run takes more time than all else.
                if drawn {
                    continue;
                }
                // SAFETY: the model stays, the schedule is null or open, the rest is of this frame with its own lengths.
                let status = unsafe {
                    hm_sample(
                        model,
                        &settings,
                        schedule,
                        labels[first..].as_ptr(),
                        count,
                        values.as_mut_ptr(),
                        values.len(),
                        Some(cancels),
                        ptr::null_mut(),
                    )
                };
                if fine(status) {
                    // Guidance beyond measure makes numbers beyond measure.
                    let finite = values.iter().all(|v| v.is_finite());
                    assert!(count > 0 && (finite || settings.guidance > 3.0));
                    did = true;
                }
                drawn = did || status == hm_status::HM_CANCELLED;
            }
            9 => {
                let mut figures = MaybeUninit::uninit();
                // SAFETY: null or open; the figures are read after they are written.
                unsafe {
                    let told = fine(hm_schedule_get_figures(schedule, figures.as_mut_ptr()));
                    assert_eq!(told, !schedule.is_null());
                    if told {
                        let figures: hm_figures = figures.assume_init();
                        assert!(figures.macs <= figures.macs_full);
                    }
                }
            }
            10 => {
                let (name, mut label) = (input.text(), u32::MAX);
                // SAFETY: the model stays, the rest is of this frame.
                if fine(unsafe { hm_model_class_by_name(model, name.as_ptr(), &mut label) }) {
                    assert!(label < 46);
                    did = true;
                }
            }
            11 => {
                let label = u32::from(input.byte());
                let name = hm_model_class_name(model, label);
                assert_eq!(name.is_null(), label >= 46);
            }
            12 => {
                let image = vec![0.5; input.of(&[IMAGE, 0, 1, IMAGE - 1])];
                let mut rgb = vec![0; input.of(&[IMAGE, 0, IMAGE + 1])];
                let (pixels, room) = (image.len(), rgb.len());
                // SAFETY: the model stays, the rest is of this frame with its own lengths.
                let status =
                    unsafe { hm_rgb8(model, image.as_ptr(), pixels, rgb.as_mut_ptr(), room) };
                assert_eq!(fine(status), (pixels, room) == (IMAGE, IMAGE));
            }
            13 => {
                hm_schedule_free(std::mem::replace(&mut schedule, ptr::null_mut()));
                hm_model_free(ptr::null_mut());
                hm_engine_free(ptr::null_mut());
            }
            _ => {
                let mut made: *mut hm_schedule = ptr::null_mut();
                // SAFETY: null is refused, before anything is read.
                unsafe {
                    let none = ptr::null();
                    assert!(!fine(hm_schedule_open(
                        model,
                        none,
                        c"none".as_ptr(),
                        &mut made
                    )));
                    assert!(!fine(hm_schedule_open(
                        ptr::null(),
                        &settings,
                        none.cast(),
                        &mut made
                    )));
                    let nowhere = ptr::null_mut();
                    assert!(!fine(hm_schedule_from_table(
                        model,
                        none.cast(),
                        4,
                        2,
                        nowhere
                    )));
                }
                assert!(made.is_null());
            }
        }
    }
    hm_schedule_free(schedule);
    did
}

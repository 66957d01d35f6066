#![no_main]

use std::sync::Once;

static ONCE: Once = Once::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // libFuzzer's hook ends at a panic that the library itself catches; those that leave it count without it too.
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    harmonica_fuzz::spiece(data);
});

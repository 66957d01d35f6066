#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    harmonica_fuzz::text_chunk(data);
});

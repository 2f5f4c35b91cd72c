//! See weft_fuzz::http1_body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::http1_body::run(bytes));

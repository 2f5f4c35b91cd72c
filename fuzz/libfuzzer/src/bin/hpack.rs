//! See weft_fuzz::hpack.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::hpack::run(bytes));

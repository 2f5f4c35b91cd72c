//! See weft_fuzz::identity.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::identity::run(bytes));

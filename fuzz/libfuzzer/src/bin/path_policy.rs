//! See weft_fuzz::path_policy.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::path_policy::run(bytes));

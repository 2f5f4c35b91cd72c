//! See weft_fuzz::yaml_objects.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::yaml_objects::run(bytes));

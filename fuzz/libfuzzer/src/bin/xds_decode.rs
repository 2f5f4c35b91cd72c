//! See weft_fuzz::xds_decode.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::xds_decode::run(bytes));

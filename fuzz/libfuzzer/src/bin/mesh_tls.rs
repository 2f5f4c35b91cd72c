//! See weft_fuzz::mesh_tls.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::mesh_tls::run(bytes));

//! See weft_fuzz::http2_connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| weft_fuzz::http2_connection::run(bytes));

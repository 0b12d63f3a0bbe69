#![no_main]

#[path = "../bodies/prp_sgl.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));

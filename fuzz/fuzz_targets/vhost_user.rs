#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hyper_switch_fuzz::vhost_user::run(input));

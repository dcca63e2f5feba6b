#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| apiserver::fuzzing::merge_patch(input));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    fuzz::mutate(data, size, max_size, seed)
});

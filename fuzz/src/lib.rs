//! What the targets share.

/// A mutator that knows JSON, and most of the time leaves it JSON.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if seed % 8 > 0
        && let Some(changed) = apiserver::fuzzing::mutated(&data[..size], seed.into())
        && changed.len() <= max_size
    {
        data[..changed.len()].copy_from_slice(&changed);
        return changed.len();
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

//! The stack after work with keys. A cipher that is built and moved, blocks on their way through it, registers that are
//! spilled: each leaves copies of key bytes below the present frame, where nothing wipes them until another call
//! happens to go as deep.

use zeroize::Zeroize;

/// More than building a cipher and running it over a node takes; a few hundred nanoseconds to overwrite.
const DEPTH: usize = 16 * 1024;
/// More than a call takes on its way from the network to the cipher and back; about a microsecond to overwrite.
const DEPTH_OF_A_CALL: usize = 64 * 1024;

/// Does `work` in a frame of its own and overwrites the stack that it used.
pub(in crate::crypto) fn wiped<T>(work: impl FnOnce() -> T) -> T {
    let out = below(work);
    overwrite::<DEPTH>();
    out
}

/// Overwrites what calls left of keys and values on this thread's stack. A runtime's thread does it before it waits for
/// work: the last call's value would lie there for as long as nothing else comes.
pub fn wipe_idle_stack() {
    overwrite::<DEPTH_OF_A_CALL>();
}

#[inline(never)]
fn below<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite<const BYTES: usize>() {
    let mut area = [0u8; BYTES];
    area.zeroize();
    std::hint::black_box(&area);
}

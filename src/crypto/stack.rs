//! The stack after work with keys. A cipher that is built and moved, blocks on their way through it, registers that are
//! spilled: each leaves copies of key bytes below the present frame, where nothing wipes them until another call
//! happens to go as deep.

use zeroize::Zeroize;

/// More than building a cipher and running it over a node takes; a few hundred nanoseconds to overwrite.
const DEPTH: usize = 16 * 1024;

/// Does `work` in a frame of its own and overwrites the stack that it used.
pub(in crate::crypto) fn wiped<T>(work: impl FnOnce() -> T) -> T {
    let out = below(work);
    overwrite();
    out
}

#[inline(never)]
fn below<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite() {
    let mut area = [0u8; DEPTH];
    area.zeroize();
    std::hint::black_box(&area);
}

//! Random bytes from the operating system's generator. One system call costs about as much as sealing a small value, so
//! they are drawn in blocks per thread; a used byte is wiped at once and never given twice. The process never forks.

use std::cell::RefCell;

use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::Zeroize;

/// Bytes drawn per system call: 341 nonces or 128 keys.
const BLOCK: usize = 4096;

struct Block {
    bytes: Box<[u8; BLOCK]>,
    used: usize,
}

thread_local! {
    static BLOCK_OF_THREAD: RefCell<Block> = RefCell::new(Block { bytes: Box::new([0; BLOCK]), used: BLOCK });
}

fn from_system(out: &mut [u8]) {
    // Without a working generator no key and no nonce can be made: stopping is the only safe answer.
    SysRng.try_fill_bytes(out).expect("the operating system's random generator works on every supported platform");
}

/// Fills `out` with random bytes.
pub fn fill(out: &mut [u8]) {
    if out.len() > BLOCK / 4 {
        return from_system(out);
    }
    BLOCK_OF_THREAD.with_borrow_mut(|block| {
        if BLOCK - block.used < out.len() {
            from_system(&mut block.bytes[..]);
            block.used = 0;
        }
        let range = block.used..block.used + out.len();
        out.copy_from_slice(&block.bytes[range.clone()]);
        block.bytes[range.clone()].zeroize();
        block.used = range.end;
    });
}

/// `N` random bytes that are not secret: nonces, salts, ids.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_given_twice() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..2000 {
            assert!(seen.insert(bytes::<12>()));
        }
    }
}

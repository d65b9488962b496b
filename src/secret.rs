//! `Secret<T>`: bytes that are wiped when dropped and that only `expose` shows, so that a search for that word audits
//! every place where a key or a value is looked at.

use std::fmt;
use zeroize::Zeroize;

/// A value that is wiped on drop and redacted in `Debug`. No `Clone`, `Display`, `Serialize` or `==`.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes ownership; the caller must not keep a copy.
    pub fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value itself. Do not copy it anywhere that is not wiped.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// For filling a buffer in place.
    pub fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_redacted() {
        assert_eq!(format!("{:?}", Secret::new(vec![1u8, 2])), "Secret(..)");
    }
}

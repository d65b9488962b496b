//! The most common passwords of past leaks.
//!
//! From the frequency list `passwords` (30,000 entries) of zxcvbn, which Dropbox collected; taken from the package
//! `zxcvbn` 4.5.0 on PyPI, MIT licence, Copyright (c) 2016 Daniel Wolf and (c) 2012-2016 Dan Wheeler and Dropbox, Inc.
//! Kept are those of at least 8 characters, since no shorter password is accepted, in small letters and sorted.

use std::sync::OnceLock;

const LIST: &str = include_str!("common_passwords.txt");

/// Whether the password is one of them, whatever its case.
pub fn is_common(password: &str) -> bool {
    static SORTED: OnceLock<Vec<&'static str>> = OnceLock::new();
    let list = SORTED.get_or_init(|| LIST.lines().collect());
    let small = zeroize::Zeroizing::new(password.to_lowercase());
    list.binary_search(&small.as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_found_in_any_case() {
        assert!(LIST.lines().is_sorted() && LIST.lines().all(|line| line.len() >= 8 && line.is_ascii()));
        assert_eq!(LIST.lines().count(), 11_611);
        assert!(is_common("password") && is_common("PassWord") && is_common("12345678"));
        assert!(!is_common("correct horse battery staple") && !is_common(""));
    }
}

//! The policy that unit tests of this folder share.

use super::compiled::Policy;
use super::file::File;
use crate::clock::Timestamp;
use crate::ids::{Name, PolicyVersion};

/// A few fields, classes and purposes with gaps between their numbers.
pub const NUMBERS: &str = include_str!("../../tests/policies/numbers.toml");
/// A sound file without findings.
pub const SOUND: &str = include_str!("../../tests/policies/sound.toml");

/// `NUMBERS`, compiled.
pub fn policy() -> Policy {
    match Policy::compile(NUMBERS, PolicyVersion(1), None) {
        Ok((policy, _)) => policy,
        Err(findings) => panic!("{findings:?}"),
    }
}
/// A file that must be well formed.
pub fn parse(text: &str) -> File {
    File::parse(text).unwrap_or_else(|f| panic!("{f:?}"))
}
pub fn name(text: &str) -> Name {
    Name::parse("name", text).unwrap()
}
pub fn at(text: &str) -> Timestamp {
    Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

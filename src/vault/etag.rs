//! The etag of a subject, which a caller hands back so as to change only what they saw.

use crate::ids::*;
use crate::storage::SubjectSnapshot;

/// The etag of a subject: changes with every change of the subject or one of its classes.
pub fn etag(snapshot: &SubjectSnapshot) -> String {
    let classes = snapshot.classes.iter();
    etag_of(snapshot.subject.revision, classes.map(|c| (c.class, c.version, c.revision)))
}

/// The same of a revision of the subject and its classes, in order of their numbers.
pub(crate) fn etag_of(subject: Revision, classes: impl Iterator<Item = (ClassNo, DekVersion, Revision)>) -> String {
    use std::fmt::Write;
    let mut text = format!("{:x}", subject.0);
    for (class, version, revision) in classes {
        write!(text, "-{:x}.{:x}.{:x}", class.0, version.0, revision.0).expect("writing to a String cannot fail");
    }
    text
}

//! The table of a policy file about the credentials of the tenant's users.

use super::key::{Kind, REQUIRED, Section, key};
use super::words::CODE_ALPHABETS;

pub(super) const CREDENTIALS: Section = Section {
    path: "credentials",
    doc: "Passwords, API keys and codes of the tenant's own users: values of one class, which no call reads out.",
    keys: &[
        key(
            "class",
            Kind::Name,
            REQUIRED,
            "The class that holds them: they are erased, held and expired with it. It cannot be changed later.",
            "\"account\"",
        ),
        key(
            "password_min_length",
            Kind::Integer { min: 8, max: 64 },
            "8",
            "Fewest characters of a new password (NIST SP 800-63B asks for 8, and for 15 where there is no second factor).",
            "12",
        ),
        key(
            "password_common",
            Kind::Flag,
            "false",
            "Whether one of the 11,611 most common passwords of 8 characters or more is accepted as a new one.",
            "true",
        ),
        key(
            "lock_tries",
            Kind::Integer { min: 3, max: 100 },
            "10",
            "Wrong passwords in a row after which a subject waits `lock_seconds` before the next is looked at. From the third on it waits a little: 1 s, then twice as long each time.",
            "5",
        ),
        key(
            "lock_seconds",
            Kind::Integer { min: 60, max: 86_400 },
            "900",
            "The longest wait, in seconds. Nobody is locked out for good by a stranger.",
            "3600",
        ),
        key(
            "source_tries",
            Kind::Integer { min: 10, max: 100_000 },
            "100",
            "Wrong tries of one source in a day, over all subjects, after which it waits `lock_seconds` each time.",
            "50",
        ),
        key(
            "api_key_prefix",
            Kind::Name,
            "\"key\"",
            "What API keys begin with, so that scanners for leaked secrets know them; at most 16 characters, no hyphen, not `pv`, by which access keys are known.",
            "\"acme\"",
        ),
        key("code_length", Kind::Integer { min: 6, max: 64 }, "6", "Characters of a one-time code.", "8"),
        key(
            "code_alphabet",
            Kind::Choice(CODE_ALPHABETS),
            "\"digits\"",
            "Of what one-time codes are made; `letters` are digits and letters that nobody takes for one another.",
            "\"letters\"",
        ),
        key(
            "code_life_seconds",
            Kind::Integer { min: 60, max: 604_800 },
            "900",
            "How long a one-time code works, in seconds.",
            "86400",
        ),
        key("code_tries", Kind::Integer { min: 1, max: 20 }, "5", "Wrong tries after which a one-time code ends.", "3"),
    ],
};

//! Words of a policy file: the closed lists from which its keys choose.

/// Types of fields.
pub const TYPES: &[&str] = &["text", "data", "integer", "number", "flag", "date", "time"];
/// Validators of text.
pub const VALIDATORS: &[&str] = &["none", "email", "phone_e164", "url", "name", "ip"];
/// Lawful bases.
pub const BASES: &[&str] =
    &["contract", "consent", "legal_obligation", "legitimate_interests", "vital_interests", "public_task"];
/// Kinds of purposes, for the list of the forbidden.
pub const PURPOSE_KINDS: &[&str] = &[
    "service",
    "security",
    "payment",
    "messaging",
    "support",
    "legal",
    "analytics",
    "marketing",
    "advertising",
    "sale",
];
/// Names of verbs; equal to `access::Verb::ALL`, which a test checks.
pub const VERBS: &[&str] = &[
    "read",
    "write",
    "delete",
    "find",
    "export",
    "erase",
    "hold",
    "release",
    "subject",
    "group",
    "request",
    "approve",
    "audit",
    "access",
    "policy",
    "operate",
    "verify",
    "credential",
];
/// Of what a code is made.
pub const CODE_ALPHABETS: &[&str] = &["digits", "letters"];
/// Kinds of requests that people and authorities make.
pub const REQUESTS: &[&str] = &[
    "access",
    "correct",
    "erase",
    "restrict",
    "object",
    "portability",
    "nominate",
    "withdraw",
    "grievance",
    "dpa",
    "incident",
];
/// Bases on which data may leave a region.
pub const TRANSFERS: &[&str] = &["adequacy", "scc", "bcr", "consent", "derogation"];
/// What a recipient is.
pub const RECIPIENT_KINDS: &[&str] = &["processor", "controller", "authority"];
/// Days of the week.
pub const WEEKDAYS: &[&str] = &["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

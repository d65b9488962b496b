//! The numbers of a policy as constants of a programming language, so that programs name what they send.

use crate::cli::names::{Names, Noun};
use crate::grpc::pb;
use clap::ValueEnum;
use std::fmt::Write as _;

/// Languages that constants can be written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    Python,
    Ts,
    Go,
}

const NOUNS: [Noun; 7] =
    [Noun::Field, Noun::Class, Noun::Purpose, Noun::Recipient, Noun::Role, Noun::Plan, Noun::Source];

/// A source file with a constant for every number, sorted by kind and number.
pub fn write(language: Language, schema: &pb::GetSchemaResponse) -> String {
    let names = Names::new(schema.clone());
    let head = format!(
        "Made by `pii-vault schema --constants` from policy version {}. Numbers are permanent.",
        schema.policy_version
    );
    let mut out = match language {
        Language::Rust => format!("//! {head}\n"),
        Language::Python => format!("\"\"\"{head}\"\"\"\n"),
        Language::Ts => format!("// {head}\n"),
        Language::Go => format!("// Package pii has the numbers of the policy.\n//\n// {head}\npackage pii\n"),
    };
    for noun in NOUNS {
        let all = names.all(noun);
        if !all.is_empty() {
            block(&mut out, language, noun.word(), &all);
        }
    }
    out
}

fn block(out: &mut String, language: Language, word: &str, all: &[(u32, &str)]) {
    let camel = camel(word);
    // Writing to a String cannot fail.
    let _ = match language {
        Language::Rust => writeln!(out, "\npub mod {word} {{"),
        Language::Python => writeln!(out, "\n\nclass {camel}:"),
        Language::Ts => writeln!(out, "\nexport const {camel} = {{"),
        Language::Go => writeln!(out, "\nconst ("),
    };
    for (number, name) in all {
        let _ = match language {
            Language::Rust => writeln!(out, "    pub const {}: u32 = {number};", upper(name)),
            Language::Python => writeln!(out, "    {} = {number}", upper(name)),
            Language::Ts => writeln!(out, "  {}: {number},", upper(name)),
            Language::Go => writeln!(out, "\t{camel}{} uint32 = {number}", self::camel(name)),
        };
    }
    out.push_str(match language {
        Language::Rust => "}\n",
        Language::Python => "",
        Language::Ts => "} as const;\n",
        Language::Go => ")\n",
    });
}

/// `date-of_birth` to `DATE_OF_BIRTH`. Names of policies are a-z, 0-9, `_`, `-`; one that begins with a digit gets `_`
/// before it. A server could send anything, so other characters become `_` too.
fn upper(name: &str) -> String {
    let mut out: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

/// `date-of_birth` to `DateOfBirth`.
fn camel(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.map(|w| w[..1].to_ascii_uppercase() + &w[1..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_has_its_form() {
        let field = pb::FieldSchema { field_id: 7, name: "date-of_birth".into(), ..Default::default() };
        let class = pb::ClassSchema { class_id: 1, name: "2fa".into(), ..Default::default() };
        let schema = pb::GetSchemaResponse {
            policy_version: 3,
            fields: vec![field],
            classes: vec![class],
            ..Default::default()
        };
        let rust = write(Language::Rust, &schema);
        assert!(rust.contains("pub mod field {\n    pub const DATE_OF_BIRTH: u32 = 7;\n}"), "{rust}");
        assert!(rust.contains("pub const _2FA: u32 = 1;"), "{rust}");
        let python = write(Language::Python, &schema);
        assert!(python.contains("class Field:\n    DATE_OF_BIRTH = 7\n"), "{python}");
        let ts = write(Language::Ts, &schema);
        assert!(ts.contains("export const Field = {\n  DATE_OF_BIRTH: 7,\n} as const;"), "{ts}");
        let go = write(Language::Go, &schema);
        assert!(go.contains("package pii\n\nconst (\n\tFieldDateOfBirth uint32 = 7\n)"), "{go}");
        assert!(!go.contains("purpose"), "what the policy does not have is not there");
    }

    #[test]
    fn no_name_leaves_its_place() {
        let field = pb::FieldSchema { field_id: 7, name: "x: 1, }\nevil()".into(), ..Default::default() };
        let schema = pb::GetSchemaResponse { fields: vec![field], ..Default::default() };
        for language in [Language::Rust, Language::Python, Language::Ts, Language::Go] {
            assert!(!write(language, &schema).contains("evil()"));
        }
    }
}

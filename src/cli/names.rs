//! Names of the tenant's policy for its permanent numbers, and back.

use crate::cli::error::CliError;
use crate::grpc::pb;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noun {
    Field,
    Class,
    Purpose,
    Recipient,
    Role,
    Plan,
    Source,
}

impl Noun {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Noun::Field => "field",
            Noun::Class => "class",
            Noun::Purpose => "purpose",
            Noun::Recipient => "recipient",
            Noun::Role => "role",
            Noun::Plan => "plan",
            Noun::Source => "source",
        }
    }
}

/// The schema of a tenant; the empty one knows no names.
#[derive(Debug, Clone, Default)]
pub struct Names {
    schema: pb::GetSchemaResponse,
}

impl Names {
    pub fn new(schema: pb::GetSchemaResponse) -> Self {
        Names { schema }
    }

    /// Number and name of everything of one sort, by number.
    pub fn all(&self, noun: Noun) -> Vec<(u32, &str)> {
        fn numbered(list: &[pb::NumberedName]) -> Vec<(u32, &str)> {
            list.iter().map(|n| (n.id, n.name.as_str())).collect()
        }
        let schema = &self.schema;
        match noun {
            Noun::Field => schema.fields.iter().map(|f| (f.field_id, f.name.as_str())).collect(),
            Noun::Class => schema.classes.iter().map(|c| (c.class_id, c.name.as_str())).collect(),
            Noun::Purpose => schema.purposes.iter().map(|p| (p.purpose_id, p.name.as_str())).collect(),
            Noun::Recipient => numbered(&schema.recipients),
            Noun::Role => numbered(&schema.roles),
            Noun::Plan => numbered(&schema.plans),
            Noun::Source => numbered(&schema.sources),
        }
    }

    /// The name of a number, or the number where no name is known.
    pub fn name(&self, noun: Noun, number: u32) -> String {
        if noun == Noun::Class && number == u32::from(crate::ids::ClassNo::OWN.0) {
            return "rights".into();
        }
        let known = self.all(noun).into_iter().find(|(n, _)| *n == number);
        known.map_or_else(|| number.to_string(), |(_, name)| name.to_string())
    }

    /// The number of a name.
    pub fn number(&self, noun: Noun, name: &str) -> Result<u32, CliError> {
        let all = self.all(noun);
        if let Some((number, _)) = all.iter().find(|(_, known)| *known == name) {
            return Ok(*number);
        }
        let mut known: Vec<&str> = all.iter().map(|(_, name)| *name).collect();
        known.sort_by_key(|k| distance(k, name));
        let likely = known.into_iter().take(8).collect::<Vec<_>>().join(", ");
        let word = noun.word();
        Err(CliError::Usage(if likely.is_empty() {
            format!("the policy has no {word} {name:?}; it has none at all")
        } else {
            format!("the policy has no {word} {name:?}; it has {likely}")
        }))
    }

    /// A field by number.
    pub fn field(&self, number: u32) -> Option<&pb::FieldSchema> {
        self.schema.fields.iter().find(|f| f.field_id == number)
    }
}

/// Edit distance, to show likely names first.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let field = |field_id, name: &str| pb::FieldSchema { field_id, name: name.into(), ..Default::default() };
        Names::new(pb::GetSchemaResponse { fields: vec![field(1, "phone"), field(2, "email")], ..Default::default() })
    }

    #[test]
    fn names_and_numbers_translate_both_ways() {
        assert_eq!(names().number(Noun::Field, "email").unwrap(), 2);
        assert_eq!(names().name(Noun::Field, 2), "email");
        assert_eq!(names().name(Noun::Field, 9), "9");
    }

    #[test]
    fn a_wrong_name_shows_likely_ones_first() {
        let error = names().number(Noun::Field, "emial").unwrap_err().to_string();
        assert!(error.ends_with("it has email, phone"), "{error}");
        assert!(names().number(Noun::Plan, "x").unwrap_err().to_string().contains("none at all"));
    }
}

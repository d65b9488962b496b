//! The messages, clients and server traits that `build.rs` makes from `proto/pii/vault/v1/`.

// Generated code: its style is prost's and tonic's, and the comments in it are those of the proto files.
#![allow(clippy::all, clippy::pedantic, rustdoc::all, missing_docs)]

tonic::include_proto!("pii.vault.v1");
include!(concat!(env!("OUT_DIR"), "/redacted_debug.rs"));
include!(concat!(env!("OUT_DIR"), "/message_names.rs"));

/// Every proto file of the API and what they import, as an encoded `google.protobuf.FileDescriptorSet`: for reflection,
/// for stubs in other languages, and for tests that must notice a new RPC.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t26_debug_shows_no_value_and_no_caller_chosen_id() {
        let canary = "canary-7f3a";
        let value = || Value { field_id: 3, kind: Some(value::Kind::Text(canary.into())), ..Default::default() };
        let key = || SubjectKey { key: Some(subject_key::Key::Subject(canary.into())) };
        let unique = UniqueValue { field_id: 1, text: canary.into() };
        let shown = [
            format!("{:?}", PutFieldsRequest { subject: canary.into(), values: vec![value()], ..Default::default() }),
            format!("{:?}", GetFieldsResponse { values: vec![value()], ..Default::default() }),
            format!("{:?}", BatchGetFieldsRequest { keys: vec![key()], ..Default::default() }),
            format!("{:?}", SubjectKey { key: Some(subject_key::Key::Unique(unique)) }),
            format!("{:?}", Term { text: canary.into(), ..Default::default() }),
            format!("{:?}", IssueAccessKeyResponse { text: canary.into(), ..Default::default() }),
            format!("{:?}", value::Kind::Data(canary.into())),
            format!("{:?}", place_hold_request::Target::Group(canary.into())),
        ];
        for text in &shown {
            assert!(!text.contains("canary") && !text.contains("7f3a") && !text.contains("63, 61"), "{text}");
        }
        // What is left is of use.
        assert!(
            shown[0].starts_with("PutFieldsRequest { subject: ..") && shown[0].contains("field_id: 3"),
            "{}",
            shown[0]
        );
    }
}

//! T40 for the service: messages that fit the API's types and mean nothing are refused or answered, by every method, and
//! the vault serves on.

use std::collections::BTreeMap;
use std::time::Duration;

use pii_vault::grpc::pb;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::Code;

use crate::harness::{JINA, rounds};
use crate::matrix::call;
use crate::net::*;

/// Longest wait for an answer: a stream has no end of its own.
const PATIENCE: Duration = Duration::from_millis(300);
/// What would leave nothing to call.
const FATAL: &[&str] = &["EraseTenant", "RetireReplica"];
/// Texts that other fields than the one they meet are meant for, or nobody.
const TEXTS: &[&str] = &[
    "",
    "usr_1",
    "jina",
    "a@example.com",
    "00000000-0000-4000-8000-000000000000",
    "2026-02-30",
    "\u{202e}\u{0}e\u{301}",
    "9999999999999999999999",
    "../../etc/passwd",
    "[controller]\nname = 1",
];
const NUMBERS: &[u64] =
    &[0, 1, 2, 3, 7, 100, 1 << 16, i32::MAX as u64, 1 << 31, u32::MAX as u64, 1 << 62, 1 << 63, u64::MAX];

/// A seeded die (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

/// Messages by their full name, with the leading dot that descriptors write.
type Types = BTreeMap<String, DescriptorProto>;

fn types(set: &FileDescriptorSet) -> Types {
    fn add(prefix: &str, message: &DescriptorProto, types: &mut Types) {
        let name = format!("{prefix}.{}", message.name());
        message.nested_type.iter().for_each(|nested| add(&name, nested, types));
        types.insert(name, message.clone());
    }
    let mut types = Types::new();
    for file in &set.file {
        file.message_type.iter().for_each(|message| add(&format!(".{}", file.package()), message, &mut types));
    }
    types
}

/// A message of a type with about half of its fields, and nonsense in them.
fn nonsense(types: &Types, name: &str, depth: usize, dice: &mut Dice) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(message) = types.get(name) else { return out };
    for field in &message.field {
        let times = match field.label() {
            Label::Repeated => [0, 1, 3][dice.below(3)],
            _ => dice.below(2),
        };
        for _ in 0..times {
            let number = field.number() as u32;
            let bytes = match field.r#type() {
                Type::Message if depth == 0 => continue,
                Type::Message => nonsense(types, field.type_name(), depth - 1, dice),
                Type::String => TEXTS[dice.below(TEXTS.len())].into(),
                Type::Bytes => (0..dice.below(40)).map(|_| dice.below(256) as u8).collect(),
                Type::Double | Type::Fixed64 | Type::Sfixed64 => {
                    encode_key(number, WireType::SixtyFourBit, &mut out);
                    out.extend(NUMBERS[dice.below(NUMBERS.len())].to_le_bytes());
                    continue;
                }
                Type::Float | Type::Fixed32 | Type::Sfixed32 => {
                    encode_key(number, WireType::ThirtyTwoBit, &mut out);
                    out.extend((NUMBERS[dice.below(NUMBERS.len())] as u32).to_le_bytes());
                    continue;
                }
                _ => {
                    encode_key(number, WireType::Varint, &mut out);
                    encode_varint(NUMBERS[dice.below(NUMBERS.len())], &mut out);
                    continue;
                }
            };
            encode_key(number, WireType::LengthDelimited, &mut out);
            encode_varint(bytes.len() as u64, &mut out);
            out.extend(bytes);
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn t40_no_message_makes_a_handler_panic() {
    let running = Running::new().await;
    let tenant = running.test.tenant("jina", JINA).await;
    let (key, operator) = (running.key(tenant, "app").await, running.operator_key("root").await);
    let set = FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap();
    let types = types(&set);
    let rounds = rounds(8, 2_000);
    let (mut dice, mut answered, mut refused) = (Dice(40), 0, 0);
    for file in &set.file {
        for service in &file.service {
            for method in service.method.iter().filter(|method| !FATAL.contains(&method.name())) {
                let path = format!("{}.{}/{}", file.package(), service.name(), method.name());
                for round in 0..rounds {
                    let body = match round % 4 {
                        0 => (0..dice.below(60)).map(|_| dice.below(256) as u8).collect(),
                        _ => nonsense(&types, method.input_type(), 4, &mut dice),
                    };
                    let who = if dice.below(4) == 0 { &operator } else { &key };
                    let answer = tokio::time::timeout(PATIENCE, call(&running.channel, Some(who), &path, body.clone()));
                    match answer.await {
                        Err(_) | Ok(Ok(_)) => answered += 1,
                        Ok(Err(status)) => {
                            let broken =
                                [Code::Internal, Code::Unknown, Code::DataLoss, Code::Cancelled, Code::Unavailable];
                            assert!(!broken.contains(&status.code()), "{path}: {status:?} to {body:02x?}");
                            refused += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(answered > 50 && refused > 200, "both were met: {answered} answered, {refused} refused");
    call(&running.channel, Some(&operator), "pii.vault.v1.AccessService/WhoAmI", Vec::new())
        .await
        .expect("it serves on");
    running.stop().await;
}

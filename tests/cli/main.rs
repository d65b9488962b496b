//! The program `pii-vault` against a double of the server: what it sends, what it prints, how it ends.

mod access;
mod audit;
mod credentials;
mod double;
mod erasures;
mod extends;
mod otlp;
mod policies;
mod records;

use double::Double;
use pii_vault::grpc::pb;
use pii_vault::grpc::reason::Reason;
use pii_vault::grpc::status;
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};
use serde_json::Value as Json;
use tonic::Code;

/// A double with the schema that the tests use.
fn vault() -> Double {
    let double = Double::start();
    let field = |field_id, name: &str, t: pb::FieldType| pb::FieldSchema {
        field_id,
        name: name.into(),
        r#type: t as i32,
        class_id: 1,
        ..Default::default()
    };
    let purpose = |purpose_id, name: &str| pb::PurposeSchema { purpose_id, name: name.into(), ..Default::default() };
    double.answers(
        "GetSchema",
        pb::GetSchemaResponse {
            policy_version: 4,
            fields: vec![
                field(1, "email", pb::FieldType::Text),
                field(2, "born", pb::FieldType::Date),
                field(3, "visits", pb::FieldType::Integer),
            ],
            classes: vec![pb::ClassSchema { class_id: 1, name: "account".into(), ..Default::default() }],
            purposes: vec![purpose(1, "service"), purpose(2, "support")],
            roles: vec![pb::NumberedName { id: 9, name: "backend".into() }],
            controller: "Acme".into(),
            ..Default::default()
        },
    );
    double
}

fn text(field_id: u32, text: &str) -> pb::Value {
    pb::Value { field_id, kind: Some(pb::value::Kind::Text(text.into())), ..Default::default() }
}

fn json(assert: &assert_cmd::assert::Assert) -> Json {
    serde_json::from_slice(&assert.get_output().stdout).expect("standard output is JSON")
}

#[test]
fn each_kind_of_refusal_has_its_exit_code_and_says_why() {
    let vault = vault();
    let cases = [
        (status::bad_field("values[0].text", "too long"), 2, "FIELD_INVALID: values[0].text: too long"),
        (status::not_supported("consents"), 2, "NOT_SUPPORTED"),
        (status::not_found(), 3, "NOT_FOUND NOT_FOUND"),
        (status::status(Code::NotFound, Reason::SubjectErased, "erased", &[]), 3, "put --mode recreate"),
        (status::credential_invalid(), 4, "--credential-file"),
        (status::denied(Reason::PurposeNotGranted, "role support, grant 1"), 4, "rule: role support, grant 1"),
        (status::wrong_state(Reason::ClassHeld, "held", &[("hold", "h-1")]), 5, "hold: h-1"),
        (status::aborted(Reason::EtagStale, "changed"), 5, "docs/ERRORS.md#etag_stale"),
        (status::busy("full", std::time::Duration::from_millis(40)), 6, "retry after 40 ms"),
        (status::closing(), 6, "CLOSING"),
        (status::deadline_exceeded(), 6, "--timeout"),
        (status::internal(), 1, "INTERNAL"),
        (status::data_loss(), 1, "DATA_LOSS"),
    ];
    for (refusal, code, says) in cases {
        vault.refuses("GetSubject", refusal);
        let assert = vault.program().args(["subject", "show", "u-17"]).assert().code(code);
        assert.stdout(is_empty()).stderr(starts_with("error: ").and(contains(says)).and(contains("(request ")));
    }
    vault.refuses("GetSubject", status::denied(Reason::NotPermitted, "no grant"));
    let assert = vault.program().args(["subject", "show", "u-17", "--json"]).assert().code(4);
    let error: Json = serde_json::from_slice(&assert.get_output().stderr).unwrap();
    assert_eq!(error["error"]["code"], "PERMISSION_DENIED");
    assert_eq!(error["error"]["reason"], "NOT_PERMITTED");
    assert_eq!(error["error"]["metadata"]["rule"], "no grant");
    assert_eq!(error["error"]["help"], "docs/ERRORS.md#not_permitted");
    let sent = vault.calls("GetSubject").last().unwrap().header("x-request-id");
    assert_eq!(error["error"]["request_id"], sent.as_str());
}

#[test]
fn a_server_that_is_not_there_or_not_trusted_is_unavailable() {
    let vault = vault();
    let mut program = vault.program();
    let assert = program.args(["--server", "https://127.0.0.1:1", "whoami"]).assert().code(6);
    assert.stderr(contains("no answer from https://127.0.0.1:1").and(contains("refused")));
    // Another authority than the server's.
    let other = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let path = vault.home.path().join("other.pem");
    std::fs::write(&path, other.cert.pem()).unwrap();
    let assert = vault.program().arg("--ca").arg(&path).arg("whoami").assert().code(6);
    assert.stderr(contains("ertificate"));
    assert!(vault.calls("WhoAmI").is_empty());
    // No secrets in clear to another machine.
    let assert = vault.program().args(["--server", "http://vault.example:7443", "whoami"]).assert().code(2);
    assert.stderr(contains("--plaintext"));
}

#[test]
fn profiles_carry_server_and_key_file_and_flags_win() {
    let vault = vault();
    let who = pb::WhoAmIResponse { tenant: "acme".into(), server_version: "0.1.0".into(), ..Default::default() };
    vault.answers("WhoAmI", who);
    let set = ["profile", "set", "dev", "--ca", "ca.pem", "--store-key", "--server", &vault.address];
    vault.bare().args(set).write_stdin("pv_test_K_other\n").assert().success();
    vault.bare().arg("whoami").assert().success().stdout(contains("acme"));
    assert_eq!(vault.call("WhoAmI").header("authorization"), "Bearer pv_test_K_other");
    let config = std::fs::read_to_string(vault.home.path().join(".config/pii-vault/config.toml")).unwrap();
    assert!(!config.contains("pv_test_K"), "{config}");
    let show = vault.bare().args(["profile", "show"]).assert().success();
    show.stdout(contains(vault.address.as_str()).and(contains("pv_test_K").not()));
    vault.bare().args(["--server", "https://127.0.0.1:1", "whoami"]).assert().code(6);
    vault.bare().args(["--profile", "nope", "whoami"]).assert().code(2);
    vault.bare().args(["profile", "use", "nope"]).assert().code(2);
    vault.bare().args(["profile", "list", "--json"]).assert().success().stdout(contains("\"current\": \"dev\""));
}

#[test]
fn constants_completions_and_exit_codes_are_printed() {
    let vault = vault();
    let assert = vault.program().args(["schema", "--constants", "python"]).assert().success();
    assert.stdout(contains("class Field:\n    EMAIL = 1\n"));
    vault.program().arg("schema").assert().success().stdout(contains("Acme").and(contains("visits")));
    vault.bare().args(["completions", "bash"]).assert().success().stdout(contains("pii-vault"));
    vault.bare().args(["help", "exit-codes"]).assert().success().stdout(contains("7  a check failed"));
    vault.bare().arg("exit-codes").assert().success().stdout(contains("not found, or erased"));
    vault.bare().arg("--nonsense").assert().code(2);
}

#[test]
fn every_command_fits_the_answers_of_the_api() {
    let vault = vault();
    // An empty message is one of every type. A column that a message does not have is an error.
    for method in methods().into_iter().filter(|m| m != "GetSchema") {
        vault.on(&method, |_| (vec![Default::default()], None));
    }
    let commands = [
        "whoami",
        "schema",
        "tenant create acme",
        "tenant list",
        "tenant show acme --usage",
        "tenant apply p.toml",
        "tenant apply p.toml --request-approval",
        "tenant diff p.toml",
        "tenant diff --from 1 --to 2",
        "tenant rollback 3",
        "tenant policy --versions",
        "tenant policy",
        "tenant update acme --quota-subjects 5",
        "tenant erase acme --confirm acme",
        "tenant advance-clock 1d",
        "access-key issue k --role backend",
        "access-key rotate k",
        "access-key release k",
        "access-key revoke k",
        "access-key list",
        "role create r --grant verbs=read~classes=account",
        "role update 9 --name r --grant verbs=read",
        "role list --grants",
        "approval request --verb read -f email -p service --reference c",
        "approval approve a",
        "approval deny a",
        "approval list",
        "put u -p service -f email",
        "get u -p service",
        "delete u -f email",
        "find email -p service --values",
        "item append u -f email -p 1",
        "item list u -f email -p 1",
        "item get u -f email -p 1 --item i",
        "item delete u -f email --item i",
        "subject show u",
        "subject list",
        "subject close u",
        "subject reopen u",
        "subject touch u",
        "group create g",
        "group show g",
        "group list",
        "group update g --state closed",
        "group subjects g",
        "erase subject u",
        "erase class u -c account",
        "erase fields u -f email",
        "erase items u -f email --item i",
        "erase group g",
        "erase preview u",
        "erase schedule u --at +1d",
        "erase cancel e",
        "erase status e",
        "erase list",
        "erase watch",
        "erase acknowledge e 3",
        "hold place u --basis b -p service",
        "hold release h",
        "hold list",
        "rights consent u support",
        "rights withdraw u support",
        "rights object u support",
        "rights restrict u account",
        "rights show u",
        "rights disclosures u",
        "rights disclosures --recipient 3 --pending",
        "rights nominate u v --for access",
        "rights unnominate u v",
        "count email -p support",
        "rights request erase --subject u",
        "rights close r done",
        "rights requests",
        "receipt get e",
        "receipt keys",
        "audit list",
        "audit access",
        "audit follow",
        "audit checkpoint",
        "audit prune --before 2020-01-01 --dry-run",
        "audit prune --before 2020-01-01 --approval a",
        "audit decoy mark u",
        "audit decoy unmark u",
        "audit decoy list",
        "ops list",
        "ops show o",
        "ops cancel o",
        "ops pause o",
        "ops resume o",
        "ops clock",
        "ops confirm-clock",
        "keys status --seal",
        "keys rotate index",
        "keys records",
        "keys move --to file",
        "keys compromised index",
        "backup data",
        "backup list",
        "backup prune",
        "keeper status",
        "keeper retire 1 --replica 4f1c3a5e9b2d47608c1e2f3a4b5c6d7e",
        "password set u",
        "password verify u",
        "password remove u",
        "password unlock u",
        "password import-one u",
        "password report",
        "api-key issue u --scope 3,4 --from 192.0.2.0/24",
        "api-key verify",
        "api-key rotate k --overlap 1d",
        "api-key revoke k",
        "api-key list u --state active",
        "code issue u --use reset --alphabet letters --life 1d",
        "code verify u --use reset",
        "code recovery u",
        "code totp enrol u --issuer Acme --account a",
        "code totp confirm u",
        "code totp verify u",
        "code totp remove u",
    ];
    // The others end with an exit code of their own where the verdict is not OK.
    let verdict = pb::Verdict::Ok as i32;
    vault.answers("VerifyPassword", pb::VerifyPasswordResponse { verdict, ..Default::default() });
    vault.answers("VerifyApiKey", pb::VerifyApiKeyResponse { verdict, ..Default::default() });
    vault.answers("VerifyCode", pb::VerifyCodeResponse { verdict, ..Default::default() });
    vault.answers("ConfirmTotp", pb::ConfirmTotpResponse { verdict, ..Default::default() });
    vault.answers("VerifyTotp", pb::VerifyTotpResponse { verdict, ..Default::default() });
    std::fs::write(vault.home.path().join("p.toml"), "x").unwrap();
    for command in commands {
        for json in [false, true] {
            let words = command.split(' ').map(|w| w.replace('~', " "));
            let mut program = vault.program();
            program.args(words).arg("--yes").args(json.then_some("--json")).write_stdin("x\n").assert().success();
        }
    }
    // These have tests of their own, because an empty answer is not a good one for them.
    let special = [
        "WatchOperation",
        "VerifyAudit",
        "VerifyKeeper",
        "TestAccess",
        "ExportEvidence",
        "ExportSubject",
        "LintPolicy",
        "GetReport",
        "PlanPolicy",
    ];
    let batches = ["BatchPutFields", "BatchGetFields", "BatchEraseSubjects", "BatchImportPasswords", "ChangePassword"];
    let unused: Vec<String> = methods().into_iter().filter(|m| vault.calls(m).is_empty()).collect();
    let left: Vec<&String> =
        unused.iter().filter(|m| !special.contains(&m.as_str()) && !batches.contains(&m.as_str())).collect();
    assert!(left.is_empty(), "no command calls {left:?}");
}

/// Names of all methods of the API.
fn methods() -> Vec<String> {
    use prost::Message as _;
    let set = prost_types::FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|f| &f.service);
    services.flat_map(|s| s.method.iter().map(|m| m.name().to_string())).collect()
}

//! What three companies promised, each promise by a test of its number over a socket, under the file as it is shipped.
//!
//! A test says three things: what the report finds of the sentences that promise it (a sentence that leaves the file is
//! missed), which rules stand for it, and what happens to somebody who tries the contrary. `mutants` takes every rule out
//! of the files in turn and lets these tests find it.

mod jenny;
mod jina;
mod jiwa;
mod mutants;

use std::pin::Pin;
use std::sync::Arc;

use pii_vault::grpc::listen::Security;
use pii_vault::grpc::pb;
use pii_vault::grpc::tls::{TlsOptions, TlsState};
use pii_vault::report::Status;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::Code;

use crate::company::*;
use crate::harness::START;
use crate::net::*;

type Test = for<'a> fn(&'a Tenant) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Tests of one file, each runnable by its name and by `mutants` under another file.
macro_rules! promises {
    ($file:literal: $($test:ident)*) => {
        pub const FILE: &str = $file;
        pub const TESTS: &[(&str, super::Test)] = &[$((stringify!($test), |t| Box::pin($test(t)))),*];
        $(mod $test {
            #[tokio::test(flavor = "multi_thread")]
            async fn holds() {
                let t = crate::company::Tenant::of($file, &crate::company::shipped($file)).await;
                super::$test(&t).await;
                t.stop().await;
            }
        })*
    };
}
use promises;

/// A sentence of the report: section, what it says, what was found.
type Sentence<'a> = (&'a str, &'a str, Status);

impl Tenant {
    /// The report has each of these sentences as often as it is listed, with that status.
    async fn reports(&self, sentences: &[Sentence<'_>]) {
        let report = self.report().await;
        for (section, says, status) in sentences {
            let of = |s: &str, w: &str| s == *section && w == *says;
            let listed = sentences.iter().filter(|(s, w, _)| of(s, w)).count();
            let found: Vec<_> = report.promises.iter().filter(|p| of(&p.section, &p.says())).collect();
            assert_eq!(found.len(), listed, "{section} {says}");
            for promise in found {
                assert_eq!(promise.status, *status, "{section} {says}: {:?}", promise.evidence);
                assert!(!promise.evidence.is_empty(), "{section} {says}: nothing was looked at");
            }
        }
    }

    /// A bundle of evidence, checked with the public key alone.
    async fn bundle(&self) -> (crate::evidence::Files, pii_vault::evidence::Verdict) {
        let ask = pb::ExportEvidenceRequest::default();
        let files = crate::evidence::bundle(&self.running.channel, &self.key, ask).await.expect("evidence");
        let public = self.running.test.node.keyring.signing().public();
        let verdict = crate::evidence::check(&files, &[public]).expect("the bundle verifies");
        (files, verdict)
    }

    /// What the report looked at for a sentence.
    async fn evidence(&self, section: &str, says: &str) -> String {
        let report = self.report().await;
        let of = report.promises.iter().filter(|p| p.section == section && p.says() == says);
        of.flat_map(|p| p.evidence.clone()).collect::<Vec<_>>().join("; ")
    }

    async fn schema(&self) -> pb::GetSchemaResponse {
        let request = pb::GetSchemaRequest::default();
        self.policies().get_schema(with(&self.key, request)).await.expect("schema").into_inner()
    }

    /// The fields of a class are these and no others, in words of the schema.
    async fn fields(&self, class: &str, want: &[&str]) {
        let schema = self.schema().await;
        let of = schema.classes.iter().find(|c| c.name == class).unwrap_or_else(|| panic!("class {class}"));
        let found: Vec<String> = schema.fields.iter().filter(|f| f.class_id == of.class_id).map(fwords).collect();
        assert_eq!(found, want, "fields of {class}");
    }

    /// A class in words of the schema.
    async fn class(&self, want: &str) {
        let schema = self.schema().await;
        let found: Vec<String> = schema.classes.iter().map(|c| cwords(c, &schema)).collect();
        assert!(found.iter().any(|line| line == want), "{want} is not in {found:#?}");
    }

    /// Purposes in words of the schema: number, name, basis, what they need, and what they allow.
    async fn purposes(&self, want: &[(&str, &str)]) {
        let schema = self.schema().await;
        for (line, fields) in want {
            let name = line.split(' ').nth(1).unwrap();
            let found = schema.purposes.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("purpose {name}"));
            assert_eq!(pwords(found, &schema), ((*line).to_owned(), (*fields).to_owned()), "purpose {name}");
        }
    }

    /// A role of the file in words: each grant with its verbs, purposes, classes, fields and view.
    async fn role(&self, name: &str, want: &[&str]) {
        let schema = self.schema().await;
        let list = pb::ListRolesRequest::default();
        let roles = self.access().list_roles(with(&self.key, list)).await.expect("roles").into_inner().roles;
        let role = roles.iter().find(|r| r.name == name && r.from_policy).unwrap_or_else(|| panic!("role {name}"));
        let found: Vec<String> = role.grants.iter().map(|g| gwords(g, &schema)).collect();
        assert_eq!(found, want, "role {name}");
    }

    /// What recipients may be given, found by asking of every recipient, purpose and field.
    async fn given(&self, want: &[(&str, &str)]) {
        let schema = self.schema().await;
        let mut found: Vec<(String, String)> = Vec::new();
        for recipient in &schema.recipients {
            let mut lines = Vec::new();
            for purpose in &schema.purposes {
                let context = pb::AccessContext {
                    purpose_id: purpose.purpose_id,
                    recipient_id: recipient.id,
                    reference: "r-1".into(),
                    approval: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
                    ..Default::default()
                };
                let ask =
                    pb::TestAccessRequest { verb: pb::Verb::Read as i32, context: Some(context), ..Default::default() };
                let answer = self.access().test_access(with(&self.key, ask)).await.expect("decided").into_inner();
                // Nobody in particular has given a consent: then that is what is missing, and all else is right.
                let fits = |d: &&pb::AccessDecision| d.allowed;
                let name = |no: u32| schema.fields.iter().find(|f| f.field_id == no).map_or("?", |f| f.name.as_str());
                let fields: Vec<&str> = answer.decisions.iter().filter(fits).map(|d| name(d.field_id)).collect();
                let all = fields.len() == schema.fields.len();
                match fields.is_empty() {
                    true => {}
                    false if all => lines.push(format!("{}: *", purpose.name)),
                    false => lines.push(format!("{}: {}", purpose.name, fields.join(" "))),
                }
            }
            found.push((recipient.name.clone(), lines.join("; ")));
        }
        let want: Vec<(String, String)> = want.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(found, want);
    }

    /// Rules that the linter finds broken once `from` of the file is `to`.
    async fn lint_with(&self, from: &str, to: &str) -> Vec<String> {
        assert!(self.text.contains(from), "`{from}` is not in the file");
        self.lint(&self.text.replacen(from, to, 1)).await
    }

    async fn lint(&self, text: &str) -> Vec<String> {
        let request = pb::LintPolicyRequest { policy: text.as_bytes().to_vec().into(), ..Default::default() };
        let answer = self.policies().lint_policy(with(&self.key, request)).await.expect("lint").into_inner();
        answer.findings.into_iter().map(|finding| finding.rule).collect()
    }

    /// A put of one text; the reason where it is refused.
    async fn put_text(&self, subject: &str, purpose: &str, field: u32, text: &str) -> Result<(), String> {
        let request = pb::PutFieldsRequest {
            subject: subject.into(),
            values: vec![text_value(field, text)],
            context: Some(self.context(purpose, "")),
            ..Default::default()
        };
        self.records().put_fields(with(&self.key, request)).await.map(|_| ()).map_err(|e| reason(&e))
    }

    async fn append_text(&self, subject: &str, purpose: &str, field: &str, text: &str) -> Result<(), String> {
        let request = pb::AppendItemsRequest {
            subject: subject.into(),
            field_id: self.field(field),
            items: vec![pb::NewItem { values: vec![text_value(0, text)], origin_time: None }],
            context: Some(self.context(purpose, "")),
            ..Default::default()
        };
        self.records().append_items(with(&self.key, request)).await.map(|_| ()).map_err(|e| reason(&e))
    }

    /// The text of a value that is read, or the reason why not.
    async fn text_of(&self, subject: &str, field: &str, purpose: &str) -> Result<String, String> {
        let got = self.read(subject, &[field], self.context(purpose, "")).await.map_err(|e| reason(&e))?;
        match got.values.first().and_then(|v| v.kind.clone()) {
            Some(pb::value::Kind::Text(text)) => Ok(text),
            _ => Err(format!("{:?}", got.values.first().map(|v| v.absence()))),
        }
    }

    /// How many items are read, or the reason why none.
    async fn count(&self, subject: &str, field: &str, purpose: &str) -> Result<usize, String> {
        self.items(subject, field, self.context(purpose, "")).await.map_err(|e| reason(&e))
    }

    // ---- promises of one shape

    /// No card number in any text field, however written; what is no card number passes.
    async fn takes_no_cards(&self, purpose_of: &[(&str, &str)]) {
        for (class, purpose) in purpose_of {
            let schema = self.schema().await;
            let of = schema.classes.iter().find(|c| c.name == *class).unwrap_or_else(|| panic!("class {class}"));
            let texts = schema.fields.iter().filter(|f| {
                f.class_id == of.class_id && f.r#type() == pb::FieldType::Text && f.validator != "phone_e164"
            });
            for field in texts {
                for card in
                    ["4111111111111111", "5555 5555 5555 4444", "3782-822463-10005", "４２２２２２２２２２２２２"]
                {
                    let text = format!("pay with {card} please");
                    let refusal = match field.many {
                        true => self.append_text("card", purpose, &field.name, &text).await,
                        false => self.put_text("card", purpose, field.field_id, &text).await,
                    };
                    assert_eq!(refusal, Err("VALUE_INVALID".into()), "{} {card}", field.name);
                }
            }
        }
        assert_eq!(self.report().await.subjects, 0, "nothing of it was stored");
    }

    /// A purpose or a recipient of a forbidden kind makes a file that is refused as a whole.
    async fn forbids(&self, kinds: &[&str]) {
        for kind in kinds {
            let purpose = format!("[[purpose]]\nnumber = 99\nname = \"more\"\nkind = \"{kind}\"\nbasis = \"contract\"");
            let text = format!("{}\n{purpose}\nfields = [\"name\"]\n", self.text);
            assert!(self.lint(&text).await.contains(&"forbidden-purpose".into()), "{kind}");
            assert_eq!(reason(&self.apply(&text).await.unwrap_err()), "POLICY_INVALID", "{kind}");
        }
        let request = pb::PutFieldsRequest {
            subject: "p-1".into(),
            values: vec![text_value(self.field("name"), "Asha")],
            context: for_purpose(99),
            ..Default::default()
        };
        let refusal = self.records().put_fields(with(&self.key, request)).await.unwrap_err();
        assert!(["PURPOSE_NOT_ALLOWED", "PURPOSE_NOT_GRANTED"].contains(&reason(&refusal).as_str()), "{refusal:?}");
    }

    /// A change with a shorter notice is refused, one before its day waits, and is taken on the day.
    async fn announces(&self, minimum: i64) {
        // 15 January; told on the 18th, at the earliest so many days later.
        let day = |n: i64| {
            let date = jiff::civil::date(2026, 1, 18).checked_add(jiff::Span::new().days(n)).unwrap();
            format!("[policy]\nnotified = 2026-01-18\neffective = {date}")
        };
        let said = |n: i64| self.text.replacen("[policy]", &day(n), 1);
        assert_eq!(reason(&self.apply(&said(minimum - 1)).await.unwrap_err()), "POLICY_INVALID", "too short");
        let waits = self.apply(&said(minimum)).await.unwrap_err();
        assert_eq!(waits.code(), Code::FailedPrecondition, "not before its day");
        self.days(minimum + 2);
        assert_eq!(self.apply(&said(minimum)).await.unwrap_err().code(), Code::FailedPrecondition, "the day before");
        self.days(1);
        assert_eq!(self.apply(&said(minimum)).await.expect("on the day"), 2);
    }

    /// Requests of a kind are due so many milliseconds after the start of the tests.
    async fn is_due(&self, kind: &str, region: &str, ms: Option<i64>) {
        let due = self.ask(kind, None, region).await.due_time;
        assert_eq!(due, ms.and_then(|ms| seconds(START.plus_ms(ms))), "{kind} {region}");
    }

    /// A request that nobody answers is overdue from a moment on: in the list and in the report.
    async fn is_overdue(&self, kind: &str, ms: i64) {
        self.ask(kind, None, "").await;
        self.running.test.clock.advance_ms(ms - 1);
        assert!(self.overdue().await.is_empty(), "{kind}");
        self.running.test.clock.advance_ms(1);
        assert_eq!(self.overdue().await, [kind]);
        let late = self.report().await.overdue;
        assert!(late.iter().any(|one| one.kind == kind && one.count == 1), "{late:?}");
    }

    /// Who is younger is refused on the day before the birthday and taken on it, and so is who says not to be old enough.
    async fn is_for_people_of(&self, years: i32, purpose: &str) {
        let birth = |year: i32, month: i32, day: i32| pb::Value {
            field_id: self.field("date_of_birth"),
            kind: Some(pb::value::Kind::Date(pb::Date { year, month, day })),
            ..Default::default()
        };
        let says = |yes: bool| pb::Value {
            field_id: self.field("old_enough"),
            kind: Some(pb::value::Kind::Flag(yes)),
            ..Default::default()
        };
        let put = async |value: pb::Value| {
            let request = pb::PutFieldsRequest {
                subject: "p-1".into(),
                values: vec![value],
                context: Some(self.context(purpose, "")),
                ..Default::default()
            };
            self.records().put_fields(with(&self.key, request)).await.map(|_| ()).map_err(|e| reason(&e))
        };
        // Noon of 15 January in Greenwich is the same day in Rome and in Jakarta.
        assert!(put(birth(2026 - years, 1, 16)).await.is_err(), "a day too young");
        assert!(put(says(false)).await.is_err(), "says so");
        put(birth(2026 - years, 1, 15)).await.expect("on the birthday");
        put(says(true)).await.expect("says to be old enough");
        // Born on 29 February: of age on 1 March of a year without one.
        let mut leap = 2026 - years;
        while leap % 4 != 0 {
            leap -= 1;
        }
        put(birth(leap, 2, 29)).await.expect("a leap day of an older year");
    }

    /// An erasure leaves one class, which is read for its purpose alone and ends by itself after seven years.
    async fn keeps_for_seven_years(&self, class: &str, field: &str, purpose: &str, basis: &str, other: (&str, &str)) {
        let (name, service) = other;
        self.put("p-1", service, &[(name, "Asha")]).await;
        self.append("p-1", purpose, field, "{\"number\":\"17\"}").await;
        let erasure = self.erase("p-1").await;
        assert_eq!(erasure.status(), pb::ErasureStatus::PartlyHeld);
        let receipt = String::from_utf8(erasure.receipt.to_vec()).unwrap();
        let schema = self.schema().await;
        let number = schema.classes.iter().find(|c| c.name == class).unwrap().class_id;
        let held: Vec<u32> = erasure.held.iter().map(|h| h.class_id).collect();
        assert_eq!(held, [number], "{class} alone");
        assert!(receipt.contains(basis) && erasure.held[0].end_time.is_some(), "{receipt}");
        assert!(self.count("p-1", field, purpose).await.is_err(), "not for its old purpose");
        assert_eq!(self.count("p-1", field, "legal_obligation").await, Ok(1));
        assert!(self.text_of("p-1", name, "legal_obligation").await.is_err(), "the rest is gone");
        // Two leap days lie in 2026 to 2033.
        self.days(7 * 365 + 1);
        self.due().await;
        assert_eq!(self.count("p-1", field, "legal_obligation").await, Ok(1), "a day before");
        self.days(1);
        self.due().await;
        assert!(self.count("p-1", field, "legal_obligation").await.map_or(true, |n| n == 0), "seven years");
    }

    /// The report that is asked for over TLS says this; who speaks something older gets no answer.
    async fn reports_over_tls(&self, sentence: Sentence<'_>) {
        use pii_vault::cli::quickstart::{channel, local_certificates, write_private};
        let dir = self.running.test.dir.path().join("tls");
        std::fs::create_dir(&dir).unwrap();
        let made = local_certificates().expect("certificates");
        write_private(&dir.join("server.pem"), &made.certificate).unwrap();
        write_private(&dir.join("server.key"), &made.private_key).unwrap();
        let options = TlsOptions {
            certificate: dir.join("server.pem"),
            private_key: dir.join("server.key"),
            client_ca: None,
            require_client_certificate: false,
            allow_tls12: false,
        };
        let state = Arc::new(TlsState::load(options).expect("TLS"));
        let (stop, port, served) = self.running.listen(Security::Tls(state)).await;
        let over = channel(port, &made.authority).await.expect("TLS 1.3");
        let report = self.report_over(over).await;
        let (section, says, status) = sentence;
        let found = report.promises.iter().find(|p| p.section == section && p.says() == says).expect(says);
        assert_eq!(found.status, status, "{:?}", found.evidence);

        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(made.authority.as_bytes()).unwrap();
        roots.add(authority).unwrap();
        let older = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(older));
        assert!(connector.connect("localhost".try_into().unwrap(), tcp).await.is_err(), "an older handshake");
        stop.send_replace(true);
        served.await.unwrap();
    }

    /// The whole export as text.
    async fn export(&self, subject: &str, purpose: &str, format: pb::ExportFormat) -> String {
        let request = pb::ExportSubjectRequest {
            key: by_id(subject),
            context: Some(self.context(purpose, "")),
            format: format as i32,
            ..Default::default()
        };
        let mut stream = self.records().export_subject(with(&self.key, request)).await.expect("export").into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await.expect("chunk") {
            bytes.extend_from_slice(&chunk.data);
        }
        String::from_utf8(bytes).expect("text")
    }

    /// Everything that was stored is in the export, as JSON and as CSV, with who answers for it.
    async fn exports(&self, stored: &[(&str, &str, &str)], says: &[&str]) {
        let schema = self.schema().await;
        for (purpose, field, text) in stored {
            match schema.fields.iter().any(|f| f.name == *field && f.many) {
                true => self.append("p-1", purpose, field, text).await,
                false => self.put("p-1", purpose, &[(field, text)]).await,
            }
        }
        let json = self.export("p-1", "legal_obligation", pb::ExportFormat::Json).await;
        let csv = self.export("p-1", "legal_obligation", pb::ExportFormat::Csv).await;
        let document: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        for (_, field, text) in stored {
            assert!(json.contains(field) && document.to_string().contains(text), "{field} in {json}");
            assert!(csv.contains(field) && csv.contains(text), "{field} in {csv}");
        }
        for words in says {
            assert!(json.contains(words), "{words} in {json}");
        }
    }

    /// No file of the vault has these words in clear.
    fn is_in_no_file(&self, words: &[&str]) {
        fn search(dir: &std::path::Path, words: &[&str], seen: &mut usize) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    search(&path, words, seen);
                } else if let Ok(bytes) = std::fs::read(&path) {
                    *seen += bytes.len();
                    for word in words {
                        assert!(!bytes.windows(word.len()).any(|w| w == word.as_bytes()), "{word} in {path:?}");
                    }
                }
            }
        }
        let mut seen = 0;
        search(self.running.test.dir.path(), words, &mut seen);
        assert!(seen > 50_000, "something was searched");
    }
}

fn fwords(f: &pb::FieldSchema) -> String {
    let kind = format!("{:?}", f.r#type()).to_lowercase();
    let mut words = vec![f.field_id.to_string(), f.name.clone(), kind];
    words.extend((f.max_length > 0).then(|| f.max_length.to_string()));
    words.extend((!f.validator.is_empty()).then(|| f.validator.clone()));
    let flags = [
        (f.searchable, "searchable"),
        (f.unique, "unique"),
        (f.many, "many"),
        (f.maskable, "maskable"),
        (f.retired, "retired"),
    ];
    words.extend(flags.iter().filter(|(on, _)| *on).map(|(_, word)| (*word).to_owned()));
    words.join(" ")
}

fn cwords(c: &pb::ClassSchema, schema: &pb::GetSchemaResponse) -> String {
    let mut words = vec![c.class_id.to_string(), c.name.clone()];
    let said = [("kept", &c.retention), ("at most", &c.max_retention), ("grace", &c.grace), ("hold", &c.hold)];
    words.extend(said.iter().filter(|(_, text)| !text.is_empty()).map(|(word, text)| format!("{word} {text}")));
    if !c.hold.is_empty() {
        let purpose = schema.purposes.iter().find(|p| p.purpose_id == c.hold_purpose_id);
        words.push(format!("{} for {}", c.hold_keep, purpose.map_or("nothing", |p| p.name.as_str())));
    }
    words.join(" ")
}

/// All of them are `*`.
fn list<'a>(all: impl Iterator<Item = (u32, &'a str)>, some: &[u32]) -> String {
    let all: Vec<(u32, &str)> = all.collect();
    match all.iter().all(|(no, _)| some.contains(no)) {
        true => "*".into(),
        false => all.iter().filter(|(no, _)| some.contains(no)).map(|(_, name)| *name).collect::<Vec<_>>().join(" "),
    }
}

fn pwords(p: &pb::PurposeSchema, schema: &pb::GetSchemaResponse) -> (String, String) {
    let mut words = format!("{} {} {} {}", p.purpose_id, p.name, p.kind, p.basis);
    for (on, word) in [(p.approval_needed, " approval"), (p.reference_needed, " reference")] {
        words += if on { word } else { "" };
    }
    (words, list(schema.fields.iter().map(|f| (f.field_id, f.name.as_str())), &p.field_ids))
}

fn gwords(g: &pb::Grant, schema: &pb::GetSchemaResponse) -> String {
    let verbs: Vec<String> = g.verbs().map(|v| format!("{v:?}").to_lowercase()).collect();
    let mut words = vec![verbs.join(" ")];
    let purposes = list(schema.purposes.iter().map(|p| (p.purpose_id, p.name.as_str())), &g.purpose_ids);
    let classes = list(schema.classes.iter().map(|c| (c.class_id, c.name.as_str())), &g.class_ids);
    let fields = list(schema.fields.iter().map(|f| (f.field_id, f.name.as_str())), &g.field_ids);
    let said = [("for", purposes), ("classes", classes), ("fields", fields)];
    words.extend(said.iter().filter(|(_, list)| !list.is_empty()).map(|(word, list)| format!("{word} {list}")));
    words.extend((g.max_view() == pb::View::Masked).then(|| "masked".to_owned()));
    words.join(" | ")
}

//! The vault's own secrets: the pepper of access keys rotates until nothing is left under the old one, or to a deadline; the
//! key of page tokens rotates by itself.

use pii_vault::clock::DAY_MS;
use pii_vault::crypto::keys::TenantSecret;
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use pii_vault::keyring::SecretKind;
use pii_vault::receipt::rotation::{Fate, Kind};
use tonic::{Code, Status};

use crate::harness::*;
use crate::net::*;
use crate::rotating::Scene;

/// After this, calls that began before the switch have ended.
const SETTLED_MS: i64 = 11 * 60_000;
const OK: i32 = pb::Verdict::Ok as i32;

/// What a person of the tenant holds: the text of an API key, its name, and a sheet of recovery codes.
struct Held {
    api_key: String,
    name: String,
    codes: Vec<String>,
}

impl Scene {
    fn credentials(&self) -> pb::credential_service_client::CredentialServiceClient<tonic::transport::Channel> {
        pb::credential_service_client::CredentialServiceClient::new(self.running.channel.clone())
    }

    async fn codes(&self, subject: &str) -> Vec<String> {
        let ask = pb::IssueRecoveryCodesRequest { key: by_id(subject), count: 3, ..Default::default() };
        self.credentials().issue_recovery_codes(with(&self.key, ask)).await.expect("codes").into_inner().texts
    }

    async fn held(&self, subject: &str) -> Held {
        self.person(subject).await;
        let ask = pb::IssueApiKeyRequest { key: by_id(subject), label: "a program".into(), ..Default::default() };
        let issued = self.credentials().issue_api_key(with(&self.key, ask)).await.expect("API key").into_inner();
        let (name, codes) = (issued.api_key.unwrap().api_key, self.codes(subject).await);
        Held { api_key: issued.text, name, codes }
    }

    async fn api_key_is_right(&self, key: &str, text: &str) -> bool {
        let ask = pb::VerifyApiKeyRequest { text: text.into(), ..Default::default() };
        self.credentials().verify_api_key(with(key, ask)).await.expect("a verdict").into_inner().verdict == OK
    }

    async fn code(&self, key: &str, subject: &str, text: &str) -> pb::VerifyCodeResponse {
        let (key_of, text) = (by_id(subject), text.to_owned());
        let ask = pb::VerifyCodeRequest { key: key_of, r#use: "recovery".into(), text, ..Default::default() };
        self.credentials().verify_code(with(key, ask)).await.expect("a verdict").into_inner()
    }

    async fn who(&self, key: &str) -> Result<pb::WhoAmIResponse, Status> {
        let mut access = pb::access_service_client::AccessServiceClient::new(self.running.channel.clone());
        Ok(access.who_am_i(with(key, pb::WhoAmIRequest {})).await?.into_inner())
    }

    /// A new key in the place of this one.
    async fn reissue(&self, key: &str) -> String {
        let mut access = pb::access_service_client::AccessServiceClient::new(self.running.channel.clone());
        let name = key.split('_').nth(2).unwrap().to_owned();
        let ask = pb::RotateAccessKeyRequest { access_key: name, ..Default::default() };
        access.rotate_access_key(with(key, ask)).await.expect("reissue").into_inner().text
    }

    async fn rotate_pepper(&self, revoke: Option<i64>) -> Result<String, Status> {
        let at = revoke.map(|ms| prost_types::Timestamp { seconds: ms / 1_000, nanos: 0 });
        let kind = pb::KeyKind::AccessKeyPepper as i32;
        let ask = pb::RotateKeysRequest { kind, revoke_time: at, ..Default::default() };
        Ok(self.keys().rotate_keys(with(&self.operator, ask)).await?.into_inner().operation)
    }

    fn secret(&self, kind: SecretKind, version: u16) -> DekId {
        let keyring = &self.running.test.node.keyring;
        keyring.with_secret(TenantNo::VAULT, kind, SecretVersion(version), TenantSecret::id).expect("open")
    }

    /// What `keys status` shows of a kind: version, whether it retires, what is left.
    async fn lines(&self, kind: pb::KeyKind) -> Vec<(u64, bool, u64)> {
        let retiring = |key: &pb::KeyInfo| key.state() == pb::KeyState::Retiring;
        self.listed("", kind).await.iter().map(|key| (key.version, retiring(key), key.left_count)).collect()
    }
}

fn version_of(key: &str) -> &str {
    let last = key.rsplit('_').next().unwrap();
    &last[..last.len() - 11]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_keys_pepper_rotates_until_nothing_is_left_under_the_old_one() {
    let mut s = Scene::new().await;
    let mut held = s.held("jane").await;
    let old = s.secret(SecretKind::ApiPepper, 1);
    assert_eq!(version_of(&s.key), "", "the first version is not written");
    let operation = s.rotate_pepper(None).await.expect("rotate");
    assert_eq!(s.rotate_pepper(None).await.expect("twice"), operation);
    let got = s.operation(&operation, "").await;
    assert_eq!((got.state(), got.kind()), (pb::OperationState::Running, pb::OperationKind::AccessKeyPepperRotation));

    // Under the old version everything goes on, also after a restart.
    for restarted in [false, true] {
        if restarted {
            s = s.restart().await;
        }
        assert_eq!(s.name_of("jane").await.unwrap(), "Jane Roe");
        assert!(s.api_key_is_right(&s.key, &held.api_key).await);
    }
    assert_eq!(s.code(&s.key, "jane", &held.codes.remove(0)).await.verdict, OK);
    s.running.test.clock.advance_ms(SETTLED_MS);
    s.go_on(TenantNo::VAULT).await;
    // The first operator's key, the operator's, the tenant's; one API key; two codes.
    assert_eq!(s.lines(pb::KeyKind::AccessKeyPepper).await, [(2, false, 0), (1, true, 6)]);
    let got = s.operation(&operation, "").await;
    assert_eq!((got.done_count, got.total_count), (0, 6));

    s.key = s.reissue(&s.key).await;
    let operator = s.reissue(&s.operator).await;
    assert_eq!((version_of(&s.key), version_of(&operator)), ("2", "2"), "the version is in the text");
    assert_eq!(s.who(&s.operator).await.unwrap_err().code(), Code::Unauthenticated, "the old one ended at once");
    s.operator = operator;
    let ask = pb::RotateApiKeyRequest { api_key: held.name.clone(), ..Default::default() };
    let next = s.credentials().rotate_api_key(with(&s.key, ask)).await.expect("API key").into_inner();
    assert_eq!(version_of(&next.text), "2");
    let codes = s.codes("jane").await;
    s.go_on(TenantNo::VAULT).await;
    let got = s.operation(&operation, "").await;
    assert_eq!((got.state(), got.done_count), (pb::OperationState::Running, 2), "what users hold is counted daily");

    // The first operator's key is nobody's: revoked. Asked for again, it counts at once.
    let vault = s.running.test.node.vault.clone();
    let own = vault.local_call(TenantNo::VAULT).unwrap();
    let first = vault.list_access_keys(&own, &[], pii_vault::auth::KeyId(0), 1).unwrap().rows[0].id;
    vault.revoke_access_key(&own, first, None).await.expect("revoke");
    drop((own, vault));
    assert_eq!(s.rotate_pepper(None).await.expect("again"), operation);
    s.go_on(TenantNo::VAULT).await;
    let got = s.operation(&operation, "").await;
    assert_eq!((got.state(), got.done_count, got.total_count), (pb::OperationState::Succeeded, 6, 6));
    let record = s.record("").await;
    assert_eq!((record.kind, record.fate, record.moved, record.lost), (Kind::AccessKeyPepper, Fate::Destroyed, 6, 0));
    assert_eq!((record.from.number, record.to.number), (1, 2));
    assert!(record.archives_expire_at.is_some(), "who has an older key archive has it until then");
    assert_ne!(s.secret(SecretKind::ApiPepper, 1), old, "another key lies in its slot");
    for restarted in [false, true] {
        if restarted {
            s = s.restart().await;
        }
        assert_eq!(s.lines(pb::KeyKind::AccessKeyPepper).await, [(2, false, 0)]);
        assert_eq!(s.name_of("jane").await.unwrap(), "Jane Roe");
        assert!(s.api_key_is_right(&s.key, &next.text).await && !s.api_key_is_right(&s.key, &held.api_key).await);
        assert_eq!(s.code(&s.key, "jane", &codes[usize::from(restarted)]).await.verdict, OK);
    }
    // And once more: the slot of the first version serves the third.
    let third = s.rotate_pepper(None).await.expect("rotate");
    assert_ne!(third, operation);
    assert_eq!(version_of(&s.reissue(&s.key).await), "3");
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_what_is_left_under_the_old_pepper_ends_and_nobody_is_locked_out() {
    let mut s = Scene::new().await;
    let held = s.held("jane").await;
    assert!(s.api_key_is_right(&s.key, &held.api_key).await);
    let now = s.running.test.now().0;
    let past = s.rotate_pepper(Some(now - 1_000)).await.unwrap_err();
    assert_eq!(past.code(), Code::InvalidArgument);
    let operation = s.rotate_pepper(Some(now + 2 * DAY_MS)).await.expect("rotate");
    s.running.test.clock.advance_ms(3 * DAY_MS);
    s.go_on(TenantNo::VAULT).await;
    assert_eq!(s.operation(&operation, "").await.state(), pb::OperationState::Running, "no operator could get in");
    assert_eq!(s.name_of("jane").await.unwrap(), "Jane Roe", "so nothing was revoked");

    s.operator = s.reissue(&s.operator).await;
    s.go_on(TenantNo::VAULT).await;
    let got = s.operation(&operation, "").await;
    assert_eq!(got.state(), pb::OperationState::Succeeded);
    let record = s.record("").await;
    // Two access keys, one API key, three codes.
    assert_eq!((record.kind, record.fate, record.lost), (Kind::AccessKeyPepper, Fate::Destroyed, 6));
    assert_eq!(record.moved, 1, "the operator's");
    let app = s.running.key_until(s.tenant, "app-2", None).await.0;
    for restarted in [false, true] {
        if restarted {
            s = s.restart().await;
        }
        assert_eq!(s.name_of("jane").await.unwrap_err().code(), Code::Unauthenticated);
        assert!(!s.api_key_is_right(&app, &held.api_key).await, "also where it was known to be right");
        let code = s.code(&app, "jane", &held.codes[0]).await;
        assert_eq!(code.detail, pb::VerdictDetail::MustReset as i32);
        assert_eq!(version_of(&app), "2");
    }
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_the_access_keys_pepper_is_resumed_wherever_it_was_cut() {
    for round in 0..rounds(4, 200) {
        let mut s = Scene::new().await;
        let held = s.held("jane").await;
        let vault = s.running.test.node.vault.clone();
        let call = vault.call(s.running.test.operator(), vault.tenant(TenantNo::VAULT).unwrap());
        let cut = std::time::Duration::from_micros(150 * (round as u64 % 30));
        let until = Some(call.now.plus_ms(DAY_MS));
        let secret = pii_vault::vault::rotation::OwnSecret::AccessKeyPepper;
        let _ = tokio::time::timeout(cut, vault.rotate_own_secret(&call, secret, until, None)).await;
        drop((call, vault));
        s = s.restart().await;
        assert_eq!(s.name_of("jane").await.unwrap(), "Jane Roe", "round {round}");
        let operation = s.rotate_pepper(Some(s.running.test.now().0 + DAY_MS)).await.expect("rotate");
        s.operator = s.reissue(&s.operator).await;
        s.running.test.clock.advance_ms(2 * DAY_MS);
        for cut in [round as u64 % 40, round as u64 % 7] {
            let vault = s.running.test.node.vault.clone();
            let call = vault.job_call(vault.tenant(TenantNo::VAULT).unwrap());
            let cut = std::time::Duration::from_micros(400 * cut);
            let _ = tokio::time::timeout(cut, vault.go_on_rotations(&call, 10)).await;
            drop((call, vault));
            s = s.restart().await;
        }
        s.go_on(TenantNo::VAULT).await;
        assert_eq!(s.operation(&operation, "").await.state(), pb::OperationState::Succeeded, "round {round}");
        let record = s.record("").await;
        assert_eq!((record.lost, record.moved), (6, 0), "round {round}: counted once");
        assert_eq!(s.name_of("jane").await.unwrap_err().code(), Code::Unauthenticated, "round {round}");
        let app = s.running.key_until(s.tenant, "app-2", None).await.0;
        assert!(!s.api_key_is_right(&app, &held.api_key).await, "round {round}");
        s.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_page_tokens_rotates_by_itself_and_lists_go_on_for_a_day() {
    let mut s = Scene::new().await;
    s.running.key_until(s.tenant, "second", None).await;
    let list = async |s: &Scene, token: &str| {
        let mut access = pb::access_service_client::AccessServiceClient::new(s.running.channel.clone());
        let ask = pb::ListAccessKeysRequest { page_size: 1, page_token: token.into(), ..Default::default() };
        Ok::<_, Status>(access.list_access_keys(with(&s.key, ask)).await?.into_inner().next_page_token)
    };
    let old = s.secret(SecretKind::PageToken, 1);
    let token = list(&s, "").await.expect("a page");
    s.running.test.clock.advance_days(91);
    let vault = s.running.test.node.vault.clone();
    let call = vault.job_call(vault.tenant(TenantNo::VAULT).unwrap());
    vault.rotate_due_keys(&call).await.expect("due");
    vault.rotate_due_keys(&call).await.expect("not twice");
    drop((call, vault));
    assert_eq!(s.lines(pb::KeyKind::PageToken).await, [(2, false, 0), (1, true, 0)]);
    let next = list(&s, "").await.expect("a page");
    assert_ne!(token, next, "another key");
    let asked = s.rotate(pb::KeyKind::PageToken, "").await.expect("twice");
    s = s.restart().await;
    s.go_on(TenantNo::VAULT).await;
    list(&s, &token).await.expect("a list goes on");
    s.running.test.clock.advance_ms(DAY_MS);
    s.go_on(TenantNo::VAULT).await;
    assert_eq!(s.operation(&asked, "").await.state(), pb::OperationState::Succeeded);
    let refused = list(&s, &token).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "PAGE_TOKEN_INVALID"));
    list(&s, &next).await.expect("the newer one works");
    let record = s.record("").await;
    assert_eq!((record.kind, record.fate, record.lost), (Kind::PageToken, Fate::Destroyed, 0));
    assert_ne!(s.secret(SecretKind::PageToken, 1), old);
    s.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vaults_own_secrets_are_operators_business() {
    let s = Scene::new().await;
    for kind in [pb::KeyKind::AccessKeyPepper, pb::KeyKind::PageToken] {
        let ask = pb::RotateKeysRequest { kind: kind as i32, ..Default::default() };
        assert_eq!(s.keys().rotate_keys(with(&s.key, ask)).await.unwrap_err().code(), Code::Unimplemented);
        assert_eq!(s.rotate(kind, "jina").await.unwrap_err().code(), Code::Unimplemented, "a tenant has none");
        let ask =
            |check| pb::RespondToCompromiseRequest { kind: kind as i32, validate_only: check, ..Default::default() };
        s.keys().respond_to_compromise(with(&s.operator, ask(true))).await.expect("tells");
        assert_eq!(s.lines(kind).await.len(), 1, "nothing was done");
        let told = s.keys().respond_to_compromise(with(&s.operator, ask(false))).await.expect("does").into_inner();
        assert!(!told.steps.is_empty() && !told.cannot_undo.is_empty(), "{told:?}");
        assert_eq!(s.lines(kind).await.len(), 2);
    }
    let other = pb::RotateKeysRequest {
        kind: pb::KeyKind::PageToken as i32,
        revoke_time: Some(prost_types::Timestamp { seconds: s.running.test.now().0 / 1_000 + 60, nanos: 0 }),
        ..Default::default()
    };
    assert_eq!(s.keys().rotate_keys(with(&s.operator, other)).await.unwrap_err().code(), Code::InvalidArgument);
    s.running.stop().await;
}

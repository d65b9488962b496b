//! API keys on the wire.

use std::net::IpAddr;

use ipnet::IpNet;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::Answer;
use super::verdict::wire_verdict;
use crate::auth::KeyId;
use crate::clock::{DAY_MS, Timestamp};
use crate::grpc::convert::{self, Bad, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::page::Pages;
use crate::grpc::status::not_found;
use crate::grpc::{pb, words};
use crate::vault::credentials::api_key::{ApiKeyRotation, ApiKeyState, ApiKeyView, MAX_SCOPES, MAX_SOURCES, NewApiKey};

/// Longest label in bytes: 64 characters of four.
const MAX_LABEL: usize = 256;

/// Something that is no id of a key names no key.
fn key_id(text: &str) -> Result<KeyId, Status> {
    KeyId::parse(text).ok_or_else(not_found)
}

/// An address or a prefix, without the bits behind the prefix.
fn network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    text.parse::<IpNet>().ok().map(|network| network.trunc()).or_else(address)
}

fn networks(wire: &[String]) -> Result<Vec<IpNet>, Bad> {
    let rule = "must be an address, or a prefix such as 192.0.2.0/24";
    let one = |(i, text): (usize, &String)| network(text).ok_or_else(|| Bad::rule(&format!("sources[{i}]"), rule));
    if wire.len() > MAX_SOURCES {
        return Err(Bad::rule("sources", "must have at most 16"));
    }
    wire.iter().enumerate().map(one).collect()
}

fn scopes(wire: &[u32]) -> Result<Vec<u16>, Bad> {
    if wire.len() > MAX_SCOPES {
        return Err(Bad::rule("scope_ids", "must have at most 64"));
    }
    let one = |n: &u32| u16::try_from(*n).ok().filter(|n| *n != 0);
    let all: Option<Vec<u16>> = wire.iter().map(one).collect();
    let mut all = all.ok_or_else(|| Bad::rule("scope_ids", "must be numbers of 1 to 65,535"))?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The address that a key came from; empty: not told.
fn address(text: &str) -> Result<Option<IpAddr>, Bad> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Bad::rule("source", "must be an address"))
}

fn state(state: pb::ApiKeyState) -> Option<ApiKeyState> {
    match state {
        pb::ApiKeyState::Unspecified => None,
        pb::ApiKeyState::Active => Some(ApiKeyState::Active),
        pb::ApiKeyState::Revoked => Some(ApiKeyState::Revoked),
        pb::ApiKeyState::Expired => Some(ApiKeyState::Expired),
    }
}

fn wire_key(mut key: ApiKeyView) -> pb::ApiKey {
    let state = match key.state {
        ApiKeyState::Active => pb::ApiKeyState::Active,
        ApiKeyState::Revoked => pb::ApiKeyState::Revoked,
        ApiKeyState::Expired => pb::ApiKeyState::Expired,
    };
    pb::ApiKey {
        api_key: key.id.to_string(),
        label: std::mem::take(&mut *key.label),
        state: state as i32,
        scope_ids: key.scopes.iter().map(|no| u32::from(*no)).collect(),
        sources: key.sources.iter().map(IpNet::to_string).collect(),
        create_time: Some(wire_time(key.created)),
        expire_time: key.expires.map(wire_time),
        revoke_time: key.revoked.map(wire_time),
        use_time: key.used_day.map(|day| wire_time(Timestamp(day * DAY_MS))),
    }
}

/// The text on its way to the caller; the copy here is wiped.
fn wire_text(text: Option<Zeroizing<String>>) -> String {
    text.map_or(String::new(), |mut text| std::mem::take(&mut *text))
}

impl Api {
    pub(super) async fn issue_api_key_call(
        &self,
        request: Request<pb::IssueApiKeyRequest>,
    ) -> Answer<pb::IssueApiKeyResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "IssueApiKey", &repeat_id, &message)?;
        let label = Zeroizing::new(message.label);
        convert::opt_text("label", &label, MAX_LABEL)?;
        let new = NewApiKey {
            label,
            scopes: scopes(&message.scope_ids)?,
            expires: convert::opt_time("expire_time", &message.expire_time)?,
            sources: networks(&message.sources)?,
        };
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let issued = self.vault.issue_api_key(&call, &context, &key, new, repeat, message.validate_only).await?;
        let (api_key, text) = match issued {
            Some(issued) => (Some(wire_key(issued.key)), wire_text(issued.text)),
            None => (None, String::new()),
        };
        Ok(Response::new(pb::IssueApiKeyResponse { api_key, text }))
    }

    /// The whole of VerifyApiKey, which the shortest way ([`crate::grpc::direct`]) answers too.
    pub(crate) async fn check_api_key(
        &self,
        request: Request<pb::VerifyApiKeyRequest>,
    ) -> Result<pb::VerifyApiKeyResponse, Status> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let text = Zeroizing::new(message.text);
        let (verdict, found) = self.vault.verify_api_key(&call, &text, address(&message.source)?).await?;
        let (verdict, detail) = wire_verdict(verdict, self.vault.sees_why(&call));
        let mut answer = pb::VerifyApiKeyResponse { verdict, detail, ..Default::default() };
        if let Some(found) = found {
            answer.api_key = found.id.to_string();
            answer.subject = found.subject.as_str().to_owned();
            answer.scope_ids = found.scopes.iter().map(|no| u32::from(*no)).collect();
            answer.expire_time = found.expires.map(wire_time);
        }
        Ok(answer)
    }

    pub(super) async fn rotate_api_key_call(
        &self,
        request: Request<pb::RotateApiKeyRequest>,
    ) -> Answer<pb::RotateApiKeyResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RotateApiKey", &repeat_id, &message)?;
        let how = ApiKeyRotation {
            overlap_ms: i64::from(message.overlap_seconds) * 1_000,
            expires: convert::opt_time("expire_time", &message.expire_time)?,
        };
        let (issued, former) = self.vault.rotate_api_key(&call, key_id(&message.api_key)?, how, repeat).await?;
        Ok(Response::new(pb::RotateApiKeyResponse {
            api_key: Some(wire_key(issued.key)),
            text: wire_text(issued.text),
            former: Some(wire_key(former)),
        }))
    }

    pub(super) async fn revoke_api_key_call(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Answer<pb::RevokeApiKeyResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RevokeApiKey", &repeat_id, &message)?;
        let ended = self.vault.revoke_api_key(&call, key_id(&message.api_key)?, repeat).await?;
        Ok(Response::new(pb::RevokeApiKeyResponse { api_key: Some(wire_key(ended)) }))
    }

    pub(super) async fn list_api_keys_call(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Answer<pb::ListApiKeysResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let (size, token) = (convert::page_size(message.page_size)?, std::mem::take(&mut message.page_token));
        message.page_size = 0;
        let pages = Pages::new(&call, "ListApiKeys", &message);
        let states: Vec<pb::ApiKeyState> = convert::choices("states", &message.states)?;
        let states: Vec<ApiKeyState> = states.into_iter().filter_map(state).collect();
        let after = Some(KeyId(pages.number(&token)?)).filter(|id| id.0 != 0);
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let page = self.vault.list_api_keys(&call, &context, &key, &states, after, size).await?;
        let next_page_token = pages.after(page.more, page.rows.last().map(|last| last.id.0));
        let api_keys = page.rows.into_iter().map(wire_key).collect();
        Ok(Response::new(pb::ListApiKeysResponse { api_keys, next_page_token }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_one_spelling() {
        let of = |text: &str| network(text).map(|network| network.to_string());
        assert_eq!(of("192.0.2.77/24").as_deref(), Some("192.0.2.0/24"));
        assert_eq!(of("192.0.2.77").as_deref(), Some("192.0.2.77/32"));
        assert_eq!(of("::ffff:192.0.2.77").as_deref(), Some("192.0.2.77/32"));
        assert_eq!(of("2001:db8::1/32").as_deref(), Some("2001:db8::/32"));
        for bad in ["", "192.0.2", "192.0.2.0/33", "host", "192.0.2.0/24 ", "10.0.0.0/-1"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn scopes_are_numbers_each_once() {
        assert_eq!(scopes(&[7, 3, 7]).unwrap(), [3, 7]);
        for bad in [&[0][..], &[65_536], &[1; 65]] {
            assert!(scopes(bad).is_err());
        }
    }
}

//! Page tokens: where a list goes on. A token is opaque, bound by a MAC to the tenant, the method, the credential and
//! everything else that the request said but the size of a page, so that it is of no use elsewhere. Its key is a secret of
//! the vault that is rotated: a token works for at least a day and at most until the rotation after its own has ended.
//!
//! ```text
//! token = base64url( position | MAC 16 B )
//! ```

use data_encoding::BASE64URL_NOPAD;
use prost::Message;
use tonic::Status;
use zeroize::Zeroizing;

use crate::grpc::vault_status::page_token_invalid;
use crate::vault::Call;

const MAC: usize = 16;
/// Positions are a few numbers; what is longer was not made here.
const MAX_TEXT: usize = 512;

/// What tokens of one query are bound to.
pub struct Pages<'a> {
    call: &'a Call,
    method: &'static str,
    query: [u8; MAC],
}

impl<'a> Pages<'a> {
    /// `request` as it came, but for its page token and size, which the caller has taken out.
    pub fn new(call: &'a Call, method: &'static str, request: &impl Message) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(request.encoded_len()));
        request.encode_raw(&mut *bytes);
        Pages { call, method, query: call.tenant.token_mac(&[b"query", method.as_bytes(), &bytes]) }
    }

    /// What the MAC is over; the query is one under the tenant's own key.
    fn bound<R>(&self, position: &[u8], f: impl FnOnce(&[&[u8]]) -> R) -> R {
        let actor = self.call.principal.actor.0.to_be_bytes();
        f(&[b"page", self.method.as_bytes(), &actor, &self.query, position])
    }

    /// The token of a position.
    pub fn token(&self, position: &[u8]) -> String {
        let mut bytes = position.to_vec();
        // Without a key there is a token that no later call accepts: a list then begins again.
        bytes.extend_from_slice(&self.bound(position, |parts| self.call.pages.mac(parts)).unwrap_or_default());
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// The position of a token; `None` for the first page.
    ///
    /// # Errors
    /// `PAGE_TOKEN_INVALID`.
    pub fn position<const N: usize>(&self, token: &str) -> Result<Option<[u8; N]>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        let bytes = match token.len() {
            0..=MAX_TEXT => BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| page_token_invalid())?,
            _ => return Err(page_token_invalid()),
        };
        let (position, mac) = bytes.split_last_chunk::<MAC>().ok_or_else(page_token_invalid)?;
        if !self.bound(position, |parts| self.call.pages.fits(parts, mac)) {
            return Err(page_token_invalid());
        }
        position.try_into().map(Some).map_err(|_| page_token_invalid())
    }

    /// The position as a number; 0 for the first page.
    pub fn number(&self, token: &str) -> Result<u64, Status> {
        Ok(self.position(token)?.map_or(0, u64::from_be_bytes))
    }

    /// The token of a number, or the empty one at the end of the list.
    pub fn after(&self, more: bool, last: Option<u64>) -> String {
        match last {
            Some(last) if more => self.token(&last.to_be_bytes()),
            _ => String::new(),
        }
    }
}

//! Key objects of a token over PKCS#11, for a keeper's roots.

use std::io;
use std::time::Duration;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::guard::{ObjectId, Objects};
use crate::keyring::root::pkcs11::PinSource;
use crate::keyring::token::{NONCE, Token, TokenError, TokenOptions};

/// How long an opening waits for another use of the module that does not return.
const PATIENCE: Duration = Duration::from_secs(5);

/// One token; its session is opened when it is needed, and again after a fault of the device.
pub struct TokenObjects {
    options: TokenOptions,
    pin: PinSource,
    token: Mutex<Option<Token>>,
}

impl TokenObjects {
    pub fn new(options: TokenOptions, pin: PinSource) -> Self {
        TokenObjects { options, pin, token: Mutex::new(None) }
    }

    /// Opens a session. Blocking.
    pub fn ready(&self) -> Result<(), TokenError> {
        self.with(|_| Ok(()))
    }

    fn with<T>(&self, act: impl FnOnce(&Token) -> Result<T, TokenError>) -> Result<T, TokenError> {
        let mut token = self.token.lock();
        let open = match token.take() {
            Some(open) => open,
            None => {
                let pin = self.pin.read().map_err(|e| TokenError::Refused { what: format!("the PIN: {e}") })?;
                Token::open(&self.options, &pin, PATIENCE)?
            }
        };
        let done = act(&open);
        // After a fault of the device the session may be no good any more.
        if !matches!(done, Err(TokenError::Away { .. })) {
            *token = Some(open);
        }
        done
    }
}

fn failed(error: TokenError) -> io::Error {
    io::Error::other(error.to_string())
}

fn gone() -> TokenError {
    TokenError::Refused { what: "the key object is not in the token any more".into() }
}

impl Objects for TokenObjects {
    fn make(&self, label: &str, id: &ObjectId) -> io::Result<()> {
        self.with(|token| token.make(label, id).map(drop)).map_err(failed)
    }

    fn seal(&self, label: &str, id: &ObjectId, nonce: [u8; NONCE], aad: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let seal = |token: &Token| {
            let key = token.find(label, id)?.ok_or_else(gone)?;
            token.seal(key, nonce, aad, plain)
        };
        self.with(seal).map_err(failed)
    }

    fn unseal(
        &self,
        label: &str,
        id: &ObjectId,
        nonce: [u8; NONCE],
        aad: &[u8],
        sealed: &[u8],
    ) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let unseal = |token: &Token| match token.find(label, id)? {
            Some(key) => match token.unseal(key, nonce, aad, sealed) {
                // It is there and says no: other bytes than it sealed.
                Err(TokenError::Refused { .. }) => Ok(None),
                opened => opened.map(Some),
            },
            None => Ok(None),
        };
        self.with(unseal).map_err(failed)
    }

    fn list(&self, label: &str) -> io::Result<Vec<ObjectId>> {
        let ids = self.with(|token| token.ids(label)).map_err(failed)?;
        // Others of that label are not ours.
        Ok(ids.into_iter().filter_map(|id| id.try_into().ok()).collect())
    }

    fn destroy(&self, label: &str, id: &ObjectId) -> io::Result<()> {
        let destroy = |token: &Token| {
            if let Some(key) = token.find(label, id)? {
                token.destroy(key)?;
            }
            match token.find(label, id)? {
                None => Ok(()),
                Some(_) => Err(TokenError::Refused { what: "the key object is still there after its end".into() }),
            }
        };
        self.with(destroy).map_err(failed)
    }
}

//! Key objects of a token over PKCS#11, for a keeper's roots.
//!
//! The module runs on a thread of its own and each call has a time limit. One that takes longer goes on there, and may still
//! do what was asked: the keeper takes it for not done, and whoever tries again finds either state and goes on from it.
//! Until it has returned nothing else is asked of the module.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender};
use zeroize::Zeroizing;

use super::guard::{ObjectId, Objects};
use crate::keyring::root::pkcs11::PinSource;
use crate::keyring::token::{NONCE, Token, TokenError, TokenOptions};

type Call = Box<dyn FnOnce(&mut Option<Token>) + Send>;

/// One token; its session is opened when it is needed, and again after a fault of the device.
pub struct TokenObjects {
    options: TokenOptions,
    pin: PinSource,
    timeout: Duration,
    /// `None` only while it is being dropped.
    calls: Option<Sender<Call>>,
    /// Never sent to: it is closed when the thread has ended.
    ended: Receiver<()>,
    /// A call was given up and has not returned.
    late: Arc<AtomicBool>,
}

impl TokenObjects {
    /// `timeout`: of one call, which is a few calls of the module.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(options: TokenOptions, pin: PinSource, timeout: Duration) -> io::Result<Self> {
        let (calls, queue) = crossbeam_channel::bounded::<Call>(0);
        let (end, ended) = crossbeam_channel::bounded(0);
        let late = Arc::new(AtomicBool::new(false));
        std::thread::Builder::new().name("keeper-token".into()).spawn({
            let late = late.clone();
            move || {
                let _end: Sender<()> = end;
                let mut token = None;
                while let Ok(call) = queue.recv() {
                    call(&mut token);
                    late.store(false, Ordering::SeqCst);
                }
                // Before the end is told: the session is closed, the module finalised.
                drop(token);
            }
        })?;
        Ok(TokenObjects { options, pin, timeout, calls: Some(calls), ended, late })
    }

    /// Opens a session. Blocking.
    pub fn ready(&self) -> Result<(), TokenError> {
        self.with(|_| Ok(()))
    }

    /// How long to wait for the thread: not at all while a call that was given up is in the module.
    fn patience(&self) -> Duration {
        if self.late.load(Ordering::SeqCst) { Duration::ZERO } else { self.timeout }
    }

    fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Token) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        let (options, pin, timeout) = (self.options.clone(), self.pin.clone(), self.timeout);
        let (answer, answered) = crossbeam_channel::bounded(1);
        let call = move |token: &mut Option<Token>| {
            let done = in_session(token, &options, &pin, timeout, act);
            // Who has given up does not need the answer.
            let _ = answer.send(done);
        };
        let away = |what: String| TokenError::Away { what };
        let calls = self.calls.as_ref().expect("taken by drop alone");
        match calls.send_timeout(Box::new(call), self.patience()) {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(_)) => {
                return Err(away("the module has not returned from an earlier call".into()));
            }
            Err(SendTimeoutError::Disconnected(_)) => return Err(away("the module's thread has ended".into())),
        }
        answered.recv_timeout(timeout).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => {
                self.late.store(true, Ordering::SeqCst);
                Err(away(format!("the module has not answered within {timeout:?}")))
            }
            RecvTimeoutError::Disconnected => Err(away("the module's thread has ended".into())),
        })
    }
}

impl Drop for TokenObjects {
    fn drop(&mut self) {
        let patience = self.patience();
        self.calls = None;
        // A module that does not return is left alone on its thread.
        let _ = self.ended.recv_timeout(patience);
    }
}

fn in_session<T>(
    token: &mut Option<Token>,
    options: &TokenOptions,
    pin: &PinSource,
    patience: Duration,
    act: impl FnOnce(&Token) -> Result<T, TokenError>,
) -> Result<T, TokenError> {
    let open = match token.take() {
        Some(open) => open,
        None => {
            let pin = pin.read().map_err(|e| TokenError::Refused { what: format!("the PIN: {e}") })?;
            Token::open(options, &pin, patience)?
        }
    };
    let done = act(&open);
    // After a fault of the device the session may be no good any more.
    if !matches!(done, Err(TokenError::Away { .. })) {
        *token = Some(open);
    }
    done
}

fn failed(error: TokenError) -> io::Error {
    io::Error::other(format!("the keeper's token: {error}"))
}

fn gone() -> TokenError {
    TokenError::Refused { what: "the key object is not in the token any more".into() }
}

impl Objects for TokenObjects {
    fn make(&self, label: &str, id: &ObjectId) -> io::Result<()> {
        let (label, id) = (label.to_owned(), *id);
        self.with(move |token| token.make(&label, &id).map(drop)).map_err(failed)
    }

    fn seal(&self, label: &str, id: &ObjectId, nonce: [u8; NONCE], aad: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let (label, id, aad, plain) = (label.to_owned(), *id, aad.to_vec(), Zeroizing::new(plain.to_vec()));
        let seal = move |token: &Token| {
            let key = token.find(&label, &id)?.ok_or_else(gone)?;
            token.seal(key, nonce, &aad, &plain)
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
        let (label, id, aad, sealed) = (label.to_owned(), *id, aad.to_vec(), sealed.to_vec());
        let unseal = move |token: &Token| match token.find(&label, &id)? {
            Some(key) => match token.unseal(key, nonce, &aad, &sealed) {
                // It is there and says no: other bytes than it sealed.
                Err(TokenError::Refused { .. }) => Ok(None),
                opened => opened.map(Some),
            },
            None => Ok(None),
        };
        self.with(unseal).map_err(failed)
    }

    fn list(&self, label: &str) -> io::Result<Vec<ObjectId>> {
        let label = label.to_owned();
        let ids = self.with(move |token| token.ids(&label)).map_err(failed)?;
        // Others of that label are not ours.
        Ok(ids.into_iter().filter_map(|id| id.try_into().ok()).collect())
    }

    fn destroy(&self, label: &str, id: &ObjectId) -> io::Result<()> {
        let (label, id) = (label.to_owned(), *id);
        let destroy = move |token: &Token| {
            if let Some(key) = token.find(&label, &id)? {
                token.destroy(key)?;
            }
            match token.find(&label, &id)? {
                None => Ok(()),
                Some(_) => Err(TokenError::Refused { what: "the key object is still there after its end".into() }),
            }
        };
        self.with(destroy).map_err(failed)
    }
}

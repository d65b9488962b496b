//! A hardware security module over PKCS#11: one token, a session logged in, and the few things that are asked of it: make
//! a key that does not leave it, seal and open 100 bytes under one, find and destroy keys.
//!
//! The module is a library of its maker that runs in this process. It is initialised for each use and finalised when nobody
//! uses it any more: a token that was away is found again, and nothing of it lives on to the end of the process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bits of a GCM tag.
const TAG_BITS: u64 = 128;
/// Bytes of a nonce.
pub const NONCE: usize = 12;
/// Most PINs that were refused and are remembered.
const REFUSED: usize = 16;

/// Which token of which module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOptions {
    /// The module's library.
    pub module: PathBuf,
    /// Label of the token.
    pub label: String,
}

/// Why the token did not do it; no secret and no path in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Waiting may help: no token, no free session, a fault of the device.
    #[error("{what}")]
    Away { what: String },
    /// It will answer the same again.
    #[error("{what}")]
    Refused { what: String },
}

impl TokenError {
    fn refused(what: &str) -> Self {
        TokenError::Refused { what: what.into() }
    }
}

impl From<Error> for TokenError {
    fn from(error: Error) -> Self {
        let Error::Pkcs11(code, call) = error else {
            return TokenError::refused("the module cannot be used");
        };
        let what = match code {
            RvError::SessionCount => "the token has no session free".to_owned(),
            RvError::TokenNotPresent | RvError::DeviceRemoved => "the token is not there any more".to_owned(),
            _ => format!("the module answers {code:?} to {call:?}"),
        };
        match code {
            RvError::DeviceError
            | RvError::DeviceRemoved
            | RvError::DeviceMemory
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SessionCount
            | RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::SlotIdInvalid
            | RvError::UserNotLoggedIn
            | RvError::HostMemory
            | RvError::GeneralError
            | RvError::FunctionCanceled
            | RvError::FunctionFailed
            | RvError::CryptokiNotInitialized => TokenError::Away { what },
            _ => TokenError::Refused { what },
        }
    }
}

/// Modules of this process. Loaded once and never unloaded; initialised while somebody uses them.
#[derive(Default)]
struct Modules {
    loaded: HashMap<PathBuf, Loaded>,
    /// PINs that a token refused: never tried again, since a token locks itself after a few.
    refused: Vec<RefusedPin>,
}

struct RefusedPin {
    token: TokenOptions,
    pin: Zeroizing<Vec<u8>>,
}

struct Loaded {
    module: Pkcs11,
    users: usize,
}

static MODULES: Mutex<Option<Modules>> = Mutex::new(None);

/// A session with a token, logged in. Dropping it ends the session and, if it was the last one, the use of the module.
pub struct Token {
    /// `None` only while it is being dropped.
    session: Option<Session>,
    module: PathBuf,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.session = None;
        leave(&mut MODULES.lock(), &self.module);
    }
}

fn leave(modules: &mut Option<Modules>, path: &Path) {
    let Some(loaded) = modules.as_mut().and_then(|modules| modules.loaded.get_mut(path)) else { return };
    loaded.users -= 1;
    if loaded.users == 0 {
        // What it answers changes nothing: the next use initialises it anew.
        let _ = loaded.module.clone().finalize();
    }
}

fn enter(modules: &mut Modules, path: &Path) -> Result<Pkcs11, TokenError> {
    if !modules.loaded.contains_key(path) {
        let missing = |_| TokenError::refused("the PKCS#11 module cannot be loaded");
        let module = Pkcs11::new(path).map_err(missing)?;
        modules.loaded.insert(path.to_owned(), Loaded { module, users: 0 });
    }
    let loaded = modules.loaded.get_mut(path).expect("it was put there if it was not");
    if loaded.users == 0 {
        match loaded.module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    loaded.users += 1;
    Ok(loaded.module.clone())
}

impl Token {
    /// Opens a session and logs in. Blocking; waits at most `patience` for another use of the module that does not return.
    ///
    /// # Errors
    /// `Refused` for a PIN that is not right, which this process does not try again, and for one try that is left.
    pub fn open(options: &TokenOptions, pin: &[u8], patience: Duration) -> Result<Token, TokenError> {
        let stuck = || TokenError::Away { what: "the module has not returned from an earlier call".into() };
        let mut modules = MODULES.try_lock_for(patience).ok_or_else(stuck)?;
        let module = enter(modules.get_or_insert_default(), &options.module)?;
        let opened = login(&module, options, pin, &mut modules.get_or_insert_default().refused);
        if opened.is_err() {
            leave(&mut modules, &options.module);
        }
        Ok(Token { session: Some(opened?), module: options.module.clone() })
    }

    fn session(&self) -> &Session {
        self.session.as_ref().expect("taken by drop alone")
    }

    /// Makes an AES key that is sensitive and not extractable, and stays in the token.
    ///
    /// # Errors
    /// `Refused` also where the module made one that could leave it.
    pub fn make(&self, label: &str, id: &[u8]) -> Result<ObjectHandle, TokenError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::ValueLen(32u64.into()),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Modifiable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        let key = self.session().generate_key(&Mechanism::AesKeyGen, &template)?;
        let kept = self.guarded(key);
        if kept.is_err() {
            self.destroy(key)?;
        }
        kept.map(|()| key)
    }

    /// The key cannot leave the token.
    pub fn guarded(&self, key: ObjectHandle) -> Result<(), TokenError> {
        let asked = [AttributeType::Sensitive, AttributeType::Extractable];
        let found = self.session().get_attributes(key, &asked)?;
        match found.contains(&Attribute::Sensitive(true)) && found.contains(&Attribute::Extractable(false)) {
            true => Ok(()),
            false => Err(TokenError::refused("the key object can be taken out of the token")),
        }
    }

    /// The key of that label and id.
    pub fn find(&self, label: &str, id: &[u8]) -> Result<Option<ObjectHandle>, TokenError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
        ];
        Ok(self.session().find_objects(&template)?.first().copied())
    }

    /// Ids of all keys of that label.
    pub fn ids(&self, label: &str) -> Result<Vec<Vec<u8>>, TokenError> {
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.as_bytes().to_vec())];
        let mut out = Vec::new();
        for key in self.session().find_objects(&template)? {
            for found in self.session().get_attributes(key, &[AttributeType::Id])? {
                if let Attribute::Id(id) = found {
                    out.push(id);
                }
            }
        }
        Ok(out)
    }

    /// AES-256-GCM: ciphertext and tag.
    pub fn seal(&self, key: ObjectHandle, nonce: [u8; NONCE], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, TokenError> {
        let mut nonce = nonce;
        let params = GcmParams::new(&mut nonce, aad, TAG_BITS.into())?;
        Ok(self.session().encrypt(&Mechanism::AesGcm(params), key, plain)?)
    }

    /// What `seal` sealed.
    pub fn unseal(
        &self,
        key: ObjectHandle,
        nonce: [u8; NONCE],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        let mut nonce = nonce;
        let params = GcmParams::new(&mut nonce, aad, TAG_BITS.into())?;
        Ok(Zeroizing::new(self.session().decrypt(&Mechanism::AesGcm(params), key, sealed)?))
    }

    /// Destroys a key object for good.
    pub fn destroy(&self, key: ObjectHandle) -> Result<(), TokenError> {
        Ok(self.session().destroy_object(key)?)
    }
}

fn login(
    module: &Pkcs11,
    options: &TokenOptions,
    pin: &[u8],
    refused: &mut Vec<RefusedPin>,
) -> Result<Session, TokenError> {
    let mut found = None;
    for slot in module.get_slots_with_token()? {
        let token = module.get_token_info(slot)?;
        if token.label().trim_end() == options.label {
            if found.is_some() {
                return Err(TokenError::refused("two tokens have that label"));
            }
            found = Some((slot, token));
        }
    }
    let absent = || TokenError::Away { what: "no token of that label is there".into() };
    let (slot, token) = found.ok_or_else(absent)?;
    let session = module.open_rw_session(slot)?;
    let wrong = || TokenError::refused("the PIN is not right, or locked: it is not tried again");
    if refused.iter().any(|former| former.token == *options && bool::from(former.pin.ct_eq(pin))) {
        return Err(wrong());
    }
    if token.user_pin_locked() {
        return Err(TokenError::refused("the token is locked: its security officer sets a new PIN"));
    }
    if token.user_pin_final_try() {
        let rule = "one wrong PIN more locks the token: log in once by hand with the right one";
        return Err(TokenError::refused(rule));
    }
    let text = std::str::from_utf8(pin).map_err(|_| TokenError::refused("a PIN is text"))?;
    match session.login(UserType::User, Some(&AuthPin::new(text.trim_end_matches(['\r', '\n']).into()))) {
        // Another session of this process has logged in.
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
        Err(Error::Pkcs11(
            RvError::PinIncorrect
            | RvError::PinLocked
            | RvError::PinExpired
            | RvError::PinInvalid
            | RvError::PinLenRange,
            _,
        )) => {
            if refused.len() < REFUSED {
                refused.push(RefusedPin { token: options.clone(), pin: Zeroizing::new(pin.to_vec()) });
            }
            Err(wrong())
        }
        Err(error) => Err(error.into()),
    }
}

//! Codes of an authenticator app: TOTP (RFC 6238) with HMAC-SHA-1, six digits and steps of 30 seconds, which is what every
//! app can do. A step that was used, and every one before it, is refused (section 5.2 of the RFC).

use data_encoding::BASE32_NOPAD;
use totp_rs::{Algorithm, Builder, Totp};
use zeroize::Zeroizing;

use crate::crypto::random;
use crate::secret::Secret;

/// Seconds of a step.
pub const STEP_S: i64 = 30;
/// Digits of a code.
pub const DIGITS: usize = 6;
/// Steps before and after the present one whose codes count: clocks of phones differ.
const WINDOW: i64 = 1;
/// Bytes of a fresh secret: those of the MAC (RFC 4226, section 4, R6).
const FRESH: usize = 20;
/// Bytes of a secret brought along: 128 bits at least (RFC 4226, section 4, R6), and no longer than a block of the MAC.
const TAKEN: std::ops::RangeInclusive<usize> = 16..=64;

/// The secret that an app and the vault share; wiped on drop.
#[derive(Debug)]
pub struct TotpSecret(Secret<Vec<u8>>);

impl TotpSecret {
    /// A fresh one of 20 random bytes.
    pub fn generate() -> Self {
        let mut secret = Secret::new(vec![0u8; FRESH]);
        random::fill(secret.expose_mut());
        TotpSecret(secret)
    }

    /// One that was stored or made elsewhere; `None` unless it has 16 to 64 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        TAKEN.contains(&bytes.len()).then(|| TotpSecret(Secret::new(bytes.to_vec())))
    }

    /// One made elsewhere, in base32 as apps write it: any case, blanks and padding ignored.
    pub fn from_base32(text: &str) -> Option<Self> {
        if text.len() > 256 {
            return None;
        }
        let kept = text.chars().filter(|c| !matches!(c, ' ' | '-' | '=')).map(|c| c.to_ascii_uppercase());
        let kept = Zeroizing::new(kept.collect::<String>());
        let bytes = Zeroizing::new(BASE32_NOPAD.decode(kept.as_bytes()).ok()?);
        Self::from_bytes(&bytes)
    }

    /// The bytes, for sealing.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// Base32 without padding, to be typed into an app once.
    pub fn to_base32(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE32_NOPAD.encode(self.0.expose()))
    }

    fn totp(&self, issuer: Option<&str>, account: &str) -> Option<Totp> {
        let builder = Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_digits(DIGITS as u8)
            .with_skew(0)
            .with_step_duration(STEP_S as u64)
            .with_secret(self.0.expose().clone())
            .with_issuer(issuer.map(Box::<str>::from))
            .with_account_name(account);
        builder.build().ok()
    }

    /// The `otpauth://` text for a QR code, to be shown once. `None` for an issuer or an account with a colon, or an empty
    /// account: apps could not tell the two apart.
    pub fn to_uri(&self, issuer: &str, account: &str) -> Option<Zeroizing<String>> {
        if account.is_empty() {
            return None;
        }
        let issuer = (!issuer.is_empty()).then_some(issuer);
        self.totp(issuer, account)?.to_url().ok().map(Zeroizing::new)
    }

    /// The step whose code was typed: the present one, the one before or the one after, and later than `used`. `now_s` are
    /// seconds since 1970.
    pub fn step_of(&self, typed: &str, now_s: i64, used: i64) -> Option<i64> {
        if typed.len() > 32 {
            return None;
        }
        let code = Zeroizing::new(typed.chars().filter(|c| *c != ' ').collect::<String>());
        let totp = self.totp(None, "")?;
        let present = now_s.div_euclid(STEP_S);
        let mut steps = (present - WINDOW).max(used + 1).max(0)..=present + WINDOW;
        // With a skew of 0 the crate looks at one step; it compares in constant time.
        steps.find(|step| totp.check(&code, (step * STEP_S) as u64).is_some())
    }

    /// The code of a time, for tests and for who has to show one.
    pub fn code_at(&self, now_s: i64) -> Option<Zeroizing<String>> {
        Some(Zeroizing::new(self.totp(None, "")?.generate(u64::try_from(now_s).ok()?).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: i64 = -1;

    /// RFC 6238, appendix B, SHA-1: the last six of its eight digits.
    const VECTORS: [(i64, &str); 6] = [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ];

    fn rfc() -> TotpSecret {
        TotpSecret::from_bytes(b"12345678901234567890").unwrap()
    }

    #[test]
    fn agrees_with_the_rfc() {
        for (at, code) in VECTORS {
            assert_eq!(rfc().code_at(at).unwrap().as_str(), code);
            assert_eq!(rfc().step_of(code, at, NEVER), Some(at / 30));
        }
    }

    #[test]
    fn a_code_counts_for_three_steps_and_once() {
        let (at, code) = VECTORS[3];
        let step = at / 30;
        for (moved, fits) in [(-60, false), (-30, true), (0, true), (30, true), (60, false)] {
            assert_eq!(rfc().step_of(code, at + moved, NEVER).is_some(), fits, "{moved}");
        }
        assert_eq!(rfc().step_of(code, at, step), None, "used");
        assert_eq!(rfc().step_of(code, at, step + 1), None, "a later one was used");
        assert_eq!(rfc().step_of(code, at, step - 1), Some(step));
    }

    #[test]
    fn a_code_is_six_digits() {
        let (at, code) = VECTORS[0];
        assert!(rfc().step_of(" 287 082", at, NEVER).is_some());
        for bad in ["", "28708", "2870820", "+87082", "94287082", "28708\0", "٢٨٧٠٨٢", &"0".repeat(1 << 16)] {
            assert_eq!(rfc().step_of(bad, at, NEVER), None, "{bad:?}");
        }
        assert!(rfc().step_of(code, i64::MAX / 2, NEVER).is_none());
        assert!(rfc().step_of(code, -1, NEVER).is_none(), "before 1970 there is only the step after");
    }

    #[test]
    fn secrets_are_taken_as_apps_write_them() {
        let secret = TotpSecret::from_base32("gezd gnbv gy3t qojq gezd gnbv gy3t qojq====").unwrap();
        assert_eq!(secret.expose(), b"12345678901234567890");
        assert_eq!(secret.to_base32().as_str(), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        for bad in ["", "GEZDGNBV", "0189", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ!", &"A".repeat(300)] {
            assert!(TotpSecret::from_base32(bad).is_none(), "{bad}");
        }
        assert_ne!(TotpSecret::generate().expose(), TotpSecret::generate().expose());
        assert!(!format!("{secret:?}").contains("49"), "{secret:?}");
    }

    #[test]
    fn the_uri_is_what_apps_read() {
        let uri = rfc().to_uri("Acme", "jane@example.com").unwrap();
        assert!(uri.starts_with("otpauth://totp/Acme:jane"), "{}", uri.as_str());
        assert!(uri.contains("secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ") && uri.contains("issuer=Acme"));
        assert!(rfc().to_uri("Ac:me", "jane").is_none() && rfc().to_uri("", "").is_none());
    }
}

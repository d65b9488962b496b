//! Deadlines and request ids: what is read from a call's metadata before its service sees it.

use http::HeaderMap;
use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Metadata key of the request id, both ways.
pub const REQUEST_ID_HEADER: http::HeaderName = http::HeaderName::from_static("x-request-id");

/// Metadata that does not have its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadTimeout;

/// The client's `grpc-timeout`: at most 8 digits and a unit `H M S m u n` (gRPC over HTTP/2).
pub fn client_timeout(headers: &HeaderMap) -> Result<Option<Duration>, BadTimeout> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let (unit, digits) = value.as_bytes().split_last().ok_or(BadTimeout)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BadTimeout);
    }
    let n = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    Ok(Some(match unit {
        b'H' => Duration::from_secs(n * 3_600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return Err(BadTimeout),
    }))
}

/// How long a call may take. Unary: the client's wish, capped to `max`, which is also the default. A stream has an end
/// only if the client gave one.
pub fn allowed_time(client: Option<Duration>, streaming: bool, max: Duration) -> Option<Duration> {
    match (client, streaming) {
        (wish, true) => wish,
        (Some(wish), false) => Some(wish.min(max)),
        (None, false) => Some(max),
    }
}

/// Identifies one call in the answer's metadata, the log and error reports. A caller may bring its own as a UUID; any
/// other text is replaced, because it would be text that a caller chose in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub [u8; 16]);

impl RequestId {
    /// The caller's, if it is a UUID with hyphens, else a fresh one.
    pub fn accept(headers: &HeaderMap) -> Self {
        headers
            .get(REQUEST_ID_HEADER)
            .filter(|value| value.len() == uuid::fmt::Hyphenated::LENGTH)
            .and_then(|value| uuid::Uuid::try_parse_ascii(value.as_bytes()).ok())
            .map_or_else(RequestId::fresh, |id| RequestId(id.into_bytes()))
    }

    /// Unique, not secret: a random start for the process and a counter, so that a call costs no system call.
    pub fn fresh() -> Self {
        static START: LazyLock<(u64, AtomicU64)> = LazyLock::new(|| {
            let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
            (high, AtomicU64::new(low))
        });
        let (high, counter) = &*START;
        let id = uuid::Uuid::from_u64_pair(*high, counter.fetch_add(1, Ordering::Relaxed));
        RequestId(id.into_bytes())
    }

    /// For the answer's metadata. Never the same twice, so it stays out of the connection's table of headers, which it
    /// would only fill.
    pub fn header_value(self) -> http::HeaderValue {
        let mut text = uuid::Uuid::encode_buffer();
        let text = uuid::Uuid::from_bytes(self.0).hyphenated().encode_lower(&mut text);
        let mut value = http::HeaderValue::from_str(text).expect("hex digits and hyphens are visible ASCII");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}
impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(text: &'static str) -> Result<Option<Duration>, BadTimeout> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", http::HeaderValue::from_static(text));
        client_timeout(&headers)
    }

    #[test]
    fn timeouts_have_one_form() {
        assert_eq!(client_timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(timeout("0n"), Ok(Some(Duration::ZERO)));
        assert_eq!(timeout("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(timeout("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3_600))));
        for bad in ["", "1", "S", "-1S", "1 S", "1.5S", "123456789S", "1s", "+1S"] {
            assert_eq!(timeout(bad), Err(BadTimeout), "{bad}");
        }
    }

    #[test]
    fn a_wish_is_capped_and_streams_are_free() {
        let (s, max) = (Duration::from_secs, Duration::from_secs(30));
        assert_eq!(allowed_time(None, false, max), Some(max));
        assert_eq!(allowed_time(Some(s(1)), false, max), Some(s(1)));
        assert_eq!(allowed_time(Some(s(90)), false, max), Some(max));
        assert_eq!(allowed_time(None, true, max), None);
        assert_eq!(allowed_time(Some(s(90)), true, max), Some(s(90)));
    }

    #[test]
    fn only_a_uuid_is_taken_over() {
        let mut headers = HeaderMap::new();
        let given = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        headers.insert(REQUEST_ID_HEADER, http::HeaderValue::from_static(given));
        assert_eq!(RequestId::accept(&headers).to_string(), given);
        for text in
            ["jane.doe@example.org", "67e5504410b1426f9247bb680e5fe0c8", "", "{67e55044-10b1-426f-9247-bb680e5f}"]
        {
            headers.insert(REQUEST_ID_HEADER, http::HeaderValue::from_static(text));
            assert!(!RequestId::accept(&headers).to_string().contains(text) || text.is_empty());
        }
        assert_ne!(RequestId::fresh(), RequestId::fresh());
    }
}

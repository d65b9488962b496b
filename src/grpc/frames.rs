//! Watches the HTTP/2 frames that a client sends, on their way to the protocol engine. It reads only the nine bytes of
//! each frame's header and knows what the engine has no clock for: a preface that never ends, a header block that never
//! ends, a frame that stops in the middle, a flood of resets or of frames that carry nothing.

use crate::grpc::limits::{CHATTER_BURST, CHATTER_PER_SECOND, RESET_BURST, RESETS_PER_SECOND};

const PREFACE_BYTES: usize = 24; // RFC 9113, 3.4
const HEAD_BYTES: usize = 9; // RFC 9113, 4.1

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a client does that no honest one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abuse {
    /// The first frame is not SETTINGS.
    NoSettings,
    /// More RST_STREAM frames than calls are ever cancelled.
    Resets,
    /// More frames without content than any client needs.
    Chatter,
}

impl Abuse {
    /// As a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Abuse::NoSettings => "no_settings",
            Abuse::Resets => "resets",
            Abuse::Chatter => "chatter",
        }
    }
}

/// Where the client's byte stream stands. Times are milliseconds since the connection began.
#[derive(Debug)]
pub struct FrameWatch {
    preface_left: usize,
    head: [u8; HEAD_BYTES],
    head_len: usize,
    payload_left: usize,
    settings_seen: bool,
    /// Since when a frame other than DATA, or a header block of several frames, waits for its end.
    block_since: Option<u64>,
    in_block: bool,
    last_byte: u64,
    resets: Bucket,
    chatter: Bucket,
}

impl Default for FrameWatch {
    fn default() -> Self {
        FrameWatch {
            preface_left: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_len: 0,
            payload_left: 0,
            settings_seen: false,
            block_since: None,
            in_block: false,
            last_byte: 0,
            resets: Bucket::new(RESET_BURST, RESETS_PER_SECOND),
            chatter: Bucket::new(CHATTER_BURST, CHATTER_PER_SECOND),
        }
    }
}

impl FrameWatch {
    /// Bytes that came in at `now`.
    pub fn feed(&mut self, mut bytes: &[u8], now: u64) -> Result<(), Abuse> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.last_byte = now;
        let n = self.preface_left.min(bytes.len());
        self.preface_left -= n;
        bytes = &bytes[n..];
        while !bytes.is_empty() {
            if self.head_len < HEAD_BYTES {
                let n = (HEAD_BYTES - self.head_len).min(bytes.len());
                self.head[self.head_len..self.head_len + n].copy_from_slice(&bytes[..n]);
                self.head_len += n;
                bytes = &bytes[n..];
                self.block_since.get_or_insert(now);
                if self.head_len < HEAD_BYTES {
                    return Ok(());
                }
                self.begin(now)?;
            }
            let n = self.payload_left.min(bytes.len());
            self.payload_left -= n;
            bytes = &bytes[n..];
            if self.payload_left == 0 {
                self.end();
            }
        }
        Ok(())
    }

    /// Preface and SETTINGS are complete.
    pub fn greeted(&self) -> bool {
        self.preface_left == 0 && self.settings_seen
    }

    /// Since when a frame (not DATA) or header block waits for its end.
    pub fn block_since(&self) -> Option<u64> {
        self.block_since
    }

    /// Since when no byte came in the middle of a frame.
    pub fn stalled_since(&self) -> Option<u64> {
        (self.head_len > 0).then_some(self.last_byte)
    }

    fn begin(&mut self, now: u64) -> Result<(), Abuse> {
        let length = usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
        let (kind, flags) = (self.head[3], self.head[4]);
        self.payload_left = length;
        if !self.settings_seen && kind != SETTINGS {
            return Err(Abuse::NoSettings);
        }
        match kind {
            HEADERS | PUSH_PROMISE => self.in_block = flags & END_HEADERS == 0,
            CONTINUATION if flags & END_HEADERS != 0 => self.in_block = false,
            CONTINUATION | WINDOW_UPDATE => {}
            RST_STREAM => self.resets.take(now).ok_or(Abuse::Resets)?,
            DATA if length > 0 || flags & END_STREAM != 0 => {}
            _ => self.chatter.take(now).ok_or(Abuse::Chatter)?,
        }
        if kind == DATA {
            self.block_since = None;
        }
        Ok(())
    }

    fn end(&mut self) {
        self.settings_seen = true; // begin() lets only SETTINGS be the first
        self.head_len = 0;
        if !self.in_block {
            self.block_since = None;
        }
    }
}

/// A leaky bucket in thousandths of a frame.
#[derive(Debug)]
struct Bucket {
    left: u64,
    most: u64,
    per_ms: u64,
    last: u64,
}

impl Bucket {
    fn new(burst: u32, per_second: u32) -> Self {
        let most = u64::from(burst) * 1_000;
        Bucket { left: most, most, per_ms: per_second.into(), last: 0 }
    }

    fn take(&mut self, now: u64) -> Option<()> {
        let gained = now.saturating_sub(self.last).saturating_mul(self.per_ms);
        self.last = now;
        self.left = self.left.saturating_add(gained).min(self.most);
        self.left = self.left.checked_sub(1_000)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD_BYTES + payload, 0);
        bytes
    }

    fn greeted() -> FrameWatch {
        let mut watch = FrameWatch::default();
        watch.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0).unwrap();
        assert!(!watch.greeted());
        watch.feed(&frame(SETTINGS, 0, 6), 0).unwrap();
        assert!(watch.greeted());
        watch
    }

    #[test]
    fn every_cut_of_the_bytes_gives_the_same_state() {
        let mut bytes = frame(HEADERS, 0, 20);
        bytes.extend(frame(CONTINUATION, END_HEADERS, 7));
        bytes.extend(frame(DATA, 0, 300));
        for cut in 0..bytes.len() {
            let mut watch = greeted();
            watch.feed(&bytes[..cut], 1).unwrap();
            let open = watch.block_since();
            assert_eq!(open.is_some(), (1..45).contains(&cut) || (46..54).contains(&cut), "cut {cut}");
            watch.feed(&bytes[cut..], 2).unwrap();
            assert_eq!((watch.block_since(), watch.stalled_since()), (None, None));
        }
    }

    #[test]
    fn a_frame_before_settings_is_abuse() {
        let mut watch = FrameWatch::default();
        watch.feed(&[0; PREFACE_BYTES], 0).unwrap();
        assert_eq!(watch.feed(&frame(HEADERS, END_HEADERS, 3), 0), Err(Abuse::NoSettings));
    }

    #[test]
    fn resets_are_counted_against_time() {
        let mut watch = greeted();
        for _ in 0..RESET_BURST {
            watch.feed(&frame(RST_STREAM, 0, 4), 0).unwrap();
        }
        assert_eq!(watch.feed(&frame(RST_STREAM, 0, 4), 0), Err(Abuse::Resets));
        let mut slow = greeted();
        for i in 0..u64::from(RESET_BURST) * 3 {
            slow.feed(&frame(RST_STREAM, 0, 4), i * 1_000 / u64::from(RESETS_PER_SECOND)).unwrap();
        }
    }

    #[test]
    fn empty_frames_are_counted_but_the_end_of_a_stream_is_not() {
        let mut watch = greeted();
        for _ in 0..CHATTER_BURST * 2 {
            watch.feed(&frame(DATA, END_STREAM, 0), 0).unwrap();
        }
        let flood = (0..CHATTER_BURST + 1).map(|_| watch.feed(&frame(DATA, 0, 0), 0)).find(Result::is_err);
        assert_eq!(flood, Some(Err(Abuse::Chatter)));
    }
}

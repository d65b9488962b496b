//! Every limit of the network in one place, and the two gates that count: connections and calls. tonic and hyper leave
//! several of these open or unlimited; all are set by us.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest message that a service decodes, in bytes.
pub const MAX_DECODE_BYTES: usize = 4 << 20;
/// Largest message that a service encodes, in bytes.
pub const MAX_ENCODE_BYTES: usize = 4 << 20;

/// HTTP/2 streams of one connection at a time.
pub const MAX_CONCURRENT_STREAMS: u32 = 200;
/// Streams that we reset because of the client's mistakes before the connection gets a GOAWAY.
pub const MAX_LOCAL_ERROR_RESETS: usize = 64;
/// Streams reset by the client before we looked at them, before the connection gets a GOAWAY.
pub const MAX_PENDING_ACCEPT_RESETS: usize = 20;
/// Header list of a request, in bytes.
pub const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;
/// Largest frame we accept, in bytes: the protocol's smallest value, so that one frame never blocks others for long.
pub const MAX_FRAME_BYTES: u32 = 16 << 10;
/// Flow-control window of a stream, in bytes: a whole batch of ordinary size without waiting for an update.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Flow-control window of a connection, in bytes: bounds what one client can make us buffer.
pub const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
/// Response bytes buffered for one stream; 200 of them are 12.5 MiB a connection at worst.
pub const MAX_SEND_BUFFER_BYTES: usize = 64 << 10;
/// RST_STREAM frames of a client: at once, and per second in the long run. Beyond both, a GOAWAY.
pub const RESET_BURST: u32 = 400;
pub const RESETS_PER_SECOND: u32 = 100;
/// Frames that carry nothing (SETTINGS, PING, PRIORITY, empty DATA, unknown kinds): at once, and per second.
pub const CHATTER_BURST: u32 = 10_000;
pub const CHATTER_PER_SECOND: u32 = 2_000;

/// Request bytes of a call that are not counted against `max_request_bytes`: ordinary calls do not touch a shared counter.
pub const UNCOUNTED_BYTES: usize = 16 << 10;

/// What an operator may change. The constants above are not for changing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Connections in all; more are closed at once.
    pub max_connections: usize,
    /// Connections of one peer address (IPv6: of one /64).
    pub max_connections_per_peer: usize,
    /// Unary calls in flight in all; more are answered `RESOURCE_EXHAUSTED` with RetryInfo.
    pub max_calls: usize,
    /// Streaming calls open in all.
    pub max_streams: usize,
    /// Request bytes in memory in all, of calls that sent more than `UNCOUNTED_BYTES`; a call that would exceed it is
    /// answered `RESOURCE_EXHAUSTED`. Without it 4,096 calls of 4 MiB could take 16 GiB before anybody is known.
    pub max_request_bytes: usize,
    /// Longest time of a unary call, and its default; a client's deadline is capped to it.
    pub max_call_time: Duration,
    /// TLS handshake, from accept to finish.
    pub handshake_timeout: Duration,
    /// HTTP/2 preface and first SETTINGS, from the end of the handshake.
    pub preface_timeout: Duration,
    /// A header block or any other frame that is not DATA, from its first byte to its last.
    pub header_timeout: Duration,
    /// Time without a byte in the middle of a message or frame.
    pub body_idle_timeout: Duration,
    /// Time between two messages of a client's stream.
    pub stream_idle_timeout: Duration,
    /// Time that a client may leave a response unread, whether by TCP or by flow control.
    pub response_stall_timeout: Duration,
    /// Time without a call after which a connection is closed.
    pub connection_idle_timeout: Duration,
    /// Age at which a connection gets a GOAWAY (less up to a tenth, by chance, so that they do not all come back at once).
    pub max_connection_age: Duration,
    /// What calls have left after that, and after a shutdown began, before the connection is cut.
    pub drain_timeout: Duration,
    /// A PING this long after the last one; how long its answer may take.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        NetworkOptions {
            max_connections: 2_048,
            max_connections_per_peer: 256,
            max_calls: 4_096,
            max_streams: 1_024,
            max_request_bytes: 256 << 20,
            max_call_time: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(5),
            preface_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(5),
            body_idle_timeout: Duration::from_secs(10),
            stream_idle_timeout: Duration::from_secs(300),
            response_stall_timeout: Duration::from_secs(30),
            connection_idle_timeout: Duration::from_secs(600),
            max_connection_age: Duration::from_secs(3_600),
            drain_timeout: Duration::from_secs(20),
            keepalive_interval: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// Counts connections, in all and per peer.
pub struct ConnectionGate {
    max: usize,
    max_per_peer: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    per_peer: HashMap<u128, usize>,
}

/// Which cap was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    All,
    Peer,
}

impl Refused {
    /// As a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Refused::All => "cap_all",
            Refused::Peer => "cap_peer",
        }
    }
}

/// A counted connection; gives its place back when dropped.
pub struct ConnectionPlace {
    gate: Arc<ConnectionGate>,
    peer: u128,
}

impl ConnectionGate {
    pub fn new(options: &NetworkOptions) -> Arc<Self> {
        Arc::new(ConnectionGate {
            max: options.max_connections,
            max_per_peer: options.max_connections_per_peer,
            counts: Mutex::default(),
        })
    }

    /// A place for one more connection of `peer`.
    pub fn enter(self: &Arc<Self>, peer: IpAddr) -> Result<ConnectionPlace, Refused> {
        let peer = peer_key(peer);
        let mut counts = self.counts.lock();
        if counts.all >= self.max {
            return Err(Refused::All);
        }
        let mine = counts.per_peer.entry(peer).or_insert(0);
        if *mine >= self.max_per_peer {
            return Err(Refused::Peer);
        }
        *mine += 1;
        counts.all += 1;
        Ok(ConnectionPlace { gate: self.clone(), peer })
    }

    /// Connections now.
    pub fn open(&self) -> usize {
        self.counts.lock().all
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock();
        counts.all -= 1;
        if let Some(mine) = counts.per_peer.get_mut(&self.peer) {
            *mine -= 1;
            if *mine == 0 {
                counts.per_peer.remove(&self.peer);
            }
        }
    }
}

/// One customer's line has a whole IPv6 /64, so that is what counts as a peer; IPv4 in IPv6 clothes counts as IPv4.
fn peer_key(peer: IpAddr) -> u128 {
    match peer.to_canonical() {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => u128::from(v6) & !u128::from(u64::MAX),
    }
}

/// Counts calls in flight; unary and streaming apart, so that followers of a feed do not keep out readers.
pub struct CallGate {
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl CallGate {
    pub fn new(options: &NetworkOptions) -> Self {
        CallGate {
            calls: Arc::new(Semaphore::new(options.max_calls)),
            streams: Arc::new(Semaphore::new(options.max_streams)),
        }
    }

    /// A place, or `None` when full; it is never waited for: better refused now than late. It belongs to the call until
    /// its last byte was handed to the connection, so that unread responses count.
    pub fn enter(&self, streaming: bool) -> Option<OwnedSemaphorePermit> {
        let gate = if streaming { &self.streams } else { &self.calls };
        gate.clone().try_acquire_owned().ok()
    }
}

/// Counts the bytes of large requests.
pub struct ByteGate {
    max: usize,
    used: AtomicUsize,
}

/// What one call holds of it; gives it back when dropped.
pub struct HeldBytes {
    gate: Arc<ByteGate>,
    received: usize,
    counted: usize,
}

impl ByteGate {
    pub fn new(options: &NetworkOptions) -> Arc<Self> {
        Arc::new(ByteGate { max: options.max_request_bytes, used: AtomicUsize::new(0) })
    }

    /// For one call, nothing yet.
    pub fn hold(self: &Arc<Self>) -> HeldBytes {
        HeldBytes { gate: self.clone(), received: 0, counted: 0 }
    }
}

impl HeldBytes {
    /// Adds what came in; false when there is no room.
    pub fn add(&mut self, bytes: usize) -> bool {
        self.received = self.received.saturating_add(bytes);
        let more = self.received.saturating_sub(UNCOUNTED_BYTES).saturating_sub(self.counted);
        if more == 0 {
            return true;
        }
        let used = self.gate.used.fetch_add(more, Ordering::Relaxed);
        self.counted += more;
        used.saturating_add(more) <= self.gate.max
    }

    /// Whether it holds anything.
    pub fn counts(&self) -> bool {
        self.counted > 0
    }

    /// Another that holds nothing, of the same gate.
    pub fn fresh(&self) -> HeldBytes {
        self.gate.hold()
    }

    /// The messages so far were taken out of memory.
    pub fn release(&mut self) {
        if self.counted > 0 {
            self.gate.used.fetch_sub(self.counted, Ordering::Relaxed);
        }
        (self.received, self.counted) = (0, 0);
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_beyond_the_free_part_and_given_back() {
        let gate = ByteGate::new(&NetworkOptions { max_request_bytes: 100, ..NetworkOptions::default() });
        let (mut one, mut two) = (gate.hold(), gate.hold());
        assert!(one.add(UNCOUNTED_BYTES) && two.add(UNCOUNTED_BYTES));
        assert!(one.add(60) && two.add(40) && !two.add(1));
        one.release();
        assert!(one.add(UNCOUNTED_BYTES + 59) && !one.add(1));
        drop((one, two));
        assert_eq!(gate.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_peer_cannot_take_all_places() {
        let gate = ConnectionGate::new(&NetworkOptions {
            max_connections: 3,
            max_connections_per_peer: 2,
            ..NetworkOptions::default()
        });
        let a: IpAddr = "10.0.0.1".parse().unwrap();
        let _one = gate.enter(a).unwrap();
        let two = gate.enter("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(gate.enter(a).err(), Some(Refused::Peer));
        let _three = gate.enter("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(gate.enter("2001:db8::2".parse().unwrap()).err(), Some(Refused::All));
        drop(two);
        let _four = gate.enter("2001:db8::2".parse().unwrap()).unwrap();
        assert_eq!(gate.open(), 3);
    }
}

//! Files that one process at a time may have open.

use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

/// Longest wait for a lock. A process that is just ending still holds it, and so does a child of this process between fork
/// and exec, which inherits the lock of a file that was closed here.
const WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Locks a file until it is closed. Blocking, for a second at most.
///
/// # Errors
/// `WouldBlock` where another process has it, or what the file system says.
#[expect(clippy::disallowed_methods, reason = "a start has nothing to wake for, and waits a second at most")]
pub fn exclusive(file: &File) -> io::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if waited >= WAIT => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
        }
    }
}

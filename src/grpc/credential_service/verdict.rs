//! Verdicts on the wire: to most callers OK or NO, to who looks after credentials also why.

use crate::grpc::pb;
use crate::vault::credentials::{Verdict, Why};

/// Verdict and detail as a caller sees them. `sees_why`: [`crate::vault::Vault::sees_why`] of the call.
pub(super) fn wire_verdict(verdict: Verdict, sees_why: bool) -> (i32, i32) {
    let Verdict::No(why) = verdict else { return (pb::Verdict::Ok as i32, 0) };
    let detail = match why {
        _ if !sees_why => pb::VerdictDetail::Unspecified,
        Why::Wrong => pb::VerdictDetail::Wrong,
        Why::Unknown => pb::VerdictDetail::Unknown,
        Why::None => pb::VerdictDetail::None,
        Why::Locked(_) => pb::VerdictDetail::Locked,
        Why::SourceLocked(_) => pb::VerdictDetail::SourceLocked,
        Why::MustReset => pb::VerdictDetail::MustReset,
        Why::Expired => pb::VerdictDetail::Expired,
        Why::Revoked => pb::VerdictDetail::Revoked,
        Why::SourceRefused => pb::VerdictDetail::SourceRefused,
    };
    (pb::Verdict::No as i32, detail as i32)
}

/// Seconds until a try is looked at again, for who sees why.
pub(super) fn wire_wait(verdict: Verdict, sees_why: bool) -> u32 {
    match verdict {
        Verdict::No(Why::Locked(wait) | Why::SourceLocked(wait)) if sees_why => wait,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_callers_hear_no_and_nothing_finer() {
        for why in [Why::Wrong, Why::Unknown, Why::None, Why::Locked(9), Why::Expired, Why::Revoked] {
            assert_eq!(wire_verdict(Verdict::No(why), false), (pb::Verdict::No as i32, 0), "{why:?}");
            assert_eq!(wire_wait(Verdict::No(why), false), 0, "{why:?}");
            assert_ne!(wire_verdict(Verdict::No(why), true).1, 0, "{why:?}");
        }
        assert_eq!(wire_verdict(Verdict::Ok, true), (pb::Verdict::Ok as i32, 0));
        assert_eq!(wire_wait(Verdict::No(Why::Locked(9)), true), 9);
    }
}

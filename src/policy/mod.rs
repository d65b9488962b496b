//! Policies: what a tenant promised, as tables that decide. `file` reads the text, `lint` finds what makes no sense,
//! `compiled` answers `(facts, now) -> Decision` with the rule that decided; `value`, `normalize` and `mask` are what
//! a rule says about a value. Nothing here does I/O or waits.
//!
//! Files see each other in one direction: `keys`, `period`, `mask` and `guard`, then `file`, `lint`, `compiled`, `value`.

pub mod compiled;
pub mod file;
pub mod keys;
pub mod lint;
pub mod mask;
pub mod period;

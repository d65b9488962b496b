//! Policies: what a tenant promised, as tables that decide. `file` reads the text, `lint` finds what makes no sense,
//! `compiled` answers `(facts, now) -> Decision` with the rule that decided; `value` and `mask` are what
//! a rule says about a value. Nothing here does I/O or waits.
//!
//! Files see each other in one direction: `keys`, `period`, `mask` and `guard`, then `file`, `form` and `lint`, then
//! `compiled` and `value`.

pub mod compiled;
pub mod file;
mod form;
mod guard;
pub mod keys;
pub mod lint;
pub mod mask;
pub mod period;
pub mod value;

#[cfg(test)]
mod tests;

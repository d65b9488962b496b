//! Policies: what a tenant promised, as tables that decide. `file` reads the text, `lint` finds what makes no sense,
//! `compiled` answers `(facts, now) -> Decision` with the rule that decided; `value` and `mask` are what
//! a rule says about a value. Nothing here does I/O or waits.
//!
//! Files see each other in one direction: `keys`, `period`, `mask` and `guard`, then `finding`, `file` and `parse`, then
//! `form` and `lint` with `changes`, then `rules`, `build` and `compiled` with its `decide` and `retention`, then `value`.

mod build;
mod changes;
pub mod compiled;
mod decide;
pub mod file;
mod finding;
mod form;
mod guard;
pub mod keys;
pub mod lint;
pub mod mask;
mod parse;
pub mod period;
mod retention;
mod rules;
pub mod value;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

//! Policies: what a tenant promised, as tables that decide. `file` reads the text, `lint` finds what makes no sense,
//! `compiled` answers `(facts, now) -> Decision` with the rule that decided; `value` and `mask` are what
//! a rule says about a value. Nothing here does I/O or waits.
//!
//! Files see each other in one direction: `keys`, `period`, `mask` and `guard`, then `finding`, `file` and `parse`, then
//! `form` and `lint` with `changes`, `diff`, then `rules`, `build` and `compiled` with its `decide` and `retention`, then `value`.

mod build;
mod changes;
pub mod claim;
mod claims;
pub mod compiled;
mod date;
mod decide;
pub mod diff;
pub mod due;
pub mod facts;
pub mod file;
mod finding;
mod form;
mod guard;
mod key;
pub mod keys;
pub mod lint;
pub mod mask;
mod parse;
pub mod period;
mod promises;
mod records;
mod retention;
mod rights;
mod rules;
mod tables;
mod tables_credential;
mod tables_promise;
mod tables_use;
pub mod value;
mod words;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_claims;

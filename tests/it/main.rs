//! Tests of the whole: over the vault floor, and over a real socket, with a clock that is moved by hand.

#![allow(clippy::disallowed_methods)] // timing tests look at the real clock

mod access;
mod anchors;
mod api;
mod api_keys;
mod approval;
mod audit_access;
mod audit_loss;
mod aws_kms;
mod backup;
mod bulk;
mod codes;
mod combinations;
mod company;
mod decoys;
mod erase;
mod evidence;
mod expiry;
mod harness;
mod hostile;
mod lookups;
mod matrix;
mod model;
mod net;
mod own_secrets;
mod passwords;
mod policy_life;
mod promises;
mod pruning;
mod quota;
mod races;
mod recipients;
mod repeat;
mod report;
mod reseal;
mod restore;
mod rights;
mod rotation;
mod rotation_beside;
mod rules;
mod schedule;
mod since;
mod swapped;
mod transit;
mod values;

//! Scripted faults: rules that say which commands meet what. docs/faults.md has the grammar.
//!
//! A rule is a checked value ([`Rule`]); what is counted of it is shared by all threads ([`when`]), so that
//! it does not matter which of them meets a command. What a command meets is a [`Script`](super::Script),
//! which who runs the command carries out.

mod armed;
mod control_lab;
mod draft;
mod error;
mod finish;
mod grammar;
mod matches;
mod ops;
mod parse;
mod pieces;
mod registry;
mod rule;
mod values;
mod when;
mod words;
mod worker_lab;

pub use self::error::RuleError;
pub use self::grammar::{Group, RuleWord, WORDS};
pub use self::registry::{Faults, RULES_MAX, RuleReport};
pub use self::rule::Rule;
pub use self::words::RULE_MAX;

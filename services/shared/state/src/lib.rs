//! State on disk: versions of its format ([`Format`]), and files that are replaced as a whole ([`replace`]).
//!
//! A document carries the version of its format. What an earlier release wrote is brought forward, one step a version;
//! what a later one wrote is refused, because this release does not know what it would lose. Such a document is whole,
//! so no older copy of it may stand in for it: [`Refused::is_damage`] tells it from one that is torn.
//!
//! Not for configuration, which people write: that has no version, and unknown keys are refused.

mod file;
mod format;

pub use file::{replace, replace_with_mode};
pub use format::{Format, Refused, Step};

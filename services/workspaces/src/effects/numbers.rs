//! What keepers know our things by: they count in `u64`, we have ULIDs, and a service that takes a keeper over must
//! come to the same numbers.
//!
//! The random part of a ULID is long enough that no two commands of one keeper meet.

use ulid::Ulid;

use crate::state::Command;

/// Standard output and error of a command, as they come out of its pipes.
pub(super) const TAG_STDOUT: u8 = 1;
pub(super) const TAG_STDERR: u8 = 2;
/// Where the completion is written.
pub(super) const TAG_DONE: u8 = 3;
/// The end of a kept standard input that is written to.
pub(super) const TAG_INPUT: u8 = 4;
/// The master of a terminal that nobody is connected to.
pub(super) const TAG_TERMINAL: u8 = 5;
/// Standard descriptors that are needed again at the next launch: this and the two that follow.
pub(super) const TAG_STDIO: u8 = 10;

/// Further inputs and outputs that are needed again at the next launch: this and those that follow.
pub(super) const TAG_FURTHER: u8 = 32;
/// Ends of the flows that a workspace shares, under its own number: this and those that follow.
pub(super) const TAG_SLOT: u8 = 96;

/// A pipeline, a workspace, or a command's first launch.
pub(super) fn number(id: Ulid) -> u64 {
    u128::from(id) as u64
}

/// One launch of a command.
pub(super) fn launch(id: Ulid, relaunches: u32) -> u64 {
    number(id).wrapping_add(u64::from(relaunches))
}

/// Who owns what a command needs until it has ended for good: its one launch, or, where there may be more, a number
/// that is no launch's.
pub(super) fn owner(command: &Command, launched_again: bool) -> u64 {
    let first = number(command.what.id);
    if launched_again { first.wrapping_sub(1) } else { first }
}

//! Streams, buffers and time limits below the protocols.

mod buf;
mod clock;
mod stream;

pub(crate) use buf::{Buf, Pool};
pub(crate) use clock::{Clock, Slot};
pub(crate) use stream::{Io, IoError, Pipes, Stream};

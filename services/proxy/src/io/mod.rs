//! Streams, buffers and time limits below the protocols.

mod buf;
mod clock;
mod more;
mod round;
mod stream;

pub(crate) use buf::{Buf, Pool};
pub(crate) use clock::{Clock, Slot};
pub(crate) use more::more;
pub(crate) use round::after_others;
pub(crate) use stream::{Io, IoError, Pipes, Stream};

//! One command's log on disk: a file a stream, and the order in which they arrived.
//!
//! ```text
//! ID.out  ID.err   the streams' bytes, each at its own offset: byte N of the stream is byte N of the file.
//!                  Past KEEP bytes the oldest are given back by punching holes (fallocate(2)), so an offset
//!                  stays what it is.
//! ID.idx           header: magic, first kept byte of each stream, number of the first valid record;
//!                  then records: stream, from, to. A record grows while nothing else arrives.
//! ```
//!
//! Bytes come by `splice(2)` straight from the command's pipe: the call takes from the pipe what it has written to
//! the file, and being killed cuts it short but never in between. So a file's length is the truth about how far its
//! stream was taken, whatever happened to the process that took it; the index is brought in line with it when the
//! log is opened again.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use tokio::sync::watch;
use ulid::Ulid;

/// Bytes kept of each stream.
pub(super) const KEEP: u64 = 16 * 1024 * 1024;
/// So much is given back at once.
const STEP: u64 = 1024 * 1024;
/// Most records of the index that are kept; past it the older half goes.
const RECORDS_MAX: u64 = 65_536;
/// Bytes taken from a pipe by one call.
const PIECE: usize = 256 * 1024;
const MAGIC: &[u8; 8] = b"SHIPLOG2";
const HEADER: u64 = 32;
const RECORD: u64 = 24;

/// A command's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// As on the wire and in the index: 1 and 2, like the descriptors.
    pub(crate) fn number(self) -> u8 {
        self.at() as u8 + 1
    }

    pub(super) fn at(self) -> usize {
        match self {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }
    }

    fn of(number: u8) -> Option<Self> {
        Self::BOTH.into_iter().find(|stream| stream.number() == number)
    }
}

/// What there is of a log now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte of each stream that is kept.
    pub(super) start: [u64; 2],
    /// Bytes of each stream that ever came.
    pub(super) end: [u64; 2],
    /// Numbers of the first record of the index and of the one after the last.
    pub(super) records: [u64; 2],
    /// Nothing more will come.
    pub(super) ended: bool,
}

/// A piece of a stream, in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) stream: Stream,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What became of an attempt to take bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Bytes(u64),
    /// Nothing is there now.
    Nothing,
    /// All writers have closed it.
    End,
}

#[derive(Debug)]
pub(super) struct LogFile {
    streams: [File; 2],
    index: File,
    extent: watch::Sender<Extent>,
    /// The last record; both streams are written by one thread, but read by others.
    last: Mutex<Option<Record>>,
    /// Held from before bytes leave a pipe until they are known of.
    taking: Mutex<()>,
}

/// The files of a command's log.
pub(super) fn paths(folder: &Path, id: Ulid) -> [PathBuf; 3] {
    ["out", "err", "idx"].map(|kind| folder.join(format!("{id}.{kind}")))
}

impl LogFile {
    /// Opens a log to write on, or begins it.
    pub(super) fn open(folder: &Path, id: Ulid) -> io::Result<Self> {
        Self::with(folder, id, File::options().create(true).truncate(false).read(true).write(true))
    }

    /// Opens a log that nothing more comes to.
    pub(super) fn ended(folder: &Path, id: Ulid) -> io::Result<Self> {
        let log = Self::with(folder, id, File::options().read(true).write(true))?;
        log.end();
        Ok(log)
    }

    fn with(folder: &Path, id: Ulid, options: &std::fs::OpenOptions) -> io::Result<Self> {
        let [out, err, index] = paths(folder, id);
        let named = |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let open = |path: &Path| options.open(path).map_err(|e| named(path, e));
        let streams = [open(&out)?, open(&err)?];
        let index_file = open(&index)?;
        let (extent, last, taking) = (watch::Sender::default(), Mutex::default(), Mutex::default());
        let log = LogFile { streams, index: index_file, extent, last, taking };
        let mut extent = Extent::default();
        let length = log.index.metadata()?.len();
        if length >= HEADER {
            let mut header = [0; HEADER as usize];
            log.index.read_exact_at(&mut header, 0)?;
            if &header[..8] != MAGIC {
                return Err(named(&index, io::Error::other("it is not a log of this version of Shipote")));
            }
            extent.start = [number(&header[8..16]), number(&header[16..24])];
            // a record that was cut short is none
            extent.records = [number(&header[24..32]), (length - HEADER) / RECORD];
        }
        for stream in Stream::BOTH {
            extent.end[stream.at()] = log.streams[stream.at()].metadata()?.len();
        }
        log.extent.send_replace(extent);
        log.reconcile()?;
        Ok(log)
    }

    /// What the files have and the index does not know of came in the last moment of a service that was killed.
    fn reconcile(&self) -> io::Result<()> {
        let extent = *self.extent.borrow();
        let mut known = extent.start;
        let mut number = extent.records[1];
        // the last record of each stream says how far it was known
        let mut open = [true, true];
        while number > extent.records[0] && open.contains(&true) {
            number -= 1;
            let Some(record) = self.record(number)? else { continue };
            let at = record.stream.at();
            if std::mem::take(&mut open[at]) {
                known[at] = known[at].max(record.to);
            }
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = match extent.records[1].checked_sub(1) {
            Some(last) if last >= extent.records[0] => self.record(last)?,
            _ => None,
        };
        for stream in Stream::BOTH {
            let end = extent.end[stream.at()];
            if end > known[stream.at()] {
                self.append(Record { stream, from: known[stream.at()], to: end })?;
            }
        }
        Ok(())
    }

    pub(super) fn extent(&self) -> Extent {
        *self.extent.borrow()
    }

    pub(super) fn changes(&self) -> watch::Receiver<Extent> {
        self.extent.subscribe()
    }

    /// Bytes that it takes on disk, about.
    pub(super) fn kept(&self) -> u64 {
        let extent = self.extent();
        (0..2).map(|at| extent.end[at] - extent.start[at]).sum()
    }

    /// How far a stream will be known when all that is in `pipe` now has been taken.
    pub(super) fn with_pending(&self, stream: Stream, pipe: impl AsFd) -> u64 {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        self.extent().end[stream.at()] + rustix::io::ioctl_fionread(pipe).unwrap_or(0)
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        self.extent.send_modify(|extent| extent.ended = true);
    }

    /// More comes again.
    pub(super) fn resume(&self) {
        self.extent.send_modify(|extent| extent.ended = false);
    }

    /// Takes what is in a pipe. What a call has taken is in the file.
    pub(super) fn take(&self, stream: Stream, source: impl AsFd) -> io::Result<Taken> {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.extent.borrow().end[stream.at()];
        let mut at = from;
        let file = &self.streams[stream.at()];
        let bytes = loop {
            let taken = match splice(&source, None, file, Some(&mut at), PIECE, SpliceFlags::NONBLOCK) {
                // no pipe: a terminal
                Err(Errno::INVAL) => read_terminal(&source, file, at),
                taken => taken,
            };
            match taken {
                Ok(0) => return Ok(Taken::End),
                Ok(bytes) => break bytes as u64,
                Err(Errno::AGAIN) => return Ok(Taken::Nothing),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let to = from + bytes;
        if let Err(error) = self.append(Record { stream, from, to }) {
            // the bytes are there, though nobody knows when they came
            self.extent.send_modify(|now| now.end[stream.at()] = to);
            return Err(error);
        }
        self.trim(stream)?;
        Ok(Taken::Bytes(bytes))
    }

    /// Writes a record down, and tells who waits.
    fn append(&self, record: Record) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut extent = *self.extent.borrow();
        let (record, number) = match *last {
            Some(before) if before.stream == record.stream && before.to == record.from => {
                (Record { from: before.from, ..record }, extent.records[1] - 1)
            }
            _ => (record, extent.records[1]),
        };
        let mut bytes = [0; RECORD as usize];
        bytes[0] = record.stream.number();
        bytes[8..16].copy_from_slice(&record.from.to_be_bytes());
        bytes[16..].copy_from_slice(&record.to.to_be_bytes());
        if number == 0 {
            self.write_header(&extent)?;
        }
        self.index.write_all_at(&bytes, HEADER + number * RECORD)?;
        *last = Some(record);
        extent.records[1] = number + 1;
        if extent.records[1] - extent.records[0] > RECORDS_MAX {
            extent.records[0] += RECORDS_MAX / 2;
            self.write_header(&extent)?;
            punch(&self.index, HEADER, extent.records[0] * RECORD);
        }
        let at = record.stream.at();
        self.extent.send_modify(|now| {
            now.records = extent.records;
            now.end[at] = now.end[at].max(record.to);
        });
        Ok(())
    }

    /// Gives the oldest part of a stream back.
    fn trim(&self, stream: Stream) -> io::Result<()> {
        let mut extent = *self.extent.borrow();
        let (start, end) = (extent.start[stream.at()], extent.end[stream.at()]);
        if end - start <= KEEP {
            return Ok(());
        }
        let kept_from = (end - KEEP).div_ceil(STEP) * STEP;
        extent.start[stream.at()] = kept_from.min(end);
        // first what is no more, then its bytes: who reads never takes a hole for the output
        self.write_header(&extent)?;
        self.extent.send_modify(|now| now.start = extent.start);
        punch(&self.streams[stream.at()], 0, kept_from);
        Ok(())
    }

    fn write_header(&self, extent: &Extent) -> io::Result<()> {
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        for (at, value) in [extent.start[0], extent.start[1], extent.records[0]].into_iter().enumerate() {
            header[8 + at * 8..16 + at * 8].copy_from_slice(&value.to_be_bytes());
        }
        self.index.write_all_at(&header, 0)
    }

    /// A record of the index, by its number; the last one may have grown when it is read again.
    pub(super) fn record(&self, number_of: u64) -> io::Result<Option<Record>> {
        let mut bytes = [0; RECORD as usize];
        match self.index.read_exact_at(&mut bytes, HEADER + number_of * RECORD) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Stream::of(bytes[0]).map(|stream| Record { stream, from: number(&bytes[8..16]), to: number(&bytes[16..]) }))
    }

    /// Bytes of a stream from an offset on.
    pub(super) fn read(&self, stream: Stream, from: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.streams[stream.at()].read_at(buffer, from)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// Gives the file system back what lies before `to`. Where it cannot take it the file stays large; who reads begins
/// behind it all the same.
fn punch(file: &File, from: u64, length: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = fallocate(file.as_fd(), flags, from, length) {
        tracing::debug!("give back the oldest part of a log: {error}");
    }
}

/// As splice(2) from a pipe; what was read and could not be written is lost, which a full disk says.
fn read_terminal(source: impl AsFd, file: &File, at: u64) -> rustix::io::Result<usize> {
    let mut buffer = [0; 16 * 1024];
    match rustix::io::read(source, &mut buffer) {
        // the last holder of the terminal is gone, pty(7)
        Err(Errno::IO) => Ok(0),
        Ok(read) => {
            let written = file.write_all_at(&buffer[..read], at);
            written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOSPC))?;
            Ok(read)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
        std::io::pipe().unwrap()
    }

    fn all(log: &LogFile, stream: Stream) -> Vec<u8> {
        let extent = log.extent();
        let (start, end) = (extent.start[stream.at()], extent.end[stream.at()]);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        assert_eq!(log.read(stream, start, &mut bytes).unwrap(), bytes.len());
        bytes
    }

    #[test]
    fn a_service_that_died_between_the_bytes_and_their_record_has_lost_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let id = Ulid::generate();
        let (read, mut write) = pipe();
        let log = LogFile::open(folder.path(), id).unwrap();
        write.write_all(b"one ").unwrap();
        assert_eq!(log.take(Stream::Stdout, &read).unwrap(), Taken::Bytes(4));
        drop(log);
        // what splice(2) has done, and nothing after it
        write.write_all(b"two").unwrap();
        let [out, ..] = paths(folder.path(), id);
        let file = File::options().write(true).open(out).unwrap();
        assert_eq!(splice(&read, None, &file, Some(&mut 4), PIECE, SpliceFlags::NONBLOCK), Ok(3));
        let log = LogFile::open(folder.path(), id).unwrap();
        assert_eq!(all(&log, Stream::Stdout), b"one two");
        assert_eq!(log.extent().records, [0, 1]);
        assert_eq!(log.record(0).unwrap(), Some(Record { stream: Stream::Stdout, from: 0, to: 7 }));
        write.write_all(b" three").unwrap();
        log.take(Stream::Stdout, &read).unwrap();
        assert_eq!(log.record(0).unwrap().unwrap().to, 13);
        // one who only reads sees the same
        assert_eq!(all(&LogFile::ended(folder.path(), id).unwrap(), Stream::Stdout), b"one two three");
    }

    #[test]
    fn a_torn_index_is_brought_in_line() {
        let folder = tempfile::tempdir().unwrap();
        let id = Ulid::generate();
        let (read, mut write) = pipe();
        let log = LogFile::open(folder.path(), id).unwrap();
        for stream in [Stream::Stdout, Stream::Stderr, Stream::Stdout] {
            write.write_all(b"12345").unwrap();
            log.take(stream, &read).unwrap();
        }
        assert_eq!(log.extent().records, [0, 3]);
        let [.., index] = paths(folder.path(), id);
        let file = File::options().write(true).open(index).unwrap();
        for length in (0..=HEADER + 3 * RECORD).rev() {
            file.set_len(length).unwrap();
            let log = LogFile::open(folder.path(), id).unwrap();
            assert_eq!((all(&log, Stream::Stdout).len(), all(&log, Stream::Stderr).len()), (10, 5), "{length}");
            let told: u64 = (0..log.extent().records[1])
                .filter_map(|n| log.record(n).unwrap())
                .map(|record| record.to - record.from)
                .sum();
            assert_eq!(told, 15, "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_whatever_the_order(
            pieces in prop::collection::vec((any::<bool>(), 1..5000_usize, any::<bool>()), 1..40)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let id = Ulid::generate();
            let (read, mut write) = pipe();
            let mut log = LogFile::open(folder.path(), id).unwrap();
            let mut expected = [Vec::new(), Vec::new()];
            let mut order = Vec::new();
            for (number, (second, length, reopen)) in pieces.into_iter().enumerate() {
                if reopen {
                    log = LogFile::open(folder.path(), id).unwrap();
                }
                let stream = if second { Stream::Stderr } else { Stream::Stdout };
                let bytes = vec![number as u8; length];
                write.write_all(&bytes).unwrap();
                prop_assert_eq!(log.take(stream, &read).unwrap(), Taken::Bytes(length as u64));
                expected[stream.at()].extend_from_slice(&bytes);
                order.extend_from_slice(&bytes);
            }
            for stream in Stream::BOTH {
                prop_assert_eq!(&all(&log, stream), &expected[stream.at()]);
            }
            let mut told = Vec::new();
            for number in log.extent().records[0]..log.extent().records[1] {
                let record = log.record(number).unwrap().unwrap();
                let mut bytes = vec![0; usize::try_from(record.to - record.from).unwrap()];
                log.read(record.stream, record.from, &mut bytes).unwrap();
                told.extend(bytes);
            }
            prop_assert_eq!(told, order);
        }
    }

    #[test]
    fn the_oldest_is_given_back_and_offsets_stay() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let id = Ulid::generate();
        let (read, mut write) = pipe();
        let log = LogFile::open(folder.path(), id).unwrap();
        let total = KEEP + 3 * STEP + 5;
        let mut written = 0_u64;
        while written < total {
            let room = usize::try_from((total - written).min(32 * 1024)).unwrap();
            let block: Vec<u8> = (0..room as u64).map(|i| ((written + i) % 251) as u8).collect();
            write.write_all(&block).unwrap();
            log.take(Stream::Stdout, &read).unwrap();
            written += room as u64;
        }
        let extent = log.extent();
        assert_eq!(extent.end[0], total);
        assert!(extent.end[0] - extent.start[0] <= KEEP && extent.end[0] - extent.start[0] > KEEP - STEP);
        let at = extent.start[0] + 100;
        let mut byte = [0];
        log.read(Stream::Stdout, at, &mut byte).unwrap();
        assert_eq!(u64::from(byte[0]), at % 251);
        let [out, ..] = paths(folder.path(), id);
        let stat = std::fs::metadata(out).unwrap();
        assert_eq!(stat.len(), total);
        assert!(stat.blocks() * 512 <= KEEP + STEP, "{} bytes on disk", stat.blocks() * 512);
        assert_eq!(LogFile::open(folder.path(), id).unwrap().extent().start, extent.start);
    }
}

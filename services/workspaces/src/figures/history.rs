//! The last samples of a workspace, in memory and in a file of fixed size that outlives the service.
//!
//! ```text
//! "shipote-history" 0x01 | 64 records of 104 bytes: 12 numbers (u64, little-endian), and the CRC-32 of them as a 13th
//! ```
//!
//! A sample is one write in place, not synced: what the service's death must not lose is in the page cache. A record
//! that a power cut tore fails its check and is left out.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shipote_bus::words::counted;

use super::sample::Sample;

/// Samples that are kept: two minutes of them.
const SAMPLES: usize = 64;
const MAGIC: &[u8; 16] = b"shipote-history\x01";
const NUMBERS: usize = 12;
const RECORD: usize = (NUMBERS + 1) * 8;

/// The last samples of one workspace.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    /// Number of the next sample since the workspace was made.
    next: u64,
    file: Option<File>,
}

impl History {
    /// The samples that an earlier instance has left, if any. Blocks.
    pub(super) fn load(path: &Path) -> Self {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("read the history {}: {error}; it begins anew", path.display());
                }
                return History::default();
            }
        };
        match decode(&bytes) {
            Some((samples, next, torn)) => {
                if torn > 0 {
                    let torn = counted(torn, "sample");
                    tracing::warn!("read the history {}: left out, as torn: {torn}", path.display());
                }
                History { samples, next, file: None }
            }
            None => {
                tracing::warn!("read the history {}: it is of another version; it begins anew", path.display());
                // its records must not be taken for ours
                let _ = fs::remove_file(path);
                History::default()
            }
        }
    }

    /// Oldest first.
    pub(super) fn samples(&self) -> impl DoubleEndedIterator<Item = &Sample> + Clone {
        self.samples.iter()
    }

    /// Keeps one more; the file is made with the first. Blocks.
    pub(super) fn push(&mut self, sample: Sample, path: &Path) {
        let at = self.next;
        self.next += 1;
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        if let Err(error) = self.write(at, &sample, path) {
            tracing::warn!("write the history {}: {error}", path.display());
        }
    }

    fn write(&mut self, number: u64, sample: &Sample, path: &Path) -> io::Result<()> {
        if self.file.is_none() {
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            file.write_all_at(MAGIC, 0)?;
            self.file = Some(file);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let slot = number % SAMPLES as u64;
        file.write_all_at(&encode(number, sample), MAGIC.len() as u64 + slot * RECORD as u64)
    }
}

/// Where the histories lie.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes it where it is not there.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let path = state.join("history");
        fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }

    pub(super) fn file(&self, workspace: ulid::Ulid) -> PathBuf {
        self.0.join(workspace.to_string())
    }

    /// Removes the histories of workspaces that are no more.
    pub(super) fn clear_except(&self, living: impl Fn(&str) -> bool) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        for entry in entries.filter_map(Result::ok) {
            if !entry.file_name().to_str().is_some_and(&living) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn encode(number: u64, sample: &Sample) -> [u8; RECORD] {
    let there = |bit: u64, value: bool| if value { 1 << bit } else { 0 };
    let flags = there(0, sample.cgroup)
        | there(1, sample.memory.is_some())
        | there(2, sample.memory_peak.is_some())
        | there(3, sample.cpu_usec.is_some())
        | there(4, sample.cpu_percent.is_some())
        | there(5, sample.io.is_some())
        | there(6, sample.pids.is_some());
    let (read, written) = sample.io.unwrap_or_default();
    let numbers: [u64; NUMBERS] = [
        number,
        sample.at,
        sample.uptime_ms,
        u64::from(sample.commands_alive) << 32 | u64::from(sample.commands_total),
        flags,
        sample.memory.unwrap_or_default(),
        sample.memory_peak.unwrap_or_default(),
        sample.cpu_usec.unwrap_or_default(),
        u64::from(sample.cpu_percent.unwrap_or_default().to_bits()),
        read,
        written,
        sample.pids.unwrap_or_default(),
    ];
    let mut record = [0; RECORD];
    for (place, number) in record.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let check = u64::from(crc32fast::hash(&record[..NUMBERS * 8]));
    record[NUMBERS * 8..].copy_from_slice(&check.to_le_bytes());
    record
}

/// Samples in their order, the number of the next, and how many are torn; `None`: another version.
fn decode(bytes: &[u8]) -> Option<(VecDeque<Sample>, u64, usize)> {
    let records = bytes.strip_prefix(MAGIC)?.chunks(RECORD).take(SAMPLES);
    let mut torn = 0;
    let mut known: Vec<(u64, Sample)> = Vec::new();
    // a slot that was never written is a hole
    for record in records.filter(|record| record.iter().any(|byte| *byte != 0)) {
        match decode_record(record) {
            Some(sample) => known.push(sample),
            None => torn += 1,
        }
    }
    known.sort_by_key(|(number, _)| *number);
    let next = known.last().map_or(0, |(number, _)| number.saturating_add(1));
    Some((known.into_iter().map(|(_, sample)| sample).collect(), next, torn))
}

fn decode_record(record: &[u8]) -> Option<(u64, Sample)> {
    if record.len() != RECORD {
        return None;
    }
    let number = |at: usize| record[at * 8..at * 8 + 8].try_into().map_or(0, u64::from_le_bytes);
    if number(NUMBERS) != u64::from(crc32fast::hash(&record[..NUMBERS * 8])) {
        return None;
    }
    let flags = number(4);
    let there = |bit: u64, at: usize| (flags & 1 << bit != 0).then(|| number(at));
    let low = |number: u64| (number & 0xffff_ffff) as u32;
    let sample = Sample {
        at: number(1),
        uptime_ms: number(2),
        commands_alive: low(number(3) >> 32),
        commands_total: low(number(3)),
        cgroup: flags & 1 != 0,
        memory: there(1, 5),
        memory_peak: there(2, 6),
        cpu_usec: there(3, 7),
        cpu_percent: there(4, 8).map(|bits| f32::from_bits(low(bits))),
        io: there(5, 9).map(|read| (read, number(10))),
        pids: there(6, 11),
    };
    Some((number(0), sample))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(at: u64) -> Sample {
        Sample {
            at,
            memory: Some(at * 10),
            cpu_percent: Some(1.5),
            commands_alive: 2,
            cgroup: true,
            ..Sample::default()
        }
    }

    #[test]
    fn the_last_samples_survive_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        let mut history = History::load(&path);
        for at in 0..100 {
            history.push(sample(at), &path);
        }
        drop(history);
        assert_eq!(fs::metadata(&path).unwrap().len(), (MAGIC.len() + SAMPLES * RECORD) as u64);
        let mut again = History::load(&path);
        let want: Vec<Sample> = (36..100).map(sample).collect();
        assert!(again.samples().eq(&want));
        again.push(sample(100), &path);
        assert_eq!(History::load(&path).samples().next_back(), Some(&sample(100)));
        assert_eq!(History::load(&path).samples().count(), SAMPLES);
    }

    #[test]
    fn a_torn_record_is_left_out_and_another_version_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        let mut history = History::default();
        for at in 0..5 {
            history.push(sample(at), &path);
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes[MAGIC.len() + RECORD + 40] ^= 1;
        bytes.truncate(bytes.len() - 3);
        fs::write(&path, &bytes).unwrap();
        let (samples, next, torn) = decode(&bytes).unwrap();
        assert_eq!(
            (samples.into_iter().collect::<Vec<_>>(), next, torn),
            (vec![sample(0), sample(2), sample(3)], 4, 2)
        );
        bytes[15] = 2;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(History::load(&path).samples().count(), 0);
        assert!(!path.exists());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_none(mut bytes in prop::collection::vec(any::<u8>(), 0..400), ours: bool) {
            if ours {
                bytes.splice(0..0, *MAGIC);
            }
            let _ = decode(&bytes);
        }

        #[test]
        fn a_record_comes_back(
            number: u64, at: u64, alive: u32, total: u32, memory: Option<u64>, io: Option<(u64, u64)>, cpu in prop::option::of(0f32..1e6),
        ) {
            let sample = Sample {
                at, commands_alive: alive, commands_total: total, memory, io, cpu_percent: cpu, ..Sample::default()
            };
            prop_assert_eq!(decode_record(&encode(number, &sample)), Some((number, sample)));
        }
    }
}

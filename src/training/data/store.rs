//! Where the training pictures lie: in memory, or in a temporary file where memory does not suffice.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    sync::{Mutex, PoisonError},
};

/// Records of equal length, written once in order, then read by index.
#[derive(Debug)]
pub(super) struct Store {
    record: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    /// A file without a name: it goes when the program does.
    Disk(Mutex<File>),
}

impl Store {
    /// For about `count` records of `record` bytes, on disk if that is more than `memory` bytes.
    pub fn new(record: usize, count: usize, memory: u64) -> io::Result<Self> {
        let bytes = record as u64 * count as u64;
        let place = if bytes <= memory {
            Place::Memory(Vec::with_capacity(bytes as usize))
        } else {
            Place::Disk(Mutex::new(tempfile::tempfile()?))
        };
        Ok(Self { record, place })
    }

    pub fn push(&mut self, record: &[u8]) -> io::Result<()> {
        debug_assert_eq!(record.len(), self.record);
        match &mut self.place {
            Place::Memory(bytes) => {
                bytes.extend_from_slice(record);
                Ok(())
            }
            Place::Disk(file) => file
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .write_all(record),
        }
    }

    /// Record `index` into `out`, which has a record's length.
    pub fn read(&self, index: usize, out: &mut [u8]) -> io::Result<()> {
        match &self.place {
            Place::Memory(bytes) => {
                out.copy_from_slice(&bytes[index * self.record..][..self.record]);
                Ok(())
            }
            Place::Disk(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(index as u64 * self.record as u64))?;
                file.read_exact(out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_disk_hold_the_same() {
        for memory in [100, 0] {
            let mut store = Store::new(3, 4, memory).unwrap();
            for i in 0..4u8 {
                store.push(&[i, i + 1, i + 2]).unwrap();
            }
            let mut out = [0; 3];
            for i in [2u8, 0, 3, 1] {
                store.read(usize::from(i), &mut out).unwrap();
                assert_eq!(out, [i, i + 1, i + 2]);
            }
        }
    }
}

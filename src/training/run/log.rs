//! Logs of a JSON line an entry, which a resumed run cuts back to what its checkpoint has seen.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, ErrorKind, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::TrainingError;
use crate::files::write_atomically;

/// An open log of `T`s.
#[derive(Debug)]
pub(in crate::training) struct Log<T> {
    path: PathBuf,
    file: File,
    entries: PhantomData<fn(T)>,
}

impl<T: Serialize + DeserializeOwned> Log<T> {
    /// Opens a log, or begins one, and cuts it back to the entries before the first that is not to stay; hands those on.
    ///
    /// # Errors
    /// [`TrainingError::Io`].
    pub fn open(path: &Path, stays: impl Fn(&T) -> bool) -> Result<(Self, Vec<T>), TrainingError> {
        let io = |action| move |source| failed(action, path, source);
        // A pipe or a terminal holds nothing, and reading it would wait.
        let old = match std::fs::metadata(path) {
            Ok(found) if found.is_file() => Some(File::open(path).map_err(io("read"))?),
            Ok(_) => None,
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(io("read")(e)),
        };
        let mut kept = Vec::new();
        write_atomically(path, io("write"), |out| {
            let lines = old
                .into_iter()
                .flat_map(|file| BufReader::new(file).split(b'\n'));
            for line in lines {
                let mut line = line.map_err(io("read"))?;
                // A line that a kill cut in half belongs to what is done again.
                match serde_json::from_slice::<T>(&line) {
                    Ok(entry) if stays(&entry) => {
                        line.push(b'\n');
                        out.write_all(&line).map_err(io("write"))?;
                        kept.push(entry);
                    }
                    _ => break,
                }
            }
            Ok(())
        })?;
        let file = OpenOptions::new().append(true).open(path);
        let log = Self {
            path: path.into(),
            file: file.map_err(io("write"))?,
            entries: PhantomData,
        };
        Ok((log, kept))
    }

    /// Appends entries.
    ///
    /// # Errors
    /// [`TrainingError::Io`].
    pub fn append(&mut self, entries: &[T]) -> Result<(), TrainingError> {
        let mut text = String::new();
        for entry in entries {
            text.push_str(&serde_json::to_string(entry).unwrap_or_default());
            text.push('\n');
        }
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|source| failed("write", &self.path, source))
    }
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> TrainingError {
    TrainingError::Io {
        action,
        path: path.into(),
        source,
    }
}

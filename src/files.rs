//! Files that are never half-written.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Writes a file beside its place, syncs it and renames it: a reader finds the old one or the new one.
/// Missing folders are made.
///
/// # Errors
/// Those of `write`, or the system's, through `error`.
pub fn write_atomically<E>(
    out: &Path,
    error: impl Fn(io::Error) -> E,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    if is_special(out) {
        // A pipe or device is written to, never replaced.
        let mut file = BufWriter::new(File::create(out).map_err(&error)?);
        write(&mut file)?;
        return file.flush().map_err(&error);
    }
    let folder = match out.parent() {
        Some(folder) if folder != Path::new("") => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    std::fs::create_dir_all(&folder).map_err(&error)?;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // Temporary files are private; the result follows the user's umask like any other file.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder
        .prefix(".harmonica-")
        .tempfile_in(&folder)
        .map_err(&error)?;
    let mut buffered = BufWriter::new(temporary);
    write(&mut buffered)?;
    let temporary = buffered.into_inner().map_err(|e| error(e.into_error()))?;
    temporary.as_file().sync_all().map_err(&error)?;
    temporary.persist(out).map_err(|e| error(e.error))?;
    if let Ok(folder) = File::open(&folder) {
        // Makes the rename itself durable, where folders can be synced at all.
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Whether something other than a file or folder lies at `path`.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Whether a file can be written at `path`, before hours of work end in finding out. Makes missing folders.
///
/// # Errors
/// The system's.
pub fn check_writable(path: &Path) -> io::Result<()> {
    if is_special(path) {
        return Ok(());
    }
    if path.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "it is a folder",
        ));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)?;
    tempfile::tempfile_in(folder).map(drop)
}

/// Writes bytes with [`write_atomically`].
///
/// # Errors
/// The system's.
pub fn write_bytes_atomically(out: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically(out, |e| e, |file| file.write_all(bytes))
}

/// Reads a whole file of at most `most` bytes.
///
/// # Errors
/// The system's, and [`io::ErrorKind::FileTooLarge`].
pub fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

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

/// Writes bytes with [`write_atomically`].
///
/// # Errors
/// The system's.
pub fn write_bytes_atomically(out: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically(out, |e| e, |file| file.write_all(bytes))
}

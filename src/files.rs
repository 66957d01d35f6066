//! Files that are never half-written, and files from outside that are read no further than makes sense.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Processes and threads that may write to one place at a time.
const WRITERS: usize = 64;

/// Temporary files of this process, which [`exit`] takes along.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a file beside its place, syncs it and renames it: a reader finds the old one or the new one.
/// Missing folders are made. What a process that was killed left of it is removed by the next write to the same place.
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
    let folder = folder_of(out);
    make_folder(folder).map_err(&error)?;
    let temporary = Temporary::beside(out).map_err(&error)?;
    let mut buffered = BufWriter::new(&temporary.file);
    write(&mut buffered)?;
    buffered.flush().map_err(&error)?;
    drop(buffered);
    temporary.persist(out).map_err(&error)?;
    if let Ok(folder) = File::open(folder) {
        // Makes the rename itself durable, where folders can be synced at all.
        let _ = folder.sync_all();
    }
    Ok(())
}

/// A file that is written, and locked meanwhile: one that nobody locks was left by a process that was killed.
struct Temporary {
    path: PathBuf,
    file: File,
}

/// Who has a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    /// A process that is no more; what it left was removed.
    Gone,
    /// Somebody who writes, or something that is no file.
    Somebody,
}

impl Temporary {
    /// One under a name that later writes to the same place find.
    fn beside(out: &Path) -> io::Result<Self> {
        let name = out.file_name().unwrap_or_default();
        let hash = blake3::hash(name.as_encoded_bytes()).to_hex();
        let mut made = None;
        for number in 0..WRITERS {
            let name = format!(".harmonica-{}-{number}.tmp", &hash[..16]);
            let path = folder_of(out).join(name);
            match (&made, owner(&path)?) {
                (_, Owner::Somebody) | (Some(_), Owner::Gone) => {}
                // Names are taken in turn: behind a free one lie no others.
                (Some(_), Owner::Nobody) => break,
                (None, _) => made = Self::at(path)?,
            }
        }
        let busy = || io::Error::new(ErrorKind::ResourceBusy, "too many others are writing it");
        made.ok_or_else(busy)
    }

    /// `None` where somebody else was faster.
    fn at(path: PathBuf) -> io::Result<Option<Self>> {
        // The list is held until the file is in it: a process that ends takes along what it has begun.
        let mut list = unfinished();
        let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(None),
            file => file?,
        };
        list.push(path.clone());
        drop(list);
        let made = Self { path, file };
        // Where files cannot be locked, what is left over stays; nothing else depends on the lock.
        let _ = made.file.lock();
        // Before it was locked, it looked like something left over.
        Ok(is_at(&made.file, &made.path).then_some(made))
    }

    fn persist(self, out: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, out)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut list = unfinished();
        // After its renaming there is none, unless somebody else has taken the name.
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
        list.retain(|path| *path != self.path);
    }
}

/// Who has the name of a temporary file; removes what nobody writes any more.
fn owner(path: &Path) -> io::Result<Owner> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Owner::Nobody),
        found => {
            if !found?.is_file() {
                return Ok(Owner::Somebody);
            }
        }
    }
    let Ok(file) = File::open(path) else {
        return Ok(Owner::Somebody);
    };
    match file.try_lock() {
        Ok(()) if is_at(&file, path) && fs::remove_file(path).is_ok() => Ok(Owner::Gone),
        _ => Ok(Owner::Somebody),
    }
}

/// Whether an open file still lies at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |of: io::Result<fs::Metadata>| of.ok().map(|of| (of.dev(), of.ino()));
    identity(file.metadata()).is_some_and(|own| identity(path.symlink_metadata()) == Some(own))
}

/// Whether an open file still lies at `path`, as far as the time of its creation tells.
#[cfg(not(unix))]
fn is_at(file: &File, path: &Path) -> bool {
    let created = |of: io::Result<fs::Metadata>| of.and_then(|of| of.created()).ok();
    created(path.symlink_metadata()).is_some_and(|there| created(file.metadata()) == Some(there))
}

/// Ends the process, and removes what it has not finished writing.
pub fn exit(code: i32) -> ! {
    // Held to the end: nothing is begun any more.
    let list = unfinished();
    for path in list.iter() {
        let _ = fs::remove_file(path);
    }
    std::process::exit(code)
}

/// Removes what this process has not finished writing, unless somebody is beginning or ending a file just now, who may be waiting
/// for this very call.
pub fn remove_unfinished() {
    if let Ok(list) = UNFINISHED.try_lock() {
        for path in list.iter() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Keeps other processes out of a folder, which is made, while the result lives. `None` where the system has no such locks.
///
/// # Errors
/// [`ErrorKind::WouldBlock`] where another has it; the system's.
pub fn lock_folder(folder: &Path) -> io::Result<Option<File>> {
    make_folder(folder)?;
    lock(folder)
}

#[cfg(not(windows))]
fn lock(folder: &Path) -> io::Result<Option<File>> {
    use std::fs::TryLockError;
    let Ok(file) = File::open(folder) else {
        return Ok(None);
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Windows locks no folders: a file in it that nobody else may open, and that goes with the process.
#[cfg(windows)]
fn lock(folder: &Path) -> io::Result<Option<File>> {
    use std::os::windows::fs::OpenOptionsExt;
    const DELETE_ON_CLOSE: u32 = 0x0400_0000;
    const SHARING_VIOLATION: i32 = 32;
    let opened = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .share_mode(0)
        .custom_flags(DELETE_ON_CLOSE)
        .open(folder.join(".harmonica.lock"));
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.raw_os_error() == Some(SHARING_VIOLATION) => Err(ErrorKind::WouldBlock.into()),
        Err(_) => Ok(None),
    }
}

/// Whether something other than a file or folder lies at `path`.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder and those around it; the error names what is in the way.
fn make_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder).map_err(|error| {
        let in_the_way = |path: &&Path| path.exists() && !path.is_dir();
        match folder.ancestors().find(in_the_way) {
            Some(path) => io::Error::new(
                ErrorKind::NotADirectory,
                format!("{} is no folder", path.display()),
            ),
            None => error,
        }
    })
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
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder"));
    }
    let folder = folder_of(path);
    make_folder(folder)?;
    tempfile::tempfile_in(folder).map(drop)
}

/// Writes bytes with [`write_atomically`].
///
/// # Errors
/// The system's.
pub fn write_bytes_atomically(out: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically(out, |e| e, |file| file.write_all(bytes))
}

/// Opens a file to read. A pipe, which may wait for ever, or a device, which may never end, is none.
///
/// # Errors
/// The system's, and [`ErrorKind::InvalidInput`].
pub fn open(path: &Path) -> io::Result<File> {
    match is_special(path) {
        true => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is a pipe or a device, expected a file",
        )),
        false => File::open(path),
    }
}

/// Reads a whole file of at most `most` bytes.
///
/// # Errors
/// As [`open`], and [`ErrorKind::FileTooLarge`].
pub fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it is larger than {most} bytes"),
        )),
        false => Ok(bytes),
    }
}

/// The same of a text.
///
/// # Errors
/// As [`read_up_to`], and [`ErrorKind::InvalidData`].
pub fn read_text_up_to(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read_up_to(path, most)?)
        .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("it is no text: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(name)
            .map(|n| n.into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_write_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a.txt");
        // As a killed process leaves it: under its name, and locked by nobody.
        let left: Vec<PathBuf> = (0..2)
            .map(|_| {
                let begun = Temporary::beside(&out).unwrap();
                let path = begun.path.clone();
                std::mem::forget(begun);
                path
            })
            .collect();
        assert_eq!(names(folder.path()).len(), 2);
        // Those that this process leaked still lock their files, as those that write do.
        write_bytes_atomically(&out, b"third").unwrap();
        assert_eq!(names(folder.path()).len(), 3);
        for path in &left {
            let bytes = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        }
        write_bytes_atomically(&out, b"fourth").unwrap();
        assert_eq!(names(folder.path()), ["a.txt"]);
        assert_eq!(fs::read(&out).unwrap(), b"fourth");
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_and_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a.txt");
        write_bytes_atomically(&out, b"old").unwrap();
        let failed = write_atomically(&out, |e| e, |_| Err(ErrorKind::Other.into()));
        assert!(failed.is_err());
        assert_eq!(names(folder.path()), ["a.txt"]);
        assert_eq!(fs::read(&out).unwrap(), b"old");
        let under_a_file = write_bytes_atomically(&out.join("b.txt"), b"").unwrap_err();
        assert_eq!(
            under_a_file.to_string(),
            format!("{} is no folder", out.display())
        );
    }

    /// A link in the place of a temporary file leads no write astray.
    #[cfg(unix)]
    #[test]
    fn a_link_under_the_temporary_name_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (out, victim) = (folder.path().join("a.txt"), folder.path().join("victim"));
        fs::write(&victim, b"mine").unwrap();
        let name = Temporary::beside(&out).unwrap().path.clone();
        std::os::unix::fs::symlink(&victim, &name).unwrap();
        write_bytes_atomically(&out, b"text").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert_eq!(fs::read(&out).unwrap(), b"text");
    }

    #[test]
    fn a_folder_has_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let Some(held) = lock_folder(&path).unwrap() else {
            return;
        };
        let refused = lock_folder(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        drop(held);
        assert!(lock_folder(&path).unwrap().is_some());
    }

    #[cfg(unix)]
    #[test]
    fn what_never_ends_is_no_file() {
        let refused = read_up_to(Path::new("/dev/zero"), 10).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "it is a pipe or a device, expected a file"
        );
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("long");
        fs::write(&long, [b'x'; 11]).unwrap();
        let refused = read_text_up_to(&long, 10).unwrap_err();
        assert_eq!(refused.to_string(), "it is larger than 10 bytes");
        fs::write(&long, [0xff]).unwrap();
        assert!(
            read_text_up_to(&long, 10)
                .unwrap_err()
                .to_string()
                .starts_with("it is no text: ")
        );
    }
}

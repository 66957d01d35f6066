//! Downloads into the cache that the hub's tools share.
//!
//! Files come into a folder beside the repositories, where a broken download goes on. A file gets its name in the cache when it
//! is whole and its checksum is right, and a branch its commit when all files are there.

use std::{
    env,
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{Api, ApiBuilder, ApiError, ApiRepo},
    },
};
use indicatif::{DecimalBytes, HumanDuration, ProgressBar};
use sha2::{Digest, Sha256};

use super::{
    error::{PullError, of_api},
    files::{is_plain, wanted},
};
use crate::{
    checkpoint::{HubName, Part, hub_home},
    cli::{Context, progress::bar_or_lines},
    containers::read_shard_names,
    files::write_bytes_atomically,
};

const ENDPOINT: &str = "https://huggingface.co";
/// The folder of downloads that are under way.
const STAGING: &str = ".harmonica";
/// Tries in a row that bring nothing before a download is given up.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// A repository, and where its files go.
pub(super) struct Hub {
    pub name: HubName,
    api: Api,
    endpoint: String,
    /// The repository's folder in the cache, and that of its downloads.
    folder: PathBuf,
    staging: PathBuf,
}

/// What came of it.
pub(super) struct Pulled {
    pub snapshot: PathBuf,
    pub files: usize,
    /// Bytes; what was there already does not count.
    pub downloaded: u64,
}

impl Hub {
    /// A repository of the server that the environment names.
    pub fn open(name: HubName, cache: PathBuf) -> Result<Self, PullError> {
        let offline = env::var("HF_HUB_OFFLINE").unwrap_or_default();
        if ["1", "on", "true", "yes"].contains(&&*offline.to_lowercase()) {
            return Err(PullError::Offline);
        }
        let endpoint = env::var("HF_ENDPOINT").unwrap_or_default();
        let endpoint = match endpoint.trim_end_matches('/') {
            "" => ENDPOINT.to_owned(),
            endpoint => endpoint.to_owned(),
        };
        let staging = cache.join(STAGING);
        let api = ApiBuilder::from_cache(Cache::new(staging.clone()))
            .with_endpoint(endpoint.clone())
            .with_token(token())
            .with_progress(false)
            .with_user_agent("harmonica", env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Self {
            api: api.map_err(|error| of_api(&error, &endpoint, &name.to_string()))?,
            endpoint,
            folder: name.folder_in(&cache),
            staging: name.folder_in(&staging),
            name,
        })
    }

    /// Downloads what is not there yet.
    pub fn pull(
        &self,
        only: &[Part],
        variant: Option<&str>,
        context: &Context,
    ) -> Result<Pulled, PullError> {
        let _lock = self.lock()?;
        let info = self.repository(self.name.revision()).info();
        let info = info.map_err(|error| self.api_error(&error))?;
        let commit = info.sha;
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(self.answer(format!("its commit is `{commit}`")));
        }
        let listed: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        let wanted = wanted(&listed, only, variant).map_err(|problem| self.content(problem))?;

        let repository = self.repository(&commit);
        let snapshot = self.folder.join("snapshots").join(&commit);
        let mut downloaded = 0;
        let mut files = wanted.files;
        for index in &wanted.indices {
            downloaded += self.fetch(&repository, &snapshot, index, context)?;
            let folder = index.rfind('/').map_or("", |slash| &index[..=slash]);
            for shard in read_shard_names(&snapshot.join(index))? {
                if !is_plain(&shard) {
                    return Err(
                        self.content(format!("has the shard `{shard}`, no plain file name"))
                    );
                }
                files.push(format!("{folder}{shard}"));
            }
        }
        for file in &files {
            downloaded += self.fetch(&repository, &snapshot, file, context)?;
        }
        if self.name.revision() != commit {
            let reference = self.folder.join("refs").join(self.name.revision());
            let io = |source| unwritable(&reference, source);
            write_bytes_atomically(&reference, commit.as_bytes()).map_err(io)?;
        }
        // All that was there has its place now; what cannot be removed does no harm.
        let _ = fs::remove_dir_all(&self.staging);
        Ok(Pulled {
            snapshot,
            files: files.len() + wanted.indices.len(),
            downloaded,
        })
    }

    /// Two at the same downloads would spoil them.
    fn lock(&self) -> Result<File, PullError> {
        let mut path = self.staging.clone().into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        let io = |source| unwritable(&path, source);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let file = File::create(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(PullError::Busy {
                name: self.name.repository(),
            }),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    fn repository(&self, revision: &str) -> ApiRepo {
        let (name, revision) = (self.name.repository(), revision.to_owned());
        self.api
            .repo(Repo::with_revision(name, RepoType::Model, revision))
    }

    /// Brings a file to its place in the snapshot; returns the bytes that were downloaded for it.
    fn fetch(
        &self,
        repository: &ApiRepo,
        snapshot: &Path,
        file: &str,
        context: &Context,
    ) -> Result<u64, PullError> {
        let metadata = self.api.metadata(&repository.url(file));
        let metadata = metadata.map_err(|error| self.api_error(&error))?;
        let etag = metadata.etag().trim_start_matches("W/");
        if !is_plain(etag) {
            return Err(self.answer(format!("the etag of {file} is `{etag}`")));
        }
        let file = Remote {
            path: file,
            etag,
            size: is_sha256(etag).then_some(metadata.size() as u64),
        };
        let place = snapshot.join(file.path);
        if file.is_at(&place) {
            return Ok(0);
        }
        let blob = self.folder.join("blobs").join(etag);
        let mut downloaded = 0;
        if !file.is_at(&blob) {
            let staged = self.staging.join("blobs").join(metadata.etag());
            self.download(repository, &file, &staged, context)?;
            file.check(&staged)?;
            downloaded = length(&staged).unwrap_or(0);
            put(&staged, &blob).map_err(|source| unwritable(&blob, source))?;
        }
        link(&blob, &place, file.path).map_err(|source| unwritable(&place, source))?;
        Ok(downloaded)
    }

    /// Brings a file whole to `staged`, not yet checked. Broken connections are taken up again.
    fn download(
        &self,
        repository: &ApiRepo,
        file: &Remote,
        staged: &Path,
        context: &Context,
    ) -> Result<(), PullError> {
        let part = staged.with_extension("part");
        let bar = bar(context, file.path);
        let mut tries = 0;
        loop {
            let before = length(&part);
            match (before, file.size) {
                // The client asks for what comes after the end, and the server refuses.
                (Some(length), Some(size)) if length == size => {
                    fs::rename(&part, staged).map_err(|source| unwritable(staged, source))?;
                }
                (Some(length), Some(size)) if length < size => {}
                (Some(_), _) => discard(&part)?,
                (None, _) => {}
            }
            if file.is_at(staged) {
                break;
            }
            // The client's links to files that have moved on would stop it.
            let _ = fs::remove_dir_all(self.staging.join("snapshots"));
            let problem = match repository.download_with_progress(file.path, Bar(bar.clone())) {
                Ok(pointer) => {
                    if !staged.exists() {
                        // Where links are not to be had, it moves the file there.
                        fs::rename(&pointer, staged)
                            .map_err(|source| unwritable(staged, source))?;
                    }
                    if file.is_at(staged) {
                        break;
                    }
                    if length(staged) < file.size {
                        // It takes the end of the connection for the end of the file.
                        fs::rename(staged, &part).map_err(|source| unwritable(&part, source))?;
                    } else {
                        discard(staged)?;
                    }
                    "the connection ended early".to_owned()
                }
                Err(ApiError::IoError(source)) if source.kind() == ErrorKind::StorageFull => {
                    return Err(unwritable(&part, source));
                }
                Err(error) if is_passing(&error) => error.to_string(),
                Err(error) => return Err(self.api_error(&error)),
            };
            let got = length(&part).unwrap_or(0);
            tries = if got > before.unwrap_or(0) {
                1
            } else {
                tries + 1
            };
            if tries >= TRIES {
                bar.abandon();
                return Err(PullError::Interrupted {
                    file: file.path.into(),
                    got,
                    problem,
                });
            }
            tracing::debug!("{} broke off after {got} bytes: {problem}", file.path);
            std::thread::sleep(PAUSE * tries);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn api_error(&self, error: &ApiError) -> PullError {
        of_api(error, &self.endpoint, &self.name.to_string())
    }

    fn answer(&self, problem: String) -> PullError {
        PullError::Answer {
            endpoint: self.endpoint.clone(),
            problem,
        }
    }

    fn content(&self, problem: String) -> PullError {
        PullError::Content {
            name: self.name.to_string(),
            problem,
        }
    }
}

/// The user's token, as the hub's tools look for it.
fn token() -> Option<String> {
    let given = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
    let given = given.into_iter().find_map(|name| env::var(name).ok());
    let file = env::var_os("HF_TOKEN_PATH").map(PathBuf::from);
    let saved = || fs::read_to_string(file.or_else(|| Some(hub_home()?.join("token")))?).ok();
    let token = given.or_else(saved)?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// Whether trying again may help.
fn is_passing(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => status == 429 || status >= 500,
            _ => true,
        },
        ApiError::IoError(_) => true,
        _ => false,
    }
}

/// A file as the hub describes it.
struct Remote<'a> {
    /// In the repository.
    path: &'a str,
    /// The sha256 of a large file, something else of a small one.
    etag: &'a str,
    /// Bytes of a large file. What is told of a small one may be its length on the wire, compressed.
    size: Option<u64>,
}

impl Remote<'_> {
    /// Whether a file is there and as long as it should be.
    fn is_at(&self, path: &Path) -> bool {
        match (length(path), self.size) {
            (Some(found), Some(size)) => found == size,
            (found, _) => found.is_some(),
        }
    }

    /// Compares with the hub's checksum, and throws away what differs.
    fn check(&self, path: &Path) -> Result<(), PullError> {
        if !is_sha256(self.etag) {
            return Ok(());
        }
        let found = sha256(path).map_err(|source| unwritable(path, source))?;
        if found.eq_ignore_ascii_case(self.etag) {
            return Ok(());
        }
        discard(path)?;
        Err(PullError::Checksum {
            file: self.path.into(),
            found,
            expected: self.etag.into(),
        })
    }
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Gives a file its name for good.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    File::options().append(true).open(from)?.sync_all()?;
    fs::rename(from, to)
}

/// Lets a file of the snapshot be the blob; `file` is its path in the repository.
fn link(blob: &Path, place: &Path, file: &str) -> io::Result<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    if place.is_symlink() || place.exists() {
        fs::remove_file(place)?;
    }
    #[cfg(unix)]
    {
        // Out of the snapshot's folders, the snapshot and `snapshots`.
        let mut target: PathBuf = [".."].repeat(file.split('/').count() + 1).iter().collect();
        target.push("blobs");
        target.extend(blob.file_name());
        std::os::unix::fs::symlink(target, place)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        fs::rename(blob, place)
    }
}

/// Bytes of a file, if there is one.
fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.len())
}

fn discard(path: &Path) -> Result<(), PullError> {
    fs::remove_file(path).map_err(|source| unwritable(path, source))
}

fn unwritable(path: &Path, source: io::Error) -> PullError {
    PullError::Io {
        path: path.into(),
        source,
    }
}

/// The bar of one file.
fn bar(context: &Context, file: &str) -> ProgressBar {
    let template = "{msg} {bar:32} {bytes}/{total_bytes} · {bytes_per_sec} · ETA {eta}";
    let line = |bar: &ProgressBar| {
        let all = DecimalBytes(bar.length().unwrap_or(0));
        let eta = HumanDuration(bar.eta());
        format!(
            "{} {}/{all} · ETA {eta:#}",
            bar.message(),
            DecimalBytes(bar.position())
        )
    };
    bar_or_lines(context, 0, template, line).with_message(file.to_owned())
}

/// What the client tells of a download.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn init(&mut self, size: usize, _: &str) {
        self.0.set_length(size as u64);
        // It tells what is there already as the first piece.
        self.0.set_position(0);
    }

    fn update(&mut self, count: usize) {
        self.0.inc(count as u64);
    }

    fn finish(&mut self) {}
}

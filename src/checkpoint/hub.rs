//! Repositories of the Hugging Face hub in the cache that its own tools fill; nothing here uses the network.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::containers::CheckpointError;

/// The revision of a name that gives none.
const MAIN: &str = "main";

/// A repository of the hub: `facebook/DiT-XL-2-256`, or `OWNER/NAME@REVISION` with a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubName {
    owner: String,
    name: String,
    revision: Option<String>,
}

impl FromStr for HubName {
    type Err = CheckpointError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |problem| CheckpointError::HubName {
            name: text.into(),
            problem,
        };
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        let (owner, name) = repository
            .split_once('/')
            .ok_or_else(|| bad("it has no owner"))?;
        let is_part = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let edge = |c: char| "-.".contains(c);
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(plain)
                && !part.starts_with(edge)
                && !part.ends_with(edge)
                && !part.contains("..")
                // The cache writes a name's `/` so.
                && !part.contains("--")
        };
        if !is_part(owner) || !is_part(name) {
            return Err(bad("owner and name are letters, digits, `-`, `_` and `.`"));
        }
        let is_revision = |revision: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
            let parts =
                |part: &str| !part.is_empty() && part.chars().all(plain) && !part.starts_with('.');
            revision.len() <= 200 && revision.split('/').all(parts)
        };
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(bad("its revision is no branch, tag or commit"));
        }
        Ok(Self {
            owner: owner.into(),
            name: name.into(),
            revision: revision.map(str::to_owned),
        })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl HubName {
    /// `OWNER/NAME`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// A branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The repository's folder in a cache.
    pub fn folder_in(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}--{}", self.owner, self.name))
    }

    /// The files of the revision, in the user's cache.
    ///
    /// # Errors
    /// [`CheckpointError::NotCached`], whose text says how to get them.
    pub fn snapshot(&self) -> Result<PathBuf, CheckpointError> {
        let cache = hub_cache();
        let missing = || CheckpointError::NotCached {
            name: self.to_string(),
            cache: cache.clone().unwrap_or_else(|| "which is nowhere".into()),
        };
        let found = cache.as_ref().and_then(|cache| self.snapshot_in(cache));
        found.ok_or_else(missing)
    }

    /// The same in this cache.
    fn snapshot_in(&self, cache: &Path) -> Option<PathBuf> {
        let folder = self.folder_in(cache);
        let reference = std::fs::read_to_string(folder.join("refs").join(self.revision()));
        let commit = reference.map_or_else(|_| self.revision().to_owned(), |c| c.trim().to_owned());
        // A commit's hash, so that no file of the cache leads out of it.
        let is_hash = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        let snapshot = folder.join("snapshots").join(&commit);
        (is_hash && snapshot.is_dir()).then_some(snapshot)
    }
}

/// Where the hub's tools keep what they download, by `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME` or the home folder; `None`
/// where there is not even that.
pub fn hub_cache() -> Option<PathBuf> {
    let given = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"];
    let given = given.into_iter().find_map(folder_named);
    given.or_else(|| Some(hub_home()?.join("hub")))
}

/// The folder around it, which holds the user's token too.
pub fn hub_home() -> Option<PathBuf> {
    folder_named("HF_HOME").or_else(|| {
        let caches =
            folder_named("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
        Some(caches?.join("huggingface"))
    })
}

/// The folder that a variable names.
fn folder_named(variable: &str) -> Option<PathBuf> {
    let value = env::var_os(variable).filter(|value| !value.is_empty())?;
    let path = PathBuf::from(value);
    match path.strip_prefix("~") {
        Ok(rest) => Some(env::home_dir()?.join(rest)),
        Err(_) => Some(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for text in [
            "facebook/DiT-XL-2-256",
            "a/b@main",
            "a/b@refs/pr/1",
            "PixArt-alpha/PixArt-XL-2-512x512@e102b3591cb82b8bf57fd7a1b8a1f3a0b8e4a0d3",
        ] {
            assert_eq!(text.parse::<HubName>().unwrap().to_string(), text);
        }
        for text in [
            "bundled", "a/b/c", "/b", "a/", "../b", "a/..", "a/b@", "a/b@../c", "a/b@/c", "a--b/c",
            "a b/c", "./model", "a/b.",
        ] {
            assert!(text.parse::<HubName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_revision_leads_to_its_snapshot_and_nowhere_else() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--a--b");
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.join(name), text).unwrap();
        };
        write("refs/main", "c0ffee\n");
        write("refs/pr/1", "decade");
        write("refs/out", "../../elsewhere");
        write("snapshots/c0ffee/model_index.json", "{}");
        let of = |name: &str| name.parse::<HubName>().unwrap().snapshot_in(cache.path());
        let found = folder.join("snapshots/c0ffee");
        assert_eq!(of("a/b"), Some(found.clone()));
        assert_eq!(of("a/b@c0ffee"), Some(found));
        for name in ["a/b@pr/1", "a/b@out", "a/b@other", "a/c"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}

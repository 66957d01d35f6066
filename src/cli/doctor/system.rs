//! The machine apart from its devices.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{checkpoint::hub_cache, pipeline::usual_text_cache};

#[derive(Debug, Serialize)]
pub(super) struct System {
    pub os: &'static str,
    pub arch: &'static str,
    pub threads: usize,
    /// Where the system tells (Linux).
    pub memory: Option<Memory>,
}

/// Bytes of the host's memory.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    pub total_bytes: u64,
    /// What a new program can have without swapping.
    pub free_bytes: u64,
}

impl System {
    pub fn of_this() -> Self {
        Self {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: Memory::below(Path::new("/")),
        }
    }
}

impl Memory {
    /// By the kernel's files below `root`; a container's limit counts.
    fn below(root: &Path) -> Option<Self> {
        let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let text = read("proc/meminfo")?;
        // In units of 1024 bytes.
        let [total, free] =
            ["MemTotal:", "MemAvailable:"].map(|key| Some(1024 * value(&text, key)?));
        let whole = Self {
            total_bytes: total?,
            free_bytes: free?,
        };
        let group = |name: &str| read(&format!("sys/fs/cgroup/memory.{name}"));
        let number = |name: &str| group(name)?.trim().parse::<u64>().ok();
        let (Some(most), Some(used)) = (number("max"), number("current")) else {
            return Some(whole);
        };
        // Pages of files that are given back when needed.
        let idle = group("stat").and_then(|text| value(&text, "inactive_file"));
        let left = most.saturating_sub(used.saturating_sub(idle.unwrap_or(0)));
        Some(Self {
            total_bytes: whole.total_bytes.min(most),
            free_bytes: whole.free_bytes.min(left),
        })
    }
}

/// The number behind a word that begins a line.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
    })
}

/// Where something is kept.
#[derive(Debug, Serialize)]
pub(super) struct Folder {
    pub holds: &'static str,
    /// What moves it.
    pub variable: &'static str,
    /// None where there is no place for it.
    pub path: Option<PathBuf>,
    /// How much of it is there; none before there is the folder.
    pub entries: Option<usize>,
    /// Whether more can be added; none before there is the folder.
    pub writable: Option<bool>,
}

impl Folder {
    fn of(
        holds: &'static str,
        variable: &'static str,
        path: Option<PathBuf>,
        counts: impl Fn(&str) -> bool,
    ) -> Self {
        let listed = path.as_ref().and_then(|path| std::fs::read_dir(path).ok());
        let entries = listed.map(|entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            names.filter(|name| counts(&name.to_string_lossy())).count()
        });
        let there = path.as_deref().filter(|path| path.exists());
        Self {
            holds,
            variable,
            entries,
            writable: there.map(|path| tempfile::tempfile_in(path).is_ok()),
            path,
        }
    }
}

/// The hub's models and encoded texts.
pub(super) fn cache_folders() -> Vec<Folder> {
    vec![
        Folder::of("models of the hub", "HF_HOME", hub_cache(), |name| {
            name.starts_with("models--")
        }),
        Folder::of(
            "encoded texts",
            "XDG_CACHE_HOME",
            usual_text_cache(),
            |_| true,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_what_machine_and_container_leave() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let memory = || Memory::below(root.path());
        assert_eq!(memory(), None);
        write(
            "proc/meminfo",
            "MemTotal: 8 kB\nMemFree: 1 kB\nMemAvailable: 6 kB\n",
        );
        let of = |total_bytes, free_bytes| {
            Some(Memory {
                total_bytes,
                free_bytes,
            })
        };
        assert_eq!(memory(), of(8192, 6144));
        write("sys/fs/cgroup/memory.max", "max\n");
        write("sys/fs/cgroup/memory.current", "3000\n");
        write(
            "sys/fs/cgroup/memory.stat",
            "anon 2000\ninactive_file 500\n",
        );
        assert_eq!(memory(), of(8192, 6144));
        write("sys/fs/cgroup/memory.max", "4000\n");
        assert_eq!(memory(), of(4000, 1500));
    }
}

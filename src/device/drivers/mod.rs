//! What lies between a GPU and its adapter: the drivers that the system knows of, what is wrong with them, and what to install.
//!
//! Vulkan's loader passes over what it cannot use without a word; here it is told. Where drivers are listed in files – Linux
//! and its kin – those are read; elsewhere the adapters alone say what there is.

mod advice;
mod gpus;

use std::{
    env::split_paths,
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use advice::what_to_install;
pub use gpus::{Gpu, gpus};

/// A driver of Vulkan, by the file that names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VulkanDriver {
    /// Its manifest.
    pub manifest: PathBuf,
    /// The library that the manifest names: a path, or a name for the system to look up.
    pub library: String,
}

/// What keeps a driver from being found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverProblem {
    /// A variable that leads Vulkan's loader astray.
    #[error(
        "{variable} names {}, which is not there, so that Vulkan finds no driver by it: unset {variable}, or let it name a driver's manifest{}",
        path.display(), example_of(.example)
    )]
    NamesNothing {
        variable: &'static str,
        path: PathBuf,
        /// A manifest of this machine that could be named.
        example: Option<PathBuf>,
    },
    /// A file that is no manifest.
    #[error(
        "{} is no manifest of a Vulkan driver ({problem}): reinstall the driver that it belongs to, or remove it", path.display()
    )]
    Manifest { path: PathBuf, problem: String },
    /// A manifest without its driver.
    #[error(
        "{} names the driver {}, which is not there: reinstall the driver, or remove the manifest",
        manifest.display(), library.display()
    )]
    NoLibrary { manifest: PathBuf, library: PathBuf },
}

fn example_of(example: &Option<PathBuf>) -> String {
    match example {
        Some(path) => format!(", such as {}", path.display()),
        None => String::new(),
    }
}

/// Variables that name manifests in place of the usual folders; the first one that is set counts.
const INSTEAD: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];
/// One that adds to them.
const ADDED: &str = "VK_ADD_DRIVER_FILES";
/// Others that choose among drivers or adapters.
const OTHERS: [&str; 3] = [
    "VK_LOADER_DRIVERS_SELECT",
    "VK_LOADER_DRIVERS_DISABLE",
    "MESA_VK_DEVICE_SELECT",
];

/// Vulkan's drivers as its loader looks for them, and what is wrong with some.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VulkanDrivers {
    pub found: Vec<VulkanDriver>,
    pub problems: Vec<DriverProblem>,
    /// Variables that are set and decide which drivers or adapters there are, with their values.
    pub variables: Vec<(&'static str, String)>,
}

/// Of this machine. On Windows and Apple systems, which list drivers elsewhere, it tells of variables alone.
pub fn vulkan_drivers() -> VulkanDrivers {
    let files = cfg!(all(unix, not(target_vendor = "apple")));
    drivers_by(
        &|name| std::env::var_os(name),
        files.then_some(Path::new("/")),
    )
}

/// The same by these variables, with the system's folders below `root`, if it has such.
fn drivers_by(variable: &dyn Fn(&str) -> Option<OsString>, root: Option<&Path>) -> VulkanDrivers {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut all = VulkanDrivers::default();
    for name in INSTEAD.into_iter().chain([ADDED]).chain(OTHERS) {
        let value = set(name).map(|value| value.to_string_lossy().into_owned());
        all.variables.extend(value.map(|value| (name, value)));
    }
    let usual = root.map_or_else(Vec::new, |root| manifests_of(&usual_folders(&set, root)));
    let instead = INSTEAD.into_iter().find(|name| set(name).is_some());
    for name in instead.into_iter().chain([ADDED]) {
        let named: Vec<PathBuf> = set(name).map_or_else(Vec::new, |v| split_paths(&v).collect());
        for path in named.into_iter().filter(|path| path != Path::new("")) {
            if path.is_dir() {
                manifests_of(&[path]).iter().for_each(|m| all.read(m));
            } else if path.exists() {
                all.read(&path);
            } else {
                all.problems.push(DriverProblem::NamesNothing {
                    variable: name,
                    path,
                    example: usual.first().cloned(),
                });
            }
        }
    }
    if instead.is_none() {
        usual.iter().for_each(|manifest| all.read(manifest));
    }
    all
}

/// Where the loader looks for manifests.
fn usual_folders(set: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Vec<PathBuf> {
    let home = set("HOME").map(PathBuf::from);
    let below_home = |part: &str| home.as_ref().map(|home| home.join(part));
    let own = |name: &str, part: &str| set(name).map(PathBuf::from).or_else(|| below_home(part));
    let shared = |name: &str, usual: &[&str]| -> Vec<PathBuf> {
        match set(name) {
            Some(folders) => split_paths(&folders).collect(),
            None => usual.iter().map(|folder| root.join(folder)).collect(),
        }
    };
    let mut folders = Vec::from_iter(own("XDG_CONFIG_HOME", ".config"));
    folders.extend(shared("XDG_CONFIG_DIRS", &["etc/xdg"]));
    folders.push(root.join("etc"));
    folders.extend(own("XDG_DATA_HOME", ".local/share"));
    folders.extend(shared("XDG_DATA_DIRS", &["usr/local/share", "usr/share"]));
    folders
        .into_iter()
        .map(|folder| folder.join("vulkan/icd.d"))
        .collect()
}

/// The manifests in some folders, those of each by name; what cannot be listed has none.
fn manifests_of(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
            .collect();
        found.sort();
        all.extend(found);
    }
    all
}

impl VulkanDrivers {
    fn read(&mut self, manifest: &Path) {
        match library_of(manifest) {
            Ok(library) => self.found.push(VulkanDriver {
                manifest: manifest.into(),
                library,
            }),
            Err(problem) => self.problems.push(problem),
        }
    }
}

/// The library that a manifest names, which is there if it is a path.
fn library_of(manifest: &Path) -> Result<String, DriverProblem> {
    /// Manifests are a few hundred bytes.
    const LARGEST: u64 = 1 << 20;
    let bad = |problem: String| DriverProblem::Manifest {
        path: manifest.into(),
        problem,
    };
    if !manifest.is_file() {
        return Err(bad("no file".into()));
    }
    let mut bytes = Vec::new();
    File::open(manifest)
        .and_then(|file| file.take(LARGEST).read_to_end(&mut bytes))
        .map_err(|e| bad(e.to_string()))?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("no JSON: {e}")))?;
    let library = json["ICD"]["library_path"].as_str();
    let library = library.ok_or_else(|| bad("it names no library".into()))?;
    let is_path = library.contains(['/', '\\']);
    let folder = manifest.parent().unwrap_or(Path::new(""));
    let path = folder.join(library);
    if is_path && !path.exists() {
        return Err(DriverProblem::NoLibrary {
            manifest: manifest.into(),
            library: path,
        });
    }
    Ok(library.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these files below its root, under these variables.
    fn drivers(
        files: &[(&str, &str)],
        variables: &[(&str, &str)],
    ) -> (tempfile::TempDir, VulkanDrivers) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        // `@` stands for the root.
        let at = root.path().to_str().unwrap().to_owned();
        let value = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value.replace('@', &at)))
        };
        let drivers = drivers_by(&value, Some(root.path()));
        (root, drivers)
    }

    const NAMED: &str = r#"{"ICD": {"api_version": "1.3", "library_path": "libvulkan_lvp.so"}}"#;
    const LVP: &str = "usr/share/vulkan/icd.d/lvp.json";

    #[test]
    fn drivers_are_found_where_the_loader_finds_them() {
        let own = "home/.local/share/vulkan/icd.d/own.json";
        let added = "opt/more/added.json";
        let files = [(LVP, NAMED), (own, NAMED), (added, NAMED)];
        let (root, all) = drivers(&files, &[("HOME", "@/home"), (ADDED, "@/opt/more")]);
        assert_eq!(all.problems, []);
        let manifests: Vec<&Path> = all.found.iter().map(|d| &*d.manifest).collect();
        let expected = [added, own, LVP].map(|path| root.path().join(path));
        assert_eq!(manifests, expected);
        assert_eq!(all.found[0].library, "libvulkan_lvp.so");
        assert_eq!(all.variables[0].0, ADDED);
    }

    #[test]
    fn a_variable_that_names_nothing_hides_all_drivers_and_is_told() {
        for name in INSTEAD {
            let (root, all) = drivers(&[(LVP, NAMED)], &[(name, "/nonsense")]);
            assert_eq!(all.found, []);
            let problem = DriverProblem::NamesNothing {
                variable: name,
                path: "/nonsense".into(),
                example: Some(root.path().join(LVP)),
            };
            let text = problem.to_string();
            assert_eq!(all.problems, [problem]);
            assert!(
                text.contains(&format!("unset {name}")) && text.contains("icd.d/lvp.json"),
                "{text}"
            );
        }
    }

    #[test]
    fn broken_manifests_are_told_apart() {
        let relative = NAMED.replace("libvulkan", "./libvulkan");
        let other = |name: &str| format!("etc/vulkan/icd.d/{name}.json");
        let names = ["absent", "empty", "text"].map(other);
        let files = [
            (LVP, NAMED),
            (&*names[0], &*relative),
            (&*names[1], "{}"),
            (&*names[2], "library"),
        ];
        let (root, all) = drivers(&files, &[]);
        assert_eq!(all.found.len(), 1);
        let said: Vec<String> = all.problems.iter().map(|p| p.to_string()).collect();
        let expected = [
            "libvulkan_lvp.so, which is not there",
            "it names no library",
            "no JSON",
        ];
        for ((said, expected), name) in said.iter().zip(expected).zip(&names) {
            let path = root.path().join(name).display().to_string();
            assert!(said.contains(expected) && said.contains(&path), "{said}");
        }
        assert_eq!(said.len(), 3);
    }

    #[test]
    fn systems_without_manifests_tell_of_variables_alone() {
        let value = |name: &str| (name == OTHERS[2]).then(|| OsString::from("1"));
        let all = drivers_by(&value, None);
        assert_eq!((all.found, all.problems), (vec![], vec![]));
        assert_eq!(all.variables, [(OTHERS[2], "1".to_owned())]);
    }
}

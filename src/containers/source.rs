//! One face for every container: a list of named tensors that can be read one at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{Cursor, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use half::{bf16, f16};

use super::{
    error::CheckpointError,
    header::read_header,
    json::read_json,
    torch::TorchFile,
    weight_file::{WeightFile, read_shards},
};
use crate::files;

/// Element type of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    U8,
    /// Anything else, by its own name.
    Other(String),
}

impl Dtype {
    pub(super) fn from_safetensors(name: &str) -> Self {
        match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "U8" => Self::U8,
            other => Self::Other(other.into()),
        }
    }

    /// Bytes of one element, if known.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::F64 | Self::I64 => Some(8),
            Self::F32 | Self::I32 => Some(4),
            Self::F16 | Self::BF16 => Some(2),
            Self::U8 => Some(1),
            Self::Other(_) => None,
        }
    }

    /// Whether weights come in this type.
    pub fn is_float(&self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(name) => f.write_str(name),
            known => write!(f, "{known:?}"),
        }
    }
}

/// Name, type and shape of a stored tensor. The byte count is known to fit the file it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl TensorEntry {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the stored data.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size().unwrap_or(0)
    }
}

/// What kind of container a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// PyTorch zip archives with pickled state dicts.
    Torch,
    /// Safetensors.
    Safetensors,
}

impl Format {
    /// For people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Torch => "PyTorch zip archive",
            Self::Safetensors => "safetensors",
        }
    }
}

/// An open weight file: its tensors are known and checked, their data is read on demand.
pub struct TensorSource {
    path: PathBuf,
    format: Format,
    reader: Reader,
    entries: Entries,
    metadata: BTreeMap<String, String>,
    /// Where a diffusers `config.json` lies that may belong to the weights.
    config: Option<PathBuf>,
    /// The index of shards, and where it places each tensor.
    index: Option<(PathBuf, BTreeMap<String, String>)>,
}

/// What a container is read from.
pub(super) trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

enum Reader {
    Safetensors(Vec<(PathBuf, Box<dyn ReadSeek>)>),
    Torch(Vec<TorchFile>),
}

#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
}

/// Opens a `.pt`, `.bin` or safetensors file or a diffusers folder (the `transformer/` folder or its parent).
///
/// # Errors
/// [`CheckpointError`]: unreadable, of unknown format, damaged, or refused.
pub fn open(path: &Path) -> Result<TensorSource, CheckpointError> {
    let stat = std::fs::metadata(path).map_err(|source| io("open", path, source))?;
    if stat.is_dir() {
        let inner = path.join("transformer");
        let folder = if inner.is_dir() { &*inner } else { path };
        return open_folder(path, folder, None);
    }
    let mut file = files::open(path).map_err(|source| io("open", path, source))?;
    let mut magic = [0; 9];
    let got = read_up_to(&mut file, &mut magic).map_err(|source| io("read", path, source))?;
    let unknown = |found: &str| CheckpointError::UnknownFormat {
        path: path.into(),
        found: found.into(),
    };
    match &magic[..got] {
        [] => Err(unknown("it is empty")),
        // First, since any eight bytes can be the length of a safetensors header.
        [_, _, _, _, _, _, _, _, b'{'] => {
            Ok(open_safetensors(path, vec![path.into()])?.beside_config(path))
        }
        [b'P', b'K', ..] => Ok(open_torch(path, vec![path.into()])?.beside_config(path)),
        // A pickle outside a zip: protocol mark and version.
        [0x80, 2..=5, ..] => Err(CheckpointError::UnknownFormat {
            path: path.into(),
            found: "it is a bare pickle, as PyTorch before 1.6 wrote (load it in PyTorch and torch.save it again)".into(),
        }),
        [b'\x89', b'P', b'N', b'G', ..] => Err(unknown("it is a PNG picture")),
        begins if POINTER.starts_with(begins) => {
            check_no_pointer(path)?;
            Err(unknown("it is a text"))
        }
        _ => Err(unknown("its first bytes are neither a zip archive's nor a safetensors header's")),
    }
}

/// Opens a folder of weights, such as the `transformer/` or `vae/` of a pipeline folder: full precision, or the variant that
/// is asked for or alone there.
///
/// # Errors
/// As [`open`]; [`CheckpointError::Settings`] where there is no such variant.
pub fn open_part(folder: &Path, variant: Option<&str>) -> Result<TensorSource, CheckpointError> {
    open_folder(folder, folder, variant)
}

/// `path` stands for the folder in messages.
fn open_folder(
    path: &Path,
    folder: &Path,
    variant: Option<&str>,
) -> Result<TensorSource, CheckpointError> {
    let unreadable = |source| io("read", folder, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        names.extend(entry.map_err(unreadable)?.file_name().into_string().ok());
    }
    let files = || names.iter().map(String::as_str);
    let Some(best) = WeightFile::best(files(), variant) else {
        return Err(match (variant, WeightFile::best(files(), None)) {
            (Some(variant), Some(other)) => CheckpointError::Settings {
                path: path.into(),
                problem: format!("it holds no variant `{variant}`, but {}", other.name),
            },
            _ => CheckpointError::UnknownFormat {
                path: path.into(),
                found: "the folder holds neither diffusion_pytorch_model.safetensors nor diffusion_pytorch_model.safetensors.index.json".into(),
            },
        });
    };
    let file = folder.join(&best.name);
    let (files, index) = match best.index {
        false => (vec![file], None),
        true => {
            let places = read_shards(&file)?;
            let shards: BTreeSet<&String> = places.values().collect();
            if let Some(missing) = shards.iter().find(|name| !folder.join(name).is_file()) {
                return Err(CheckpointError::MissingShard {
                    path: file,
                    shard: missing.to_string(),
                });
            }
            let files = shards.iter().map(|name| folder.join(name)).collect();
            (files, Some((file, places)))
        }
    };
    files.iter().try_for_each(|file| check_no_pointer(file))?;
    let mut source = match best.format {
        Format::Safetensors => open_safetensors(path, files)?,
        Format::Torch => open_torch(path, files)?,
    };
    source.config = Some(folder.join("config.json"));
    source.index = index;
    Ok(source)
}

/// What a clone of a repository without Git LFS has in the place of a large file begins so.
const POINTER: &[u8] = b"version https://git-lfs";

/// Refuses what stands in the place of a file.
fn check_no_pointer(path: &Path) -> Result<(), CheckpointError> {
    let mut file = files::open(path).map_err(|source| io("open", path, source))?;
    let mut begins = [0; POINTER.len()];
    let got = read_up_to(&mut file, &mut begins).map_err(|source| io("read", path, source))?;
    match &begins[..got] == POINTER {
        false => Ok(()),
        true => Err(CheckpointError::Damaged {
            path: path.into(),
            problem: "it is a Git LFS pointer in the place of the weights; `git lfs pull` in the folder, or `harmonica pull`, fetches them".into(),
        }),
    }
}

fn open_torch(path: &Path, files: Vec<PathBuf>) -> Result<TensorSource, CheckpointError> {
    let archives: Result<_, _> = files.iter().map(|file| TorchFile::open(file)).collect();
    read_torch(path, archives?)
}

fn read_torch(path: &Path, archives: Vec<TorchFile>) -> Result<TensorSource, CheckpointError> {
    let mut entries = BTreeMap::new();
    for (index, torch) in archives.iter().enumerate() {
        for entry in torch.state_dict()? {
            let place = Place {
                file: index,
                offset: 0,
            };
            insert(&mut entries, torch.path(), entry, place)?;
        }
    }
    Ok(TensorSource {
        path: path.into(),
        format: Format::Torch,
        reader: Reader::Torch(archives),
        entries,
        metadata: BTreeMap::new(),
        config: None,
        index: None,
    })
}

type Entries = BTreeMap<String, (TensorEntry, Place)>;

/// Adds a tensor of a file to those of the files before it.
fn insert(
    entries: &mut Entries,
    file: &Path,
    entry: TensorEntry,
    place: Place,
) -> Result<(), CheckpointError> {
    let name = entry.name.clone();
    match entries.insert(name.clone(), (entry, place)) {
        None => Ok(()),
        Some(_) => Err(CheckpointError::Damaged {
            path: file.into(),
            problem: format!("tensor `{name}` lies in another shard too"),
        }),
    }
}

fn open_safetensors(path: &Path, files: Vec<PathBuf>) -> Result<TensorSource, CheckpointError> {
    let mut readers = Vec::new();
    for file_path in files {
        let file = files::open(&file_path).map_err(|source| io("open", &file_path, source))?;
        let length = file
            .metadata()
            .map_err(|source| io("open", &file_path, source))?
            .len();
        readers.push((file_path, length, Box::new(file) as Box<dyn ReadSeek>));
    }
    read_safetensors(path, readers)
}

/// Opens a safetensors file or a PyTorch archive that is in memory; `name` stands for it in messages.
///
/// # Errors
/// As [`open`].
pub fn open_bytes(
    name: &Path,
    bytes: impl AsRef<[u8]> + Send + 'static,
) -> Result<TensorSource, CheckpointError> {
    let held = bytes.as_ref();
    let length = held.len() as u64;
    // Any eight bytes can be the length of a safetensors header.
    let is_archive = held.starts_with(b"PK") && held.get(8) != Some(&b'{');
    let reader: Box<dyn ReadSeek> = Box::new(Cursor::new(bytes));
    match is_archive {
        true => read_torch(name, vec![TorchFile::read(name, reader)?]),
        false => read_safetensors(name, vec![(name.into(), length, reader)]),
    }
}

fn read_safetensors(
    path: &Path,
    files: Vec<(PathBuf, u64, Box<dyn ReadSeek>)>,
) -> Result<TensorSource, CheckpointError> {
    let mut entries = Entries::new();
    let mut metadata = BTreeMap::new();
    let mut readers = Vec::new();
    for (index, (file_path, length, mut file)) in files.into_iter().enumerate() {
        let header = read_header(&file_path, &mut file, length)?;
        metadata.extend(header.metadata);
        for (entry, offset) in header.entries {
            let place = Place {
                file: index,
                offset,
            };
            insert(&mut entries, &file_path, entry, place)?;
        }
        readers.push((file_path, file));
    }
    Ok(TensorSource {
        path: path.into(),
        format: Format::Safetensors,
        reader: Reader::Safetensors(readers),
        entries,
        metadata,
        config: None,
        index: None,
    })
}

impl TensorSource {
    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of container.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Free-form metadata of a safetensors header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The `config.json` beside the weights, which diffusers puts there.
    ///
    /// # Errors
    /// [`CheckpointError`]: unreadable, or no JSON.
    pub(crate) fn config(&self) -> Result<Option<serde_json::Value>, CheckpointError> {
        self.config.as_deref().map(read_json).transpose()
    }

    /// Where that lies or would lie, for messages.
    pub(crate) fn config_path(&self) -> PathBuf {
        let beside = || self.path.with_file_name("config.json");
        self.config.clone().unwrap_or_else(beside)
    }

    /// The same with the `config.json` beside the file, if there is one.
    fn beside_config(mut self, file: &Path) -> Self {
        let beside = Some(file.with_file_name("config.json"));
        self.config = beside.filter(|path| path.is_file());
        self
    }

    /// All tensors, by name.
    pub fn entries(&self) -> impl Iterator<Item = &TensorEntry> {
        self.entries.values().map(|(entry, _)| entry)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.entries.get(name).map(|(entry, _)| entry)
    }

    /// That a tensor which a network needs is not there, the first of `count`. An index of shards may place tensors that none
    /// holds, as published ones do with tied weights, so it is wrong only where one of them is needed.
    pub(crate) fn missing(&self, name: &str, expected: &[usize], count: usize) -> CheckpointError {
        let placed = self.index.as_ref();
        let placed = placed.and_then(|(index, places)| Some((index, places.get(name)?)));
        match placed {
            Some((index, shard)) => CheckpointError::NotInShard {
                path: index.clone(),
                name: name.into(),
                shard: shard.clone(),
            },
            None => CheckpointError::Missing {
                path: self.path.clone(),
                name: name.into(),
                expected: expected.into(),
                count,
            },
        }
    }

    /// Reads a float tensor as f32, row-major.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Dtype`], or a read that fails.
    pub fn read_f32(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let entry = self.entry(name)?;
        if !entry.dtype.is_float() {
            return Err(self.wrong_dtype(&entry));
        }
        let bytes = self.read_bytes(&entry)?;
        Ok(match entry.dtype {
            Dtype::F64 => convert(&bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => convert(&bytes, f32::from_le_bytes),
            Dtype::F16 => convert(&bytes, |b| f16::from_le_bytes(b).to_f32()),
            _ => convert(&bytes, |b| bf16::from_le_bytes(b).to_f32()),
        })
    }

    /// Reads an integer tensor.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Dtype`], or a read that fails.
    pub fn read_i64(&mut self, name: &str) -> Result<Vec<i64>, CheckpointError> {
        let entry = self.entry(name)?;
        if !matches!(entry.dtype, Dtype::I64 | Dtype::I32 | Dtype::U8) {
            return Err(CheckpointError::Settings {
                path: self.path.clone(),
                problem: format!(
                    "tensor `{name}` is {}, expected I64, I32 or U8",
                    entry.dtype
                ),
            });
        }
        let bytes = self.read_bytes(&entry)?;
        Ok(match entry.dtype {
            Dtype::I64 => convert(&bytes, i64::from_le_bytes),
            Dtype::I32 => convert(&bytes, |b| i32::from_le_bytes(b).into()),
            _ => bytes.into_iter().map(i64::from).collect(),
        })
    }

    fn entry(&self, name: &str) -> Result<TensorEntry, CheckpointError> {
        self.get(name)
            .cloned()
            .ok_or_else(|| CheckpointError::missing(&self.path, name))
    }

    fn wrong_dtype(&self, entry: &TensorEntry) -> CheckpointError {
        CheckpointError::Dtype {
            path: self.path.clone(),
            name: entry.name.clone(),
            dtype: entry.dtype.to_string(),
        }
    }

    fn read_bytes(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, CheckpointError> {
        let (_, place) = self.entries[&entry.name];
        match &mut self.reader {
            Reader::Torch(files) => files[place.file].read_tensor(&entry.name),
            Reader::Safetensors(files) => {
                let (path, file) = &mut files[place.file];
                let mut bytes = vec![0; entry.bytes()];
                file.seek(SeekFrom::Start(place.offset))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|source| io("read", path, source))?;
                Ok(bytes)
            }
        }
    }
}

/// A tensor's shape and its row-major values.
pub type ShapeAndValues = (Vec<usize>, Vec<f32>);

/// Reads the tensors of a small safetensors file by name.
///
/// # Errors
/// As [`open`] and [`TensorSource::read_f32`]; a missing tensor names what the file holds instead.
pub fn read_named_tensors(
    path: &Path,
    names: &[&str],
) -> Result<Vec<ShapeAndValues>, CheckpointError> {
    let mut source = open(path)?;
    names
        .iter()
        .map(|name| {
            let Some(entry) = source.get(name) else {
                let held: Vec<_> = source
                    .entries()
                    .take(8)
                    .map(|e| format!("`{}`", e.name))
                    .collect();
                return Err(CheckpointError::Settings {
                    path: path.into(),
                    problem: format!("expected a tensor `{name}`, found {}", held.join(", ")),
                });
            };
            let shape = entry.shape.clone();
            Ok((shape, source.read_f32(name)?))
        })
        .collect()
}

fn convert<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|chunk| from(*chunk))
        .collect()
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io {
        action,
        path: path.into(),
        source,
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

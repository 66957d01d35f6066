//! PyTorch's zip archives: a pickle of tensors that point into storages beside it.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use zip::{CompressionMethod, ZipArchive};

use super::{
    error::CheckpointError,
    pickle::{Pickle, Problem, Value, ValueId},
    source::{Dtype, ReadSeek, TensorEntry},
};
use crate::files;

const MAX_PICKLE: u64 = 64 * 1024 * 1024;
/// Dimensions of a tensor at most, as in PyTorch.
const MAX_DIMENSIONS: usize = 64;
/// Entries of dicts that are looked through at most: a dict may stand in itself, or in another a million times.
const MAX_ENTRIES: usize = 1 << 18;
/// Keys under which training programs wrap the weights, best first.
const WRAPPERS: [&str; 3] = ["ema", "model", "state_dict"];
/// Prefixes that parallel and compiling wrappers put before every name.
const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];

type Archive = ZipArchive<BufReader<Box<dyn ReadSeek>>>;

/// An open archive and its unpickled directory.
pub struct TorchFile {
    path: PathBuf,
    archive: Archive,
    root: String,
    pickle: Pickle,
    tensors: HashMap<String, StoredTensor>,
}

#[derive(Debug, Clone)]
struct StoredTensor {
    storage: String,
    storage_len: usize,
    offset: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl TorchFile {
    /// Opens an archive and reads its pickle; tensors stay on disk.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = files::open(path).map_err(|source| CheckpointError::Io {
            action: "open",
            path: path.into(),
            source,
        })?;
        Self::read(path, Box::new(file))
    }

    /// The same of an archive that is open; `path` stands for it in messages.
    pub(super) fn read(path: &Path, file: Box<dyn ReadSeek>) -> Result<Self, CheckpointError> {
        let damaged = |problem: String| CheckpointError::Damaged {
            path: path.into(),
            problem,
        };
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| {
            damaged(format!(
                "it starts as a zip archive but has no valid directory ({e}); was it cut off?"
            ))
        })?;
        let name = archive
            .file_names()
            .filter_map(|name| Some(name.ok()?.into_owned()))
            .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
            .ok_or_else(|| {
                damaged("the archive holds no data.pkl, so it is no PyTorch file".into())
            })?;
        let root = name.trim_end_matches("data.pkl").to_owned();
        if let Some(order) = read_member(&mut archive, path, &format!("{root}byteorder"), 16)?
            && order != b"little"
        {
            return Err(CheckpointError::Refused {
                path: path.into(),
                problem: "it was written on a big-endian machine".into(),
            });
        }
        let bytes = read_member(&mut archive, path, &name, MAX_PICKLE)?
            .ok_or_else(|| damaged("the archive lost its data.pkl".into()))?;
        let pickle = Pickle::parse(&bytes).map_err(|problem| match problem {
            Problem::Damaged(problem) => CheckpointError::Damaged {
                path: path.into(),
                problem,
            },
            Problem::Refused(problem) => CheckpointError::Refused {
                path: path.into(),
                problem,
            },
        })?;
        let mut file = Self {
            path: path.into(),
            archive,
            root,
            pickle,
            tensors: HashMap::new(),
        };
        file.find_tensors()?;
        Ok(file)
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors of the state dict.
    pub(super) fn state_dict(&self) -> Result<Vec<TensorEntry>, CheckpointError> {
        if self.tensors.is_empty() {
            return Err(CheckpointError::NotADit {
                path: self.path.clone(),
                problem: format!(
                    "expected a dict of tensors, found {}",
                    self.pickle.kind(self.pickle.root())
                ),
            });
        }
        Ok(self
            .tensors
            .iter()
            .map(|(name, t)| TensorEntry {
                name: name.clone(),
                dtype: t.dtype.clone(),
                shape: t.shape.clone(),
            })
            .collect())
    }

    /// The bytes of a tensor, row-major.
    pub(super) fn read_tensor(&mut self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let tensor = self
            .tensors
            .get(name)
            .cloned()
            .ok_or_else(|| CheckpointError::missing(&self.path, name))?;
        let width = tensor.dtype.size().unwrap_or(1);
        let member = format!("{}data/{}", self.root, tensor.storage);
        // Reading to the end lets the archive compare its checksum.
        let bytes = read_member(&mut self.archive, &self.path, &member, (tensor.storage_len * width) as u64)?
            .filter(|bytes| bytes.len() == tensor.storage_len * width)
            .ok_or_else(|| CheckpointError::Damaged {
                path: self.path.clone(),
                problem: format!("the storage of tensor `{name}` is missing or has another length than its pickle says"),
            })?;
        if tensor.is_contiguous() {
            let start = tensor.offset * width;
            let len = tensor.shape.iter().product::<usize>() * width;
            return Ok(if start == 0 && len == bytes.len() {
                bytes
            } else {
                bytes[start..start + len].to_vec()
            });
        }
        Ok(tensor.gather(&bytes, width))
    }

    fn find_tensors(&mut self) -> Result<(), CheckpointError> {
        let mut dict = self.pickle.root();
        for wrapper in WRAPPERS {
            if let Some(inner) = self.pickle.lookup(dict, wrapper)
                && self.pickle.entries(inner).is_some()
            {
                dict = inner;
                break;
            }
        }
        let mut found: BTreeMap<String, StoredTensor> = BTreeMap::new();
        let mut left = MAX_ENTRIES;
        self.collect(dict, "", 0, &mut found, &mut left)?;
        for prefix in PREFIXES {
            if !found.is_empty() && found.keys().all(|name| name.starts_with(prefix)) {
                found = found
                    .into_iter()
                    .map(|(name, t)| (name[prefix.len()..].to_owned(), t))
                    .collect();
            }
        }
        self.tensors = found.into_iter().collect();
        Ok(())
    }

    /// Tensors of a dict and, one level down, of dicts inside it (`routers` beside `opt`), as `outer.inner`.
    fn collect(
        &self,
        dict: ValueId,
        prefix: &str,
        depth: usize,
        found: &mut BTreeMap<String, StoredTensor>,
        left: &mut usize,
    ) -> Result<(), CheckpointError> {
        for &(key, value) in self.pickle.entries(dict).unwrap_or_default() {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| CheckpointError::Refused {
                    path: self.path.clone(),
                    problem: format!("its dicts have more than {MAX_ENTRIES} entries"),
                })?;
            let Some(key) = self.pickle.str(key) else {
                continue;
            };
            let name = format!("{prefix}{key}");
            if let Some(tensor) = self.tensor(&name, value)? {
                found.insert(name, tensor);
            } else if depth == 0 && self.pickle.entries(value).is_some() {
                self.collect(value, &format!("{name}."), depth + 1, found, left)?;
            }
        }
        Ok(())
    }

    /// The tensor that a recorded `_rebuild_tensor_v2` call describes, `None` if `id` is something else.
    fn tensor(&self, name: &str, id: ValueId) -> Result<Option<StoredTensor>, CheckpointError> {
        let Value::Call {
            function,
            arguments,
        } = self.pickle.get(id)
        else {
            return Ok(None);
        };
        let arguments = self.pickle.items(*arguments).unwrap_or_default();
        match function.as_str() {
            "torch._utils._rebuild_parameter" => {
                // A parameter wraps a tensor; a parameter of a parameter is no PyTorch file.
                let inner = arguments.first().copied().filter(|inner| {
                    !matches!(self.pickle.get(*inner), Value::Call { function, .. } if function == "torch._utils._rebuild_parameter")
                });
                match inner {
                    Some(inner) => self.tensor(name, inner),
                    None => Err(self.malformed(name, "a parameter without a tensor")),
                }
            }
            "torch._utils._rebuild_tensor_v2" => self.rebuild(name, arguments).map(Some),
            _ => Ok(None),
        }
    }

    fn rebuild(&self, name: &str, arguments: &[ValueId]) -> Result<StoredTensor, CheckpointError> {
        let bad = |what: &str| self.malformed(name, what);
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(bad("too few arguments"));
        };
        let Value::Persistent(reference) = self.pickle.get(*storage) else {
            return Err(bad("no storage"));
        };
        // ('storage', torch.FloatStorage, key, location, element count); the location (`cuda:3`) is ignored.
        let Some([_, kind, key, _, count, ..]) = self.pickle.items(*reference) else {
            return Err(bad("a storage reference of another form"));
        };
        let Value::Global(kind) = self.pickle.get(*kind) else {
            return Err(bad("a storage without a type"));
        };
        let dtype = match kind.as_str() {
            "torch.DoubleStorage" => Dtype::F64,
            "torch.FloatStorage" => Dtype::F32,
            "torch.HalfStorage" => Dtype::F16,
            "torch.BFloat16Storage" => Dtype::BF16,
            "torch.LongStorage" => Dtype::I64,
            "torch.IntStorage" => Dtype::I32,
            "torch.ByteStorage" | "torch.BoolStorage" => Dtype::U8,
            other => Dtype::Other(other.to_owned()),
        };
        let size = |id: &ValueId| self.pickle.int(*id).and_then(|n| usize::try_from(n).ok());
        let sizes = |id: &ValueId| -> Option<Vec<usize>> {
            self.pickle.items(*id)?.iter().map(&size).collect()
        };
        let long = |id: &ValueId| {
            let items = self.pickle.items(*id);
            items.is_some_and(|items| items.len() > MAX_DIMENSIONS)
        };
        if long(shape) || long(strides) {
            return Err(bad(&format!("more than {MAX_DIMENSIONS} dimensions")));
        }
        let tensor = StoredTensor {
            storage: self
                .pickle
                .str(*key)
                .ok_or_else(|| bad("a storage without a key"))?
                .to_owned(),
            storage_len: size(count).ok_or_else(|| bad("a negative storage length"))?,
            offset: size(offset).ok_or_else(|| bad("a negative offset"))?,
            dtype,
            shape: sizes(shape).ok_or_else(|| bad("a negative dimension"))?,
            strides: sizes(strides).ok_or_else(|| bad("a negative stride"))?,
        };
        if !tensor.fits() {
            return Err(bad(&format!(
                "shape {:?} with strides {:?} at offset {}, which its storage of {} elements cannot hold",
                tensor.shape, tensor.strides, tensor.offset, tensor.storage_len
            )));
        }
        // The member's real size bounds every later allocation.
        let member = format!("{}data/{}", self.root, tensor.storage);
        if self.archive.index_for_name(&member).is_none() {
            return Err(bad("no storage in the archive"));
        }
        Ok(tensor)
    }

    fn malformed(&self, name: &str, what: &str) -> CheckpointError {
        CheckpointError::Damaged {
            path: self.path.clone(),
            problem: format!("tensor `{name}` has {what}"),
        }
    }
}

impl StoredTensor {
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if dim != 1 && stride != expected {
                return false;
            }
            expected *= dim;
        }
        true
    }

    /// Whether every element lies in the storage, and the tensor is no larger than it.
    fn fits(&self) -> bool {
        if self.shape.len() != self.strides.len() {
            return false;
        }
        let elements = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (dim, stride)| {
                at.checked_add(dim.saturating_sub(1).checked_mul(*stride)?)
            });
        let bytes = self.storage_len.checked_mul(self.dtype.size().unwrap_or(1));
        match (elements, last, bytes) {
            (Some(0), _, Some(_)) => self.offset <= self.storage_len,
            (Some(elements), Some(last), Some(_)) => {
                last < self.storage_len && elements <= self.storage_len
            }
            _ => false,
        }
    }

    /// The bytes of a strided view, row-major.
    fn gather(&self, bytes: &[u8], width: usize) -> Vec<u8> {
        let elements = self.shape.iter().product::<usize>();
        let mut out = Vec::with_capacity(elements * width);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..elements {
            let at = self.offset
                + index
                    .iter()
                    .zip(&self.strides)
                    .map(|(i, s)| i * s)
                    .sum::<usize>();
            out.extend_from_slice(&bytes[at * width..(at + 1) * width]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        out
    }
}

/// A member's bytes, `None` if there is none of that name.
///
/// `limit` bounds the allocation whatever the directory claims; a compressed member is refused,
/// since PyTorch stores and never compresses.
fn read_member(
    archive: &mut Archive,
    path: &Path,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, CheckpointError> {
    let damaged = |problem: String| CheckpointError::Damaged {
        path: path.into(),
        problem,
    };
    let Some(index) = archive.index_for_name(name) else {
        return Ok(None);
    };
    let member = archive
        .by_index(index)
        .map_err(|e| damaged(format!("its member `{name}` cannot be opened: {e}")))?;
    if member.compression() != CompressionMethod::Stored {
        return Err(CheckpointError::Refused {
            path: path.into(),
            problem: format!("its member `{name}` is compressed, which PyTorch never does"),
        });
    }
    let size = member.size();
    if size > limit || size != member.compressed_size() {
        return Err(damaged(format!(
            "its member `{name}` claims {size} bytes, expected at most {limit}"
        )));
    }
    let mut bytes = Vec::new();
    member
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| damaged(format!("its member `{name}` cannot be read: {e}")))?;
    Ok(Some(bytes))
}

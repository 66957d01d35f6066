//! The safetensors header, read strictly.
//!
//! The `safetensors` crate keeps the last of two equal keys and wants the whole file in memory;
//! a header from outside is checked here field by field instead.

use std::{collections::BTreeMap, fmt, io::Read, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

use super::{
    error::CheckpointError,
    source::{Dtype, TensorEntry},
};

/// The format's own limit on a header.
const MAX_HEADER: u64 = 100_000_000;
/// Tensors of a file at most; the largest published models have some thousands.
pub(super) const MAX_TENSORS: usize = 1 << 16;

/// A checked header: tensors with absolute byte offsets, in file order, and the free-form metadata.
#[derive(Debug)]
pub(super) struct Header {
    pub entries: Vec<(TensorEntry, u64)>,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<i64>,
    data_offsets: [i64; 2],
}

enum RawEntry {
    Metadata(UniqueMap<String>),
    Tensor(RawTensor),
}

/// A JSON object whose keys must differ.
struct UniqueMap<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom(format!("key `{key}` appears twice")));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if entries.len() == MAX_TENSORS {
                        let problem = format!("it names more than {MAX_TENSORS} tensors");
                        return Err(de::Error::custom(problem));
                    }
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom(format!("tensor `{key}` appears twice")));
                    }
                    let entry = if key == "__metadata__" {
                        RawEntry::Metadata(map.next_value()?)
                    } else {
                        RawEntry::Tensor(map.next_value()?)
                    };
                    entries.push((key, entry));
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads and checks the header of a file of `file_len` bytes.
///
/// Every tensor must lie inside the file and be as long as its shape says; together they are all of its data, none of it twice.
pub(super) fn read_header(
    path: &Path,
    file: &mut impl Read,
    file_len: u64,
) -> Result<Header, CheckpointError> {
    let damaged = |problem: String| CheckpointError::Damaged {
        path: path.into(),
        problem,
    };
    let io = |source| CheckpointError::Io {
        action: "read",
        path: path.into(),
        source,
    };

    let mut length = [0; 8];
    if file_len < 8 {
        return Err(damaged(format!(
            "a safetensors file starts with 8 bytes of header length, it has {file_len}"
        )));
    }
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(damaged(format!(
            "its header claims {length} bytes, the format allows {MAX_HEADER}"
        )));
    }
    let data_start = 8 + length;
    if data_start > file_len {
        return Err(damaged(format!(
            "its header claims {length} bytes, the file has {}",
            file_len - 8
        )));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(io)?;
    // Readers differ in what they make of white space before it.
    if json.first() != Some(&b'{') {
        return Err(damaged("its header is no JSON object".into()));
    }
    let raw: RawHeader = serde_json::from_slice(&json)
        .map_err(|e| damaged(format!("its header is not valid: {e}")))?;

    let mut header = Header {
        entries: Vec::new(),
        metadata: BTreeMap::new(),
    };
    for (name, entry) in raw.0 {
        let tensor = match entry {
            RawEntry::Metadata(map) => {
                header.metadata = map.0.into_iter().collect();
                continue;
            }
            RawEntry::Tensor(tensor) => tensor,
        };
        let dtype = Dtype::from_safetensors(&tensor.dtype);
        let bytes = dtype.size().ok_or_else(|| CheckpointError::Dtype {
            path: path.into(),
            name: name.clone(),
            dtype: tensor.dtype.clone(),
        })?;
        let mut shape = Vec::with_capacity(tensor.shape.len());
        let mut expected = Some(bytes as u64);
        for &dim in &tensor.shape {
            let dim = u64::try_from(dim).map_err(|_| {
                damaged(format!("tensor `{name}` has the negative dimension {dim}"))
            })?;
            expected = expected.and_then(|n| n.checked_mul(dim));
            shape.push(dim as usize);
        }
        let [start, end] = tensor.data_offsets;
        let (Ok(start), Ok(end)) = (u64::try_from(start), u64::try_from(end)) else {
            return Err(damaged(format!(
                "tensor `{name}` lies at negative offsets [{start}, {end}]"
            )));
        };
        if end < start || end > file_len - data_start {
            return Err(damaged(format!(
                "tensor `{name}` lies at bytes {start} to {end}, the file has {} bytes of data; was it cut off?",
                file_len - data_start
            )));
        }
        if expected != Some(end - start) {
            return Err(damaged(format!(
                "tensor `{name}` of {} {shape:?} has {} bytes, expected {}",
                tensor.dtype,
                end - start,
                expected.map_or("more than a file can hold".into(), |n| n.to_string())
            )));
        }
        header
            .entries
            .push((TensorEntry { name, dtype, shape }, data_start + start));
    }
    header
        .entries
        .sort_by_key(|(entry, offset)| (*offset, entry.bytes()));
    let mut free_from = data_start;
    let mut last = String::new();
    for (entry, offset) in &header.entries {
        if *offset < free_from {
            return Err(damaged(format!(
                "tensors `{last}` and `{}` overlap",
                entry.name
            )));
        }
        if *offset > free_from {
            return Err(damaged(format!(
                "bytes {} to {} of its data, before tensor `{}`, belong to no tensor",
                free_from - data_start,
                offset - data_start,
                entry.name
            )));
        }
        free_from = offset + entry.bytes() as u64;
        last.clone_from(&entry.name);
    }
    if free_from != file_len {
        return Err(damaged(format!(
            "the last {} bytes of its data belong to no tensor",
            file_len - free_from
        )));
    }
    Ok(header)
}

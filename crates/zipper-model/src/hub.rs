//! Hugging Face directories as published: config.json, *.safetensors with or without an index, bf16, f16 or f32.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// Name of the file that says what a model looks like.
pub const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Reads a JSON file of a model directory.
///
/// # Errors
/// [`ModelError`] naming the file and, where it does not fit `T`, the key.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let invalid = |problem| ModelError::Invalid {
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read(path).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut json = serde_json::Deserializer::from_slice(&bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        // The path is `.` where the file is not JSON or lacks a key of the outermost level.
        match error.path().to_string().as_str() {
            "." => invalid(error.inner().to_string()),
            key => invalid(format!("`{key}`: {}", error.inner())),
        }
    })
}

/// Like [`read_json`], but nothing where the file is missing.
///
/// # Errors
/// [`ModelError`] if the file is there but unreadable or does not fit `T`.
pub(crate) fn read_optional_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    if path.exists() {
        read_json(path).map(Some)
    } else {
        Ok(None)
    }
}

/// The weights of a model directory, mapped into memory and read by name.
#[derive(Debug)]
pub struct Weights {
    /// Which tensors there are stands here.
    listing: PathBuf,
    files: Vec<WeightsFile>,
    /// Tensor name to the file it is in.
    index: BTreeMap<String, usize>,
    device: Device,
    kind: Kind,
}

#[derive(Debug)]
struct WeightsFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Names of the safetensors files in a folder.
fn safetensors_in(folder: &Path) -> Result<Vec<String>, ModelError> {
    let io = |source| ModelError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl Weights {
    /// Opens the weights of `folder`; tensors will be given as `kind` on `device`.
    ///
    /// # Errors
    /// [`ModelError`] naming the file that is missing, cut off or not a safetensors file.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let index = folder.join(INDEX);
        let (listing, names) = match read_optional_json::<Index>(&index)? {
            Some(Index { weight_map }) if weight_map.is_empty() => {
                return Err(ModelError::Invalid {
                    path: index,
                    problem: "`weight_map` names no file: was the download cut off?".to_owned(),
                });
            }
            Some(Index { weight_map }) => {
                let mut names: Vec<String> = weight_map.into_values().collect();
                names.sort();
                names.dedup();
                (index, names)
            }
            None if folder.join(SINGLE).exists() => (folder.join(SINGLE), vec![SINGLE.to_owned()]),
            None => match safetensors_in(folder)? {
                // Who misses a file knows it by this name.
                names if names.is_empty() => (folder.join(SINGLE), vec![SINGLE.to_owned()]),
                names => (folder.to_owned(), names),
            },
        };
        let files = names
            .iter()
            .map(|name| WeightsFile::open(folder.join(name)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut index = BTreeMap::new();
        for (position, file) in files.iter().enumerate() {
            index.extend(file.metadata.tensors().into_keys().map(|name| (name, position)));
        }
        Ok(Self {
            listing,
            files,
            index,
            device,
            kind,
        })
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor called `name`, frozen.
    ///
    /// # Errors
    /// [`ModelError`] if it is missing, has another shape or an element type that is not a float.
    pub fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let position = *self.index.get(name).ok_or_else(|| ModelError::Invalid {
            path: self.listing.clone(),
            problem: format!("there is no tensor `{name}`: is config.json that of this model?"),
        })?;
        let file = &self.files[position];
        let invalid = |problem| ModelError::Invalid {
            path: file.path.clone(),
            problem,
        };
        let info = file
            .metadata
            .info(name)
            .expect("the index is made of the files' own lists");
        let found: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        if found != shape {
            return Err(ModelError::Shape {
                path: file.path.clone(),
                name: name.to_owned(),
                found,
                expected: shape.to_vec(),
            });
        }
        let stored = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(invalid(format!(
                    "tensor `{name}` is {other:?}; only F32, F16 and BF16 are read"
                )));
            }
        };
        let (from, to) = info.data_offsets;
        let bytes = &file.map[file.data_start + from..file.data_start + to];
        let tensor = Tensor::f_from_data_size(bytes, shape, stored)?;
        Ok(tensor.f_to_device(self.device)?.f_to_kind(self.kind)?)
    }
}

impl WeightsFile {
    fn open(path: PathBuf) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(io)?;
        #[expect(
            unsafe_code,
            reason = "mapping a file is unsafe because another process could cut it while it is mapped"
        )]
        // SAFETY: published weights are not written to while they are in use; the map is only read.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| ModelError::Invalid {
            path: path.clone(),
            problem: format!("not a whole safetensors file, was it cut off? {error}"),
        })?;
        let data_start = header + size_of::<u64>();
        Ok(Self {
            path,
            map,
            metadata,
            data_start,
        })
    }
}

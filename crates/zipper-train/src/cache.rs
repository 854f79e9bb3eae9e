//! Encoder outputs on disk, one file for each utterance, shared by runs with the same encoder and context.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};
use zipper_config::schema::{EncoderConfig, EncoderContext};
use zipper_data::Utterance;

use crate::TrainError;

/// The part of a cache's folder that belongs to one encoder and context.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the part of `folder` that belongs to this encoder, computing in `kind`, and this context.
    pub(crate) fn open(folder: &Path, config: &EncoderConfig, kind: Kind) -> Result<Self, TrainError> {
        let cannot = |path: &Path| {
            let path = path.to_owned();
            move |source| TrainError::Cache { path, source }
        };
        let mut key = blake3::Hasher::new();
        let mut files: Vec<PathBuf> = fs::read_dir(&config.path)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
            .map_err(cannot(&config.path))?;
        files.retain(|file| {
            file.extension()
                .is_some_and(|ending| ending == "safetensors" || ending == "json")
        });
        files.sort();
        for file in &files {
            let mut reader = fs::File::open(file).map_err(cannot(file))?;
            io::copy(&mut reader, &mut key).map_err(cannot(file))?;
        }
        let context = match config.context {
            EncoderContext::Chunked => {
                format!("chunked-{}-{}", config.chunk_seconds, config.left_context_seconds)
            }
            EncoderContext::Native => "native".to_owned(),
            EncoderContext::Padded30s => "padded_30s".to_owned(),
        };
        let kind = match kind {
            Kind::BFloat16 => "-bf16",
            // The same but for a rounding now and then.
            _ => "",
        };
        let folder = folder.join(format!("{}-{context}{kind}", &key.finalize().to_hex()[..16]));
        fs::create_dir_all(&folder).map_err(cannot(&folder))?;
        Ok(Self { folder })
    }

    /// Where the frames of `utterance` are: keyed by the audio file's path, size and change time, and the cut.
    pub(crate) fn file_of(&self, utterance: &Utterance) -> Result<PathBuf, TrainError> {
        let path = &utterance.audio_filepath;
        let metadata = fs::metadata(path).map_err(|source| TrainError::Cache {
            path: path.clone(),
            source,
        })?;
        let modified = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_nanos());
        let mut key = blake3::Hasher::new();
        key.update(path.as_os_str().as_encoded_bytes());
        key.update(&metadata.len().to_le_bytes());
        key.update(&modified.to_le_bytes());
        key.update(&utterance.offset.unwrap_or(-1.0).to_le_bytes());
        key.update(&utterance.duration.to_le_bytes());
        let name = key.finalize().to_hex();
        Ok(self
            .folder
            .join(&name[..2])
            .join(format!("{}.safetensors", &name[2..32])))
    }

    /// The cached frames, or nothing where there is no whole file.
    pub(crate) fn read(file: &Path) -> Option<Tensor> {
        let bytes = fs::read(file).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let view = tensors.tensor("frames").ok()?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        (view.dtype() == Dtype::F16 && shape.len() == 2)
            .then(|| Tensor::from_data_size(view.data(), &shape, Kind::Half))
    }

    /// Writes a whole file or none: under another name first, so that ranks that share the folder never read half of it.
    pub(crate) fn write(&self, file: &Path, frames: &Tensor) -> Result<(), TrainError> {
        let cannot = |source| TrainError::Cache {
            path: file.to_owned(),
            source,
        };
        let frames = frames.to_device(Device::Cpu).contiguous();
        let shape: Vec<usize> = frames.size().iter().map(|&n| n as usize).collect();
        let mut bytes = vec![0u8; frames.numel() * 2];
        frames.view([-1]).copy_data_u8(&mut bytes, frames.numel());
        let view = TensorView::new(Dtype::F16, shape, &bytes)
            .map_err(|error| cannot(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let whole = safetensors::serialize([("frames", view)], None)
            .map_err(|error| cannot(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let folder = file.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(cannot)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
        temporary.write_all(&whole).map_err(cannot)?;
        temporary.persist(file).map_err(|error| cannot(error.error))?;
        Ok(())
    }
}

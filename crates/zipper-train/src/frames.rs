//! Encoder frames of an utterance: decode, log-mel, frozen encoder, and a cache on disk since the result never changes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};
use zipper_config::schema::{EncoderConfig, EncoderContext};
use zipper_data::{Augmentation, Features, LogMel, Padding, Utterance};
use zipper_model::encoder::WhisperEncoder;
use zipper_model::linear::{LinearDelta, LoraSite};

use crate::TrainError;
use crate::parts::Stopwatch;

/// The frozen encoder with what stands before it.
pub struct Frames {
    encoder: WhisperEncoder,
    log_mel: LogMel,
    padding: Padding,
    device: Device,
    cache: Option<Cache>,
    /// Time for audio, features and kept outputs, and for the encoder.
    reading: Stopwatch,
    encoding: Stopwatch,
}

/// Encoder outputs on disk, one file for each utterance, shared by runs with the same encoder and context.
#[derive(Debug)]
struct Cache {
    folder: PathBuf,
}

impl Frames {
    /// Loads the encoder and opens the cache.
    ///
    /// # Errors
    /// [`TrainError::Model`] for an unusable directory, [`TrainError::Cache`] if the folder cannot be made.
    pub fn load(config: &EncoderConfig, device: Device) -> Result<Self, TrainError> {
        let encoder = WhisperEncoder::load(config, device)?;
        let log_mel = LogMel::new(encoder.num_mel_bins());
        let padding = match config.context {
            EncoderContext::Padded30s => Padding::To30s,
            EncoderContext::Native | EncoderContext::Chunked => Padding::None,
        };
        let cache = config
            .cache
            .as_deref()
            .map(|folder| Cache::open(folder, config))
            .transpose()?;
        Ok(Self {
            encoder,
            log_mel,
            padding,
            device,
            cache,
            reading: Stopwatch::default(),
            encoding: Stopwatch::default(),
        })
    }

    /// Time since the last call for audio, features and kept outputs, and for the encoder.
    pub(crate) fn take_times(&self) -> (Duration, Duration) {
        (self.reading.take(), self.encoding.take())
    }

    /// Width of a frame.
    pub fn width(&self) -> i64 {
        self.encoder.d_model()
    }

    /// Attaches adapters to the encoder's layers called `targets`; frames are then no longer cached.
    ///
    /// # Errors
    /// [`TrainError::Model`] for a target that the encoder does not have.
    pub fn adapt(&mut self, targets: &[String], first_site: usize) -> Result<Vec<LoraSite>, TrainError> {
        self.cache = None;
        Ok(self.encoder.lora_sites(targets, first_site)?)
    }

    /// The frames of `utterance`, from the cache where they are there and nothing is changed about it.
    ///
    /// # Shapes
    /// - returns: `[frames, width]`, f32, 50 frames a second
    ///
    /// # Errors
    /// [`TrainError::Audio`] naming the utterance, [`TrainError::Cache`].
    pub fn frozen(
        &self,
        utterance: &Utterance,
        augmentation: Option<Augmentation<'_>>,
    ) -> Result<Tensor, TrainError> {
        let Some(cache) = self.cache.as_ref().filter(|_| augmentation.is_none()) else {
            return tch::no_grad(|| self.adapted(utterance, augmentation, None));
        };
        let file = cache.file_of(utterance)?;
        let on_device = |frames: Tensor| frames.to_device(self.device).to_kind(Kind::Float);
        if let Some(frames) = self.reading.time(|| Cache::read(&file).map(on_device)) {
            return Ok(frames);
        }
        // The first use sees what later uses will read, so that a run does not depend on what was cached before it.
        let frames = tch::no_grad(|| self.adapted(utterance, None, None))?.to_kind(Kind::Half);
        cache.write(&file, &frames)?;
        Ok(frames.to_kind(Kind::Float))
    }

    /// The frames of `utterance` with adapters in the encoder.
    ///
    /// # Errors
    /// [`TrainError::Audio`] naming the utterance.
    pub fn adapted(
        &self,
        utterance: &Utterance,
        augmentation: Option<Augmentation<'_>>,
        adapters: Option<&dyn LinearDelta>,
    ) -> Result<Tensor, TrainError> {
        let features = self.reading.time(|| self.features(utterance, augmentation))?;
        self.encode(&features, adapters)
    }

    fn features(
        &self,
        utterance: &Utterance,
        augmentation: Option<Augmentation<'_>>,
    ) -> Result<Features, TrainError> {
        let mut samples = utterance.decode().map_err(|source| TrainError::Audio {
            id: utterance.id.clone(),
            source,
        })?;
        if let Some(augmentation) = augmentation {
            samples = augmentation.samples(samples);
        }
        let mut features = self.log_mel.compute(&samples, self.padding);
        if let Some(augmentation) = augmentation {
            augmentation.mask(&mut features);
        }
        Ok(features)
    }

    /// The frames of 16 kHz samples, at least 10 ms of them, never from the cache; with adapters in the encoder, if any.
    ///
    /// # Shapes
    /// - returns: `[frames, width]`, f32, 50 frames a second
    ///
    /// # Errors
    /// [`TrainError::Model`] if they are longer than the encoder's positions.
    pub fn of_samples(
        &self,
        samples: &[f32],
        adapters: Option<&dyn LinearDelta>,
    ) -> Result<Tensor, TrainError> {
        self.encode(&self.log_mel.compute(samples, self.padding), adapters)
    }

    fn encode(&self, features: &Features, adapters: Option<&dyn LinearDelta>) -> Result<Tensor, TrainError> {
        let mel = Tensor::from_slice(&features.data)
            .view([features.n_mels as i64, features.frames as i64])
            .to_device(self.device);
        let encode = || self.encoder.encode(&mel, features.valid_frames as i64, adapters);
        Ok(self.encoding.time(encode)?)
    }
}

impl Cache {
    /// Opens the part of `folder` that belongs to this encoder and context.
    fn open(folder: &Path, config: &EncoderConfig) -> Result<Self, TrainError> {
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
        let folder = folder.join(format!("{}-{context}", &key.finalize().to_hex()[..16]));
        fs::create_dir_all(&folder).map_err(cannot(&folder))?;
        Ok(Self { folder })
    }

    /// Where the frames of `utterance` are: keyed by the audio file's path, size and change time, and the cut.
    fn file_of(&self, utterance: &Utterance) -> Result<PathBuf, TrainError> {
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
    fn read(file: &Path) -> Option<Tensor> {
        let bytes = fs::read(file).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let view = tensors.tensor("frames").ok()?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        (view.dtype() == Dtype::F16 && shape.len() == 2)
            .then(|| Tensor::from_data_size(view.data(), &shape, Kind::Half))
    }

    /// Writes a whole file or none: under another name first, so that ranks that share the folder never read half of it.
    fn write(&self, file: &Path, frames: &Tensor) -> Result<(), TrainError> {
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

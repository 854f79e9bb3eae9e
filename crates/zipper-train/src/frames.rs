//! Encoder frames of an utterance: decode, log-mel, frozen encoder, and a cache on disk since the result never changes.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{EncoderConfig, EncoderContext};
use zipper_data::{Augmentation, Features, LogMel, Padding, Utterance};
use zipper_model::encoder::{LogMelFrames, WhisperEncoder};
use zipper_model::linear::{LinearDelta, LoraSite};
use zipper_model::param::trainable_kind;

use crate::TrainError;
use crate::cache::Cache;
use crate::parts::Stopwatch;
use crate::reading::{Input, ReadAhead, Reader, Reading};

/// Mel frames that are encoded together without gradients: a minute of speech keeps a GPU busy, and its activations are small beside those
/// of training.
const PACKED_FRAMES: usize = 6_000;

/// The frozen encoder with what stands before it.
pub struct Frames {
    encoder: WhisperEncoder,
    reader: Arc<Reader>,
    device: Device,
    /// Nothing until something is to be read ahead.
    ahead: RefCell<Option<ReadAhead>>,
    /// Time for audio, features and kept outputs, and for the encoder.
    reading: Stopwatch,
    encoding: Stopwatch,
}

impl Frames {
    /// Loads the encoder in `kind` and opens the cache.
    ///
    /// # Errors
    /// [`TrainError::Model`] for an unusable directory, [`TrainError::Cache`] if the folder cannot be made.
    pub fn load(config: &EncoderConfig, device: Device, kind: Kind) -> Result<Self, TrainError> {
        let encoder = WhisperEncoder::load(config, device, kind)?;
        let log_mel = LogMel::new(encoder.num_mel_bins());
        let padding = match config.context {
            EncoderContext::Padded30s => Padding::To30s,
            EncoderContext::Native | EncoderContext::Chunked => Padding::None,
        };
        let cache = config
            .cache
            .as_deref()
            .map(|folder| Cache::open(folder, config, kind))
            .transpose()?;
        Ok(Self {
            encoder,
            reader: Arc::new(Reader {
                log_mel,
                padding,
                cache,
            }),
            device,
            ahead: RefCell::default(),
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
    pub(crate) fn adapt(
        &mut self,
        targets: &[String],
        first_site: usize,
    ) -> Result<Vec<LoraSite>, TrainError> {
        self.reader = Arc::new(Reader {
            log_mel: self.reader.log_mel.clone(),
            padding: self.reader.padding,
            cache: None,
        });
        Ok(self.encoder.lora_sites(targets, first_site)?)
    }

    /// The frames of each utterance, from the cache where they are there and nothing is changed about it.
    ///
    /// # Shapes
    /// - returns: `[frames, width]` each, f32 or f64 as the model is, 50 frames a second
    ///
    /// # Errors
    /// [`TrainError::Audio`] naming the utterance, [`TrainError::Cache`].
    pub fn frozen(&self, heard: &[Heard<'_>]) -> Result<Vec<Tensor>, TrainError> {
        let mut frames: Vec<Option<Tensor>> = heard.iter().map(|_| None).collect();
        let mut unread = Vec::new();
        for (index, &(utterance, augmentation)) in heard.iter().enumerate() {
            match self.input(utterance, augmentation)? {
                Input::Kept(kept) => frames[index] = Some(self.reading.time(|| self.taken(&kept))),
                Input::Features(features, keep_in) => unread.push(((index, keep_in), features)),
            }
        }
        for pack in packs(unread) {
            let (places, features): (Vec<_>, Vec<Features>) = pack.into_iter().unzip();
            let encoded = tch::no_grad(|| self.encode(&features, None))?;
            for ((index, keep_in), encoded) in places.into_iter().zip(encoded) {
                frames[index] = Some(self.kept(keep_in.as_deref(), encoded)?);
            }
        }
        Ok(frames.into_iter().flatten().collect())
    }

    /// What is taken of an encoder's output, whether it was kept or is to be.
    fn taken(&self, kept: &Tensor) -> Tensor {
        kept.to_device(self.device)
            .to_kind(trainable_kind(self.encoder.kind()))
    }

    /// Keeps an encoder's output, if there is a cache. The first use sees what later uses will read, so that a run does not depend on what
    /// was cached before it.
    fn kept(&self, keep_in: Option<&Path>, encoded: Tensor) -> Result<Tensor, TrainError> {
        let Some((cache, file)) = self.reader.cache.as_ref().zip(keep_in) else {
            return Ok(encoded);
        };
        let encoded = encoded.to_kind(Kind::Half);
        cache.write(file, &encoded)?;
        Ok(self.taken(&encoded))
    }

    /// The frames of each utterance with adapters in the encoder, of which the utterances are the rows.
    ///
    /// # Errors
    /// [`TrainError::Audio`] naming the utterance.
    pub(crate) fn adapted(
        &self,
        heard: &[Heard<'_>],
        adapters: &dyn LinearDelta,
    ) -> Result<Vec<Tensor>, TrainError> {
        let features =
            heard.iter().map(
                |&(utterance, augmentation)| match self.input(utterance, augmentation)? {
                    Input::Features(features, _) => Ok(features),
                    Input::Kept(_) => unreachable!("nothing is kept where the encoder has adapters"),
                },
            );
        self.encode(&features.collect::<Result<Vec<_>, TrainError>>()?, Some(adapters))
    }

    /// Begins to read what the step after this one needs.
    ///
    /// # Errors
    /// [`TrainError::Thread`] if there can be no more threads.
    pub(crate) fn read_ahead(&self, reading: Reading) -> Result<(), TrainError> {
        let mut ahead = self.ahead.borrow_mut();
        if ahead.is_none() {
            *ahead = Some(ReadAhead::start(Arc::clone(&self.reader))?);
        }
        if let Some(ahead) = ahead.as_mut() {
            ahead.request(reading);
        }
        Ok(())
    }

    /// What was read ahead of `utterance`, or is read now.
    fn input(
        &self,
        utterance: &Utterance,
        augmentation: Option<Augmentation<'_>>,
    ) -> Result<Input, TrainError> {
        let seed = augmentation.as_ref().map(Augmentation::seed);
        let take = |ahead: &mut ReadAhead| ahead.take(utterance, seed);
        self.reading.time(|| {
            let read = self.ahead.borrow_mut().as_mut().and_then(take);
            read.unwrap_or_else(|| self.reader.read(utterance, augmentation))
        })
    }

    /// The frames of clips of 16 kHz samples, at least 10 ms each, never from the cache; with adapters in the encoder, if any, of which the
    /// clips are the rows.
    ///
    /// # Shapes
    /// - returns: `[frames, width]` each, f32 or f64 as the model is, 50 frames a second
    ///
    /// # Errors
    /// [`TrainError::Model`] if one is longer than the encoder's positions.
    pub(crate) fn of_samples(
        &self,
        clips: &[&[f32]],
        adapters: Option<&dyn LinearDelta>,
    ) -> Result<Vec<Tensor>, TrainError> {
        let features = clips
            .iter()
            .map(|samples| self.reader.log_mel.compute(samples, self.reader.padding));
        self.encode(&features.collect::<Vec<_>>(), adapters)
    }

    fn encode(
        &self,
        features: &[Features],
        adapters: Option<&dyn LinearDelta>,
    ) -> Result<Vec<Tensor>, TrainError> {
        let encode = || {
            let utterances = features.iter().map(|features| LogMelFrames {
                mel: Tensor::from_slice(&features.data)
                    .view([features.n_mels as i64, features.frames as i64])
                    .to_device(self.device),
                valid_frames: features.valid_frames as i64,
            });
            self.encoder.encode(&utterances.collect::<Vec<_>>(), adapters)
        };
        let frames = self.encoding.time(encode)?;
        let kind = trainable_kind(self.encoder.kind());
        Ok(frames.iter().map(|frames| frames.to_kind(kind)).collect())
    }
}

/// An utterance and what is changed about it.
pub type Heard<'a> = (&'a Utterance, Option<Augmentation<'a>>);

/// Utterances that are encoded together: as many as lie within [`PACKED_FRAMES`], in their order, or one that is longer.
fn packs<T>(unread: Vec<(T, Features)>) -> Vec<Vec<(T, Features)>> {
    let mut packs: Vec<Vec<(T, Features)>> = Vec::new();
    let mut frames = 0;
    for (place, features) in unread {
        frames += features.frames;
        match packs.last_mut() {
            Some(pack) if frames <= PACKED_FRAMES => pack.push((place, features)),
            _ => {
                frames = features.frames;
                packs.push(vec![(place, features)]);
            }
        }
    }
    packs
}

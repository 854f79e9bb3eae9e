//! Audio files to 16 kHz mono samples: WAV, FLAC, MP3, Ogg/Vorbis and Ogg/Opus.
//!
//! The container is recognised by its content, not by the file's name. Whatever cannot be decoded to the last
//! sample is an error: half an utterance with a whole transcript would be trained on otherwise. Only an Ogg or MP3
//! file that lost its end cannot be told from a shorter one here; [`crate::check_audio`] compares with the manifest.

use std::fs::File;
use std::io::ErrorKind;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::codecs::registry::CodecRegistry;
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::well_known::{FORMAT_ID_FLAC, FORMAT_ID_MP3, FORMAT_ID_OGG, FORMAT_ID_WAVE};
use symphonia::core::formats::{FormatId, FormatOptions, FormatReader, SeekMode, SeekTo, Track, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::units::Timestamp;
use symphonia_adapter_libopus::OpusDecoder;
use thiserror::Error;

/// Samples in a second of everything that [`decode`] returns.
pub const SAMPLE_RATE: u32 = 16_000;

/// An audio file that cannot be used.
#[derive(Debug, Error)]
#[error("`{}`: {problem}", path.display())]
pub struct AudioError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: AudioProblem,
}

/// What is wrong with an audio file.
#[derive(Debug, Error)]
pub enum AudioProblem {
    /// The file is missing or may not be read.
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    /// No known container was found in it.
    #[error("this is not audio that can be read: no WAV, FLAC, MP3 or Ogg data in it")]
    NotAudio,
    /// The container holds no audio track.
    #[error("the file has no audio track")]
    NoAudioTrack,
    /// The container is known, the codec in it is not.
    #[error(
        "cannot be decoded: {0}; convert it to WAV, FLAC, MP3, Ogg/Vorbis or Ogg/Opus with one or two channels"
    )]
    UnsupportedCodec(&'static str),
    /// There is not one sample in it.
    #[error("the file has no samples")]
    Empty,
    /// The file ends before its header says, or packets in its middle are lost.
    #[error("the file is cut short or damaged: it has {found:.2} s of the {expected:.2} s that it states")]
    Truncated {
        /// Seconds that can be decoded.
        found: f64,
        /// Seconds that the container states.
        expected: f64,
    },
    /// The data is damaged.
    #[error("the audio is damaged after {seconds:.2} s: {reason}")]
    Damaged {
        /// Seconds decoded before the damage.
        seconds: f64,
        /// The decoder's words.
        reason: String,
    },
    /// The cut starts after the last sample.
    #[error("the cut starts at {offset:.2} s, but the audio ends at {end:.2} s")]
    OffsetBeyondEnd {
        /// Start of the cut in seconds.
        offset: f64,
        /// Length of the audio in seconds.
        end: f64,
    },
}

/// Mono samples at the rate of the file they came from.
pub(crate) struct Mono {
    pub(crate) samples: Vec<f32>,
    pub(crate) sample_rate: u32,
}

impl Mono {
    pub(crate) fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.sample_rate)
    }
}

/// Encoders differ in whether their lengths count the MPEG frame (or block) that fills the decoder.
const SLACK: u64 = 1152;

static CODECS: LazyLock<CodecRegistry> = LazyLock::new(|| {
    let mut registry = CodecRegistry::new();
    symphonia::default::register_enabled_codecs(&mut registry);
    registry.register_audio_decoder::<OpusDecoder>();
    registry
});

/// Decodes `[offset, offset + duration)` of a file, in seconds, to 16 kHz mono samples in about `[-1, 1]`.
///
/// Channels are averaged. `duration: None` goes to the end; a cut that ends after the audio gives what there is.
/// A cut of `n` samples at the file's `rate` becomes `round(n * 16000 / rate)` samples, aligned with them.
///
/// # Errors
/// [`AudioError`] if the file is missing, is not audio, is damaged or cut short, or if the cut has no samples.
pub fn decode(path: &Path, offset: f64, duration: Option<f64>) -> Result<Vec<f32>, AudioError> {
    Ok(resample(decode_mono(path, offset, duration)?))
}

/// The length of a file in seconds: what its header says where that is exact (WAV, FLAC), else it is decoded.
///
/// # Errors
/// [`AudioError`] if the file is missing, is not audio, or cannot be decoded where that is needed.
pub fn seconds(path: &Path) -> Result<f64, AudioError> {
    let stated = catch_unwind(|| stated_seconds(path)).unwrap_or(None);
    match stated {
        Some(seconds) => Ok(seconds),
        None => Ok(decode_mono(path, 0.0, None)?.seconds()),
    }
}

fn stated_seconds(path: &Path) -> Option<f64> {
    let source = Source::open(path).ok()?;
    let exact = matches!(source.container(), FORMAT_ID_WAVE | FORMAT_ID_FLAC);
    let frames = source.track.num_frames.filter(|frames| exact && *frames > 0)?;
    Some(frames as f64 / f64::from(source.sample_rate))
}

/// As [`decode`], at the file's own rate.
pub(crate) fn decode_mono(path: &Path, offset: f64, duration: Option<f64>) -> Result<Mono, AudioError> {
    // The decoders are not free of panics on damaged headers. One file must not end a run without being named.
    catch_unwind(|| decode_file(path, offset, duration))
        .unwrap_or_else(|_| {
            Err(AudioProblem::Damaged {
                seconds: 0.0,
                reason: "the decoder panicked".to_owned(),
            })
        })
        .map_err(|problem| AudioError {
            path: path.to_owned(),
            problem,
        })
}

fn decode_file(path: &Path, offset: f64, duration: Option<f64>) -> Result<Mono, AudioProblem> {
    let mut source = Source::open(path)?;
    let sample_rate = source.sample_rate;
    let rate = f64::from(sample_rate);
    let start = (offset * rate).round() as u64;
    let end = duration.map_or(u64::MAX, |duration| {
        start.saturating_add((duration * rate).round() as u64)
    });

    let (samples, position) = source.read(start, end)?;

    if let Some(stated) = source
        .stated_frames()
        .filter(|stated| position < end.min(*stated))
    {
        return Err(AudioProblem::Truncated {
            found: position as f64 / rate,
            expected: stated as f64 / rate,
        });
    }
    if position == 0 {
        return Err(AudioProblem::Empty);
    }
    if samples.is_empty() {
        return Err(AudioProblem::OffsetBeyondEnd {
            offset,
            end: position as f64 / rate,
        });
    }
    if let Some(index) = samples.iter().position(|sample| !sample.is_finite()) {
        let seconds = (start + index as u64) as f64 / rate;
        return Err(AudioProblem::Damaged {
            seconds,
            reason: "a sample is not a finite number".to_owned(),
        });
    }
    Ok(Mono { samples, sample_rate })
}

/// The first audio track of an open file.
struct Source {
    format: Box<dyn FormatReader>,
    track: Track,
    parameters: AudioCodecParameters,
    decoder: Box<dyn AudioDecoder>,
    sample_rate: u32,
}

impl Source {
    fn open(path: &Path) -> Result<Self, AudioProblem> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(AudioProblem::Io(ErrorKind::IsADirectory.into()));
        }
        if metadata.len() == 0 {
            return Err(AudioProblem::Empty);
        }
        let stream = MediaSourceStream::new(Box::new(file), MediaSourceStreamOptions::default());
        // Without a hint: a wrong file name must not decide how the bytes are read.
        let format = symphonia::default::get_probe()
            .probe(
                &Hint::new(),
                stream,
                FormatOptions::default(),
                MetadataOptions::default(),
            )
            .map_err(at_start)?;
        let track = format
            .default_track(TrackType::Audio)
            .ok_or(AudioProblem::NoAudioTrack)?
            .clone();
        let Some(CodecParameters::Audio(parameters)) = track.codec_params.clone() else {
            return Err(AudioProblem::NoAudioTrack);
        };
        let decoder = CODECS
            .make_audio_decoder(&parameters, &AudioDecoderOptions::default())
            .map_err(at_start)?;
        let no_rate = AudioProblem::UnsupportedCodec("the header states no sample rate");
        let sample_rate = parameters.sample_rate.filter(|rate| *rate > 0).ok_or(no_rate)?;
        Ok(Self {
            format,
            track,
            parameters,
            decoder,
            sample_rate,
        })
    }

    fn container(&self) -> FormatId {
        self.format.format_info().format
    }

    /// The mono samples of the frames `start..end`, as far as there are any, and the frame after the last decoded one.
    fn read(&mut self, start: u64, end: u64) -> Result<(Vec<f32>, u64), AudioProblem> {
        let is_ogg = self.container() == FORMAT_ID_OGG;
        let mut position = self.seek_before(start)?;
        let mut next_timestamp = None;
        let mut samples = Vec::new();
        let mut interleaved = Vec::new();
        while position < end {
            let seconds = position as f64 / f64::from(self.sample_rate);
            let damaged = |reason: String| AudioProblem::Damaged { seconds, reason };
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track.id => packet,
                Ok(Some(_)) => continue,
                Ok(None) => break,
                Err(SymphoniaError::IoError(error)) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(damaged(error.to_string())),
            };
            // The Ogg reader skips pages whose checksum is wrong without a word: only the timestamps show it.
            let timestamp = packet.pts.get();
            let gap = next_timestamp.map_or(0, |next| timestamp.saturating_sub(next));
            if is_ogg && gap > SLACK as i64 {
                return Err(damaged("packets are missing".to_owned()));
            }
            next_timestamp = Some(timestamp.saturating_add_unsigned(packet.block_dur().get()));

            let buffer = self
                .decoder
                .decode(&packet)
                .map_err(|error| damaged(error.to_string()))?;
            let rate = buffer.spec().rate();
            if rate != self.sample_rate {
                return Err(damaged(format!(
                    "the sample rate changes from {} to {rate}",
                    self.sample_rate
                )));
            }
            let channels = buffer.spec().channels().count();
            buffer.copy_to_vec_interleaved::<f32>(&mut interleaved);
            for frame in interleaved.chunks_exact(channels) {
                if (start..end).contains(&position) {
                    samples.push(frame.iter().sum::<f32>() / channels as f32);
                }
                position += 1;
            }
        }
        Ok((samples, position))
    }

    /// Moves to a packet that starts at or before frame `start`, and returns the packet's first frame.
    ///
    /// Only where that is exact to the sample: lossy codecs carry state from packet to packet, so they are decoded
    /// from their beginning.
    fn seek_before(&mut self, start: u64) -> Result<u64, AudioProblem> {
        let exact = match self.container() {
            FORMAT_ID_FLAC => true,
            FORMAT_ID_WAVE => self.parameters.frames_per_block == Some(1),
            _ => false,
        };
        if !exact || self.track.num_frames.is_none_or(|frames| start >= frames) {
            return Ok(0);
        }
        let to = SeekTo::Timestamp {
            ts: Timestamp::from(start as i64),
            track_id: self.track.id,
        };
        let seeked = self.format.seek(SeekMode::Accurate, to).map_err(at_start)?;
        Ok(seeked.actual_ts.get() as u64)
    }

    /// The frames that can be decoded from the whole file by its own account, if it gives one.
    fn stated_frames(&self) -> Option<u64> {
        let frames = self.track.num_frames?;
        let delay = self.track.delay;
        match self.container() {
            FORMAT_ID_WAVE | FORMAT_ID_FLAC => Some(frames),
            // Only the tag that also states the encoder's delay is exact; without it this is a guess from the bit rate.
            FORMAT_ID_MP3 if delay.is_some() => Some(frames.saturating_sub(SLACK)),
            FORMAT_ID_OGG => {
                // The position on the last page: from the stream's start, with Opus from before the pre-skip.
                let before = self.track.start_ts.get().max(0) as u64;
                let pre_skip = delay
                    .filter(|_| self.parameters.codec == CODEC_ID_OPUS)
                    .unwrap_or(0);
                Some(frames.saturating_sub(before + u64::from(pre_skip) + SLACK))
            }
            _ => None,
        }
    }
}

/// What an error before the first packet means.
fn at_start(error: SymphoniaError) -> AudioProblem {
    match error {
        SymphoniaError::IoError(error) if error.kind() != ErrorKind::UnexpectedEof => AudioProblem::Io(error),
        SymphoniaError::IoError(_) => AudioProblem::NotAudio,
        SymphoniaError::Unsupported(what) if what.starts_with("core (probe)") => AudioProblem::NotAudio,
        SymphoniaError::Unsupported(what) => AudioProblem::UnsupportedCodec(what),
        error => AudioProblem::Damaged {
            seconds: 0.0,
            reason: error.to_string(),
        },
    }
}

/// Resamples to 16 kHz with an FFT filter whose delay is compensated; `round(n * 16000 / rate)` samples.
pub(crate) fn resample(audio: Mono) -> Vec<f32> {
    let Mono { samples, sample_rate } = audio;
    if sample_rate == SAMPLE_RATE {
        return samples;
    }
    let mut resampler = Fft::<f32>::new_custom(
        sample_rate as usize,
        SAMPLE_RATE as usize,
        filter_length(sample_rate as usize),
        1,
        1,
        WindowFunction::BlackmanHarris2,
        FixedSync::Both,
    )
    .expect("both rates and the filter length are positive");
    let input =
        InterleavedSlice::new(samples.as_slice(), 1, samples.len()).expect("one channel of that length");
    let mut output = resampler
        .process_all(&input, samples.len(), None)
        .expect("the input holds as many frames as stated")
        .take_data();
    let rate = u64::from(sample_rate);
    output.truncate(((samples.len() as u64 * 2 * u64::from(SAMPLE_RATE) + rate) / (2 * rate)) as usize);
    output
}

/// Input samples in one FFT, and in the filter: about 2048, so that the pass band reaches close to 8 kHz.
///
/// An even multiple of the shortest block that is whole at both rates. The filter's middle then falls on a sample;
/// with an odd multiple the output would be late by half a sample.
fn filter_length(rate: usize) -> usize {
    let block = rate / greatest_common_divisor(rate, SAMPLE_RATE as usize);
    block * 1024_usize.div_ceil(block) * 2
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

//! `zipper-worker transcribe`: what is said in audio files, as text, JSON or subtitles.
//!
//! Here recordings are read, cut at their pauses, and written down in batches. `inputs` says which files there are and in which
//! language each is, `detect` finds out where nothing is said, `format` is what a transcript looks like, `output` where it goes.

mod detect;
mod format;
mod inputs;
mod output;

use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;

use anyhow::Context;
use zipper_cli::{ExitStatus, Progress};
use zipper_config::RunConfig;
use zipper_data::{AudioError, CutOptions, SAMPLE_RATE, Segment, cut, decode};
use zipper_model::adapter::MergedAdapters;
use zipper_model::generate::GenerateOptions;
use zipper_train::replica::{Clip, Replica};

use crate::model::load;
use crate::source::{self, Source};
use crate::transcribe::detect::Language;
use crate::transcribe::format::{Format, Spoken, Transcript};
use crate::transcribe::inputs::Input;
use crate::transcribe::output::Output;

/// Audio that is held in memory and sorted by length at once, unless one file is longer: half an hour, 115 MB.
const GROUP_SAMPLES: usize = 30 * 60 * SAMPLE_RATE as usize;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: source::Choice,
    /// Audio files: WAV, FLAC, MP3, Ogg Vorbis or Opus.
    #[arg(value_name = "AUDIO", required_unless_present = "list")]
    audio: Vec<PathBuf>,
    /// Text file with one more audio file a line, relative to its own folder, and after a tab its language. Lines that begin with `#`
    /// are comments.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Code of the language of all files for which the list says nothing else. Left out: it is detected, by a run that was trained
    /// with `model.lid_head`; or the run has no other.
    #[arg(long)]
    language: Option<String>,
    /// Hear files whose language is detected with a mixture of all languages' adapters, each by its probability, instead of with the
    /// likeliest one's.
    #[arg(long, conflicts_with = "language")]
    mixture: bool,
    /// What to write.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Folder in which every audio file gets a file of its own: `talk.mp3` becomes `talk.srt`. Left out: stdout.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Shortest pause at which recordings are cut, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = parse_pause)]
    pause: f64,
    /// Beam width; 1 is greedy. Left out: the run's `evaluation.beam`.
    #[arg(long)]
    beam: Option<NonZeroUsize>,
    /// Longest transcript of a segment, in tokens. Left out: the run's `evaluation.max_new_tokens`.
    #[arg(long)]
    max_new_tokens: Option<NonZeroUsize>,
    /// Segments that are decoded together.
    #[arg(long, default_value = "16")]
    batch_size: NonZeroUsize,
    /// Torch threads. Left out: all cores.
    #[arg(long)]
    threads: Option<NonZeroU16>,
}

fn parse_pause(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds, such as `0.5`")?;
    if seconds.is_finite() && seconds > 0.0 {
        Ok(seconds)
    } else {
        Err("expected a length above 0, in seconds".to_owned())
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    if let Some(threads) = arguments.threads {
        tch::set_num_threads(i32::from(threads.get()));
    }
    let inputs = inputs::gather(&arguments.audio, arguments.list.as_deref())?;
    let mut source = Source::open(&arguments.source)?;
    let languages = inputs::languages_of(
        &inputs,
        arguments.language.as_deref(),
        &source.config.data.languages,
        source.config.model.lid_head.is_some(),
    )?;
    if arguments.mixture {
        detect::check_mixture(&source.config)?;
    }
    let mut output = Output::open(
        arguments.format,
        arguments.output.as_deref(),
        &inputs,
        source.step,
    )?;
    // It holds what training heard, and may be on another machine.
    source.config.model.encoder.cache = None;
    let transcriber = Transcriber {
        replica: load(&source.config, &source.parts)?,
        config: &source.config,
        options: GenerateOptions {
            beam: arguments
                .beam
                .map_or(source.config.evaluation.beam, NonZeroUsize::get),
            max_new_tokens: arguments
                .max_new_tokens
                .map_or(source.config.evaluation.max_new_tokens, NonZeroUsize::get),
        },
        batch_size: arguments.batch_size.get(),
        mixture: arguments.mixture,
    };
    let cutting = CutOptions {
        min_pause_seconds: arguments.pause,
        max_seconds: source.config.data.max_seconds,
    };
    let unreadable = transcriber.transcribe_files(&inputs, &languages, cutting, &mut output)?;
    output.finish()?;
    if unreadable.is_empty() {
        return Ok(ExitStatus::Done);
    }
    let named: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
    anyhow::bail!(
        "{} of {} files could not be read:\n  {}",
        unreadable.len(),
        inputs.len(),
        named.join("\n  ")
    );
}

/// A file that was read, and where its speech is.
struct Recording<'a> {
    input: &'a Input,
    /// Ordinal in the run's languages; nothing if it is to be detected.
    language: Option<usize>,
    samples: Vec<f32>,
    segments: Vec<Segment>,
}

impl<'a> Recording<'a> {
    fn read(input: &'a Input, language: Option<usize>, options: CutOptions) -> Result<Self, AudioError> {
        let samples = decode(&input.path, 0.0, None)?;
        let segments = cut(&samples, options);
        if segments.is_empty() {
            tracing::warn!("`{}`: there is no speech in it", input.path.display());
        }
        Ok(Self {
            input,
            language,
            samples,
            segments,
        })
    }
}

/// A model that writes down what it hears.
struct Transcriber<'a> {
    replica: Replica,
    config: &'a RunConfig,
    options: GenerateOptions,
    batch_size: usize,
    /// Whether detected languages are mixed.
    mixture: bool,
}

impl Transcriber<'_> {
    /// Reads the files in groups of [`GROUP_SAMPLES`] and gives their transcripts to `output`, in their order. Returns why files could
    /// not be read.
    fn transcribe_files(
        &self,
        inputs: &[Input],
        languages: &[Option<usize>],
        cutting: CutOptions,
        output: &mut Output,
    ) -> anyhow::Result<Vec<AudioError>> {
        let mut unreadable = Vec::new();
        let mut group = Vec::new();
        for (index, (input, &language)) in inputs.iter().zip(languages).enumerate() {
            match Recording::read(input, language, cutting) {
                Ok(recording) => group.push(recording),
                Err(error) => {
                    tracing::warn!("{error}");
                    unreadable.push(error);
                }
            }
            let is_last = index + 1 == inputs.len();
            let samples: usize = group.iter().map(|recording| recording.samples.len()).sum();
            if is_last || samples >= GROUP_SAMPLES {
                let transcripts = self.transcribe(&group)?;
                for (recording, transcript) in group.drain(..).zip(transcripts) {
                    output.add(&recording.input.path, transcript)?;
                }
                tracing::info!("{} of {} files are done", index + 1, inputs.len());
            }
        }
        Ok(unreadable)
    }

    /// The transcripts of `recordings`, in their order. Segments of all of them are decoded together, shortest first.
    fn transcribe(&self, recordings: &[Recording<'_>]) -> anyhow::Result<Vec<Transcript>> {
        let languages = recordings
            .iter()
            .map(|recording| self.language_of(recording))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let clips = recordings.iter().enumerate().flat_map(|(number, recording)| {
            let language = languages[number].ordinal;
            recording.segments.iter().map(move |segment| Clip {
                samples: segment.of(&recording.samples),
                language,
                adapter: if self.mixture { number } else { language },
            })
        });
        let clips: Vec<Clip<'_>> = clips.collect();
        let merged = self.merge(&languages)?;
        let mut texts = self.decode(&clips, &merged)?.into_iter();
        let transcripts = recordings.iter().zip(&languages).map(|(recording, language)| {
            let segments = recording.segments.iter().zip(texts.by_ref());
            let spoken = segments.map(|(segment, text)| Spoken {
                start: segment.start_seconds(),
                end: segment.end_seconds(),
                text,
            });
            Transcript::new(
                recording.input.path.display().to_string(),
                language.code(&self.config.data.languages),
                language.probability(),
                recording.samples.len() as f64 / f64::from(SAMPLE_RATE),
                spoken.collect(),
            )
        });
        Ok(transcripts.collect())
    }

    /// The adapters that recordings in these languages are heard with: a language's each, or a mixture for each recording.
    fn merge(&self, languages: &[Language]) -> anyhow::Result<MergedAdapters> {
        let adapters = self.replica.adapters();
        if !self.mixture {
            let languages: Vec<usize> = languages.iter().map(|language| language.ordinal).collect();
            return Ok(tch::no_grad(|| adapters.merge(&languages)));
        }
        let num_languages = self.config.data.languages.len();
        let weights: Vec<Vec<f64>> = languages
            .iter()
            .map(|language| language.weights(num_languages))
            .collect();
        let merged = adapters.merge_mixtures(&weights);
        merged.context("adapters of this variant cannot be mixed")
    }

    /// The texts of `clips`, in their order.
    fn decode(&self, clips: &[Clip<'_>], merged: &MergedAdapters) -> anyhow::Result<Vec<String>> {
        let mut order: Vec<usize> = (0..clips.len()).collect();
        order.sort_by_key(|&clip| clips[clip].samples.len());
        let mut texts = vec![String::new(); clips.len()];
        let progress = Progress::new("Transcribing segments", clips.len());
        for (number, batch) in order.chunks(self.batch_size).enumerate() {
            progress.at(number * self.batch_size);
            let of_batch: Vec<Clip<'_>> = batch.iter().map(|&clip| clips[clip]).collect();
            let written = tch::no_grad(|| self.replica.transcribe_samples(&of_batch, merged, self.options))?;
            for (&clip, text) in batch.iter().zip(written) {
                texts[clip] = text;
            }
        }
        Ok(texts)
    }
}

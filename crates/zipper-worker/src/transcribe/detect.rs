//! The language of a recording: told, or found by the run's LID head.

use zipper_cli::UserError;
use zipper_config::RunConfig;
use zipper_train::evaluate::likeliest;
use zipper_types::Variant;

use super::{Recording, Transcriber};

/// What ISO 639 calls a language that nobody knows.
const UNDETERMINED: &str = "und";

/// The language of a recording.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Language {
    /// In the run's languages.
    pub(super) ordinal: usize,
    /// How likely each language is, where it was detected; empty where there is no speech.
    posterior: Option<Vec<f64>>,
}

impl Language {
    /// Its code among `languages`.
    pub(super) fn code<'a>(&self, languages: &'a [String]) -> &'a str {
        match &self.posterior {
            Some(posterior) if posterior.is_empty() => UNDETERMINED,
            _ => &languages[self.ordinal],
        }
    }

    /// How likely it is; nothing where it was told.
    pub(super) fn probability(&self) -> Option<f64> {
        self.posterior.as_ref()?.get(self.ordinal).copied()
    }

    /// How much each language's adapter has to say.
    pub(super) fn weights(&self, num_languages: usize) -> Vec<f64> {
        let told = || {
            let mut weights = vec![0.0; num_languages];
            weights[self.ordinal] = 1.0;
            weights
        };
        let posterior = self.posterior.as_ref().filter(|posterior| !posterior.is_empty());
        posterior.cloned().unwrap_or_else(told)
    }
}

/// Refuses mixtures that there cannot be.
pub(super) fn check_mixture(config: &RunConfig) -> Result<(), UserError> {
    let refused = |problem: &str| Err(UserError::new(format!("`--mixture`: {problem}")));
    if config.model.lid_head.is_none() {
        return refused("this run cannot detect languages: it was trained without `model.lid_head`");
    }
    if config.adapter.variant == Variant::Independent {
        return refused(
            "languages with the variant `independent` have no matrix in common, and cannot be mixed",
        );
    }
    Ok(())
}

impl Transcriber<'_> {
    /// The language of a recording: what was told, or the likeliest by all of its segments, each as long as it is.
    pub(super) fn language_of(&self, recording: &Recording<'_>) -> anyhow::Result<Language> {
        if let Some(ordinal) = recording.language {
            return Ok(Language {
                ordinal,
                posterior: None,
            });
        }
        let clips: Vec<&[f32]> = recording
            .segments
            .iter()
            .map(|segment| segment.of(&recording.samples))
            .collect();
        let all: usize = clips.iter().map(|clip| clip.len()).sum();
        let mut posterior = Vec::new();
        for batch in clips.chunks(self.batch_size) {
            let of_batch = self.replica.detect_samples(batch)?;
            for (clip, of_clip) in batch.iter().zip(of_batch) {
                posterior.resize(of_clip.len(), 0.0);
                for (sum, probability) in posterior.iter_mut().zip(of_clip) {
                    *sum += probability * clip.len() as f64 / all as f64;
                }
            }
        }
        let found = likeliest(&posterior);
        if let Some((ordinal, probability)) = found {
            let code = &self.config.data.languages[ordinal];
            let path = recording.input.path.display();
            tracing::info!("`{path}`: language `{code}`, probability {probability:.2}");
        }
        Ok(Language {
            ordinal: found.map_or(0, |(ordinal, _)| ordinal),
            posterior: Some(posterior),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_has_no_probability_and_all_the_weight() {
        let languages = ["en".to_owned(), "de".to_owned()];
        let told = Language {
            ordinal: 1,
            posterior: None,
        };
        let about = |language: &Language| {
            let code = language.code(&languages).to_owned();
            (code, language.probability(), language.weights(2))
        };
        assert_eq!(about(&told), ("de".to_owned(), None, vec![0.0, 1.0]));
        let detected = Language {
            ordinal: 0,
            posterior: Some(vec![0.75, 0.25]),
        };
        assert_eq!(about(&detected), ("en".to_owned(), Some(0.75), vec![0.75, 0.25]));
        let silent = Language {
            ordinal: 0,
            posterior: Some(Vec::new()),
        };
        assert_eq!(about(&silent), ("und".to_owned(), None, vec![1.0, 0.0]));
    }
}

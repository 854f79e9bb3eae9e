//! Where the banks go: what the placement of a generation follows from besides its number of ranks.
//!
//! Work is measured in what earlier steps of the run took, if it is resumed, else in positions of the LLM.

use zipper_config::RunConfig;
use zipper_plan::{
    LanguageAmount, MeasuredStep, Placement, PlacementProblem, PlanError, WorkModel, banks_that_fit,
    expected_work,
};
use zipper_proto::v1;
use zipper_types::{Rank, Variant, WorldSize};

use crate::corpus::Corpus;

/// What the placement of every generation of a run follows from.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacementBasis {
    /// Expected work of each language per step; nothing if the variant has no banks.
    work: Option<Vec<f64>>,
    model: WorkModel,
    max_banks_per_rank: Option<u32>,
}

impl PlacementBasis {
    /// From the corpus and the lines of `metrics/train.jsonl` that there are. `bank_bytes` is the memory that a bank takes on
    /// an owner.
    ///
    /// # Errors
    /// [`PlanError::NoUtterances`].
    pub fn new<'a>(
        config: &RunConfig,
        corpus: &Corpus,
        metric_lines: impl Iterator<Item = &'a str>,
        bank_bytes: Option<u64>,
    ) -> Result<Self, PlanError> {
        let amounts: Vec<LanguageAmount> = config
            .data
            .languages
            .iter()
            .map(|lang| amount(corpus, lang))
            .collect();
        let lines: Vec<MeasuredStep> = metric_lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let model = WorkModel::measured_by(&config.data.languages, &amounts, &lines);
        let work = expected_work(
            &amounts,
            config.data.temperature,
            config.training.batch_audio_seconds,
            &model,
        )?;
        let memory = config.runtime.bank_memory_mib.zip(bank_bytes);
        Ok(Self {
            work: (config.adapter.variant != Variant::Shared).then_some(work),
            model,
            max_banks_per_rank: memory.map(|(mib, bytes)| banks_that_fit(mib, bytes)),
        })
    }

    /// The owners of each language's bank in a generation of `world_size` ranks; nothing if there are no banks.
    ///
    /// # Errors
    /// [`PlanError::TooLittleMemory`].
    pub fn place(&self, world_size: WorldSize) -> Result<Option<Placement>, PlanError> {
        let Some(work) = &self.work else {
            return Ok(None);
        };
        let problem = PlacementProblem {
            work: work.clone(),
            world_size,
            max_banks_per_rank: self.max_banks_per_rank,
        };
        Placement::solve(&problem).map(Some)
    }

    /// What utterances cost.
    pub fn model(&self) -> &WorkModel {
        &self.model
    }
}

/// First and last owner of each language.
pub fn owners(placement: Option<&Placement>) -> Vec<(Rank, Rank)> {
    placement.map_or_else(Vec::new, |placement| {
        (0..placement.num_languages())
            .map(|language| {
                let owners = placement.owners(language);
                (Rank(*owners.start()), Rank(*owners.end()))
            })
            .collect()
    })
}

/// A placement as workers are told it.
pub fn wire(placement: Option<&Placement>, model: &WorkModel) -> v1::Placement {
    let owners = owners(placement).into_iter().map(|(first, last)| v1::Owners {
        first_rank: first.0,
        last_rank: last.0,
    });
    v1::Placement {
        owners: owners.collect(),
        work: Some(v1::WorkModel {
            per_audio_second: model.per_audio_second,
            per_token: model.per_token,
            tokens_per_character: model.tokens_per_character.clone(),
            measured: model.measured,
        }),
    }
}

fn amount(corpus: &Corpus, lang: &str) -> LanguageAmount {
    let language = corpus.languages.iter().find(|language| language.lang == lang);
    language.map_or_else(LanguageAmount::default, |language| LanguageAmount {
        utterances: language.utterances,
        seconds: language.seconds,
        characters: language.characters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::LanguageCorpus;
    use crate::schedule::tests::config;

    fn corpus() -> Corpus {
        let language = |lang: &str, utterances, seconds, characters| LanguageCorpus {
            lang: lang.to_owned(),
            utterances,
            seconds,
            characters,
        };
        Corpus {
            languages: vec![language("de", 10, 40.0, 500), language("en", 30, 120.0, 600)],
        }
    }

    fn basis(config: &RunConfig, lines: &[String], bank_bytes: Option<u64>) -> PlacementBasis {
        let lines = lines.iter().map(String::as_str);
        PlacementBasis::new(config, &corpus(), lines, bank_bytes).expect("there is data")
    }

    /// A line of metrics in whose step a second of audio took 2 s and a token 0.1 s; English has 5 tokens for an utterance of
    /// 20 characters, and German is never drawn.
    fn line(step: u64, audio_seconds: f64, utterances: u64) -> String {
        let tokens = 5 * utterances;
        let compute_seconds = 2.0 * audio_seconds + 0.1 * tokens as f64;
        serde_json::json!({
            "step": step, "audio_seconds": audio_seconds, "tokens": tokens, "compute_seconds": compute_seconds,
            "by_language": {"en": {"loss": 1.0, "tokens": tokens, "utterances": utterances}},
        })
        .to_string()
    }

    /// Goal: without measurements the work follows from hours, temperature and texts, in the order of the configuration.
    #[test]
    fn a_new_run_is_placed_by_its_corpus() {
        let mut config = config("");
        config.data.temperature = 1.0;
        let basis = basis(&config, &[], None);
        assert!(!basis.model().measured);
        let work = basis.work.as_ref().expect("soft has banks");
        // Batches of 8 s hold 2 utterances of 4 s, 1.5 of them English: 12.5 positions per second, 20 or 50 characters.
        let expected = [1.5 * (50.0 + 20.0), 0.5 * (50.0 + 50.0)];
        for (found, expected) in work.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{work:?}");
        }
        let placement = basis
            .place(WorldSize(3))
            .expect("it fits")
            .expect("there are banks");
        assert_eq!(owners(Some(&placement)), [(Rank(0), Rank(2)), (Rank(2), Rank(2))]);
        let wire = wire(Some(&placement), basis.model());
        assert_eq!(
            wire.owners[1],
            v1::Owners {
                first_rank: 2,
                last_rank: 2
            }
        );
        assert_eq!(
            wire.work.map(|work| work.tokens_per_character),
            Some(vec![1.0, 1.0])
        );
    }

    /// Goal: a resumed run goes by what its steps took. A step that took far too long does not count, and German, of which
    /// nothing is known, has the tokens of English.
    #[test]
    fn a_resumed_run_is_placed_by_what_its_steps_took() {
        let mut lines: Vec<String> = (0..10)
            .map(|step| line(step, 30.0 + step as f64, 7 + step * step % 5))
            .collect();
        lines[0] = lines[0].replace("\"compute_seconds\":", "\"compute_seconds\":9");
        lines.push("{\"step\": 11}".to_owned());
        let basis_of = |lines: &[String]| basis(&config(""), lines, None);
        let measured = basis_of(&lines);
        let model = measured.model();
        assert!(model.measured);
        assert!((model.per_audio_second - 2.0).abs() < 1e-6, "{model:?}");
        assert!((model.per_token - 0.1).abs() < 1e-6, "{model:?}");
        assert_eq!(model.tokens_per_character, [0.25, 0.25]);
        assert!(!basis_of(&lines[..5]).model().measured, "five steps are too few");
    }

    #[test]
    fn memory_limits_the_banks_of_a_rank() {
        let mut config = config("");
        config.runtime.bank_memory_mib = Some(1.5);
        let basis = basis(&config, &[], Some(1024 * 1024));
        let error = basis.place(WorldSize(1)).expect_err("two banks do not fit");
        assert!(error.to_string().contains("or take 2 workers"), "{error}");
        assert!(basis.place(WorldSize(2)).is_ok());
    }

    #[test]
    fn one_shared_adapter_has_no_banks() {
        let mut config = config("");
        config.adapter.variant = Variant::Shared;
        let basis = basis(&config, &[], None);
        assert_eq!(basis.place(WorldSize(2)), Ok(None));
        assert!(wire(None, basis.model()).owners.is_empty());
    }
}

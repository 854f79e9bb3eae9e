//! Scores of decoded sets, and the table at the end of a run.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zipper_checkpoint::{CheckpointError, RunStore, layout};
use zipper_config::RunConfig;
use zipper_score::{RESULT_TABLE, Rates, Report, ReportBuilder, ResultRow, ResultSet, ResultTable, score};
use zipper_types::Step;

use crate::corpus::Corpus;
use crate::schedule::EvaluationSet;
use crate::state::Decoded;

/// One decoded set, scored: `eval/<set>-step-00000500.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scored {
    /// Name of the set.
    pub(crate) set: String,
    /// Completed steps of the model.
    pub(crate) step: Step,
    /// Whether the speech was silenced.
    pub(crate) silenced: bool,
    /// WER and CER.
    pub(crate) report: Report,
    /// Nats per token of the references; only for validation.
    pub(crate) loss: Option<f64>,
}

/// Scores a decoded set.
pub(crate) fn score_set(
    config: &RunConfig,
    set: &EvaluationSet,
    silenced: bool,
    step: Step,
    utterances: &[Decoded],
) -> Scored {
    let mut builder = ReportBuilder::new(&config.evaluation.cer_languages);
    let (mut nll, mut tokens) = (0.0, 0);
    for utterance in utterances {
        let scoring = config.evaluation.scoring(&utterance.lang);
        builder.add(
            &utterance.lang,
            score(scoring, &utterance.reference, &utterance.hypothesis),
        );
        let (of_utterance, its_tokens) = utterance.nll.unwrap_or_default();
        nll += of_utterance;
        tokens += its_tokens;
    }
    let loss = (tokens > 0).then(|| nll / tokens as f64);
    Scored {
        set: set.name().to_owned(),
        step,
        silenced,
        report: builder.finish(),
        loss,
    }
}

/// What people read: `validation`, `numbers, silenced`.
pub(crate) fn title(set: &EvaluationSet, silenced: bool, step: Step) -> String {
    let control = if silenced { ", silenced" } else { "" };
    let untrained = if step == Step(0) { ", untrained" } else { "" };
    format!("{}{control}{untrained}", set.name())
}

impl Scored {
    /// Writes the scores, and the hypotheses beside them.
    ///
    /// # Errors
    /// [`CheckpointError`] if the store cannot be written.
    pub(crate) async fn write(
        &self,
        store: &RunStore,
        utterances: &[Decoded],
    ) -> Result<(), CheckpointError> {
        let mut lines = String::new();
        for utterance in utterances {
            let line = serde_json::json!({"id": utterance.id, "lang": utterance.lang,
                "reference": utterance.reference, "hypothesis": utterance.hypothesis});
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        let name = layout::evaluation(&self.set, self.silenced, self.step);
        store.put(&format!("{name}.jsonl"), Bytes::from(lines)).await?;
        store.put(&format!("{name}.json"), json(self)).await
    }
}

fn json(value: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec_pretty(value).expect("scores can be written as JSON");
    Bytes::from(text)
}

/// Puts the table together from what was written at `step` and at step 0, and writes it.
///
/// # Errors
/// [`CheckpointError`] if the store cannot be read or written.
pub(crate) async fn write_table(
    store: &RunStore,
    config: &RunConfig,
    step: Step,
) -> Result<ResultTable, CheckpointError> {
    let hours = Corpus::read(store).await?.hours();
    let mut sets = Vec::new();
    for test in &config.evaluation.tests {
        let Some(trained) = read(store, &test.name, false, step).await? else {
            continue;
        };
        let silenced = read(store, &test.name, true, step).await?;
        let untrained = read(store, &test.name, false, Step(0)).await?;
        sets.push(result_set(
            &test.name,
            &trained,
            silenced.as_ref(),
            untrained.as_ref(),
            &hours,
        ));
    }
    let table = ResultTable { step, sets };
    store.put(RESULT_TABLE, json(&table)).await?;
    Ok(table)
}

fn result_set(
    name: &str,
    trained: &Scored,
    silenced: Option<&Scored>,
    untrained: Option<&Scored>,
    hours: &BTreeMap<String, f64>,
) -> ResultSet {
    let of_language = |scored: Option<&Scored>, lang: &str| {
        let of_language = scored?.report.by_language.get(lang)?;
        Some(Rates {
            wer: of_language.wer.rate(),
            cer: of_language.cer.rate(),
        })
    };
    let of_all = |scored: &Scored| {
        let overall = &scored.report.overall;
        Rates {
            wer: overall.wer.rate(),
            cer: overall.cer.rate(),
        }
    };
    let mut languages: Vec<ResultRow> = trained
        .report
        .by_language
        .iter()
        .filter_map(|(lang, of_lang)| {
            Some(ResultRow {
                lang: lang.clone(),
                train_hours: hours.get(lang).copied(),
                utterances: of_lang.utterances,
                headline: Some(of_lang.headline),
                trained: of_language(Some(trained), lang)?,
                silenced: of_language(silenced, lang),
                untrained: of_language(untrained, lang),
            })
        })
        .collect();
    languages.sort_by(|a, b| {
        b.train_hours
            .unwrap_or(0.0)
            .total_cmp(&a.train_hours.unwrap_or(0.0))
    });
    let overall = ResultRow {
        lang: "all".to_owned(),
        train_hours: (!hours.is_empty()).then(|| hours.values().sum()),
        utterances: trained.report.overall.utterances,
        headline: None,
        trained: of_all(trained),
        silenced: silenced.map(of_all),
        untrained: untrained.map(of_all),
    };
    ResultSet {
        name: name.to_owned(),
        languages,
        overall,
    }
}

async fn read(
    store: &RunStore,
    set: &str,
    silenced: bool,
    step: Step,
) -> Result<Option<Scored>, CheckpointError> {
    let name = format!("{}.json", layout::evaluation(set, silenced, step));
    let bytes = store.get_if_there(&name).await?;
    let scored = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    // A run that has been trained and evaluated does not fail for it.
    Ok(scored.unwrap_or_else(|error| {
        tracing::warn!(
            "`{}` is not in the table, as it cannot be read: {error}",
            store.object_url(&name)
        );
        None
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::tests::config;

    fn said(lang: &str, reference: &str, hypothesis: &str, nll: Option<(f64, u64)>) -> Decoded {
        Decoded {
            id: "u".to_owned(),
            lang: lang.to_owned(),
            reference: reference.to_owned(),
            hypothesis: hypothesis.to_owned(),
            nll,
        }
    }

    /// The loss of a set is the mean over its tokens, by which checkpoints are chosen.
    #[test]
    fn the_loss_is_that_of_a_token() {
        let decoded = |nll| said("en", "one", "one", nll);
        let loss =
            |all: &[Decoded]| score_set(&config(""), &EvaluationSet::Validation, false, Step(5), all).loss;
        assert_eq!(
            loss(&[decoded(Some((6.0, 3))), decoded(Some((2.0, 1)))]),
            Some(2.0)
        );
        assert_eq!(loss(&[decoded(None)]), None);
    }
    /// Goal: the table has every set that was decoded, beside its controls, the languages with most training speech first; a set that was
    /// not decoded, or whose scores are damaged, is left out. Method: scores written to a folder, with other errors in each.
    #[tokio::test]
    async fn the_table_has_what_was_decoded() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = RunStore::open(folder.path().to_str().expect("a name")).expect("a store");
        let mut config = config("");
        for name in ["missing", "damaged"] {
            let mut test = config.evaluation.tests[0].clone();
            name.clone_into(&mut test.name);
            config.evaluation.tests.push(test);
        }
        let amounts = |lang, seconds| serde_json::json!({"lang": lang, "utterances": 1, "seconds": seconds, "characters": 1});
        let corpus = serde_json::json!({"languages": [amounts("de", 1800.0), amounts("en", 7200.0)]});
        store
            .put(layout::CORPUS_REPORT, json(&corpus))
            .await
            .expect("it is written");
        let damaged = layout::evaluation("damaged", false, Step(9));
        store
            .put(&format!("{damaged}.json"), Bytes::from("{"))
            .await
            .expect("it is written");
        let all = [
            (false, Step(9), "yes please", "ja bitte"),
            (true, Step(9), "yes", "ja"),
            (false, Step(0), "", ""),
        ];
        for (silenced, step, english, german) in all {
            let decoded = [
                said("de", "ja bitte", german, None),
                said("en", "yes please", english, None),
            ];
            let set = EvaluationSet::Test("t".to_owned());
            let scored = score_set(&config, &set, silenced, step, &decoded);
            scored.write(&store, &decoded).await.expect("they are written");
        }

        let table = write_table(&store, &config, Step(9)).await.expect("a table");
        let written = store.get(RESULT_TABLE).await.expect("it is written");
        assert_eq!(
            serde_json::from_slice::<ResultTable>(&written).expect("a table"),
            table
        );
        let [set] = &table.sets[..] else {
            panic!("{table:?}");
        };
        let rates = |rates: &Option<Rates>| rates.as_ref().map(|rates| rates.wer);
        let rows: Vec<_> = set
            .languages
            .iter()
            .chain([&set.overall])
            .map(|row| {
                let controls = (rates(&row.silenced), rates(&row.untrained));
                (row.lang.as_str(), row.train_hours, row.trained.wer, controls)
            })
            .collect();
        let controls = (Some(0.5), Some(1.0));
        assert_eq!(
            rows,
            [
                ("en", Some(2.0), 0.0, controls),
                ("de", Some(0.5), 0.0, controls),
                ("all", Some(2.5), 0.0, controls)
            ]
        );
    }

    #[test]
    fn titles_say_what_was_decoded() {
        let set = EvaluationSet::Test("numbers".to_owned());
        assert_eq!(title(&set, false, Step(9)), "numbers");
        assert_eq!(title(&set, true, Step(9)), "numbers, silenced");
        assert_eq!(title(&set, false, Step(0)), "numbers, untrained");
    }
}

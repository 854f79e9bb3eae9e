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
    let name = layout::evaluation(set, silenced, step);
    let bytes = store.get_if_there(&format!("{name}.json")).await?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::tests::config;

    /// The loss of a set is the mean over its tokens, by which checkpoints are chosen.
    #[test]
    fn the_loss_is_that_of_a_token() {
        let decoded = |nll| Decoded {
            id: "u".to_owned(),
            lang: "en".to_owned(),
            reference: "one".to_owned(),
            hypothesis: "one".to_owned(),
            nll,
        };
        let loss =
            |all: &[Decoded]| score_set(&config(""), &EvaluationSet::Validation, false, Step(5), all).loss;
        assert_eq!(
            loss(&[decoded(Some((6.0, 3))), decoded(Some((2.0, 1)))]),
            Some(2.0)
        );
        assert_eq!(loss(&[decoded(None)]), None);
    }
}

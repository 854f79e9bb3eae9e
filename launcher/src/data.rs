//! The data of a run: written down when it is begun, and the same whenever it goes on. Batches are drawn from the utterances in their order,
//! so that others would be other batches; and a worker that is started again has to find what its peers have found.

use std::collections::BTreeSet;
use std::fmt::Display;

use anyhow::Context;
use bytes::Bytes;
use serde::Serialize;
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::UserError;
use zipper_config::schema::OnBadAudio;
use zipper_data::{BadAudio, Corpus, CorpusReport, Utterance, corpus_fingerprint, stored_fingerprint};

use crate::resume;

/// Utterances that a message names; the others are counted.
const NAMED: usize = 20;

/// What this launch trains on.
pub(crate) struct TrainingData {
    /// Without the utterances that are left out.
    pub(crate) corpus: Corpus,
    /// Ids of utterances, of any manifest, that are left out because of their audio.
    skipped: BTreeSet<String>,
    /// Of the corpus.
    fingerprint: String,
}

impl TrainingData {
    /// `corpus` without the `skipped` utterances.
    pub(crate) fn new(mut corpus: Corpus, skipped: BTreeSet<String>, languages: &[String]) -> Self {
        if !skipped.is_empty() {
            corpus
                .utterances
                .retain(|utterance| !skipped.contains(&utterance.id));
            corpus.report.count(&corpus.utterances);
        }
        Self {
            fingerprint: corpus_fingerprint(languages, &corpus.utterances),
            corpus,
            skipped,
        }
    }
}

/// `data/report.json`.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    report: &'a CorpusReport,
    corpus_fingerprint: &'a str,
}

/// What a run has written down of its data.
#[derive(Debug, Clone)]
pub(crate) struct RunData {
    url: String,
    /// Ids of the utterances that it leaves out because of their audio, if that is decided.
    skipped: Option<BTreeSet<String>>,
    has_report: bool,
    /// Of its corpus, each with where it is from. Earlier versions wrote none.
    fingerprints: Vec<(&'static str, String)>,
}

impl RunData {
    pub(crate) async fn read(store: &RunStore) -> anyhow::Result<Self> {
        let skipped = match store.get_if_there(layout::SKIPPED).await? {
            Some(ids) => Some(serde_json::from_slice(&ids).context(layout::SKIPPED)?),
            None => None,
        };
        let report = store.get_if_there(layout::CORPUS_REPORT).await?;
        let of_report = match &report {
            Some(report) => stored_fingerprint(report).context(layout::CORPUS_REPORT)?,
            None => None,
        };
        let of_checkpoint = resume::trained_on(store).await?;
        let fingerprints = [
            ("its newest checkpoint was written with", of_checkpoint),
            ("it was begun with", of_report),
        ];
        let fingerprints = fingerprints
            .into_iter()
            .filter_map(|(origin, fingerprint)| Some((origin, fingerprint?)))
            .collect();
        Ok(Self {
            url: store.url().to_owned(),
            skipped,
            has_report: report.is_some(),
            fingerprints,
        })
    }

    /// Ids of the utterances that the run leaves out because of their audio; nothing if that is still to be decided.
    pub(crate) fn skipped(&self) -> Option<&BTreeSet<String>> {
        self.skipped.as_ref()
    }

    /// Refuses other training data than the run's.
    pub(crate) fn check_corpus(&self, data: &TrainingData) -> Result<(), UserError> {
        let mut fingerprints = self.fingerprints.iter();
        let Some((origin, _)) = fingerprints.find(|(_, fingerprint)| *fingerprint != data.fingerprint) else {
            return Ok(());
        };
        let message = format!(
            "the training data of the run in `{}` are not those that {origin}: the manifests of `data.train` name other \
             utterances, durations or another order",
            self.url
        );
        Err(UserError::new(message)
            .hint("give them as they were, and `data/skipped.json` too if the run was moved")
            .hint("or begin another run with them: choose another `--run`"))
    }

    /// Refuses bad audio of utterances that the run does not leave out, and tells of those that it does. `all` are the utterances of all
    /// manifests.
    pub(crate) fn check_audio(
        &self,
        data: &TrainingData,
        all: &[Utterance],
        bad: &[BadAudio],
    ) -> Result<(), UserError> {
        let more = bad.iter().filter(|bad| !data.skipped.contains(&bad.id));
        let more: Vec<&BadAudio> = more.collect();
        if !more.is_empty() {
            let message = format!(
                "{} of {} utterances have bad audio, and the run in `{}` does not leave them out:\n  {}",
                more.len(),
                all.len(),
                self.url,
                listed(&more)
            );
            return Err(UserError::new(message)
                .hint("mend the files: a run leaves out the same utterances from beginning to end")
                .hint("or begin another run without them: choose another `--run`"));
        }
        if data.skipped.is_empty() {
            return Ok(());
        }
        eprintln!(
            "warning: utterances that this run leaves out because of their audio: {}",
            data.skipped.len()
        );
        let bad: BTreeSet<&str> = bad.iter().map(|bad| bad.id.as_str()).collect();
        let mended = all.iter().map(|utterance| utterance.id.as_str());
        let mended: Vec<&str> = mended
            .filter(|id| data.skipped.contains(*id) && !bad.contains(id))
            .collect();
        if !mended.is_empty() {
            eprintln!(
                "warning: {} of them have good audio by now, and stay left out:\n  {}",
                mended.len(),
                listed(&mended)
            );
        }
        Ok(())
    }

    /// Writes down what the run does not have yet. Nothing is replaced: a launch that will be refused, because another one has the
    /// run, leaves what that one works with as it is.
    pub(crate) async fn complete(&self, store: &RunStore, data: &TrainingData) -> anyhow::Result<()> {
        if self.skipped.is_none() {
            let ids = serde_json::to_vec(&data.skipped).context("the list of skipped utterances")?;
            create(store, layout::SKIPPED, ids).await?;
        }
        if !self.has_report {
            let report = Report {
                report: &data.corpus.report,
                corpus_fingerprint: &data.fingerprint,
            };
            let report = serde_json::to_vec_pretty(&report).context("the corpus report")?;
            create(store, layout::CORPUS_REPORT, report).await?;
        }
        Ok(())
    }
}

/// Writes an object that is written once.
async fn create(store: &RunStore, path: &str, content: Vec<u8>) -> anyhow::Result<()> {
    let content = Bytes::from(content);
    match store.create_or_get(path, content.clone()).await? {
        Some(there) if there != content => {
            let message = format!(
                "another launch has begun the run at the same time, and found other data: `{}`",
                store.object_url(path)
            );
            let error = UserError::new(message).hint("launch again, to go on with what it has found");
            Err(error.may_pass().into())
        }
        _ => Ok(()),
    }
}

/// The ids of the utterances that a new run leaves out because of their audio. `all` is the number of utterances of all manifests.
pub(crate) fn decide_skipped(
    on_bad_audio: OnBadAudio,
    all: usize,
    bad: Vec<BadAudio>,
) -> Result<BTreeSet<String>, UserError> {
    if bad.is_empty() {
        return Ok(BTreeSet::new());
    }
    let (count, named) = (bad.len(), listed(&bad));
    match on_bad_audio {
        OnBadAudio::Fail => {
            let message = format!("{count} of {all} utterances have bad audio:\n  {named}");
            let hint = "mend or remove them, or leave them out with `--set data.on_bad_audio=skip`";
            Err(UserError::new(message).hint(hint))
        }
        OnBadAudio::Skip => {
            eprintln!("warning: {count} of {all} utterances have bad audio and are left out:\n  {named}");
            Ok(bad.into_iter().map(|bad| bad.id).collect())
        }
    }
}

/// One in a line, the first of them.
fn listed(items: &[impl Display]) -> String {
    let mut lines: Vec<String> = items.iter().take(NAMED).map(ToString::to_string).collect();
    if items.len() > NAMED {
        lines.push(format!("and {} more", items.len() - NAMED));
    }
    lines.join("\n  ")
}

//! Decoding of a set of utterances, for WER and CER.

use zipper_data::Utterance;

use crate::TrainError;
use crate::replica::{Pass, Replica, Seeds};

/// Utterances decoded together: enough to keep the cores busy, few enough that short ones do not wait for long ones.
const BATCH: usize = 16;

/// What to do with each utterance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Silence the speech: the no-audio control.
    pub silenced: bool,
    /// Also measure the loss of the reference.
    pub with_nll: bool,
    /// Also detect the language, which takes a LID head.
    pub detect: bool,
}

/// One decoded utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The utterance's id.
    pub id: String,
    /// Its language code.
    pub lang: String,
    /// What was said.
    pub reference: String,
    /// What the model wrote.
    pub hypothesis: String,
    /// Negative log-likelihood of the reference, in nats, and its tokens; only with `with_nll`.
    pub nll: Option<(f64, u64)>,
    /// Ordinal of the likeliest language by the LID head, and its probability; only with `detect`.
    pub detected: Option<(usize, f64)>,
}

/// Decodes `utterances`, shortest first, calling `proceed` with the number done before each batch; stops early,
/// returning nothing, when it says no.
///
/// # Errors
/// [`TrainError::Audio`] if an utterance's audio became unreadable.
///
/// # Panics
/// If the bank of an utterance's language is not on this rank; see [`crate::session::Session::borrow_banks`].
pub fn decode(
    replica: &Replica,
    utterances: &[&Utterance],
    options: DecodeOptions,
    mut proceed: impl FnMut(usize) -> bool,
) -> Result<Option<Vec<Decoded>>, TrainError> {
    let mut order: Vec<&Utterance> = utterances.to_vec();
    order.sort_by(|a, b| a.duration.total_cmp(&b.duration).then_with(|| a.id.cmp(&b.id)));
    let mut decoded = Vec::with_capacity(order.len());
    let languages: Vec<usize> = order.iter().map(|utterance| utterance.language).collect();
    let merged = tch::no_grad(|| replica.adapters().merge(&languages));
    for batch in order.chunks_mut(BATCH) {
        // Those of one language side by side, whose adapter is then one multiplication.
        batch.sort_by_key(|utterance| utterance.language);
        let batch = &*batch;
        if !proceed(decoded.len()) {
            return Ok(None);
        }
        let hypotheses = tch::no_grad(|| replica.transcribe(batch, &merged, options.silenced))?;
        let losses = if options.with_nll {
            let losses = tch::no_grad(|| replica.losses(batch, Pass::Gather(&merged), Seeds::default()))?;
            let nll = losses.nll;
            let sums = Vec::<f64>::try_from(nll.sums.to_kind(tch::Kind::Double))?;
            sums.into_iter()
                .zip(nll.tokens)
                .map(|(sum, tokens)| Some((sum, tokens as u64)))
                .collect()
        } else {
            vec![None; batch.len()]
        };
        let detected = if options.detect {
            let posteriors = replica.detect(batch)?;
            posteriors.iter().map(|posterior| likeliest(posterior)).collect()
        } else {
            vec![None; batch.len()]
        };
        decoded.extend(
            batch
                .iter()
                .zip(hypotheses)
                .zip(losses.into_iter().zip(detected))
                .map(|((utterance, hypothesis), (nll, detected))| Decoded {
                    id: utterance.id.clone(),
                    lang: utterance.lang.clone(),
                    reference: utterance.text.clone(),
                    hypothesis,
                    nll,
                    detected,
                }),
        );
    }
    Ok(Some(decoded))
}

/// The likeliest language and its probability; nothing if there are no languages.
pub fn likeliest(posterior: &[f64]) -> Option<(usize, f64)> {
    let languages = posterior.iter().copied().enumerate();
    languages.max_by(|(_, a), (_, b)| a.total_cmp(b))
}

//! What a run's router learnt: how much of each adapted layer a language shares, and which languages are alike.

mod render;

use serde::{Deserialize, Serialize};
use zipper_types::Variant;

pub use render::{Files, files, summary};

/// Gates and similarities of a checkpoint, as `zipper-worker inspect` prints them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Insight {
    /// URL of the run.
    pub run: String,
    /// Completed optimizer steps.
    pub step: u64,
    /// How B is shared.
    pub variant: Variant,
    /// LoRA rank r.
    pub rank: usize,
    /// Codes, in the order of the configuration.
    pub languages: Vec<String>,
    /// What each router decides for. With `static` the one division that holds everywhere; empty where nothing is divided.
    pub units: Vec<Unit>,
    /// `[L][L]`: cosine similarity of what the languages' own matrices have learnt apart from their mean. Nothing without banks.
    pub bank_similarity: Option<Vec<Vec<f64>>>,
}

/// What one router decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// The adapted layer, transformer layer or model that it decides for: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[L][r]`: the gates, before `hard` rounds them.
    pub gates: Vec<Vec<f32>>,
}

impl Insight {
    /// The share of ranks that a language takes from what is shared, at one unit: the mean of its gates, or with `hard` the part of
    /// them that is at least a half.
    pub(crate) fn share(&self, unit: &Unit, language: usize) -> f64 {
        let gates = unit.gates[language].iter().map(|&gate| match self.variant {
            Variant::Hard => f64::from(u8::from(gate >= 0.5)),
            _ => f64::from(gate),
        });
        gates.sum::<f64>() / self.rank as f64
    }

    /// Mean over the units of [`Insight::share`].
    pub(crate) fn share_of_language(&self, language: usize) -> f64 {
        let shares = self.units.iter().map(|unit| self.share(unit, language));
        shares.sum::<f64>() / self.units.len() as f64
    }

    /// Mean over the languages of [`Insight::share`].
    pub(crate) fn share_of_unit(&self, unit: &Unit) -> f64 {
        let languages = 0..self.languages.len();
        languages.map(|language| self.share(unit, language)).sum::<f64>() / self.languages.len() as f64
    }

    /// `[L][L]`: cosine similarity of the languages' gates of all units, apart from the mean over the languages. Without the mean, what
    /// all have in common would make them all alike. Nothing where no router decides, or where a language has no gate of its own.
    pub(crate) fn gate_similarity(&self) -> Option<Vec<Vec<f64>>> {
        let rows: Vec<Vec<f64>> = (0..self.languages.len())
            .map(|language| {
                let gates = self.units.iter().flat_map(|unit| &unit.gates[language]);
                gates.map(|&gate| f64::from(gate)).collect()
            })
            .collect();
        (self.variant.has_router()).then(|| similarity(&rows))?
    }
}

/// Cosine similarity of rows apart from their mean; nothing if a row is the mean.
fn similarity(rows: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
    let width = rows.first()?.len();
    let mean: Vec<f64> = (0..width)
        .map(|column| rows.iter().map(|row| row[column]).sum::<f64>() / rows.len() as f64)
        .collect();
    let apart: Vec<Vec<f64>> = rows
        .iter()
        .map(|row| row.iter().zip(&mean).map(|(value, mean)| value - mean).collect())
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let lengths: Vec<f64> = apart.iter().map(|row| dot(row, row).sqrt()).collect();
    if lengths.iter().any(|&length| length < 1e-12) {
        return None;
    }
    let cosine = |a: usize, b: usize| dot(&apart[a], &apart[b]) / (lengths[a] * lengths[b]);
    let all = 0..rows.len();
    Some(
        all.clone()
            .map(|a| all.clone().map(|b| cosine(a, b)).collect())
            .collect(),
    )
}

//! What the router decides while it is trained.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zipper_proto::v1;

/// The share of ranks that each language takes from what all languages share, by transformer layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Gates {
    /// Paths of the transformer layers: `model.layers.0`.
    pub layers: Vec<String>,
    /// 0 to 1 for each of the layers; nothing where it is no number.
    pub by_language: BTreeMap<String, Vec<Option<f32>>>,
}

impl Gates {
    /// What a logged step tells.
    pub fn of(gates: &v1::GateShares) -> Self {
        let number = |share: &f32| share.is_finite().then_some(*share);
        let by_language = gates.by_language.iter();
        Self {
            layers: gates.layers.clone(),
            by_language: by_language
                .map(|(lang, of)| (lang.clone(), of.shares.iter().map(number).collect()))
                .collect(),
        }
    }

    /// Each language's mean over the layers; those without a number are left out.
    pub fn means(&self) -> BTreeMap<&str, f64> {
        let mean = |shares: &[Option<f32>]| {
            let shares: Option<Vec<f64>> = shares.iter().map(|share| share.map(f64::from)).collect();
            let shares = shares.filter(|shares| !shares.is_empty())?;
            Some(shares.iter().sum::<f64>() / shares.len() as f64)
        };
        let by_language = self.by_language.iter();
        by_language
            .filter_map(|(lang, shares)| Some((lang.as_str(), mean(shares)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what a worker with a broken router tells can be written as JSON, and read again.
    #[test]
    fn shares_that_are_no_numbers_are_left_out() {
        let shares = |shares: [f32; 2]| v1::LayerShares {
            shares: shares.to_vec(),
        };
        let gates = Gates::of(&v1::GateShares {
            layers: vec!["model.layers.0".to_owned(), "model.layers.1".to_owned()],
            by_language: [
                ("de".to_owned(), shares([0.25, 0.75])),
                ("en".to_owned(), shares([0.5, f32::NAN])),
            ]
            .into_iter()
            .collect(),
        });
        assert_eq!(gates.means(), BTreeMap::from([("de", 0.5)]));
        let text = serde_json::to_string(&gates).expect("gates are JSON");
        assert!(text.contains(r#""en":[0.5,null]"#), "{text}");
        let again: Gates = serde_json::from_str(&text).expect("what was written can be read");
        assert_eq!(again, gates);
    }
}

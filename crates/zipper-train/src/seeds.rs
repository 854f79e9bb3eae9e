//! What is random in a step: one seed for each utterance, the same on whichever rank it lands.

use zipper_config::RunConfig;
use zipper_types::Step;

/// The seeds of one step.
#[derive(Clone, Copy)]
pub(crate) struct StepSeeds<'a> {
    pub(crate) config: &'a RunConfig,
    pub(crate) step: Step,
}

impl StepSeeds<'_> {
    /// Of the dropout masks of an utterance, by its id; nothing where nothing is dropped.
    pub(crate) fn dropout(&self, id: &str) -> Option<u64> {
        let on = self.config.adapter.dropout > 0.0;
        on.then(|| self.seed(blake3::Hasher::new(), id))
    }

    /// Of what is changed about an utterance, which has nothing to do with dropout's; nothing where nothing is changed.
    pub(crate) fn augment(&self, id: &str) -> Option<u64> {
        let purpose = "zipper-train: augmentation of an utterance at a step";
        let on = !self.config.training.augment.is_off();
        on.then(|| self.seed(blake3::Hasher::new_derive_key(purpose), id))
    }

    fn seed(&self, mut hasher: blake3::Hasher, id: &str) -> u64 {
        hasher.update(&self.config.seed.to_le_bytes());
        hasher.update(&self.step.0.to_le_bytes());
        hasher.update(id.as_bytes());
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn config() -> RunConfig {
        let config = json!({
            "name": "seeds",
            "model": {"encoder": {"path": "whisper"}, "llm": {"path": "lm"}},
            "adapter": {"dropout": 0.1},
            "data": {"languages": ["en"], "train": ["train.jsonl"]},
            "training": {
                "align": {"steps": 1},
                "zipper": {"steps": 1},
                "batch_audio_seconds": 1,
                "augment": {"speed": [0.9, 1.1]},
            },
        });
        serde_json::from_value(config).expect("the schema has these keys")
    }

    /// What is drawn for an utterance depends on the run, the step, the utterance and what it is for, each by itself.
    #[test]
    fn seeds_are_of_run_step_utterance_and_purpose() {
        let mut config = config();
        let mut seeds = BTreeSet::new();
        for seed in 0..4 {
            config.seed = seed;
            for step in (0..4).map(Step) {
                let of_step = StepSeeds {
                    config: &config,
                    step,
                };
                for id in ["a", "b", "ab", ""] {
                    seeds.extend([of_step.dropout(id), of_step.augment(id)]);
                    assert_eq!(of_step.augment(id), of_step.augment(id));
                }
            }
        }
        assert_eq!(seeds.len(), 2 * 4 * 4 * 4);
        assert!(!seeds.contains(&None));
    }

    #[test]
    fn what_is_off_has_none() {
        let mut config = config();
        config.adapter.dropout = 0.0;
        config.training.augment.speed.clear();
        let of_step = StepSeeds {
            config: &config,
            step: Step(1),
        };
        assert_eq!((of_step.dropout("a"), of_step.augment("a")), (None, None));
    }
}

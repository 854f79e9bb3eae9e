//! What a run's journal tells people: the entries that the coordinator writes, read without what only coordinators need.
//!
//! `zipper-coordinator` owns the journal; a test of its own reads every kind of entry with these words.

use std::collections::BTreeMap;

use serde::Deserialize;
use zipper_proto::v1;
use zipper_proto::v1::watch_response::Event;
use zipper_types::Stage;

use crate::picture::{Bank, Coordinator, Happening, Phase, Picture};

/// An entry of the journal, as far as people are concerned. Kinds that are not known here are passed over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Note {
    /// A coordinator began its work.
    Coordinator {
        /// Its claim on the run.
        epoch: u64,
        /// When.
        at: String,
    },
    /// A generation was formed.
    Generation {
        /// Its number.
        generation: u64,
        /// Its members.
        #[serde(default)]
        seats: Vec<serde::de::IgnoredAny>,
        /// First and last owner of each language's bank.
        #[serde(default)]
        banks: BTreeMap<String, (u32, u32)>,
        /// Completed steps that it goes on from.
        resume: u64,
        /// When.
        at: String,
    },
    /// A generation ended before its time.
    Broken {
        /// Its number.
        generation: u64,
        /// The last completed step.
        step: u64,
        /// Who was lost, and how.
        reason: String,
        /// When.
        at: String,
    },
    /// A task was given out.
    Task {
        /// What it is.
        planned: Planned,
        /// When.
        at: String,
    },
    /// A checkpoint was published.
    Checkpoint {
        /// Of which step.
        step: u64,
        /// When.
        at: String,
    },
    /// The run ended.
    End {
        /// How.
        #[serde(flatten)]
        ended: Option<Ended>,
        /// How, in entries of earlier versions, which do not have `ended`: `Done`, or `Stopped("..")` and the like.
        #[serde(default)]
        verdict: String,
        /// When.
        at: String,
    },
    /// Something else.
    #[serde(other)]
    Other,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Planned {
    /// Training.
    Train {
        /// The stage.
        stage: Stage,
        /// Completed steps before.
        from: u64,
        /// Completed steps after.
        until: u64,
    },
    /// Writing a checkpoint.
    Save {
        /// Completed steps.
        step: u64,
    },
    /// Decoding.
    Evaluate {
        /// Completed steps of the model.
        step: u64,
    },
}

impl Note {
    /// When it was written; nothing for unknown kinds.
    pub fn at(&self) -> Option<&str> {
        match self {
            Self::Coordinator { at, .. }
            | Self::Generation { at, .. }
            | Self::Broken { at, .. }
            | Self::Task { at, .. }
            | Self::Checkpoint { at, .. }
            | Self::End { at, .. } => Some(at),
            Self::Other => None,
        }
    }
}

impl Picture {
    /// Takes in an entry of the journal.
    pub fn note(&mut self, note: &Note) {
        match note {
            Note::Coordinator { epoch, at } => {
                // One claim writes several entries of this kind.
                if self.coordinator.epoch != *epoch {
                    self.began(*epoch, at);
                }
            }
            Note::Generation {
                generation,
                seats,
                banks,
                resume,
                at,
            } => {
                let formed = v1::GenerationFormed {
                    generation: *generation,
                    world_size: seats.len() as u32,
                    spares: 0,
                };
                self.take(at, &Event::GenerationFormed(formed));
                self.place(banks);
                self.reached(*resume);
            }
            Note::Broken {
                generation,
                step,
                reason,
                at,
            } => {
                let broken = v1::GenerationBroken {
                    generation: *generation,
                    step: *step,
                    reason: reason.clone(),
                };
                self.take(at, &Event::GenerationBroken(broken));
                self.reached(*step);
            }
            Note::Task { planned, .. } => match planned {
                Planned::Train { stage, from, .. } => {
                    self.phase = Phase::Training;
                    self.reached(*from);
                    self.stage = Some(*stage);
                }
                Planned::Evaluate { step } => {
                    self.phase = Phase::Evaluating;
                    self.reached(*step);
                }
                Planned::Save { step } => self.reached(*step),
            },
            Note::Checkpoint { step, at } => {
                let committed = v1::CheckpointCommitted { step: *step };
                self.take(at, &Event::CheckpointCommitted(committed));
            }
            Note::End { ended, verdict, at } => {
                let ended = ended.clone().unwrap_or_else(|| of_earlier_version(verdict));
                self.take(at, &Event::Verdict(ended.into()));
            }
            Note::Other => {}
        }
    }

    /// A coordinator has taken the run. What an earlier one knew of its workers need not be so any more.
    pub fn began(&mut self, epoch: u64, at: &str) {
        self.coordinator = Coordinator {
            epoch,
            since: at.to_owned(),
            page: None,
        };
        self.phase = Phase::Starting;
        self.detail.clear();
        self.alarms.clear();
        self.happened(Happening {
            at: at.to_owned(),
            kind: "coordinator".to_owned(),
            text: format!("a coordinator has the run (claim {epoch})"),
            ..Happening::default()
        });
    }

    /// The banks are here.
    pub fn place(&mut self, banks: &BTreeMap<String, (u32, u32)>) {
        let languages = self.run.languages.iter();
        let placed = languages.filter_map(|language| {
            let &(first_rank, last_rank) = banks.get(language)?;
            Some(Bank {
                language: language.clone(),
                first_rank,
                last_rank,
            })
        });
        self.banks = placed.collect();
    }
}

/// How a run ended, and why.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
pub enum Ended {
    /// Everything was done.
    Done,
    /// It failed.
    Failed(String),
    /// Configuration or input are at fault.
    Config(String),
    /// It was stopped and can be resumed.
    Stopped(String),
}

impl From<Ended> for v1::Verdict {
    fn from(ended: Ended) -> Self {
        use v1::verdict::Outcome;
        let (outcome, reason) = match ended {
            Ended::Done => (Outcome::Done, String::new()),
            Ended::Failed(reason) => (Outcome::Failed, reason),
            Ended::Config(reason) => (Outcome::Config, reason),
            Ended::Stopped(reason) => (Outcome::Stopped, reason),
        };
        Self {
            outcome: outcome.into(),
            reason,
        }
    }
}

/// `Done`, `Stopped("SIGINT to zipper-launch")`.
fn of_earlier_version(text: &str) -> Ended {
    let (word, reason) = text.split_once('(').unwrap_or((text, ""));
    let reason = reason.strip_suffix(')').unwrap_or(reason);
    // Written as Rust writes strings, whose escapes are those of JSON but for a few that reasons do not have.
    let reason = serde_json::from_str(reason).unwrap_or_else(|_| reason.trim_matches('"').to_owned());
    match word {
        "Done" => Ended::Done,
        "Stopped" => Ended::Stopped(reason),
        "Config" => Ended::Config(reason),
        _ => Ended::Failed(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(entries: &[&str]) -> Picture {
        let mut picture = Picture::default();
        picture.run.languages = vec!["en".to_owned(), "de".to_owned()];
        picture.run.align_steps = 10;
        picture.run.zipper_steps = 10;
        for entry in entries {
            picture.note(&serde_json::from_str(entry).expect("an entry"));
        }
        picture
    }

    const BEGUN: [&str; 4] = [
        r#"{"event":"coordinator","epoch":1,"reserved":8,"at":"1"}"#,
        r#"{"event":"generation","generation":1,"seats":[{},{}],"banks":{"en":[0,1],"de":[1,1]},"resume":0,"at":"2"}"#,
        r#"{"event":"task","id":0,"planned":{"train":{"stage":"zipper","from":12,"until":20,"ends_stage":true}},"at":"3"}"#,
        r#"{"event":"checkpoint","step":15,"at":"4"}"#,
    ];

    /// Goal: the journal alone tells who is at work, how far it is, and what can be resumed from.
    #[test]
    fn a_journal_is_a_picture() {
        let mut entries = BEGUN.to_vec();
        entries.push(r#"{"event":"of_a_later_version","at":"5"}"#);
        let training = picture(&entries);
        assert_eq!(
            (training.phase, training.generation, training.world_size),
            (Phase::Training, 1, 2)
        );
        assert_eq!((training.step, training.stage), (12, Some(Stage::Zipper)));
        assert_eq!(
            (training.banks[1].language.as_str(), training.banks[1].first_rank),
            ("de", 1)
        );
        assert_eq!(training.checkpoints[0].step, 15);
        entries.push(r#"{"event":"broken","generation":1,"step":17,"reason":"a worker was lost","at":"6"}"#);
        let broken = picture(&entries);
        assert_eq!(
            (broken.phase, broken.step, broken.flights.as_slice()),
            (Phase::Recovering, 17, [1].as_slice())
        );
    }

    #[test]
    fn verdicts_are_read_in_either_form() {
        for (verdict, phase, reason) in [
            (r#""outcome":"done""#, Phase::Done, ""),
            (
                r#""outcome":"config","reason":"no such key""#,
                Phase::Failed,
                "no such key",
            ),
            (r#""verdict":"Done""#, Phase::Done, ""),
            (
                r#""verdict":"Stopped(\"SIGINT to zipper-launch\")""#,
                Phase::Stopped,
                "SIGINT to zipper-launch",
            ),
            (
                r#""verdict":"Failed(\"a \\\"b\\\"\\nc\")""#,
                Phase::Failed,
                "a \"b\"\nc",
            ),
        ] {
            let end = format!(r#"{{"event":"end",{verdict},"at":"9"}}"#);
            let over = picture(&[BEGUN[0], &end]);
            assert_eq!((over.phase, over.detail.as_str()), (phase, reason));
        }
    }
}

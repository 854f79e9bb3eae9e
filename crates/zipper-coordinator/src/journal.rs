//! The run's journal: what a coordinator notes, so that the next one can go on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use zipper_plan::Placement;
use zipper_types::{Generation, Rank, Step, WorldSize};

use crate::clock::Clock;
use crate::schedule::{EvaluationSet, Planned};
use crate::seeded::{self, Bug};
use crate::state::{Adopted, Ledger, Origin, Past, Seat, Verdict};

/// An entry of the run's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JournalEntry {
    /// A coordinator has begun its work, and may form generations up to a number without saying so first.
    Coordinator {
        /// Its claim on the run.
        epoch: u64,
        /// The highest number.
        reserved: Generation,
        /// When.
        at: String,
    },
    /// A generation was formed.
    Generation {
        /// Its number.
        generation: Generation,
        /// Its members in the order of their ranks.
        #[serde(default)]
        seats: Vec<Seat>,
        /// First and last owner of each language's bank; empty if there are no banks.
        banks: BTreeMap<String, (Rank, Rank)>,
        /// Completed steps it goes on from.
        resume: Step,
        /// Where its state comes from.
        #[serde(default = "from_checkpoint")]
        origin: Origin,
        /// When.
        at: String,
    },
    /// A generation ended before its time.
    Broken {
        /// Its number.
        generation: Generation,
        /// The last completed step that was heard of.
        step: Step,
        /// Who was lost, and how.
        reason: String,
        /// When.
        at: String,
    },
    /// A task was given out.
    Task {
        /// Its number.
        id: u64,
        /// What it is.
        planned: Planned,
        /// When.
        at: String,
    },
    /// An evaluation was written down.
    Evaluation {
        /// The set.
        set: EvaluationSet,
        /// Whether the speech was silenced.
        silenced: bool,
        /// Completed steps of the model.
        step: Step,
        /// Validation loss in nats per token.
        loss: Option<f64>,
        /// When.
        at: String,
    },
    /// A checkpoint was published.
    Checkpoint {
        /// Of which step.
        step: Step,
        /// When.
        at: String,
    },
    /// What the launch has cost so far.
    Ledger {
        /// Time by cause, and what is used of the restart budgets.
        ledger: Ledger,
        /// When.
        at: String,
    },
    /// The run ended.
    End {
        /// How; entries of earlier versions say it in words of their own.
        #[serde(flatten)]
        verdict: Option<Verdict>,
        /// The newest generation; numbers above it are free.
        #[serde(default)]
        generation: Option<Generation>,
        /// When.
        at: String,
    },
}

/// Entries of version 0.1 do not say it.
fn from_checkpoint() -> Origin {
    Origin::Checkpoint
}

/// What the journal and the checkpoints in `published` tell; with `adopt`, of a launch whose coordinator was lost, also the
/// generation that may be at work still, and what the launch has cost.
pub fn past(
    entries: &[JournalEntry],
    languages: &[String],
    published: BTreeSet<Step>,
    adopt: bool,
    clock: &Clock,
) -> Past {
    let reached = published.last().copied().unwrap_or_default();
    let mut past = Past {
        reached,
        published,
        ..Past::default()
    };
    let mut adopted = None;
    for entry in entries {
        match entry {
            JournalEntry::Coordinator { reserved, .. } if !seeded::is_planted(Bug::ForgottenNumbers) => {
                past.generation = past.generation.max(*reserved);
            }
            JournalEntry::Generation {
                generation,
                seats,
                banks,
                resume,
                origin,
                ..
            } => {
                past.generation = past.generation.max(*generation);
                adopted = Some(Adopted {
                    generation: *generation,
                    placement: placement(banks, languages, seats),
                    seats: seats.clone(),
                    step: *resume,
                    origin: origin.clone(),
                    task: None,
                });
            }
            JournalEntry::Broken { generation, .. } => {
                adopted = adopted.filter(|adopted| adopted.generation != *generation);
            }
            JournalEntry::Task { id, planned, .. } => {
                past.next_task = past.next_task.max(id + 1);
                if let Some(adopted) = &mut adopted {
                    adopted.task = Some((*id, planned.clone()));
                }
            }
            JournalEntry::Evaluation {
                set,
                silenced,
                step,
                loss,
                ..
            } => {
                past.evaluated.insert((set.clone(), *silenced, *step));
                past.validation_losses.extend(loss.map(|loss| (*step, loss)));
            }
            JournalEntry::Coordinator { .. } | JournalEntry::Checkpoint { .. } => {}
            JournalEntry::Ledger { ledger, at } => {
                past.ledger = adopt.then(|| (ledger.clone(), clock.since(at)));
            }
            JournalEntry::End { generation, .. } => {
                past.generation = generation.unwrap_or(past.generation);
                past.ledger = None;
                adopted = None;
            }
        }
    }
    past.adopted = adopted.filter(|adopted| adopt && !adopted.seats.is_empty());
    past
}

fn placement(
    banks: &BTreeMap<String, (Rank, Rank)>,
    languages: &[String],
    seats: &[Seat],
) -> Option<Placement> {
    let owners: Option<Vec<(u32, u32)>> = languages
        .iter()
        .map(|language| banks.get(language).map(|(first, last)| (first.0, last.0)))
        .collect();
    Placement::from_owners(owners?, WorldSize(seats.len() as u32)).ok()
}

#[cfg(test)]
mod tests {
    use zipper_types::{Incarnation, Stage, WorkerId};

    use super::*;

    fn at() -> String {
        "2026-01-01T00:00:00Z".to_owned()
    }

    fn generation(number: u64) -> JournalEntry {
        let seat = |local_rank| Seat {
            worker: WorkerId::new(0, local_rank),
            incarnation: Incarnation(7),
            node_rank: 0,
            local_rank,
            hostname: "host".to_owned(),
            store_address: "host:1".to_owned(),
        };
        JournalEntry::Generation {
            generation: Generation(number),
            seats: vec![seat(0), seat(1)],
            banks: BTreeMap::from([
                ("de".to_owned(), (Rank(0), Rank(1))),
                ("en".to_owned(), (Rank(0), Rank(0))),
            ]),
            resume: Step(4),
            origin: Origin::Checkpoint,
            at: at(),
        }
    }

    fn read(entries: &[JournalEntry], adopt: bool) -> Past {
        let languages = ["en".to_owned(), "de".to_owned()];
        let published = BTreeSet::from([Step(2), Step(4)]);
        past(entries, &languages, published, adopt, &Clock::system())
    }

    /// Goal: what is at work still is adopted only if nothing says that it is over, and only if it is asked for.
    #[test]
    fn a_crash_leaves_a_generation_to_adopt() {
        let planned = Planned::Train {
            stage: Stage::Align,
            from: Step(4),
            until: Step(9),
            ends_stage: true,
        };
        let mut entries = vec![
            JournalEntry::Coordinator {
                epoch: 1,
                reserved: Generation(8),
                at: at(),
            },
            generation(1),
            JournalEntry::Task {
                id: 3,
                planned: planned.clone(),
                at: at(),
            },
        ];
        let past = read(&entries, true);
        assert_eq!(
            (past.generation, past.next_task, past.reached),
            (Generation(8), 4, Step(4))
        );
        assert_eq!(past.published, [Step(2), Step(4)].into());
        let adopted = past.adopted.expect("it is at work");
        assert_eq!(adopted.task, Some((3, planned)));
        let placement = adopted.placement.expect("there are banks");
        assert_eq!(placement.owners(1), 0..=1);
        assert_eq!(read(&entries, false).adopted, None);
        entries.push(JournalEntry::Broken {
            generation: Generation(1),
            step: Step(6),
            reason: "a worker was lost".to_owned(),
            at: at(),
        });
        assert_eq!(read(&entries, true).adopted, None);
    }

    /// Goal: numbers that were reserved and not used are used after an orderly end, and never after a crash.
    #[test]
    fn an_orderly_end_gives_numbers_back() {
        let mut entries = vec![
            JournalEntry::Coordinator {
                epoch: 1,
                reserved: Generation(8),
                at: at(),
            },
            generation(1),
            JournalEntry::End {
                verdict: Some(Verdict::Stopped("Ctrl-C to zipper-launch".to_owned())),
                generation: Some(Generation(1)),
                at: at(),
            },
        ];
        let past = read(&entries, true);
        assert_eq!((past.generation, past.adopted), (Generation(1), None));
        entries.pop();
        assert_eq!(read(&entries, true).generation, Generation(8));
    }

    #[test]
    fn entries_of_version_0_1_are_read() {
        let text =
            r#"{"event":"generation","generation":1,"workers":["node0/0"],"banks":{},"resume":0,"at":"x"}"#;
        let entry: JournalEntry = serde_json::from_str(text).expect("it has what is needed");
        assert_eq!(read(&[entry], true).generation, Generation(1));
        let text = r#"{"event":"end","verdict":"Done","at":"x"}"#;
        serde_json::from_str::<JournalEntry>(text).expect("it has what is needed");
    }
}

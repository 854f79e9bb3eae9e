//! Goal: from the first worker that joins to the verdict the machine does what is left to do, in order and once, whoever is late, repeats
//! itself or asks for a stop. Method: whole runs, played against the machine, whose time and events are the test's; what comes out is
//! compared in words.

mod checkpoints;
mod diagnosis;
mod elastic;
mod ledger;
mod overview;

use proptest::prelude::*;
use zipper_types::Incarnation;

use super::*;
use crate::corpus::{Corpus, LanguageCorpus};
use crate::schedule;
use crate::schedule::tests::config;

/// Checkpoints every 2 steps, stage ends at 5 and 9, one test set with both controls.
struct Play {
    state: State,
    now: Now,
    /// Everything that came out, in order.
    effects: Vec<Effect>,
}

const WORKERS: u32 = 2;

/// The generation of the first formation.
const FIRST: Generation = Generation(3);

fn joining(local_rank: u32, incarnation: u64) -> Joining {
    Joining {
        worker: WorkerId::new(0, local_rank),
        incarnation: Incarnation(incarnation),
        generation: None,
        node_rank: 0,
        local_rank,
        store_address: format!("host{local_rank}:7"),
        hostname: format!("host{local_rank}"),
        held: Vec::new(),
    }
}

/// A sign of life of a member of the generation.
fn sign(local_rank: u32, generation: Generation, step: u64) -> Sign {
    Sign {
        worker: WorkerId::new(0, local_rank),
        incarnation: Incarnation(1),
        generation: Some(generation),
        node_rank: 0,
        local_rank,
        hostname: format!("host{local_rank}"),
        step: Step(step),
        idle: Duration::ZERO,
        collective: None,
        compute_seconds: 0.0,
        work: 0.0,
        store_reads: 0,
        trouble: None,
        doing: "training".to_owned(),
    }
}

fn part(rank: u32) -> PartRecord {
    PartRecord::of(&format!("part{rank}"), b"bytes")
}

fn decoded(rank: u32) -> Decoded {
    Decoded {
        id: format!("u{rank}"),
        lang: "en".to_owned(),
        reference: "one".to_owned(),
        hypothesis: "one".to_owned(),
        nll: None,
    }
}

fn failed(local_rank: u32, config: bool, fatal: bool) -> Event {
    Event::Failed(Failure {
        worker: WorkerId::new(0, local_rank),
        incarnation: Incarnation(1),
        generation: Some(FIRST),
        config,
        fatal,
        message: "it broke".to_owned(),
        collective: None,
    })
}

fn exit(local_rank: u32, exit_code: Option<i32>, signal: Option<i32>) -> Event {
    Event::Exited(Ended {
        node: 0,
        worker: WorkerId::new(0, local_rank),
        incarnation: Incarnation(1),
        exit_code,
        signal,
        last_lines: vec!["out of memory".to_owned()],
    })
}

fn stop() -> Event {
    Event::StopRequested {
        reason: "enough".to_owned(),
    }
}

fn stopped() -> Verdict {
    Verdict::Stopped("enough".to_owned())
}

/// A run of 2 hours of English and 1 of German.
fn state(config: RunConfig, workers: u32, resume: u64) -> State {
    let language = |lang: &str, utterances: usize| LanguageCorpus {
        lang: lang.to_owned(),
        utterances,
        seconds: 10.0 * utterances as f64,
        characters: 50 * utterances,
    };
    let corpus = Corpus {
        languages: vec![language("en", 720), language("de", 360)],
    };
    let basis = PlacementBasis::new(&config, &corpus, std::iter::empty(), None).expect("there is data");
    let published = (resume > 0).then_some(Step(resume));
    let past = Past {
        generation: Generation(FIRST.0 - 1),
        reached: Step(resume),
        published: published.into_iter().collect(),
        evaluated: [(EvaluationSet::Validation, false, Step(resume))].into(),
        ..Past::default()
    };
    let crew = Crew {
        min_workers: workers,
        max_workers: workers,
        nodes: 1,
        workers_per_node: workers,
    };
    let mut state = State::new(config, crew, basis, past);
    state.apply(
        Duration::ZERO,
        Event::Reserved(Generation(FIRST.0 + RESERVED_AT_A_TIME)),
    );
    state
}

impl Play {
    fn new(more: &str, resume: u64) -> Self {
        Self {
            state: state(config(more), WORKERS, resume),
            now: Duration::ZERO,
            effects: Vec::new(),
        }
    }

    /// A run of which all workers have joined.
    fn formed(more: &str, resume: u64) -> Self {
        let mut play = Self::new(more, resume);
        for local_rank in 0..WORKERS {
            play.apply(Event::Joined(joining(local_rank, 1)));
        }
        play
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.state.apply(self.now, event);
        self.effects.extend(effects.clone());
        effects
    }

    fn complete(&mut self, rank: u32, outcome: Outcome) -> Vec<Effect> {
        let (task, _) = self.state.task().expect("a task is under way");
        self.apply(Event::Completed {
            rank: Rank(rank),
            task,
            outcome,
        })
    }

    fn store(&mut self, rank: u32, step: u64) -> Vec<Effect> {
        let generation = self.state.generation();
        self.apply(Event::PartsStored {
            rank: Rank(rank),
            generation,
            step: Step(step),
            stage: Stage::Align,
            parts: vec![part(rank)],
        })
    }

    fn publish(&mut self, step: u64) -> Vec<Effect> {
        self.apply(Event::Published {
            step: Step(step),
            error: None,
        })
    }

    /// What a rank answers that does all of the task under way.
    fn whole(&self, rank: u32) -> Outcome {
        match self.state.task().expect("a task is under way").1 {
            Planned::Train { until, .. } => Outcome::Trained { reached: *until },
            Planned::Evaluate { .. } => Outcome::Evaluated(vec![decoded(rank)]),
            Planned::Save { .. } => Outcome::Saved,
        }
    }

    /// All ranks do all of the task under way, and their checkpoints are published.
    fn do_task(&mut self) {
        let (_, planned) = self.state.task().expect("a task is under way");
        if let Planned::Train {
            from,
            until,
            ends_stage,
            ..
        } = *planned
        {
            for step in schedule::checkpoints(self.state.config(), from, until, ends_stage) {
                (0..WORKERS).for_each(|rank| drop(self.store(rank, step.0)));
                self.publish(step.0);
            }
        }
        for rank in 0..WORKERS {
            let outcome = self.whole(rank);
            self.complete(rank, outcome);
        }
    }

    fn do_tasks_until(&mut self, wanted: impl Fn(&Planned) -> bool) {
        while !wanted(self.state.task().expect("a task is under way").1) {
            self.do_task();
        }
    }

    fn wait(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        let mut effects = self.apply(Event::Tick);
        effects.retain(|effect| !matches!(effect, Effect::Waiting(_)));
        effects
    }

    /// Seconds pass, in each of which `alive` say that they are.
    fn seconds(&mut self, seconds: u64, alive: impl Fn(&mut Self)) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            alive(self);
            self.apply(Event::Tick);
        }
    }

    fn all_alive(&mut self) {
        for local_rank in 0..WORKERS {
            self.apply(Event::Heartbeat(sign(local_rank, FIRST, 0)));
        }
    }

    fn failure(&self) -> &str {
        match self.state.verdict() {
            Some(Verdict::Failed(reason)) => reason,
            other => panic!("the verdict is {other:?}"),
        }
    }
}

/// Effects in a word each.
fn words(effects: &[Effect]) -> Vec<String> {
    let words = effects.iter().map(|effect| match effect {
        Effect::Reserve(_) => "reserve".to_owned(),
        Effect::FormGeneration {
            seats, origin, step, ..
        } => match origin {
            Origin::Memory { .. } => format!("form {} from memory of {step}", seats.len()),
            _ => format!("form {}", seats.len()),
        },
        Effect::Broken { step, .. } => format!("broken at {step}"),
        Effect::Recovered(recovery) => {
            format!("recovered, {} steps repeated", recovery.repeated_steps)
        }
        Effect::Begin { planned, .. } => match planned {
            Planned::Train { from, until, .. } => format!("train {from}-{until}"),
            Planned::Save { step, .. } => format!("save {step}"),
            Planned::Evaluate { set, silenced, step } => {
                let silenced = if *silenced { " silenced" } else { "" };
                format!("evaluate {}@{step}{silenced}", set.name())
            }
        },
        Effect::Publish { step, .. } => format!("publish {step}"),
        Effect::Committed { step, retire } if retire.is_empty() => format!("committed {step}"),
        Effect::Committed { step, retire } => format!("committed {step}, retired {retire:?}"),
        Effect::Evaluated {
            set,
            step,
            utterances,
            ..
        } => {
            format!("evaluated {}@{step}: {}", set.name(), utterances.len())
        }
        Effect::LeftOut { node, .. } => format!("left out node {node}"),
        Effect::Alarm { cleared, .. } => format!("alarm {}", if *cleared { "over" } else { "raised" }),
        Effect::Straggler { rank, .. } => format!("straggler {rank}"),
        Effect::Waiting(what) => format!("waiting: {what}"),
        Effect::End { verdict, .. } => format!("end {verdict:?}"),
    });
    words.collect()
}

fn is_evaluation(planned: &Planned) -> bool {
    matches!(planned, Planned::Evaluate { .. })
}

fn is_training(planned: &Planned) -> bool {
    matches!(planned, Planned::Train { .. })
}

#[test]
fn a_run_from_scratch_goes_through_its_schedule() {
    let mut play = Play::formed("", 0);
    while play.state.verdict().is_none() {
        play.do_task();
    }
    assert_eq!(
        words(&play.effects),
        [
            "form 2",
            "evaluate t@0",
            "evaluated t@0: 2",
            "train 0-5",
            "publish 2",
            "committed 2",
            "publish 4",
            "committed 4",
            "publish 5",
            "committed 5",
            "evaluate validation@5",
            "evaluated validation@5: 2",
            "train 5-9",
            "publish 6",
            "committed 6, retired [Step(2)]",
            "publish 8",
            "committed 8, retired [Step(4)]",
            "publish 9",
            "committed 9",
            "evaluate validation@9",
            "evaluated validation@9: 2",
            "evaluate t@9",
            "evaluated t@9: 2",
            "evaluate t@9 silenced",
            "evaluated t@9: 2",
            "end Done",
        ]
    );
}

#[test]
fn a_resumed_run_begins_where_its_checkpoint_is() {
    assert_eq!(words(&Play::formed("", 6).effects), ["form 2", "train 6-9"]);
    assert_eq!(words(&Play::formed("", 5).effects), ["form 2", "train 5-9"]);
    assert_eq!(words(&Play::formed("", 9).effects), ["form 2", "evaluate t@9"]);
}

#[test]
fn a_run_with_nothing_left_is_done_when_it_is_formed() {
    let mut config = config("");
    config.evaluation.tests.clear();
    let mut state = state(config, 1, 9);
    let effects = state.apply(Duration::ZERO, Event::Joined(joining(0, 1)));
    assert_eq!(words(&effects), ["form 1", "end Done"]);
}

#[test]
fn ranks_follow_nodes_and_slots_not_the_order_of_joining() {
    let mut play = Play::new("", 0);
    play.apply(Event::Joined(joining(1, 1)));
    assert_eq!(play.state.assignment(&WorkerId::new(0, 1), Incarnation(1)), None);
    play.apply(Event::Joined(joining(0, 1)));
    for local_rank in 0..2 {
        let assignment = play
            .state
            .assignment(&WorkerId::new(0, local_rank), Incarnation(1))
            .expect("it has a place");
        assert_eq!(assignment.rank, Rank(local_rank));
        assert_eq!(assignment.store_address, "host0:7");
        assert_eq!((assignment.step, assignment.origin), (Step(0), Origin::Fresh));
    }
}

/// Goal: the placement is solved when the generation forms: 2 hours of English and 1 of German on 2 ranks, at temperature 1.
#[test]
fn banks_are_placed_when_the_generation_forms() {
    let mut config = config("");
    config.data.temperature = 1.0;
    let mut state = state(config, 2, 0);
    state.apply(Duration::ZERO, Event::Joined(joining(0, 1)));
    assert_eq!(state.placement(), None);
    let effects = state.apply(Duration::ZERO, Event::Joined(joining(1, 1)));
    let placement = Placement::from_owners(vec![(0, 1), (1, 1)], WorldSize(2)).expect("two ranks");
    assert_eq!(state.placement(), Some(&placement));
    assert!(matches!(
        &effects[0],
        Effect::FormGeneration { placement: Some(formed), .. } if *formed == placement
    ));
}

#[test]
fn banks_that_do_not_fit_end_the_run() {
    let mut config = config("");
    config.runtime.bank_memory_mib = Some(1.0);
    let corpus = Corpus {
        languages: vec![LanguageCorpus {
            lang: "en".to_owned(),
            utterances: 1,
            seconds: 1.0,
            characters: 1,
        }],
    };
    let basis =
        PlacementBasis::new(&config, &corpus, std::iter::empty(), Some(1 << 20)).expect("there is data");
    let crew = Crew {
        min_workers: 1,
        max_workers: 1,
        nodes: 1,
        workers_per_node: 1,
    };
    let mut state = State::new(config, crew, basis, Past::default());
    state.apply(Duration::ZERO, Event::Reserved(Generation(8)));
    state.apply(Duration::ZERO, Event::Joined(joining(0, 1)));
    assert!(
        matches!(state.verdict(), Some(Verdict::Config(reason)) if reason.contains("or take 2 workers")),
        "{:?}",
        state.verdict()
    );
    assert_eq!(state.together(), None);
}

#[test]
fn a_restarted_worker_replaces_itself_before_the_generation_is_formed() {
    let mut play = Play::new("", 0);
    play.apply(Event::Joined(joining(0, 1)));
    play.apply(Event::Joined(joining(0, 2)));
    // The first process asks again, late: it does not come back.
    play.apply(Event::Joined(joining(0, 1)));
    assert_eq!(play.state.together(), None, "the same slot does not count twice");
    play.apply(Event::Joined(joining(1, 1)));
    let worker = WorkerId::new(0, 0);
    assert_eq!(play.state.assignment(&worker, Incarnation(1)), None);
    assert!(play.state.assignment(&worker, Incarnation(2)).is_some());
}

#[test]
fn only_members_of_the_generation_have_a_rank() {
    let play = Play::formed("", 0);
    let worker = WorkerId::new(0, 1);
    let standing =
        |incarnation, generation| play.state.standing(&worker, Incarnation(incarnation), generation);
    assert_eq!(standing(1, Some(FIRST)), Standing::Member(Rank(1)));
    assert_eq!(
        standing(1, Some(Generation(2))),
        Standing::Outside,
        "an earlier generation"
    );
    assert_eq!(standing(1, None), Standing::Outside, "no generation");
    assert_eq!(standing(2, Some(FIRST)), Standing::Outside, "a newer process");
    assert_eq!(standing(0, Some(FIRST)), Standing::GivenUp, "an older process");
    let stranger = WorkerId::new(7, 7);
    assert_eq!(
        play.state.standing(&stranger, Incarnation(1), Some(FIRST)),
        Standing::Outside
    );
}

#[test]
fn a_stop_while_training_waits_for_the_checkpoint() {
    let mut play = Play::formed("", 5);
    play.apply(stop());
    assert!(play.state.stop_requested());
    for rank in 0..2 {
        play.complete(rank, Outcome::Stopped { reached: Step(7) });
    }
    assert_eq!(play.state.verdict(), None, "steps 6 and 7 are not published");
    for step in [6, 7] {
        play.store(0, step);
        assert_eq!(words(&play.store(1, step)), [format!("publish {step}")]);
        assert_eq!(play.state.verdict(), None);
        play.publish(step);
    }
    assert_eq!(play.state.verdict(), Some(&stopped()));
}

/// A signal may reach one worker and nobody else.
#[test]
fn a_worker_that_was_asked_to_stop_stops_the_run() {
    let mut play = Play::formed("", 5);
    play.complete(0, Outcome::Stopped { reached: Step(6) });
    assert!(play.state.stop_requested(), "nobody begins anything else");
    play.complete(1, Outcome::Stopped { reached: Step(6) });
    play.store(0, 6);
    play.store(1, 6);
    play.publish(6);
    let Some(Verdict::Stopped(reason)) = play.state.verdict() else {
        panic!("{:?}", play.state.verdict());
    };
    assert!(
        reason.contains("rank 0") && reason.ends_with("was asked to stop"),
        "{reason}"
    );
}

#[test]
fn a_stop_while_evaluating_what_is_stored_ends_at_once() {
    let mut play = Play::formed("", 0);
    play.do_tasks_until(is_training);
    play.do_tasks_until(is_evaluation);
    play.apply(stop());
    play.complete(0, Outcome::Evaluated(vec![decoded(0)]));
    let effects = play.complete(1, Outcome::Stopped { reached: Step(5) });
    assert_eq!(
        words(&effects),
        ["end Stopped(\"enough\")"],
        "half an evaluation is not scored"
    );
}

#[test]
fn a_stop_while_evaluating_steps_that_are_not_stored_stores_them() {
    let mut play = Play::formed("  every_steps: 3", 0);
    play.do_tasks_until(is_training);
    play.do_task();
    assert_eq!(
        play.state.task().map(|(_, planned)| is_evaluation(planned)),
        Some(true)
    );
    play.apply(stop());
    play.complete(0, Outcome::Stopped { reached: Step(3) });
    let effects = play.complete(1, Outcome::Stopped { reached: Step(3) });
    assert_eq!(
        words(&effects),
        ["save 3"],
        "the checkpoint before is that of step 2"
    );
    for rank in 0..2 {
        play.complete(rank, Outcome::Saved);
        play.store(rank, 3);
    }
    assert_eq!(play.state.verdict(), None);
    play.publish(3);
    assert_eq!(play.state.verdict(), Some(&stopped()));
}

/// A checkpoint that does not come in time is not waited for: something else ends the processes then.
#[test]
fn a_stop_takes_no_longer_than_the_grace_time() {
    let mut play = Play::formed("", 5);
    play.apply(stop());
    play.now += play.state.config().runtime.grace;
    play.all_alive();
    play.apply(Event::Tick);
    assert_eq!(play.state.verdict(), None);
    play.wait(Duration::from_millis(1));
    let Some(Verdict::Stopped(reason)) = play.state.verdict() else {
        panic!("the verdict is {:?}", play.state.verdict());
    };
    assert!(
        reason.starts_with("enough; the last checkpoint was not finished within `runtime.grace` = 1m"),
        "{reason}"
    );
    assert!(reason.ends_with("it goes on from step 5"), "{reason}");
}

#[test]
fn a_stop_that_comes_too_late_does_not_undo_what_is_done() {
    let mut play = Play::formed("", 0);
    play.do_tasks_until(|planned| matches!(planned, Planned::Evaluate { silenced: true, .. }));
    play.apply(stop());
    play.do_task();
    assert_eq!(play.state.verdict(), Some(&Verdict::Done));
}

/// A run is stopped, not done, whether something is left that was not begun or the last thing was cut short.
#[test]
fn a_stop_that_leaves_something_out_is_one() {
    let mut play = Play::formed("", 0);
    play.apply(stop());
    play.do_task();
    assert_eq!(
        play.state.verdict(),
        Some(&stopped()),
        "a whole evaluation, the first"
    );
    let mut play = Play::formed("", 0);
    play.do_tasks_until(|planned| matches!(planned, Planned::Evaluate { silenced: true, .. }));
    play.apply(stop());
    for rank in 0..2 {
        play.complete(rank, Outcome::Stopped { reached: Step(9) });
    }
    assert_eq!(
        play.state.verdict(),
        Some(&stopped()),
        "half an evaluation, the last"
    );
}

#[test]
fn a_stop_before_all_have_joined_ends_at_once() {
    let mut play = Play::new("", 0);
    play.apply(Event::Joined(joining(0, 1)));
    assert_eq!(words(&play.apply(stop())), ["end Stopped(\"enough\")"]);
    assert_eq!(
        play.apply(Event::Joined(joining(1, 1))),
        [],
        "nothing happens after the end"
    );
}

#[test]
fn what_trying_again_cannot_help_ends_the_run() {
    let reason = "worker `node0/1` (rank 1) on host1: it broke";
    let mut play = Play::formed("", 0);
    play.apply(failed(1, false, true));
    assert_eq!(play.failure(), reason);
    let mut play = Play::formed("", 0);
    play.apply(failed(1, true, false));
    assert_eq!(play.state.verdict(), Some(&Verdict::Config(reason.to_owned())));
    assert!(play.state.stop_requested(), "the others need not go on");
    // Also of a worker that has no rank yet: its model cannot be loaded.
    let mut play = Play::new("", 0);
    play.apply(failed(1, true, false));
    let reason = "worker `node0/1`: it broke".to_owned();
    assert_eq!(play.state.verdict(), Some(&Verdict::Config(reason)));
}

/// Ranks that left for somebody who never came have the rest of their task to do.
#[test]
fn ranks_that_yield_to_nobody_go_on_from_their_step() {
    let mut play = Play::formed("", 5);
    play.complete(0, Outcome::Yielded { reached: Step(7) });
    let effects = play.complete(1, Outcome::Yielded { reached: Step(7) });
    assert_eq!(words(&effects), ["train 7-9"]);
}

/// A worker whose answer was lost does not know yet that it is a member: what it could not do before ends no generation.
#[test]
fn failures_outside_of_a_generation_break_none() {
    let mut play = Play::formed("", 0);
    let Event::Failed(failure) = failed(1, false, false) else {
        unreachable!("it is a failure");
    };
    play.apply(Event::Failed(Failure {
        generation: None,
        ..failure
    }));
    assert_eq!(play.state.together(), Some(FIRST));
}

/// GEN-1: neither a process that was given up nor what happened in a generation before the newest ends the run.
#[test]
fn failures_of_the_past_end_nothing() {
    let mut play = Play::formed("", 0);
    play.apply(exit(1, None, Some(9)));
    play.apply(failed(1, false, true));
    assert_eq!(play.state.verdict(), None, "its process is not to come back");
    for (local_rank, incarnation) in [(0, 1), (1, 2)] {
        play.apply(Event::Joined(joining(local_rank, incarnation)));
    }
    assert!(play.state.together() > Some(FIRST));
    play.apply(failed(0, true, true));
    assert_eq!(play.state.verdict(), None, "that generation is over");
}

#[test]
fn the_rendezvous_names_who_came() {
    let mut play = Play::new("", 0);
    play.apply(Event::Joined(joining(1, 1)));
    let timeout = play.state.config().runtime.rendezvous_timeout;
    let alive = |play: &mut Play| {
        let mut sign = sign(1, FIRST, 0);
        sign.generation = None;
        sign.doing = "waiting".to_owned();
        play.apply(Event::Heartbeat(sign));
        let mut loading = super::tests::sign(0, FIRST, 0);
        loading.generation = None;
        loading.doing = "loading the model".to_owned();
        play.apply(Event::Heartbeat(loading));
    };
    play.now = timeout;
    alive(&mut play);
    assert_eq!(
        words(&play.apply(Event::Tick)),
        ["waiting: 1 of 2 workers are ready; `node0/0` is loading the model"]
    );
    play.wait(Duration::from_millis(1));
    assert!(
        play.failure()
            .ends_with("for 2 workers, but only 1 joined: node0/1; `node0/0` is loading the model"),
        "{}",
        play.failure()
    );
}

/// Coming together usually takes less than two seconds: nobody is told of that.
#[test]
fn a_short_rendezvous_is_not_told_of() {
    let mut play = Play::new("", 0);
    play.apply(Event::Joined(joining(1, 1)));
    play.now = Duration::from_secs(1);
    assert_eq!(play.apply(Event::Tick), []);
    play.now = Duration::from_secs(2);
    assert_eq!(
        words(&play.apply(Event::Tick)),
        ["waiting: 1 of 2 workers are ready"]
    );
}

#[test]
fn of_many_some_are_named_and_the_others_counted() {
    let name = |count| generations::name_some((0..count).map(|number| number.to_string())).join(",");
    assert_eq!(name(8), "0,1,2,3,4,5,6,7");
    assert_eq!(name(10), "0,1,2,3,4,5,6,7,2 more");
}

#[test]
fn completions_of_other_tasks_and_repeated_ones_change_nothing() {
    let mut play = Play::formed("", 0);
    let (first, _) = play.state.task().expect("a task is under way");
    play.complete(0, Outcome::Evaluated(vec![decoded(0)]));
    assert_eq!(play.complete(0, Outcome::Evaluated(vec![decoded(0)])), []);
    let known = |rank, task| play.state.knows_outcome(Rank(rank), task);
    assert_eq!(
        [known(0, first), known(1, first), known(1, first + 1)],
        [true, false, true],
        "no other task is asked for"
    );
    let ahead = |task| play.state.is_ahead(task);
    assert_eq!([ahead(first), ahead(first + 1)], [false, true]);
    let effects = play.complete(1, Outcome::Evaluated(vec![decoded(1)]));
    assert_eq!(words(&effects), ["evaluated t@0: 2", "train 0-5"]);
    for task in [first, first + 2] {
        for outcome in [Outcome::Evaluated(Vec::new()), Outcome::Saved] {
            let rank = Rank(1);
            assert_eq!(play.apply(Event::Completed { rank, task, outcome }), []);
        }
    }
}

#[test]
fn an_outcome_that_does_not_fit_the_task_ends_the_run() {
    let misfits = [
        [
            Outcome::Trained { reached: Step(4) },
            Outcome::Trained { reached: Step(4) },
        ],
        [
            Outcome::Evaluated(Vec::new()),
            Outcome::Trained { reached: Step(5) },
        ],
        [
            Outcome::Stopped { reached: Step(3) },
            Outcome::Stopped { reached: Step(4) },
        ],
    ];
    for [first, second] in misfits {
        let mut play = Play::formed("", 0);
        play.do_tasks_until(is_training);
        play.complete(0, first);
        if play.state.verdict().is_none() {
            play.complete(1, second);
        }
        assert!(play.failure().contains("does not fit"), "{}", play.failure());
    }
}

proptest! {
    /// However the ranks' completions fall, with repetitions and late ones, the same is done in the same order (TASK-1).
    #[test]
    fn the_order_of_ranks_does_not_matter(picks in prop::collection::vec((0..WORKERS, any::<bool>()), 0..60)) {
        let mut expected = Play::formed("", 0);
        while expected.state.verdict().is_none() {
            expected.do_task();
        }
        let without_checkpoints = |effects: &[Effect]| -> Vec<Effect> {
            let counts = |effect: &&Effect| !matches!(effect, Effect::Publish { .. } | Effect::Committed { .. } | Effect::End { .. });
            effects.iter().filter(counts).cloned().collect()
        };

        let mut play = Play::formed("", 0);
        // At the end everybody reports in turn, so that the run is always finished.
        let rest = (0..).map(|count| (count % WORKERS, false));
        for (rank, late) in picks.into_iter().chain(rest) {
            let Some((task, _)) = play.state.task() else { break };
            let outcome = play.whole(rank);
            let task = if late { task.saturating_sub(1) } else { task };
            if late && play.state.task().is_some_and(|(current, _)| current == task) {
                continue;
            }
            play.apply(Event::Completed { rank: Rank(rank), task, outcome });
        }
        for step in [2, 4, 5, 6, 8, 9] {
            prop_assert_eq!(play.state.verdict(), None);
            play.store(1, step);
            play.store(0, step);
            play.publish(step);
        }
        prop_assert_eq!(without_checkpoints(&play.effects), without_checkpoints(&expected.effects));
    }
}

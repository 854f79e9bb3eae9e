//! Goal: workers, nodes and coordinators may be lost, hang, be slow or come later; the run goes on from the newest state that is
//! whole, within its budgets, or says why it ends.

use super::*;
use crate::state::Adopted;

fn crew(min_workers: u32, max_workers: u32) -> Crew {
    Crew {
        min_workers,
        max_workers,
        nodes: max_workers,
        workers_per_node: 1,
    }
}

/// Nodes with one worker each.
fn worker(node: u32) -> WorkerId {
    WorkerId::new(node, 0)
}

fn ready(node: u32, incarnation: u64) -> Joining {
    Joining {
        worker: worker(node),
        incarnation: Incarnation(incarnation),
        node_rank: node,
        local_rank: 0,
        ..joining(node, incarnation)
    }
}

fn alive(node: u32, generation: Generation, step: u64) -> Sign {
    Sign {
        worker: worker(node),
        node_rank: node,
        local_rank: 0,
        ..sign(node, generation, step)
    }
}

/// The same of a worker whose newest collective is that of this number, which it is still in unless it has `finished`.
fn in_collective(node: u32, step: u64, group: &str, sequence: u64, finished: bool) -> Event {
    Event::Heartbeat(Sign {
        collective: Some(diagnosis::collective(group, sequence, finished)),
        ..alive(node, FIRST, step)
    })
}

fn ended(node: u32, incarnation: u64) -> Event {
    Event::Exited(Ended {
        node,
        worker: worker(node),
        incarnation: Incarnation(incarnation),
        exit_code: None,
        signal: Some(9),
        last_lines: Vec::new(),
    })
}

fn agent(node: u32, incarnation: u64) -> Event {
    Event::NodeRegistered(Agent {
        node,
        incarnation: Incarnation(incarnation),
        hostname: format!("host{node}"),
    })
}

/// The state after `step` and the one before, with these banks; stage zipper.
fn held(step: u64, banks: &[usize]) -> Vec<HeldState> {
    [step, step - 1]
        .map(|step| HeldState {
            step: Step(step),
            stage: Stage::Zipper,
            shared: true,
            banks: banks.iter().copied().collect(),
        })
        .to_vec()
}

/// A run of `crew` that trains from step 5, with all nodes registered and `crew.max_workers` workers.
fn training(more: &str, crew: Crew) -> Play {
    let mut play = Play::new(more, 5);
    play.state.crew = crew;
    for node in 0..crew.max_workers {
        play.apply(agent(node, 1));
        play.apply(Event::Joined(ready(node, 1)));
    }
    assert_eq!(play.state.together(), Some(FIRST));
    play
}

/// A survivor of the first generation comes back.
fn back(node: u32, held: Vec<HeldState>) -> Event {
    Event::Joined(Joining {
        generation: Some(FIRST),
        held,
        ..ready(node, 1)
    })
}

impl Play {
    fn sees(&mut self, node: u32, generation: Generation, step: u64) -> Vec<Effect> {
        self.apply(Event::Heartbeat(alive(node, generation, step)))
    }

    fn origin(&self, node: u32) -> (Rank, Step, Origin) {
        let assignment = self
            .state
            .assignment(&worker(node), Incarnation(1))
            .expect("it has a place");
        (assignment.rank, assignment.step, assignment.origin)
    }
}

/// Goal: the network's limits are of as many processes as there are: those of two nodes with an agent and three workers each.
#[test]
fn agents_and_workers_are_the_processes_of_a_run() {
    let crew = Crew {
        nodes: 2,
        workers_per_node: 3,
        ..crew(1, 4)
    };
    assert_eq!(crew.processes(), 8);
}

/// Four workers, of which one is killed; the others go on with what they remember, and nothing is made twice.
#[test]
fn survivors_go_on_from_memory() {
    let mut play = training("", crew(2, 4));
    play.now = Duration::from_secs(10);
    for node in 0..4 {
        play.sees(node, FIRST, 7);
    }
    play.apply(ended(3, 1));
    assert_eq!(play.state.together(), None);
    let member = play.state.standing(&worker(0), Incarnation(1), Some(FIRST));
    assert_eq!(member, Standing::Outside, "GEN-1");
    assert_eq!(
        play.state.standing(&worker(3), Incarnation(1), Some(FIRST)),
        Standing::GivenUp
    );

    // Two banks, of which node 1 has the copy of what node 3 had.
    play.apply(back(0, held(7, &[0])));
    play.apply(back(2, held(7, &[])));
    assert_eq!(play.state.together(), None, "node 1 is awaited");
    play.now += Duration::from_secs(1);
    let effects = play.apply(back(1, held(7, &[1])));
    assert_eq!(
        words(&effects),
        ["broken at 7", "form 3 from memory of 7", "train 7-9"]
    );
    assert!(play.state.generation() > FIRST, "GEN-2");
    let (_, step, origin) = play.origin(0);
    assert_eq!(step, Step(7));
    let Origin::Memory { shared, banks } = origin else {
        panic!("it comes from memory");
    };
    let rank = |node| play.origin(node).0;
    assert_eq!((shared, banks), (Rank(0), vec![rank(0), rank(1)]));

    play.now += Duration::from_secs(1);
    let second = play.state.generation();
    let effects = play.sees(0, second, 8);
    assert_eq!(words(&effects), ["recovered, 0 steps repeated"]);
    let Effect::Recovered(recovery) = &effects[0] else {
        panic!("it is a recovery");
    };
    assert_eq!(recovery.took, Duration::from_secs(2));
    assert!(!recovery.from_checkpoint);
}

/// What nobody remembers completely comes from the newest checkpoint.
#[test]
fn a_lost_bank_goes_back_to_the_checkpoint() {
    let mut play = training("", crew(1, 2));
    play.sees(0, FIRST, 7);
    play.apply(ended(1, 1));
    let effects = play.apply(back(0, held(7, &[0])));
    assert_eq!(words(&effects)[1..], ["form 1", "train 5-9"]);
    assert_eq!(play.origin(0), (Rank(0), Step(5), Origin::Checkpoint));
    let second = play.state.generation();
    let effects = play.sees(0, second, 6);
    assert_eq!(words(&effects), ["recovered, 2 steps repeated"]);
    assert_eq!(play.state.accounts.repeated_steps, 2);
}

/// Steps that a coordinator knows only from what its workers remember are repeated, too, when they are lost.
#[test]
fn remembered_steps_that_are_lost_are_repeated() {
    let mut play = Play::new("", 5);
    play.state.crew = crew(1, 2);
    play.apply(Event::Joined(Joining {
        held: held(7, &[0]),
        ..ready(0, 1)
    }));
    let other = Joining {
        held: held(7, &[1]),
        ..ready(1, 1)
    };
    assert_eq!(
        words(&play.apply(Event::Joined(other))),
        ["form 2 from memory of 7", "train 7-9"]
    );
    play.apply(ended(1, 1));
    play.apply(back(0, held(7, &[0])));
    let second = play.state.generation();
    let effects = play.sees(0, second, 6);
    assert_eq!(words(&effects), ["recovered, 2 steps repeated"]);
    assert_eq!(play.state.accounts.repeated_steps, 2);
}

/// A checkpoint may be newer than what those who are left remember.
#[test]
fn a_newer_checkpoint_counts_more_than_memory() {
    let mut play = training("", crew(1, 2));
    play.store(0, 8);
    play.store(1, 8);
    play.publish(8);
    play.apply(ended(1, 1));
    let effects = play.apply(back(0, held(6, &[0, 1])));
    assert_eq!(words(&effects)[1..], ["form 1", "train 8-9"]);
}

/// A run without banks goes on from the memory of any rank.
#[test]
fn without_banks_the_shared_parameters_are_all() {
    let mut play = training("adapter: {variant: shared}", crew(1, 2));
    play.apply(ended(1, 1));
    let effects = play.apply(back(0, held(7, &[])));
    assert_eq!(words(&effects)[1..], ["form 1 from memory of 7", "train 7-9"]);
}

/// A checkpoint that was due at the step that a generation starts from, and was lost on its way, is written again.
#[test]
fn a_checkpoint_that_was_lost_on_its_way_is_written_again() {
    let mut play = training("", crew(1, 2));
    play.apply(ended(1, 1));
    let effects = play.apply(back(0, held(8, &[0, 1])));
    assert_eq!(words(&effects)[1..], ["form 1 from memory of 8", "save 8"]);
    assert_eq!(words(&play.complete(0, Outcome::Saved)), ["train 8-9"]);
    play.store(0, 8);
    assert_eq!(words(&play.publish(8)), ["committed 8"]);
}

/// A worker that comes later waits for a step boundary, and for a generation in which there is room.
#[test]
fn others_are_let_in_between_two_steps() {
    let mut play = training("", crew(1, 2));
    play.apply(ended(1, 1));
    play.apply(back(0, held(7, &[0, 1])));
    assert!(!play.state.regroup_requested());
    play.apply(Event::Joined(ready(1, 2)));
    assert!(play.state.regroup_requested());
    let second = play.state.generation();
    let effects = play.complete(0, Outcome::Yielded { reached: Step(8) });
    assert_eq!(words(&effects), [""; 0], "node 0 has to come back first");
    let effects = play.apply(Event::Joined(Joining {
        generation: Some(second),
        held: held(8, &[0, 1]),
        ..ready(0, 1)
    }));
    assert_eq!(words(&effects), ["form 2 from memory of 8", "save 8"]);
    assert_eq!(play.state.accounts.losses, 1, "growth is no loss");
}

/// Spares are ready and not needed, until one is.
#[test]
fn a_spare_takes_the_place_of_a_lost_worker_at_once() {
    let mut play = training(
        "",
        Crew {
            nodes: 3,
            ..crew(2, 2)
        },
    );
    play.apply(Event::Joined(ready(2, 1)));
    assert!(!play.state.regroup_requested(), "there is no room");
    assert_eq!(play.state.assignment(&worker(2), Incarnation(1)), None);
    play.apply(ended(1, 1));
    let effects = play.apply(back(0, held(7, &[0, 1])));
    assert_eq!(words(&effects)[1..], ["form 2 from memory of 7", "train 7-9"]);
    assert!(play.state.assignment(&worker(2), Incarnation(1)).is_some());
}

#[test]
fn with_on_loss_wait_a_replacement_is_waited_for() {
    let mut play = training("elastic: {on_loss: wait, replacement_wait: 30s}", crew(1, 2));
    play.apply(ended(1, 1));
    play.apply(back(0, held(7, &[0, 1])));
    assert_eq!(play.state.together(), None);
    play.now = Duration::from_secs(29);
    play.apply(Event::Heartbeat(Sign {
        generation: None,
        ..alive(0, FIRST, 7)
    }));
    play.apply(Event::Tick);
    assert_eq!(play.state.together(), None);
    play.wait(Duration::from_secs(1));
    assert!(play.state.together().is_some());
}

/// Thread 1 of docs/testing.md: restarts end when the budget says so, and the run says who failed and how.
#[test]
fn thread_1_a_node_that_fails_again_and_again_is_left_out_and_named() {
    let mut play = training("elastic: {restarts_per_node: 2, restart_backoff: 1s}", crew(1, 2));
    for incarnation in 1..=2 {
        play.apply(ended(1, incarnation));
        let advice = play
            .state
            .advice_for_worker(1, &worker(1), Incarnation(incarnation));
        let after = Duration::from_secs(incarnation);
        assert_eq!(advice, Some(&Advice::Start { after }), "the pause doubles");
        let generation = Some(play.state.generation());
        play.apply(Event::Joined(Joining {
            generation,
            held: held(7, &[0, 1]),
            ..ready(0, 1)
        }));
        play.apply(Event::Joined(ready(1, incarnation + 1)));
    }
    let effects = play.apply(ended(1, 3));
    assert!(
        words(&effects).contains(&"left out node 1".to_owned()),
        "{effects:?}"
    );
    let Some(Advice::Leave { reason }) = play.state.advice_for_worker(1, &worker(1), Incarnation(3)) else {
        panic!("it is not started again");
    };
    assert!(
        reason.contains("it failed 3 times within 1h") && reason.contains("signal 9"),
        "{reason}"
    );
    // Whatever still runs there is not listened to.
    play.apply(Event::Joined(ready(1, 4)));
    let generation = play.state.generation();
    play.apply(Event::Heartbeat(Sign {
        incarnation: Incarnation(4),
        ..alive(1, generation, 7)
    }));
    assert!(play.state.workers().all(|known| *known != worker(1)));
    assert_eq!(play.state.verdict(), None, "one worker is enough");
    // The other one fails, too: nobody is left.
    for incarnation in 1..=3 {
        play.apply(Event::Joined(ready(0, incarnation)));
        play.apply(ended(0, incarnation));
        play.wait(Duration::from_secs(6));
    }
    assert!(
        play.failure().contains("too few workers are left for the 1"),
        "{}",
        play.failure()
    );
}

#[test]
fn thread_1_the_run_has_a_budget_of_its_own() {
    let mut play = training("elastic: {restarts_per_run: 1, restarts_per_node: 9}", crew(1, 2));
    play.apply(ended(1, 1));
    play.apply(back(0, held(7, &[0, 1])));
    assert_eq!(play.state.verdict(), None);
    play.apply(ended(0, 1));
    assert!(
        play.failure()
            .contains("2 times within 1h, more often than `elastic.restarts_per_run` = 1"),
        "{}",
        play.failure()
    );
    assert!(
        play.failure()
            .contains("the last time: worker `node0/0` (rank 0) on host0 was ended by signal 9"),
        "{}",
        play.failure()
    );
    assert!(
        matches!(play.effects.last(), Some(Effect::End { .. })),
        "{:?}",
        words(&play.effects)
    );
}

/// A failure that comes back whenever its step does ends the run however long it takes to get there; one after a new step does not.
#[test]
fn thread_1_losses_without_a_new_step_are_never_forgotten() {
    let lose = |play: &mut Play, incarnation: u64, step: u64| {
        play.apply(Event::Joined(ready(0, incarnation)));
        let generation = play.state.together().expect("one worker is enough");
        play.now += Duration::from_hours(2);
        let sign = alive(0, generation, step);
        play.apply(Event::Heartbeat(Sign {
            incarnation: Incarnation(incarnation),
            ..sign
        }));
        play.apply(ended(0, incarnation));
    };
    let budget = "elastic: {restarts_per_run: 2, restarts_per_node: 2, restart_window: 1h}";
    let mut play = training(budget, crew(1, 1));
    for (incarnation, step) in [(1, 6), (2, 7), (3, 8), (4, 8)] {
        lose(&mut play, incarnation, step);
    }
    assert_eq!(play.state.verdict(), None, "two in a row at step 8 are allowed");
    lose(&mut play, 5, 8);
    assert!(
        play.failure().contains(
            "3 times in a row and never got beyond step 8, more often than `elastic.restarts_per_run` = 2"
        ),
        "{}",
        play.failure()
    );
}

/// The report of an exit may arrive a second time, when the next process of the slot has ended as well.
#[test]
fn an_exit_that_is_reported_again_late_counts_once() {
    let mut play = training("elastic: {restarts_per_node: 2}", crew(1, 2));
    play.apply(ended(1, 1));
    play.apply(ended(1, 2));
    let failures = play.state.failures();
    assert_eq!(failures, 3, "one generation, two exits");
    assert_eq!(play.apply(ended(1, 1)), []);
    assert_eq!(play.state.failures(), failures);
    let advice = play.state.advice_for_worker(1, &worker(1), Incarnation(2));
    assert!(matches!(advice, Some(Advice::Start { .. })), "{advice:?}");
}

/// The answer to an agent may be lost: it says again that it has come.
#[test]
fn an_agent_that_repeats_itself_has_lost_nothing() {
    let mut play = training("", crew(1, 2));
    assert_eq!(play.apply(agent(1, 1)), []);
    assert_eq!((play.state.together(), play.state.failures()), (Some(FIRST), 0));
}

/// A coordinator that has come back learns of agents by their signs of life, those of an agent that was replaced excepted.
#[test]
fn agents_are_known_by_their_signs_of_life() {
    let mut play = Play::new("", 5);
    let alive = |incarnation| Event::AgentAlive {
        node: 3,
        incarnation: Incarnation(incarnation),
    };
    let answered = |play: &Play| {
        let known = |incarnation: &u64| play.state.advice_for_node(3, Incarnation(*incarnation)).is_some();
        (1..=3).find(known)
    };
    assert_eq!(answered(&play), None);
    for (incarnation, newest) in [(2, 2), (3, 3), (1, 3)] {
        play.apply(alive(incarnation));
        assert_eq!(answered(&play), Some(newest));
    }
    assert!(play.state.nodes().eq([3]));
    let states = |play: &Play| play.state.overview().nodes.into_keys().collect::<Vec<_>>();
    play.seconds(6, |play| drop(play.apply(alive(1))));
    assert_eq!(
        states(&play),
        ["silent"],
        "one that was replaced counts for nothing"
    );
    play.seconds(1, |play| drop(play.apply(alive(3))));
    play.seconds(5, |_| ());
    assert_eq!(states(&play), ["healthy"]);
    play.seconds(1, |_| ());
    assert_eq!(states(&play), ["silent"]);
}

#[test]
fn a_given_up_process_is_ended_also_where_another_one_ended_before() {
    let mut play = training("", crew(1, 2));
    play.apply(ended(1, 1));
    play.apply(Event::Joined(ready(1, 2)));
    play.apply(Event::Joined(ready(1, 3)));
    assert_eq!(play.state.to_kill(1), [(worker(1), Incarnation(2))]);
}

/// What is left of a run is counted in workers, not in nodes.
#[test]
fn nodes_count_with_all_their_workers() {
    let mut play = Play::new("elastic: {restarts_per_node: 0}", 5);
    play.state.crew = Crew {
        min_workers: 2,
        max_workers: 4,
        nodes: 2,
        workers_per_node: 2,
    };
    for node in 0..2 {
        play.apply(agent(node, 1));
    }
    let effects = play.apply(ended(1, 1));
    assert_eq!(words(&effects), ["left out node 1"]);
    assert_eq!(play.state.verdict(), None, "node 0 has two");
}

/// Before a run ends because too few are left, those who know more of the last loss are given a moment to say so.
#[test]
fn the_end_of_a_run_waits_for_the_reason() {
    let mut play = training("elastic: {restarts_per_node: 0}", crew(2, 2));
    let effects = play.apply(ended(1, 1));
    assert_eq!(words(&effects), ["left out node 1"]);
    play.wait(crate::state::diagnosis::BLAME_TIMEOUT);
    assert_eq!(play.state.verdict(), None);
    play.wait(Duration::from_millis(1));
    assert!(
        play.failure()
            .contains("was ended by signal 9; at its last heartbeat")
            && play.failure().contains("too few workers are left for the 2"),
        "{}",
        play.failure()
    );
}

/// A survivor that lives and never comes back holds nobody up for longer than it may.
#[test]
fn a_survivor_that_does_not_come_back_is_given_up() {
    let mut play = training("", crew(1, 3));
    let timeout = play.state.config().elastic.regroup_timeout.as_secs();
    play.apply(ended(2, 1));
    play.apply(back(0, held(7, &[0, 1])));
    let both = |play: &mut Play| (0..2).for_each(|node| drop(play.sees(node, FIRST, 7)));
    play.seconds(timeout, both);
    assert_eq!(play.state.together(), None, "node 1 is awaited");
    let told = words(&play.effects);
    let awaited = "waiting: 1 of 3 workers are ready; `node1/0` has not come back yet";
    assert!(told.iter().any(|told| told == awaited), "{told:?}");
    play.seconds(1, both);
    assert_eq!(
        play.state.standing(&worker(1), Incarnation(1), Some(FIRST)),
        Standing::GivenUp
    );
    assert!(play.state.together().is_some());
}

/// The wait for workers beyond those that are needed begins when the needed ones are there, and again when one of these was lost.
#[test]
fn the_wait_for_more_begins_again_with_enough_workers() {
    let mut play = Play::new("elastic: {join_wait: 10s}", 5);
    play.state.crew = crew(1, 2);
    play.apply(agent(0, 1));
    play.apply(Event::Joined(ready(0, 1)));
    play.wait(Duration::from_secs(5));
    play.apply(ended(0, 1));
    play.wait(Duration::from_secs(1));
    play.apply(Event::Joined(ready(0, 2)));
    play.wait(Duration::from_secs(9));
    assert_eq!(play.state.together(), None);
    play.wait(Duration::from_secs(1));
    assert_eq!(play.state.together(), Some(FIRST));
}

/// A run that is to stop and has nobody left waits for somebody who comes back.
#[test]
fn a_stop_without_workers_forms_no_generation() {
    let mut play = training("", crew(1, 1));
    play.apply(ended(0, 1));
    play.apply(stop());
    assert_eq!((play.state.together(), play.state.verdict()), (None, None));
    play.apply(Event::Joined(ready(0, 2)));
    assert_eq!(play.state.verdict(), Some(&stopped()));
}

/// With fewer than a run needs, what the survivors remember is stored nevertheless when it is to stop.
#[test]
fn a_stop_after_a_loss_stores_what_the_survivors_have() {
    let mut play = training("", crew(2, 2));
    play.apply(ended(1, 1));
    play.apply(stop());
    let effects = play.apply(back(0, held(7, &[0, 1])));
    assert_eq!(
        words(&effects),
        ["broken at 5", "form 1 from memory of 7", "save 7"]
    );
}

/// An agent that comes anew has lost its workers, whatever became of them.
#[test]
fn a_new_agent_means_that_its_workers_are_lost() {
    let mut play = training("", crew(1, 2));
    play.apply(agent(1, 2));
    assert_eq!(play.state.together(), None);
    assert_eq!(
        play.state.standing(&worker(1), Incarnation(1), Some(FIRST)),
        Standing::GivenUp
    );
    assert!(matches!(
        play.state.advice_for_node(1, Incarnation(2)),
        Some(Advice::Start { .. })
    ));
    assert_eq!(
        play.state.advice_for_node(1, Incarnation(1)),
        None,
        "the old one is answered no more"
    );
    assert_eq!(play.state.to_kill(1), [(worker(1), Incarnation(1))]);
}

/// Heartbeats go on, but nothing is trained: the rank that the others wait for is given up.
#[test]
fn a_hang_is_found_by_the_lack_of_progress() {
    let mut play = training("elastic: {hang_factor: 5, hang_min: 10s}", crew(1, 3));
    let at = |node: u32, step: u64, sequence: u64| in_collective(node, step, "world", sequence, false);
    for step in [6, 7] {
        play.seconds(4, |_| ());
        (0..3).for_each(|node| drop(play.apply(at(node, step, 10 * step))));
    }
    for second in 1..=21 {
        play.now += Duration::from_secs(1);
        for node in 0..3 {
            play.apply(at(node, 7, if node == 1 { 71 } else { 72 }));
        }
        let effects = play.apply(Event::Tick);
        let found = second > 20;
        assert_eq!(
            play.state.together().is_none(),
            found,
            "after {second} s: {effects:?}"
        );
    }
    assert_eq!(
        play.state.standing(&worker(1), Incarnation(1), Some(FIRST)),
        Standing::GivenUp
    );
    play.apply(back(0, held(7, &[0, 1])));
    let effects = play.apply(back(2, held(7, &[0, 1])));
    let Effect::Broken { reason, .. } = &effects[0] else {
        panic!("it is told: {effects:?}");
    };
    assert!(
        reason.starts_with("no step was completed for 20s. worker `node1/0` (rank 1) on host1 did not come"),
        "{reason}"
    );
}

/// In an evaluation ranks work by themselves: one that decodes nothing any more is given up, and not one that is done or slow.
#[test]
fn a_rank_that_hangs_in_an_evaluation_is_found() {
    let mut play = training("runtime: {first_collective_timeout: 1m}", crew(1, 3));
    for rank in (0..3).chain([0]) {
        let whole = play.whole(rank);
        play.complete(rank, whole);
    }
    assert!(is_evaluation(play.state.task().expect("a task is under way").1));
    // Rank 1 decodes a batch in 8 seconds, rank 2 none after its third.
    let mut last_of_2 = Duration::ZERO;
    let begun = play.now;
    let mut found = None;
    for second in 1..=200 {
        play.now += Duration::from_secs(1);
        let now = play.now;
        if second % 8 == 0 && second <= 24 {
            last_of_2 = now;
        }
        let batch = begun + Duration::from_secs(second / 8 * 8);
        for (node, since) in [(0, begun), (1, batch), (2, last_of_2.max(begun))] {
            let sign = alive(node, FIRST, 9);
            play.apply(Event::Heartbeat(Sign {
                idle: now.saturating_sub(since),
                ..sign
            }));
        }
        play.apply(Event::Tick);
        if play.state.together().is_none() {
            found = Some(second);
            break;
        }
    }
    // Ten times 8 s after the last batch.
    assert_eq!(found, Some(24 + 80 + 1));
    let standing = |play: &Play, node| play.state.standing(&worker(node), Incarnation(1), Some(FIRST));
    assert_eq!(standing(&play, 2), Standing::GivenUp);
    assert_eq!(standing(&play, 1), Standing::Outside);
    play.wait(Duration::from_secs(6));
    let told = play.effects.iter().find_map(|effect| match effect {
        Effect::Broken { reason, .. } => Some(reason.as_str()),
        _ => None,
    });
    let told = told.expect("it is told");
    assert!(
        told.starts_with(
            "nothing was decoded for 1m 20s. worker `node2/0` (rank 2) on host2 lives, but does not get on"
        ),
        "{told}"
    );
}

/// Heartbeats are rarer than steps where steps are short.
#[test]
fn several_steps_in_one_heartbeat_share_its_time() {
    let mut play = training("elastic: {hang_factor: 5, hang_min: 10s}", crew(1, 2));
    let at_8 = |play: &mut Play| (0..2).for_each(|node| drop(play.sees(node, FIRST, 8)));
    play.seconds(9, |_| ());
    at_8(&mut play);
    play.seconds(15, at_8);
    assert!(
        play.state.together().is_some(),
        "three steps of 3 s each: patience is 15 s"
    );
    play.seconds(1, at_8);
    assert_eq!(play.state.together(), None);
}

/// One rank that is ahead does not make the others guilty.
#[test]
fn where_most_are_behind_nobody_is_at_fault() {
    let mut play = training("elastic: {hang_factor: 5, hang_min: 10s}", crew(1, 3));
    let all = |play: &mut Play| {
        for node in 0..3 {
            let sequence = if node == 0 { 72 } else { 71 };
            play.apply(in_collective(node, 6, "world", sequence, false));
        }
    };
    play.seconds(4, |_| ());
    all(&mut play);
    play.seconds(21, all);
    assert_eq!(play.state.together(), None);
    for node in 0..3 {
        assert_eq!(
            play.state.standing(&worker(node), Incarnation(1), Some(FIRST)),
            Standing::Outside
        );
    }
}

/// Everybody is in the same operation, which does not end: nobody is given up, and the network is what to look at.
#[test]
fn a_collective_that_all_have_come_to_and_that_hangs_is_nobodys_fault() {
    let mut play = training("elastic: {hang_factor: 5, hang_min: 10s}", crew(1, 2));
    let all = |play: &mut Play| {
        for node in 0..2 {
            play.apply(in_collective(node, 6, "world", 71, false));
        }
    };
    play.seconds(4, |_| ());
    all(&mut play);
    play.seconds(21, all);
    assert_eq!(play.state.together(), None);
    play.apply(back(0, held(6, &[0, 1])));
    let effects = play.apply(back(1, held(6, &[0, 1])));
    let Effect::Broken { reason, .. } = &effects[0] else {
        panic!("it is told: {effects:?}");
    };
    assert!(
        reason.starts_with("no step was completed for 20s")
            && reason.contains("had come to it. All ranks had come, so look at the network"),
        "{reason}"
    );
}

/// Each group counts its own operations: whoever waits in that of a bank is not behind a rank that has done many with all others.
#[test]
fn a_rank_that_waits_in_another_group_is_not_behind() {
    let mut play = training("elastic: {hang_factor: 5, hang_min: 10s}", crew(1, 2));
    let at = |node: u32, group: &str, sequence: u64, finished: bool| {
        in_collective(node, 6, group, sequence, finished)
    };
    play.seconds(4, |_| ());
    for node in 0..2 {
        play.apply(at(node, "world", 60, true));
    }
    play.seconds(21, |play| {
        play.apply(at(0, "owners of en", 8, false));
        play.apply(at(1, "world", 60, true));
    });
    let standing = |node| play.state.standing(&worker(node), Incarnation(1), Some(FIRST));
    assert_eq!(standing(0), Standing::Outside);
    assert_eq!(standing(1), Standing::GivenUp);
}

/// A coordinator that was asleep has heard nobody, and gives nobody up for that.
#[test]
fn the_coordinators_own_sleep_is_nobodys_fault() {
    let mut play = training("", crew(1, 2));
    play.wait(Duration::from_secs(1));
    play.wait(Duration::from_mins(10));
    assert_eq!(play.state.together(), Some(FIRST));
    // Silence that it was awake for counts.
    for _ in 0..22 {
        play.sees(0, FIRST, 6);
        play.wait(Duration::from_secs(1));
    }
    assert_eq!(
        play.state.standing(&worker(1), Incarnation(1), Some(FIRST)),
        Standing::GivenUp
    );
}

#[test]
fn a_straggler_is_named_once_with_its_share_of_the_time() {
    let mut play = training("elastic: {straggler_steps: 2}", crew(1, 5));
    play.now = Duration::from_secs(10);
    let mut effects = Vec::new();
    for step in [6, 7] {
        assert_eq!(effects, [], "one step is too few");
        // Of two ranks nothing is known yet.
        for (node, seconds) in (0..).zip([3.0, 4.0, 8.0, 0.0, 0.0]) {
            let mut sign = alive(node, FIRST, step);
            sign.work = if seconds > 0.0 { 100.0 } else { 0.0 };
            sign.compute_seconds = seconds;
            play.apply(Event::Heartbeat(sign));
        }
        effects = play.apply(Event::Tick);
    }
    let Some(Effect::Straggler {
        rank,
        factor,
        lost_share,
        ..
    }) = effects.first()
    else {
        panic!("nobody is named: {effects:?}");
    };
    assert_eq!(*rank, Rank(2));
    assert!((factor - 2.0).abs() < 1e-9 && (lost_share - 0.4).abs() < 1e-9);
    assert_eq!(play.apply(Event::Tick), []);
}

/// While the store cannot be written, training goes on with an alarm, up to a limit.
#[test]
fn an_outage_of_the_store_raises_an_alarm_and_ends_the_run_at_its_limit() {
    let mut play = training("", crew(1, 2));
    let trouble = |seconds| Trouble {
        lasting: Duration::from_secs(seconds),
        message: "no space left on device".to_owned(),
    };
    let mut sign = alive(1, FIRST, 6);
    sign.trouble = Some(trouble(15));
    play.apply(Event::Heartbeat(sign.clone()));
    assert_eq!(play.apply(Event::Tick), [], "it may pass by itself");
    sign.trouble = Some(trouble(20));
    play.apply(Event::Heartbeat(sign.clone()));
    assert_eq!(words(&play.apply(Event::Tick)), ["alarm raised"]);
    assert_eq!(play.apply(Event::Tick), [], "once");
    sign.trouble = None;
    play.apply(Event::Heartbeat(sign));
    assert_eq!(words(&play.apply(Event::Tick)), ["alarm over"]);
    play.apply(Event::StoreTrouble(Some(trouble(1800))));
    assert_eq!(words(&play.apply(Event::Tick)), ["alarm raised"]);
    play.apply(Event::StoreTrouble(Some(trouble(1801))));
    play.apply(Event::Tick);
    let Some(Verdict::Stopped(reason)) = play.state.verdict() else {
        panic!("the verdict is {:?}", play.state.verdict());
    };
    assert!(
        reason.contains("30m (`checkpoint.outage_limit`): no space left on device"),
        "{reason}"
    );
}

/// The coordinator after that of `before`, which has crashed; it finds these checkpoints.
fn adopting(before: &Play, published: &[u64]) -> Play {
    let seats: Vec<Seat> = before
        .effects
        .iter()
        .find_map(|effect| match effect {
            Effect::FormGeneration { seats, .. } => Some(seats.clone()),
            _ => None,
        })
        .expect("it was formed");
    let task = before.state.task();
    let published: BTreeSet<Step> = published.iter().copied().map(Step).collect();
    let past = Past {
        generation: Generation(11),
        next_task: task.map_or(0, |(id, _)| id + 1),
        reached: published.last().copied().unwrap_or_default(),
        published,
        evaluated: before.state.evaluated.clone(),
        adopted: Some(Adopted {
            generation: FIRST,
            seats,
            placement: before.state.placement().cloned(),
            step: Step(5),
            origin: Origin::Checkpoint,
            task: task.map(|(id, planned)| (id, planned.clone())),
        }),
        ..Past::default()
    };
    let state = State::new(config(""), crew(1, 2), before.state.basis().clone(), past);
    let mut play = Play {
        state,
        now: Duration::ZERO,
        effects: Vec::new(),
    };
    play.apply(Event::Reserved(Generation(19)));
    play
}

impl Play {
    /// All ranks do what there is to do.
    fn work(&mut self) {
        while self.state.task().is_some() {
            for rank in 0..2 {
                let outcome = self.whole(rank);
                self.complete(rank, outcome);
            }
        }
    }
}

/// END-1, when the coordinator is lost between the last step and the last checkpoint: ranks tell the next one of their parts
/// again, and the run is not done before.
#[test]
fn the_next_coordinator_waits_for_the_last_checkpoint() {
    let mut before = training("", crew(1, 2));
    for rank in 0..2 {
        before.complete(rank, Outcome::Trained { reached: Step(9) });
    }
    let mut play = adopting(&before, &[5, 6]);
    play.work();
    assert_eq!(play.state.verdict(), None, "that of step 9 is missing");
    play.store(0, 9);
    play.store(1, 9);
    play.publish(9);
    assert_eq!(play.state.verdict(), Some(&Verdict::Done));
}

/// Where all of them are there, none is awaited by the next coordinator.
#[test]
fn the_next_coordinator_awaits_no_checkpoint_that_is_there() {
    let mut before = training("", crew(1, 2));
    for rank in 0..2 {
        before.complete(rank, Outcome::Trained { reached: Step(9) });
    }
    let mut play = adopting(&before, &[5, 6, 8, 9]);
    play.work();
    assert_eq!(play.state.verdict(), Some(&Verdict::Done));
}

/// Checkpoints that came and went before the coordinator was lost are not awaited by the next one, which does not know them.
#[test]
fn the_next_coordinator_does_not_wait_for_what_is_no_longer_kept() {
    let before = training("", crew(1, 2));
    let mut play = adopting(&before, &[5, 8]);
    play.work();
    assert_eq!(play.state.verdict(), None, "that of step 9 is missing");
    play.store(0, 9);
    play.store(1, 9);
    play.publish(9);
    assert_eq!(
        play.state.verdict(),
        Some(&Verdict::Done),
        "nobody stores 6 again"
    );
}

/// A generation that its coordinator had no time to write down: the next coordinator takes over the one before, and must not
/// give its members their old places, from which they would begin far back.
#[test]
fn a_generation_that_was_not_written_down_ends_the_one_that_was() {
    let before = training("", crew(1, 2));
    let mut play = adopting(&before, &[5]);
    let joined = |node: u32| {
        Event::Joined(Joining {
            generation: Some(Generation(4)),
            held: held(8, &[0, 1]),
            ..ready(node, 1)
        })
    };
    play.apply(joined(0));
    assert_eq!(play.state.assignment(&worker(0), Incarnation(1)), None);
    let effects = play.apply(joined(1));
    assert_eq!(
        words(&effects),
        ["broken at 5", "form 2 from memory of 8", "save 8"]
    );
    assert_eq!(play.state.generation(), Generation(12), "GEN-2");
}

/// A coordinator that has come back finds its workers at work, asks for what it cannot know, and goes on.
#[test]
fn a_generation_is_adopted_by_the_next_coordinator() {
    let before = training("", crew(1, 2));
    let (id, _) = before.state.task().expect("a task is under way");
    let mut play = adopting(&before, &[5]);
    assert_eq!(play.state.task(), before.state.task());
    let rank = |node| play.state.standing(&worker(node), Incarnation(1), Some(FIRST));
    assert_eq!(
        [rank(0), rank(1)],
        [Standing::Member(Rank(0)), Standing::Member(Rank(1))]
    );
    let place = play.state.assignment(&worker(1), Incarnation(1));
    assert_eq!(
        place.map(|place| place.store_address),
        before
            .state
            .assignment(&worker(1), Incarnation(1))
            .map(|place| place.store_address)
    );
    let seen = play.state.overview().members;
    assert!(
        seen.iter()
            .all(|member| member.doing == "training" && member.step == Step(5)),
        "{seen:?}"
    );
    assert!(!play.state.knows_outcome(Rank(0), id), "it is asked for again");
    play.complete(0, Outcome::Trained { reached: Step(9) });
    let effects = play.complete(1, Outcome::Trained { reached: Step(9) });
    assert_eq!(words(&effects), ["evaluate validation@9"]);
    // A loss now: its number was never used, by none of the two coordinators.
    play.apply(ended(1, 1));
    play.apply(back(0, held(9, &[0, 1])));
    assert_eq!(play.state.generation(), Generation(12));
}

/// A coordinator may be lost between a generation and its first task: the next one gives the task out, and notes it.
#[test]
fn a_generation_that_was_taken_over_without_a_task_gets_one() {
    let mut before = training("", crew(1, 2));
    before.state.running = None;
    let mut play = adopting(&before, &[5]);
    assert_eq!(words(&play.effects), ["train 5-9"]);
    assert_eq!(play.apply(Event::Tick), [], "once");
}

/// More numbers are reserved while some are left, so that no generation waits for the journal.
#[test]
fn numbers_are_reserved_in_time() {
    for (reserved, more) in [(6, Some(14)), (7, None)] {
        let mut play = Play::new("", 0);
        play.state.reserved = Generation(reserved);
        for local_rank in 0..WORKERS {
            play.apply(Event::Joined(joining(local_rank, 1)));
        }
        assert_eq!(play.state.together(), Some(FIRST));
        let found = play.effects.iter().find_map(|effect| match effect {
            Effect::Reserve(number) => Some(number.0),
            _ => None,
        });
        assert_eq!(found, more, "with {reserved} reserved");
    }
}

/// GEN-2: what the journal has not reserved is not used.
#[test]
fn no_generation_is_formed_before_its_number_is_reserved() {
    let mut play = Play::new("", 0);
    play.state.reserved = play.state.highest;
    for local_rank in 0..WORKERS {
        play.apply(Event::Joined(joining(local_rank, 1)));
    }
    assert_eq!(play.state.together(), None);
    let effects = play.apply(Event::Reserved(Generation(4)));
    assert_eq!(words(&effects)[..2], ["reserve", "form 2"]);
}

//! Goal: whatever goes wrong between ranks, watchers are told who is at fault, at which operation the others missed it, and
//! what is known of it.

use super::*;
use crate::state::diagnosis::BLAME_TIMEOUT;

/// Three ranks that train steps 6 to 9, one second after the start.
fn training() -> Play {
    let mut play = Play {
        state: state(config(""), 3, 5),
        now: Duration::ZERO,
        effects: Vec::new(),
    };
    for local_rank in 0..3 {
        play.apply(Event::Joined(joining(local_rank, 1)));
    }
    play.now = Duration::from_secs(1);
    play
}

pub(super) fn collective(group: &str, sequence: u64, finished: bool) -> Collective {
    Collective {
        group: group.to_owned(),
        sequence,
        operation: "all_reduce".to_owned(),
        what: format!("gradients {sequence} of step 7"),
        finished,
        age: Duration::ZERO,
        missing: BTreeSet::new(),
        arrived: BTreeSet::new(),
    }
}

/// How a rank reports that others had not come.
fn missed(rank: u32, group: &str, sequence: u64, arrived: &[u32], missing: &[u32]) -> Event {
    let ranks = |ranks: &[u32]| ranks.iter().copied().map(Rank).collect();
    Event::Failed(Failure {
        worker: WorkerId::new(0, rank),
        incarnation: Incarnation(1),
        generation: Some(FIRST),
        config: false,
        fatal: false,
        message: "a peer was lost".to_owned(),
        collective: Some(Collective {
            arrived: ranks(arrived),
            missing: ranks(missing),
            ..collective(group, sequence, false)
        }),
    })
}

fn heartbeat(local_rank: u32, step: u64, collective: Option<Collective>) -> Event {
    Event::Heartbeat(Sign {
        collective,
        ..sign(local_rank, FIRST, step)
    })
}

impl Play {
    /// What watchers were told of the loss.
    fn told(&self) -> &str {
        let told = self.effects.iter().find_map(|effect| match effect {
            Effect::Broken { reason, .. } => Some(reason.as_str()),
            _ => None,
        });
        told.expect("watchers were told")
    }
}

const KILLED: &str = "worker `node0/1` (rank 1) on host1 was ended by signal 9; at its last heartbeat, 0.5s ago, it had \
    completed step 6 and last finished `all_reduce` (gradients 3 of step 7; number 3 of group `world`). So the collective \
    operation `all_reduce` (gradients 4 of step 7; number 4 of group `world`) failed: worker `node0/0` (rank 0) on host0, \
    worker `node0/2` (rank 2) on host2 had come to it, worker `node0/1` (rank 1) on host1 had not. The ranks' flight records \
    are in `flight/generation-3` of the run\nthe end of the log of `node0/1`:\nout of memory";

/// A worker that is killed in the middle of a reduction: whether its end is reported before or after what it did to the others,
/// the paragraph is the same.
#[test]
fn a_killed_worker_is_named_with_the_operation_that_it_missed() {
    let report = || missed(2, "world", 4, &[0, 2], &[1]);
    for exit_first in [true, false] {
        let mut play = training();
        play.apply(heartbeat(1, 6, Some(collective("world", 3, true))));
        play.now += Duration::from_millis(500);
        if exit_first {
            assert_eq!(play.apply(exit(1, None, Some(9))), [], "the others may know more");
            play.apply(report());
        } else {
            play.apply(report());
            // Rank 2 ends because of the failure; that is not the cause.
            assert_eq!(play.apply(exit(2, Some(1), None)), []);
            play.apply(exit(1, None, Some(9)));
        }
        assert_eq!(play.told(), KILLED);
    }
}

/// If nobody tells what the end of a process did to the others, watchers are told what is known.
#[test]
fn a_loss_that_nobody_tells_more_of_is_told_all_the_same() {
    let mut play = training();
    play.apply(exit(1, Some(1), None));
    assert_eq!(play.wait(BLAME_TIMEOUT), []);
    play.wait(Duration::from_millis(1));
    assert_eq!(
        play.told(),
        "worker `node0/1` (rank 1) on host1 ended with exit code 1; at its last heartbeat, 6.0s ago, it had completed \
         step 5\nthe end of the log of `node0/1`:\nout of memory"
    );
}

/// A worker that is stopped sends no heartbeats, and the others' heartbeats say where they wait for it: the collective's own
/// deadline may be far away.
#[test]
fn a_stopped_worker_is_named_with_the_operation_in_which_others_wait_for_it() {
    let mut play = training();
    play.apply(heartbeat(2, 6, Some(collective("owners of en", 8, true))));
    let others = |play: &mut Play| {
        for rank in [0, 1] {
            play.apply(heartbeat(rank, 7, Some(collective("world", 5, false))));
        }
    };
    play.seconds(20, others);
    assert!(play.state.together().is_some(), "the timeout is not over yet");
    play.wait(Duration::from_millis(100));
    play.seconds(7, others);
    assert_eq!(
        play.told(),
        "worker `node0/2` (rank 2) on host2: no heartbeat for 26.1s; at the last one it had completed step 6 and last \
         finished `all_reduce` (gradients 8 of step 7; number 8 of group `owners of en`). So the collective \
         operation `all_reduce` (gradients 5 of step 7; number 5 of group `world`) failed: worker `node0/0` (rank 0) on host0, \
         worker `node0/1` (rank 1) on host1 had come to it, worker `node0/2` (rank 2) on host2 had not. The ranks' flight \
         records are in `flight/generation-3` of the run"
    );
}

/// Silence is a cause, and a failed operation its effect: nothing else is waited for.
#[test]
fn a_silent_worker_is_told_of_when_another_one_misses_it() {
    let mut play = training();
    let others = |play: &mut Play| {
        for rank in [0, 1] {
            play.apply(heartbeat(rank, 7, Some(collective("world", 5, false))));
        }
    };
    play.seconds(22, others);
    assert_eq!(play.state.together(), None);
    let effects = play.apply(missed(0, "world", 5, &[0, 1], &[2]));
    assert_eq!(words(&effects), ["broken at 7"]);
}

/// A training thread that hangs while its process lives: heartbeats go on, but the others' deadline passes.
#[test]
fn a_rank_that_does_not_come_is_named_although_it_lives() {
    let mut play = training();
    play.apply(missed(0, "world", 4, &[0], &[1, 2]));
    play.apply(missed(2, "world", 4, &[0, 2], &[1]));
    play.now += Duration::from_secs(4);
    play.apply(heartbeat(1, 6, Some(collective("world", 3, true))));
    assert_eq!(
        play.wait(Duration::from_secs(1)),
        [],
        "an exit may still be reported"
    );
    play.wait(Duration::from_millis(1));
    assert_eq!(
        play.told(),
        "worker `node0/1` (rank 1) on host1 did not come, although it lives: at its last heartbeat, 1.0s ago, it had \
         completed step 6 and last finished `all_reduce` (gradients 3 of step 7; number 3 of group `world`) (if its part \
         of a step may take so long, raise `runtime.collective_timeout`). So the collective operation `all_reduce` (gradients 4 of step 7; number 4 of group `world`) \
         failed: worker `node0/0` (rank 0) on host0, worker `node0/2` (rank 2) on host2 had come to it, worker `node0/1` (rank \
         1) on host1 had not. The ranks' flight records are in `flight/generation-3` of the run"
    );
}

/// Rank 0 waits for rank 1, which waits for rank 2 in another group: rank 2 is at fault.
#[test]
fn whoever_others_wait_for_is_not_at_fault_if_it_waits_itself() {
    let mut play = training();
    play.apply(missed(0, "world", 4, &[0], &[1]));
    play.apply(missed(1, "owners of de", 2, &[1], &[2]));
    play.wait(BLAME_TIMEOUT + Duration::from_millis(1));
    let reason = play.told();
    assert!(
        reason.starts_with("worker `node0/2` (rank 2) on host2 did not come")
            && reason.contains("number 2 of group `owners of de`) failed: worker `node0/1` (rank 1)"),
        "{reason}"
    );
}

/// Where nobody is missing, the report itself says what is wrong: ranks that call different operations, for example.
#[test]
fn a_failed_collective_that_nobody_explains_is_told_as_it_was_reported() {
    let mut play = Play::formed("", 0);
    for local_rank in [1, 0] {
        let Event::Failed(failure) = failed(local_rank, false, false) else {
            unreachable!("it is a failure");
        };
        play.apply(Event::Failed(failure));
    }
    assert_eq!(play.wait(BLAME_TIMEOUT), []);
    play.wait(Duration::from_millis(1));
    assert_eq!(
        play.told(),
        "worker `node0/1` (rank 1) on host1: it broke. The ranks' flight records are in `flight/generation-3` of the run"
    );
}

/// With a configuration that no retry helps, the end of a process is the end of the run.
#[test]
fn a_worker_that_refuses_its_configuration_ends_the_run() {
    for mut play in [Play::new("", 0), training()] {
        play.apply(exit(1, Some(2), None));
        assert!(
            matches!(play.state.verdict(), Some(Verdict::Config(reason))
                if reason.starts_with("worker `node0/1`") && reason.contains("ended with exit code 2")),
            "{:?}",
            play.state.verdict()
        );
    }
}

#[test]
fn a_silent_worker_is_named_with_its_last_step() {
    let mut play = Play::formed("", 0);
    play.now = Duration::from_secs(1);
    for (local_rank, step) in [(0, 4), (1, 3)] {
        play.apply(heartbeat(local_rank, step, None));
    }
    play.seconds(28, |play| drop(play.apply(heartbeat(0, 5, None))));
    assert_eq!(
        play.told(),
        "worker `node0/1` (rank 1) on host1: no heartbeat for 27.0s; at the last one it had completed step 3"
    );
}

/// With many ranks the message stays a paragraph.
#[test]
fn many_ranks_are_counted_not_listed() {
    let mut play = training();
    let ranks: Vec<u32> = (0..100).collect();
    play.apply(missed(0, "world", 4, &ranks[..50], &ranks[50..]));
    play.wait(BLAME_TIMEOUT + Duration::from_millis(1));
    let reason = play.told();
    assert!(
        reason.contains("rank 53, 46 more ranks had not") && reason.len() < 1000,
        "{reason}"
    );
    let mut play = training();
    play.apply(missed(0, "world", 4, &[0], &[3, 4, 5, 6]));
    play.wait(BLAME_TIMEOUT + Duration::from_millis(1));
    assert!(play.told().contains("rank 5, rank 6 had not"), "{}", play.told());
}

/// The agent ends a process that was given up: that is not what was wrong with it.
#[test]
fn a_silent_worker_that_is_ended_for_it_was_silent() {
    let mut play = Play::formed("", 0);
    play.seconds(22, |play| drop(play.apply(heartbeat(0, 5, None))));
    play.apply(exit(1, None, Some(9)));
    play.seconds(6, |play| drop(play.apply(heartbeat(0, 5, None))));
    assert!(
        play.told().contains("(rank 1) on host1: no heartbeat for 2"),
        "{}",
        play.told()
    );
    assert!(!play.told().contains("signal 9"), "{}", play.told());
}

/// Whoever was heard of just in time when another one ended is not called silent.
#[test]
fn a_worker_that_was_heard_of_in_time_is_not_silent() {
    let mut play = training();
    play.now = play.state.config().runtime.heartbeat_timeout;
    play.apply(exit(1, Some(1), None));
    play.wait(BLAME_TIMEOUT + Duration::from_millis(1));
    assert!(
        play.told()
            .starts_with("worker `node0/1` (rank 1) on host1 ended with exit code 1")
            && !play.told().contains("no heartbeat"),
        "{}",
        play.told()
    );
}

/// Of several that end, each is named.
#[test]
fn all_workers_that_end_are_named() {
    let mut play = training();
    play.apply(exit(1, Some(1), None));
    play.apply(exit(2, None, Some(9)));
    play.wait(BLAME_TIMEOUT + Duration::from_millis(1));
    for who in [
        "(rank 1) on host1 ended with exit code 1",
        "(rank 2) on host2 was ended by signal 9",
    ] {
        assert!(play.told().contains(who), "{}", play.told());
    }
}

/// With a single rank there is nobody who could tell more.
#[test]
fn the_end_of_a_single_worker_is_told_at_once() {
    let mut play = Play {
        state: state(config(""), 1, 5),
        now: Duration::ZERO,
        effects: Vec::new(),
    };
    play.apply(Event::Joined(joining(0, 1)));
    play.apply(exit(0, Some(1), None));
    assert!(play.told().contains("ended with exit code 1"), "{}", play.told());
}

/// An operation that failed on all ranks, with all of them there, does not speak of the network: none of them hung.
#[test]
fn an_operation_that_fails_on_all_ranks_is_no_hang() {
    let mut play = training();
    for rank in 0..3 {
        play.apply(missed(rank, "world", 4, &[0, 1, 2], &[]));
    }
    play.wait(BLAME_TIMEOUT + Duration::from_millis(1));
    let reason = play.told();
    assert!(
        reason.starts_with("worker `node0/0` (rank 0) on host0: a peer was lost")
            && reason.contains("had come to it")
            && !reason.contains("network"),
        "{reason}"
    );
}

/// Where a worker that has ended was waiting itself is not what the others miss it at.
#[test]
fn the_operation_is_that_of_those_who_are_left() {
    let mut play = training();
    play.apply(heartbeat(0, 6, Some(collective("world", 5, false))));
    play.apply(heartbeat(1, 6, Some(collective("world", 4, false))));
    play.apply(heartbeat(2, 6, Some(collective("world", 3, true))));
    play.apply(exit(1, None, Some(9)));
    play.wait(BLAME_TIMEOUT + Duration::from_millis(1));
    let reason = play.told();
    assert!(
        reason.contains("it had completed step 6 and had been in `all_reduce` (gradients 4 of step 7; number 4 of group `world`) for 0.0s")
            && reason.contains("number 5 of group `world`) failed: worker `node0/0` (rank 0) on host0 had come to it"),
        "{reason}"
    );
}

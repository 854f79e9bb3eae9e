//! Goal: a checkpoint is published once, when all of it is there, and no run is done before its last one is.

use super::*;
use crate::state::checkpoints::CHECKPOINT_TIMEOUT;

#[test]
fn parts_of_all_ranks_make_one_checkpoint() {
    let mut play = Play::formed("", 5);
    assert_eq!(play.store(1, 6), [], "rank 0 is missing (CKPT-4)");
    assert_eq!(play.store(1, 6), []);
    let publish = Effect::Publish {
        step: Step(6),
        stage: Stage::Align,
        generation: FIRST,
        world_size: WorldSize(2),
        parts: vec![part(0), part(1)],
    };
    assert_eq!(play.store(0, 6), [publish]);
    assert_eq!(play.store(0, 6), [], "it is being published");
    assert_eq!(words(&play.publish(6)), ["committed 6"]);
    assert_eq!(play.store(0, 6), [], "it is published");
    assert_eq!(play.store(1, 6), []);
}

/// GEN-1, when the generation ends between the look at a request and its event.
#[test]
fn parts_of_an_earlier_generation_do_not_count() {
    let mut play = Play::formed("", 5);
    let late = Event::PartsStored {
        rank: Rank(0),
        generation: Generation(FIRST.0 - 1),
        step: Step(6),
        stage: Stage::Align,
        parts: vec![part(0)],
    };
    assert_eq!(play.apply(late), []);
    assert_eq!(play.store(1, 6), [], "rank 0 is missing");
}

#[test]
fn a_run_is_not_done_before_its_last_checkpoint_is_published() {
    let mut play = Play::formed("", 5);
    let finish = |play: &mut Play| {
        while play.state.task().is_some() {
            for rank in 0..2 {
                let outcome = play.whole(rank);
                play.complete(rank, outcome);
            }
        }
    };
    finish(&mut play);
    for step in [6, 8, 9] {
        assert_eq!(play.state.verdict(), None, "step {step} is not published (END-1)");
        play.apply(stop());
        assert!(!play.state.stop_requested(), "there is nothing left to stop");
        play.store(0, step);
        play.store(1, step);
        play.publish(step);
    }
    assert_eq!(play.state.verdict(), Some(&Verdict::Done));

    let mut play = Play::formed("", 8);
    finish(&mut play);
    play.store(1, 9);
    play.now += CHECKPOINT_TIMEOUT;
    play.all_alive();
    assert_eq!(play.apply(Event::Tick), []);
    play.wait(Duration::from_millis(1));
    assert_eq!(
        play.failure(),
        "waited 10m for parts of checkpoints, of step 9: worker `node0/0` (rank 0) on host0"
    );
}

#[test]
fn a_checkpoint_that_cannot_be_published_ends_the_run() {
    let mut play = Play::formed("", 5);
    play.store(0, 6);
    play.store(1, 6);
    play.apply(Event::Published {
        step: Step(6),
        error: Some("the disk is full".to_owned()),
    });
    assert_eq!(
        play.failure(),
        "the checkpoint of step 6 cannot be published: the disk is full"
    );
}

/// A rank may tell of an older checkpoint last, to a coordinator that has come back; its leftovers are collected already.
#[test]
fn a_checkpoint_older_than_the_newest_is_neither_awaited_nor_published() {
    let mut play = Play::formed("", 5);
    play.store(0, 6);
    play.store(0, 8);
    play.store(1, 8);
    play.publish(8);
    assert_eq!(play.store(1, 6), []);
    while play.state.task().is_some() {
        for rank in 0..2 {
            let outcome = play.whole(rank);
            play.complete(rank, outcome);
        }
    }
    play.store(0, 9);
    play.store(1, 9);
    play.publish(9);
    assert_eq!(play.state.verdict(), Some(&Verdict::Done));
}

/// A newer checkpoint may be on its way already when one is published.
#[test]
fn parts_of_a_newer_checkpoint_stay_when_one_is_published() {
    let mut play = Play::formed("", 5);
    play.store(0, 8);
    play.store(0, 6);
    play.store(1, 6);
    play.publish(6);
    assert_eq!(words(&play.store(1, 8)), ["publish 8"]);
}

/// Retention works while ranks are still training: a checkpoint that came and went is not awaited at the end.
#[test]
fn a_checkpoint_that_is_no_longer_kept_is_not_awaited() {
    let mut play = Play::formed("checkpoint: {every_steps: 1, keep_last: 1}", 5);
    for step in [6, 7, 8, 9] {
        play.store(0, step);
        play.store(1, step);
        play.publish(step);
    }
    while play.state.task().is_some() {
        for rank in 0..2 {
            let outcome = play.whole(rank);
            play.complete(rank, outcome);
        }
    }
    assert_eq!(play.state.verdict(), Some(&Verdict::Done));
}

//! Goal: a run whose ranks are lost, replaced or joined by others equals the run that was not (DESIGN 3 and 5), without anything
//! being read from a checkpoint; and what is remembered is what is promised.
//! Method: ranks are threads with real process groups. A rank that is lost lets go of its session, so that the others fail in
//! the middle of their next step.

use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};

use tch::Device;
use zipper_collectives::{GroupOptions, Store};
use zipper_config::schema::{Dtype, RunConfig};
use zipper_tests::Fixture;
use zipper_train::memory::HeldState;
use zipper_train::session::{Origin, Session};
use zipper_train::step::Votes;
use zipper_types::{Rank, Stage, Step, Variant};

use crate::support::{
    HOST, TIMEOUT, alone, assert_close, assert_same_parameters, config, outside, placement, reports, team,
    values,
};

/// One membership of a run.
struct Generation {
    /// Workers in the order of their ranks.
    members: Vec<usize>,
    /// Completed steps at its end.
    until: u64,
    /// Workers that are lost then, in the middle of a step.
    lose: Vec<usize>,
    /// The steps behind the newest that it starts from, as if that one had not been completed everywhere.
    back: u64,
}

fn generation(members: &[usize], until: u64, lose: &[usize]) -> Generation {
    Generation {
        members: members.to_vec(),
        until,
        lose: lose.to_vec(),
        back: 0,
    }
}

/// The newest step that `held` is complete of, at least `back` before the newest of all, and who has what of it.
fn plan(held: &[Vec<HeldState>], banks: bool, languages: usize, back: u64) -> (Step, Origin) {
    let newest = held.iter().flatten().map(|held| held.step.0).max().unwrap_or(0);
    let who = |step: u64, has: &dyn Fn(&HeldState) -> bool| {
        let index = held
            .iter()
            .position(|held| held.iter().any(|held| held.step.0 == step && has(held)))?;
        Some(Rank(index as u32))
    };
    for step in (0..=newest.saturating_sub(back)).rev() {
        let Some(shared) = who(step, &|held| held.shared) else {
            continue;
        };
        let of_shared = &held[shared.0 as usize];
        let stage = of_shared
            .iter()
            .find(|held| held.step.0 == step)
            .map(|held| held.stage);
        let of_banks: Option<Vec<Rank>> = if banks && stage == Some(Stage::Zipper) {
            (0..languages)
                .map(|language| who(step, &|held| held.banks.contains(&language)))
                .collect()
        } else {
            Some(Vec::new())
        };
        if let Some(banks) = of_banks {
            return (Step(step), Origin::Memory { shared, banks });
        }
    }
    (Step(0), Origin::Fresh)
}

/// What a run came to.
struct Run {
    losses: BTreeMap<u64, f64>,
    parameters: BTreeMap<String, Vec<f64>>,
    /// The step that each generation started from.
    starts: Vec<u64>,
}

/// Plays `generations`, one after the other.
fn play(config: &RunConfig, generations: &[Generation]) -> Run {
    let (_store, port) = Store::serve(HOST, TIMEOUT).expect("a port is free");
    let workers = 1 + generations
        .iter()
        .flat_map(|generation| &generation.members)
        .max()
        .expect("members");
    let run = Mutex::new(Run {
        losses: BTreeMap::new(),
        parameters: BTreeMap::new(),
        starts: Vec::new(),
    });
    let barriers: Vec<Barrier> = generations
        .iter()
        .map(|generation| Barrier::new(generation.members.len()))
        .collect();
    let held: Vec<Mutex<BTreeMap<usize, Vec<HeldState>>>> =
        generations.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (run, barriers, held) = (&run, &barriers, &held);
            scope.spawn(move || {
                tch::set_num_threads(1);
                let mut session = outside(config, Device::Cpu);
                for (number, generation) in generations.iter().enumerate() {
                    let Some(rank) = generation.members.iter().position(|&member| member == worker) else {
                        continue;
                    };
                    held[number].lock().unwrap().insert(rank, session.held());
                    barriers[number].wait();
                    let all: Vec<Vec<HeldState>> = held[number].lock().unwrap().values().cloned().collect();
                    let banks = config.adapter.variant != Variant::Shared;
                    let (step, origin) = plan(&all, banks, config.data.languages.len(), generation.back);
                    let rank = Rank(rank as u32);
                    let store = Store::connect(HOST, port, TIMEOUT).expect("the store answers");
                    let store = store.prefix(&format!("generation-{number}")).expect("a prefix");
                    let placement = placement(config, generation.members.len() as u32);
                    let team = team(config, rank, placement, &store, GroupOptions::gloo(HOST, TIMEOUT));
                    session.regroup(team, step, &origin).expect("the ranks remember");
                    let reports = reports(&mut session, generation.until);
                    if rank == Rank(0) {
                        let mut run = run.lock().unwrap();
                        run.starts.push(step.0);
                        run.losses
                            .extend(reports.iter().map(|report| (report.step.0, report.loss)));
                    }
                    if generation.lose.contains(&worker) {
                        return;
                    }
                    if !generation.lose.is_empty() {
                        step_without_peers(config, &mut session);
                    }
                    session.leave();
                }
                if generations[generations.len() - 1].members.contains(&worker) {
                    // Left teams keep what they had: the parameters are still those of the last step.
                    run.lock().unwrap().parameters.extend(values(&session));
                }
            });
        }
    });
    run.into_inner().unwrap()
}

fn step_without_peers(config: &RunConfig, session: &mut Session) {
    if session.step().0 == config.training.align.steps && session.enter(Stage::Zipper).is_err() {
        return;
    }
    session.train_step(Votes::default()).expect_err("a peer is lost");
}

fn tiny(fixture: &Fixture, variant: Variant, snapshot_every: u64) -> RunConfig {
    config(fixture, |config| {
        config.adapter.variant = variant;
        config.model.dtype = Dtype::F64;
        config.training.align.steps = 4;
        config.training.zipper.steps = 8;
        config.training.batch_audio_seconds = 6.0;
        config.training.micro_batch_audio_seconds = 1.5;
        config.training.optimizer.eps = 1e-6;
        config.elastic.snapshot_every = snapshot_every;
    })
}

/// Plays `generations` and compares with the run that nobody disturbed; returns the steps that generations started from.
fn check(config: &RunConfig, generations: &[Generation]) -> Vec<u64> {
    let mut undisturbed = alone(config);
    let expected: Vec<f64> = reports(&mut undisturbed, 12)
        .iter()
        .map(|report| report.loss)
        .collect();
    let what = config.adapter.variant.to_string();
    let run = play(config, generations);
    let losses: Vec<f64> = run.losses.values().copied().collect();
    assert_close(&expected, &losses, 1e-9, &what);
    assert_same_parameters(&values(&undisturbed), &run.parameters, 1e-9, &what);
    run.starts
}

/// Four ranks, of which one is lost in stage 1 and one at its end; later two come back, and another one is lost. With a snapshot
/// after every step no step is made twice.
#[test]
fn ranks_come_and_go_and_nothing_is_lost() {
    for variant in Variant::ALL {
        let fixture = Fixture::new();
        let starts = check(
            &tiny(&fixture, variant, 1),
            &[
                generation(&[0, 1, 2, 3], 2, &[3]),
                generation(&[0, 1, 2], 4, &[0]),
                generation(&[1, 2], 6, &[]),
                generation(&[4, 1, 2, 5], 8, &[2]),
                generation(&[4, 1, 5], 10, &[1]),
                generation(&[4, 5], 12, &[]),
            ],
        );
        assert_eq!(starts, [0, 2, 4, 6, 8, 10], "{variant}");
    }
}

/// With a snapshot after every third step the steps since the last one are made again, if the only owner of a bank is lost;
/// without banks none.
#[test]
fn a_lost_bank_goes_back_to_the_last_snapshot() {
    for (variant, start) in [
        (Variant::Soft, 9),
        (Variant::Independent, 9),
        (Variant::Shared, 10),
    ] {
        let fixture = Fixture::new();
        let starts = check(
            &tiny(&fixture, variant, 3),
            &[generation(&[0, 1, 2], 10, &[1]), generation(&[0, 2], 12, &[])],
        );
        assert_eq!(starts, [0, start], "{variant}");
    }
}

/// Ranks that are one step apart go on from the step that both have; also where that is the first of a stage.
#[test]
fn the_step_before_is_remembered() {
    for until in [3, 5, 8] {
        let fixture = Fixture::new();
        let mut second = generation(&[0, 1, 2], 12, &[]);
        second.back = 1;
        let starts = check(
            &tiny(&fixture, Variant::Soft, 1),
            &[generation(&[0, 1, 2], until, &[]), second],
        );
        assert_eq!(starts, [0, until - 1]);
    }
}

/// Without snapshots the only owner of a bank takes it away; the rest of the run begins anew.
#[test]
fn without_snapshots_a_lost_bank_is_lost() {
    let fixture = Fixture::new();
    let starts = check(
        &tiny(&fixture, Variant::Soft, 0),
        &[generation(&[0, 1, 2], 6, &[1]), generation(&[0, 2], 12, &[])],
    );
    assert_eq!(starts[0], 0);
    assert!(starts[1] <= 4, "stage 2 needs all banks: {starts:?}");
}

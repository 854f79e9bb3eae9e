//! Goal: what people are shown of the state is what it is.

use super::*;

/// Goal: members, nodes and accounts are counted as they are, and looking changes nothing.
#[test]
fn the_overview_counts_who_is_there() {
    let mut play = Play::new("", 0);
    assert_eq!(play.state.overview().nodes, BTreeMap::from([("missing", 1)]));
    play.apply(Event::NodeRegistered(Agent {
        node: 0,
        incarnation: Incarnation(1),
        hostname: "host".to_owned(),
    }));
    play.apply(Event::Joined(joining(0, 1)));
    play.apply(Event::Heartbeat(Sign {
        generation: None,
        ..sign(1, FIRST, 0)
    }));
    let before = play.state.overview();
    assert_eq!(before.workers, BTreeMap::from([("loading", 1), ("ready", 1)]));
    assert_eq!(before.nodes, BTreeMap::from([("healthy", 1)]));
    assert_eq!(before.world_size, None);
    play.apply(Event::Joined(joining(1, 1)));
    play.seconds(7, |play| {
        play.apply(Event::Heartbeat(sign(0, FIRST, 3)));
    });
    let together = play.state.overview();
    assert_eq!((together.generation, together.world_size), (FIRST, Some(WORKERS)));
    assert_eq!(together.workers, BTreeMap::from([("training", 2)]));
    assert_eq!(
        together.nodes,
        BTreeMap::from([("silent", 1)]),
        "its agent said nothing for 7 s"
    );
    let heard: Vec<Duration> = together.members.iter().map(|member| member.heard).collect();
    assert_eq!(heard, [Duration::ZERO, Duration::from_secs(7)]);
    assert_eq!(together.accounts.total(), play.now);
    assert_eq!(play.state.overview(), together);
}

/// Of very many workers those are named that are not at work and have been silent the longest; all are counted.
#[test]
fn of_very_many_workers_some_are_named() {
    let mut play = Play::new("", 0);
    for local_rank in 0..300 {
        play.now += Duration::from_millis(1);
        play.apply(Event::Heartbeat(Sign {
            generation: None,
            ..sign(local_rank, FIRST, 0)
        }));
    }
    play.apply(Event::Tick);
    let seen = play.state.overview();
    assert_eq!(seen.workers, BTreeMap::from([("loading", 300)]));
    assert_eq!(seen.members.len(), 256);
    let named = |local_rank: u32| {
        let worker = WorkerId::new(0, local_rank);
        seen.members.iter().any(|member| member.worker == worker.0)
    };
    assert!(named(0) && named(255) && !named(256) && !named(299));
}

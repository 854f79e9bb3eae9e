//! Goal: a coordinator that comes after a crash counts on where the one before has stopped.

use super::*;
use crate::journal::JournalEntry;
use crate::state::accounts::Activity;

const BUDGET: &str = "elastic: {restarts_per_node: 2, restarts_per_run: 9, restart_window: 10m}";

fn crew() -> Crew {
    Crew {
        min_workers: 1,
        max_workers: 2,
        nodes: 2,
        workers_per_node: 1,
    }
}

fn play(past: Past) -> Play {
    let basis = state(config(""), 1, 0).basis().clone();
    Play {
        state: State::new(config(BUDGET), crew(), basis, past),
        now: Duration::ZERO,
        effects: Vec::new(),
    }
}

fn ended(incarnation: u64) -> Event {
    Event::Exited(Ended {
        node: 1,
        worker: WorkerId::new(1, 0),
        incarnation: Incarnation(incarnation),
        exit_code: None,
        signal: Some(9),
        last_lines: Vec::new(),
    })
}

fn registered(incarnation: u64) -> Event {
    Event::NodeRegistered(Agent {
        node: 1,
        incarnation: Incarnation(incarnation),
        hostname: "host1".to_owned(),
    })
}

/// What a coordinator knows after a crash and `away`, by way of the journal's JSON.
fn restarted(before: &Play, away: Duration) -> Play {
    let entry = JournalEntry::Ledger {
        ledger: before.state.ledger(before.now),
        at: "2026-01-01T00:00:00Z".to_owned(),
    };
    let json = serde_json::to_string(&entry).expect("an entry is plain data");
    let read = serde_json::from_str(&json).expect("it reads what it writes");
    let JournalEntry::Ledger { ledger, .. } = read else {
        panic!("it reads {read:?}");
    };
    play(Past {
        ledger: Some((ledger, away)),
        ..Past::default()
    })
}

fn is_left_out(play: &Play, incarnation: u64) -> bool {
    let advice = play
        .state
        .advice_for_worker(1, &WorkerId::new(1, 0), Incarnation(incarnation));
    matches!(advice, Some(Advice::Leave { .. }))
}

/// Thread 1 of docs/testing.md: a crash of the coordinator does not give a failing node its budget back; the window's end does.
#[test]
fn thread_1_a_crash_of_the_coordinator_does_not_renew_budgets() {
    let mut before = play(Past::default());
    before.apply(registered(1));
    before.apply(ended(1));
    before.wait(Duration::from_mins(1));
    before.apply(ended(2));
    assert!(!is_left_out(&before, 2));

    let mut after = restarted(&before, Duration::from_secs(5));
    after.apply(ended(3));
    assert!(is_left_out(&after, 3), "the third failure within the window");
    assert_eq!(after.state.nodes_left_out().count(), 1);
    let mut later = restarted(&after, Duration::from_secs(5));
    let told: Vec<Effect> = later.state.nodes_left_out().collect();
    assert_eq!(
        words(&told),
        ["left out node 1"],
        "its watchers have not heard of it"
    );
    later.apply(ended(4));
    assert!(is_left_out(&later, 4), "whoever was left out stays out");

    let mut long_after = restarted(&before, Duration::from_secs(9 * 60 + 30));
    long_after.apply(ended(3));
    assert!(!is_left_out(&long_after, 3), "the first failure is too long ago");
}

/// Time while nobody kept accounts is in one of them.
#[test]
fn accounts_go_on_after_a_crash() {
    let mut before = play(Past::default());
    before.wait(Duration::from_secs(30));
    before.state.accounts.losses = 2;
    before.state.accounts.repeated_steps = 3;
    let after = restarted(&before, Duration::from_secs(4));
    let accounts = after.state.accounts.until(Duration::from_secs(6));
    let spent: Vec<_> = accounts.spent().collect();
    let seconds = Duration::from_secs;
    assert_eq!(
        spent,
        [
            (Activity::Starting, seconds(36)),
            (Activity::Recovering, seconds(4))
        ]
    );
    assert_eq!((accounts.losses, accounts.repeated_steps), (2, 3));
}

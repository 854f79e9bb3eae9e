//! Goal: `runtime.bank_memory_mib` decides how many banks a worker gets, and banks that do not fit are refused before anything
//! starts. Method: real runs with room for one bank on each worker; owners as the run's journal has them.

use std::fs;

use serde_json::Value;
use zipper_tests::{Fixture, Launched};

const MIB: f64 = 1024.0 * 1024.0;

#[test]
fn workers_get_no_more_banks_than_their_memory_holds() {
    let fixture = Fixture::new();
    let config = fixture.path().join("run.yaml").display().to_string();
    let plan = Launched::run(&["plan", "--config", &config, "--workers-per-node", "1", "--json"]);
    let plan: Value = serde_json::from_str(&plan.stdout).expect("one JSON document");
    let bank = plan["zipper"]["bank_bytes"].as_f64().expect("a number");
    // Weights, gradients and two moments of one bank, and half of another one.
    let limit = format!("runtime.bank_memory_mib={}", 1.5 * 4.0 * bank / MIB);
    let launch = |nodes: &str| {
        let run = fixture.run_url("run");
        let set = ["--set", "evaluation.untrained=false", "--set", &limit];
        let arguments = ["--nodes", nodes, "--config", &config, "--run", &run];
        Launched::run(&[&arguments[..], &set].concat())
    };

    let refused = launch("2");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    for words in ["the banks of 3 languages do not fit", "or take 3 workers"] {
        assert!(
            refused.stderr.contains(words),
            "no `{words}` in:\n{}",
            refused.stderr
        );
    }
    assert!(
        !fixture.path().join("run/run.yaml").exists(),
        "a refused run has not begun"
    );

    let done = launch("3");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let journal = fs::read_dir(fixture.path().join("run/journal")).expect("a journal");
    let entry = journal
        .map(|entry| fs::read(entry.expect("an entry").path()).expect("it can be read"))
        .map(|entry| serde_json::from_slice::<Value>(&entry).expect("JSON"))
        .find(|entry| entry["event"] == "generation")
        .expect("a generation was formed");
    let mut owners: Vec<(u64, u64)> = ["en", "de", "vi"]
        .map(|lang| {
            let rank = |end: usize| entry["banks"][lang][end].as_u64().expect("a rank");
            (rank(0), rank(1))
        })
        .to_vec();
    owners.sort_unstable();
    assert_eq!(owners, [(0, 0), (1, 1), (2, 2)]);
}

//! What a launch has cost so far, for a coordinator that comes after a crash: where the time went, and how much of the restart
//! budgets is used. Without it every crash of the coordinator would give a failing node its budget back.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zipper_types::Incarnation;

use super::accounts::{Accounts, Activity};
use super::nodes::Node;
use super::{Now, State};

/// What the journal keeps of a launch's costs. Times are seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// Time by what it was spent on.
    spent: BTreeMap<Activity, f64>,
    /// Generations that were broken.
    losses: u32,
    /// Steps that were made again.
    repeated_steps: u64,
    /// How much longer each loss counts (`elastic.restart_window`).
    failures: Vec<f64>,
    /// Losses since a step was completed that had not been before.
    #[serde(default)]
    fruitless: u32,
    /// Nodes whose agents are known.
    nodes: Vec<NodeLedger>,
}

/// What the journal keeps of a node's costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NodeLedger {
    node: u32,
    agent: Incarnation,
    hostname: String,
    failures: Vec<f64>,
    left_out: Option<String>,
}

impl State {
    /// What has been spent until `now`.
    pub fn ledger(&self, now: Now) -> Ledger {
        let accounts = self.accounts.until(now);
        let remaining = |failures: &[Now]| -> Vec<f64> {
            let left = failures.iter().map(|until| until.saturating_sub(now));
            left.map(|left| left.as_secs_f64()).collect()
        };
        let nodes = self.nodes.iter().map(|(&number, node)| NodeLedger {
            node: number,
            agent: node.agent,
            hostname: node.hostname.clone(),
            failures: remaining(&node.failures),
            left_out: node.left_out.clone(),
        });
        Ledger {
            spent: accounts
                .spent()
                .map(|(activity, time)| (activity, time.as_secs_f64()))
                .collect(),
            losses: accounts.losses,
            repeated_steps: accounts.repeated_steps,
            failures: remaining(&self.failures),
            fruitless: self.fruitless,
            nodes: nodes.collect(),
        }
    }

    /// How often nodes have failed and generations were broken since this coordinator began.
    pub fn failures(&self) -> u64 {
        self.failed
    }

    /// Goes on with the budgets and accounts of the coordinator before, which wrote `ledger` and has been `away` since.
    /// Until it crashed and until now its workers did `meanwhile`.
    pub(super) fn take_over(&mut self, ledger: &Ledger, away: Duration, meanwhile: Activity) {
        let remaining = |failures: &[f64]| -> Vec<Now> {
            let left = failures.iter().copied().map(duration);
            left.filter_map(|left| left.checked_sub(away)).collect()
        };
        self.failures = remaining(&ledger.failures);
        self.fruitless = ledger.fruitless;
        self.accounts = Accounts::of(
            ledger
                .spent
                .iter()
                .map(|(&activity, &seconds)| (activity, duration(seconds))),
            ledger.losses,
            ledger.repeated_steps,
        );
        self.accounts.add(meanwhile, away);
        for node in &ledger.nodes {
            let known = Node::known(
                node.agent,
                node.hostname.clone(),
                remaining(&node.failures),
                node.left_out.clone(),
            );
            self.nodes.insert(node.node, known);
        }
    }
}

/// Of a number that somebody may have edited.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

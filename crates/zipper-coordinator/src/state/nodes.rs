//! Nodes and their agents: who may start workers again, how often, and who is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use zipper_types::{Incarnation, WorkerId};

use super::{Effect, Ended, Now, State, Verdict};

/// The longest pause before a worker is started again.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);

/// The agent of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its node.
    pub node: u32,
    /// Its process.
    pub incarnation: Incarnation,
    /// Its machine.
    pub hostname: String,
}

/// What becomes of the workers of a slot or a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// Start them after a pause.
    Start {
        /// The pause.
        after: Duration,
    },
    /// Do not.
    Leave {
        /// Why.
        reason: String,
    },
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) agent: Incarnation,
    pub(super) hostname: String,
    pub(super) heard: Now,
    /// Until when each failure of its workers counts.
    pub(super) failures: Vec<Now>,
    pub(super) left_out: Option<String>,
    /// The answer to its agent's newest question.
    advice: Advice,
    /// The newest exit that was taken in of each slot, with the answer.
    exits: BTreeMap<WorkerId, (Incarnation, Advice)>,
}

impl Node {
    fn new(agent: Incarnation, hostname: String, heard: Now) -> Self {
        Self {
            heard,
            ..Self::known(agent, hostname, Vec::new(), None)
        }
    }

    /// A node of which an earlier coordinator knew.
    pub(super) fn known(
        agent: Incarnation,
        hostname: String,
        failures: Vec<Now>,
        left_out: Option<String>,
    ) -> Self {
        let advice = match &left_out {
            Some(reason) => Advice::Leave {
                reason: reason.clone(),
            },
            None => Advice::Start {
                after: Duration::ZERO,
            },
        };
        Self {
            agent,
            hostname,
            heard: Now::ZERO,
            failures,
            left_out,
            advice,
            exits: BTreeMap::new(),
        }
    }
}

impl State {
    /// What the agent of a node is to do; nothing for one that has not registered, or was replaced.
    pub fn advice_for_node(&self, node: u32, incarnation: Incarnation) -> Option<&Advice> {
        let node = self.nodes.get(&node)?;
        (node.agent == incarnation).then_some(&node.advice)
    }

    /// What is to be done after the end of a worker process.
    pub fn advice_for_worker(
        &self,
        node: u32,
        worker: &WorkerId,
        incarnation: Incarnation,
    ) -> Option<&Advice> {
        let (ended, advice) = self.nodes.get(&node)?.exits.get(worker)?;
        (*ended == incarnation).then_some(advice)
    }

    /// Nodes whose agents have registered.
    pub fn nodes(&self) -> impl Iterator<Item = u32> {
        self.nodes.keys().copied()
    }

    /// Processes of a node that were given up and may still be running.
    pub fn to_kill(&self, node: u32) -> Vec<(WorkerId, Incarnation)> {
        let of_node = format!("node{node}/");
        let given_up = self.given_up.iter();
        given_up
            .filter(|(worker, incarnation)| {
                worker.0.starts_with(&of_node)
                    && self
                        .nodes
                        .get(&node)
                        .and_then(|node| node.exits.get(worker))
                        .is_none_or(|(ended, _)| ended < incarnation)
            })
            .cloned()
            .collect()
    }

    pub(super) fn is_left_out(&self, node: u32) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.left_out.is_some())
    }

    pub(super) fn node_registered(&mut self, now: Now, agent: Agent, effects: &mut Vec<Effect>) {
        let Some(node) = self.nodes.get_mut(&agent.node) else {
            // Members that an earlier launch had on this node are gone with its agent.
            self.drop_node(now, agent.node);
            let started = Node::new(agent.incarnation, agent.hostname, now);
            self.nodes.insert(agent.node, started);
            return;
        };
        if node.agent >= agent.incarnation {
            return;
        }
        node.agent = agent.incarnation;
        node.hostname = agent.hostname;
        node.heard = now;
        self.drop_node(now, agent.node);
        let advice = self.node_failed(now, agent.node, "its agent ended", effects);
        if let Some(node) = self.nodes.get_mut(&agent.node) {
            node.advice = advice;
        }
    }

    /// Nothing runs on a node any more.
    fn drop_node(&mut self, now: Now, node: u32) {
        let members = self.members.iter();
        let of_node: Vec<WorkerId> = members
            .filter(|(_, member)| member.node_rank == node)
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in of_node {
            self.drop_member(now, &worker);
        }
    }

    pub(super) fn agent_alive(&mut self, now: Now, node: u32, incarnation: Incarnation) {
        match self.nodes.get_mut(&node) {
            // It may have registered with the coordinator before, which had no time to say so.
            Some(node) if node.agent <= incarnation => {
                node.agent = incarnation;
                node.heard = now;
            }
            Some(_) => {}
            // A coordinator that has just come back learns of agents by their heartbeats.
            None => {
                let known = Node::new(incarnation, format!("node{node}"), now);
                self.nodes.insert(node, known);
            }
        }
    }

    pub(super) fn exited(&mut self, now: Now, ended: &Ended, effects: &mut Vec<Effect>) {
        let node = self.nodes.get(&ended.node);
        let newest = node.and_then(|node| node.exits.get(&ended.worker));
        // Also one that arrives again, late: another process of that slot may have ended since.
        if newest.is_some_and(|(newest, _)| *newest >= ended.incarnation) {
            return;
        }
        if ended.is_config() {
            let reason = format!(
                "{} {}{}",
                self.describe_worker(&ended.worker),
                ended.how(),
                ended.end_of_log()
            );
            self.end(now, Verdict::Config(reason), effects);
            return;
        }
        let was_member = self
            .members
            .get(&ended.worker)
            .is_some_and(|member| member.incarnation == ended.incarnation);
        if was_member {
            self.drop_member(now, &ended.worker);
        }
        let given_up = !was_member && self.given_up.contains(&(ended.worker.clone(), ended.incarnation));
        self.given_up.insert((ended.worker.clone(), ended.incarnation));
        let how = if given_up {
            format!("worker `{}` was given up", ended.worker)
        } else {
            format!("worker `{}` {}", ended.worker, ended.how())
        };
        if let Some(loss) = &mut self.loss {
            loss.ended(ended);
        }
        let advice = self.node_failed(now, ended.node, &(how + &ended.end_of_log()), effects);
        if let Some(node) = self.nodes.get_mut(&ended.node) {
            node.exits
                .insert(ended.worker.clone(), (ended.incarnation, advice));
        }
        self.tell_loss(now, effects);
        self.end_if_hopeless(now, effects);
    }

    fn describe_worker(&self, worker: &WorkerId) -> String {
        let member = self.members.get(worker);
        match member.and_then(super::Member::rank) {
            Some(rank) => self.describe(rank),
            None => format!("worker `{worker}`"),
        }
    }

    /// Counts a failure of a node, and says whether its workers are started again (BUDGET-1).
    fn node_failed(&mut self, now: Now, number: u32, how: &str, effects: &mut Vec<Effect>) -> Advice {
        let elastic = &self.config.elastic;
        let (window, budget) = (elastic.restart_window, elastic.restarts_per_node);
        let backoff = elastic.restart_backoff;
        let Some(node) = self.nodes.get_mut(&number) else {
            return Advice::Start { after: backoff };
        };
        if let Some(reason) = &node.left_out {
            return Advice::Leave {
                reason: reason.clone(),
            };
        }
        node.failures.push(now.saturating_add(window));
        self.failed += 1;
        node.failures.retain(|&until| now <= until);
        let failures = node.failures.len() as u32;
        if failures > budget {
            let reason = format!(
                "node {number} on {} is left out: it failed {failures} times within {}, more often than \
                 `elastic.restarts_per_node` = {budget} allows; the last time {how}",
                node.hostname,
                humantime::format_duration(window)
            );
            node.left_out = Some(reason.clone());
            effects.push(Effect::LeftOut {
                node: number,
                hostname: node.hostname.clone(),
                reason: reason.clone(),
            });
            let advice = Advice::Leave { reason };
            node.advice = advice.clone();
            // What still runs there would fail as well.
            self.drop_node(now, number);
            return advice;
        }
        let doubled = backoff.saturating_mul(1 << (failures - 1).min(16));
        Advice::Start {
            after: doubled.min(LONGEST_BACKOFF),
        }
    }

    /// Ends the run if it has lost workers too often.
    pub(super) fn check_budget_of_run(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let elastic = &self.config.elastic;
        let (window, budget) = (elastic.restart_window, elastic.restarts_per_run);
        self.failures.retain(|&until| now <= until);
        let recent = self.failures.len() as u32;
        let how = if recent > budget {
            format!("{recent} times within {}", humantime::format_duration(window))
        } else if self.fruitless > budget {
            format!(
                "{} times in a row and never got beyond step {}",
                self.fruitless, self.furthest
            )
        } else {
            return;
        };
        let lost = self.loss.as_ref().map_or_else(String::new, |loss| {
            format!("; the last time: {}", loss.diagnose(now, self.generation))
        });
        let verdict = Verdict::Failed(format!(
            "the run lost workers {how}, more often than `elastic.restarts_per_run` = {budget} allows{lost}"
        ));
        self.end(now, verdict, effects);
    }

    /// What is to be told of the nodes that an earlier coordinator of the launch has left out: only that one's watchers have heard of it.
    pub fn nodes_left_out(&self) -> impl Iterator<Item = Effect> + '_ {
        self.nodes.iter().filter_map(|(&number, node)| {
            Some(Effect::LeftOut {
                node: number,
                hostname: node.hostname.clone(),
                reason: node.left_out.clone()?,
            })
        })
    }

    /// Ends the run if even all nodes that are not left out have too few workers.
    pub(super) fn end_if_hopeless(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let left_out: Vec<&String> = self
            .nodes
            .values()
            .filter_map(|node| node.left_out.as_ref())
            .collect();
        let nodes = self.crew.nodes.saturating_sub(left_out.len() as u32);
        if left_out.is_empty() || nodes * self.crew.workers_per_node >= self.crew.min_workers {
            return;
        }
        // What happened comes first, then why it ends the run. Those who know more are given a moment to say so.
        let before = match &self.loss {
            Some(loss) if !loss.is_explained(now) => return,
            Some(loss) => format!("{}\n", loss.diagnose(now, self.generation)),
            None => String::new(),
        };
        // The first one with the end of its log, the others in a line each.
        let (first, others) = left_out.split_first().expect("a node is left out");
        let others = others.iter().map(|reason| {
            let line = reason.lines().next().unwrap_or_default();
            format!("\n{line}")
        });
        let verdict = Verdict::Failed(format!(
            "{before}too few workers are left for the {} that the run needs: {first}{}",
            self.crew.min_workers,
            others.collect::<String>()
        ));
        self.end(now, verdict, effects);
    }
}

//! What a request may say. A peer with a certificate can still be broken, of another version, or taken over: whatever it sends
//! becomes a number, index, path or text that the state can work with, or is refused with INVALID_ARGUMENT.
//!
//! Numbers that mean nothing are refused; texts, which are for people, are cut and lose their control characters, which could
//! write anywhere on a terminal.

use std::collections::BTreeSet;

use tonic::Status;
use zipper_config::RunConfig;
use zipper_proto::v1;
use zipper_types::WorkerId;

use crate::state::Crew;

/// Counts and bytes above this are nonsense; sums of many of them fit 64 bits.
const MOST: u64 = 1 << 40;
/// Names of machines, groups, operations; what somebody is doing.
const NAME: usize = 256;
/// Messages and lines of logs.
const TEXT: usize = 16 << 10;
/// Lines of a log's end.
const LINES: usize = 64;
/// Steps that a worker remembers: it keeps two, and copies for peers.
const HELD: usize = 64;
/// Objects of a rank's part of a checkpoint.
const PARTS: usize = 16 << 10;
/// Transformer layers of a model.
const LAYERS: usize = 4096;
/// Bytes of a path.
const PATH: usize = 512;

/// The bounds of one run.
#[derive(Debug)]
pub(super) struct Bounds {
    crew: Crew,
    last_step: u64,
    languages: BTreeSet<String>,
}

/// A request that can be checked.
pub(super) trait Bounded {
    /// Refuses what makes no sense, and cuts what is too long.
    ///
    /// # Errors
    /// What is wrong, in words.
    fn check(&mut self, bounds: &Bounds) -> Result<(), String>;
}

impl Bounds {
    pub(super) fn new(config: &RunConfig, crew: Crew) -> Self {
        let training = &config.training;
        Self {
            crew,
            last_step: training.align.steps.saturating_add(training.zipper.steps),
            languages: config.data.languages.iter().cloned().collect(),
        }
    }

    /// The request, if it makes sense.
    pub(super) fn checked<T: Bounded>(&self, request: tonic::Request<T>) -> Result<T, Status> {
        let mut request = request.into_inner();
        request.check(self).map_err(|wrong| {
            Status::invalid_argument(format!("{wrong}: does the peer run another version of zipper?"))
        })?;
        Ok(request)
    }

    /// Which node, and which worker of it.
    fn slot(&self, worker: &str) -> Result<(u32, u32), String> {
        let slot = worker.strip_prefix("node").and_then(|slot| slot.split_once('/'));
        let slot = slot.and_then(|(node, local)| Some((node.parse().ok()?, local.parse().ok()?)));
        slot.filter(|&(node, local)| {
            node < self.crew.nodes
                && local < self.crew.workers_per_node
                && WorkerId::new(node, local).0 == worker
        })
        .ok_or_else(|| format!("`{}` is no worker of this run", short(worker)))
    }

    fn member(&self, member: Option<&v1::MemberContext>) -> Result<(), String> {
        match member {
            Some(member) => self.slot(&member.worker_id).map(|_| ()),
            // Refused by name later.
            None => Ok(()),
        }
    }

    /// A member that also says where it is.
    fn placed(&self, member: Option<&v1::MemberContext>, place: (u32, u32)) -> Result<(), String> {
        let Some(member) = member else { return Ok(()) };
        if self.slot(&member.worker_id)? == place {
            Ok(())
        } else {
            let (node, local) = place;
            Err(format!(
                "worker `{}` says that it is worker {local} of node {node}",
                member.worker_id
            ))
        }
    }

    fn agent(&self, agent: Option<&v1::AgentContext>) -> Result<(), String> {
        match agent {
            Some(agent) if agent.node_rank >= self.crew.nodes => Err(format!(
                "there is no node {} in a run of {} nodes",
                agent.node_rank, self.crew.nodes
            )),
            _ => Ok(()),
        }
    }

    fn step(&self, step: u64) -> Result<(), String> {
        if step <= self.last_step {
            Ok(())
        } else {
            Err(format!(
                "there is no step {step} in a run of {} steps",
                self.last_step
            ))
        }
    }

    fn language(&self, lang: &str) -> Result<(), String> {
        if self.languages.contains(lang) {
            Ok(())
        } else {
            Err(format!("`{}` is no language of this run", short(lang)))
        }
    }

    fn collective(&self, collective: Option<&mut v1::CollectiveState>) -> Result<(), String> {
        let Some(collective) = collective else {
            return Ok(());
        };
        cut(&mut collective.group, NAME);
        cut(&mut collective.operation, NAME);
        cut(&mut collective.what, NAME);
        let mut ranks = collective.missing.iter().chain(&collective.arrived);
        match ranks.find(|&&rank| rank >= self.crew.max_workers) {
            None => Ok(()),
            Some(rank) => Err(format!(
                "there is no rank {rank} in a run of {} workers",
                self.crew.max_workers
            )),
        }
    }
}

/// The beginning of a text that was refused.
fn short(text: &str) -> String {
    let mut text = text.chars().take(64).collect::<String>();
    cut(&mut text, NAME);
    text
}

/// Keeps at most `most` bytes, in whole characters, and of the control characters only line breaks and tabs.
fn cut(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
    let dangerous = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if text.contains(dangerous) {
        *text = text.replace(dangerous, " ");
    }
}

fn count(name: &str, number: u64) -> Result<(), String> {
    if number <= MOST {
        Ok(())
    } else {
        Err(format!("`{name}` = {number} is too many"))
    }
}

/// A number that something can be computed with.
fn number(name: &str, number: f64) -> Result<(), String> {
    if number.is_finite() && number >= 0.0 {
        Ok(())
    } else {
        Err(format!("`{name}` = {number} is no amount"))
    }
}

fn few(name: &str, length: usize, most: usize) -> Result<(), String> {
    if length <= most {
        Ok(())
    } else {
        Err(format!("`{name}` has {length} entries, more than {most}"))
    }
}

/// A path below a checkpoint's folder.
fn path(path: &str) -> Result<(), String> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
    if path.len() <= PATH && !path.contains(char::is_control) && path.split('/').all(plain) {
        Ok(())
    } else {
        Err(format!("`{}` is no path of a part", short(path)))
    }
}

impl Bounded for v1::JoinRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.placed(self.member.as_ref(), (self.node_rank, self.local_rank))?;
        cut(&mut self.hostname, NAME);
        cut(&mut self.store_address, NAME);
        few("held", self.held.len(), HELD)?;
        for held in &self.held {
            bounds.step(held.step)?;
            few("held.banks", held.banks.len(), bounds.languages.len())?;
        }
        Ok(())
    }
}

impl Bounded for v1::NextTaskRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.member(self.member.as_ref())
    }
}

impl Bounded for v1::CompleteTaskRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        use v1::complete_task_request::Outcome;
        bounds.member(self.member.as_ref())?;
        match &mut self.outcome {
            Some(Outcome::Trained(trained)) => bounds.step(trained.reached_step),
            Some(Outcome::Stopped(stopped)) => bounds.step(stopped.reached_step),
            Some(Outcome::Yielded(yielded)) => bounds.step(yielded.reached_step),
            Some(Outcome::Evaluated(evaluated)) => {
                for utterance in &mut evaluated.utterances {
                    bounds.language(&utterance.lang)?;
                    cut(&mut utterance.id, TEXT);
                    // Comparing them takes time with the product of their lengths.
                    cut(&mut utterance.reference, TEXT);
                    cut(&mut utterance.hypothesis, TEXT);
                    count("tokens", utterance.tokens.unwrap_or_default())?;
                }
                Ok(())
            }
            Some(Outcome::Saved(_)) | None => Ok(()),
        }
    }
}

impl Bounded for v1::ReportFailureRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.member(self.member.as_ref())?;
        cut(&mut self.message, TEXT);
        bounds.collective(self.failed_collective.as_mut())
    }
}

impl Bounded for v1::HeartbeatRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.placed(self.member.as_ref(), (self.node_rank, self.local_rank))?;
        bounds.step(self.last_completed_step)?;
        bounds.collective(self.latest_collective.as_mut())?;
        number("compute_seconds", self.compute_seconds)?;
        number("work", self.work)?;
        count("store_reads", self.store_reads)?;
        if let Some(trouble) = &mut self.trouble {
            cut(&mut trouble.message, TEXT);
        }
        cut(&mut self.doing, NAME);
        cut(&mut self.hostname, NAME);
        Ok(())
    }
}

impl Bounded for v1::ReportStepRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.member(self.member.as_ref())?;
        let Some(metrics) = &mut self.metrics else {
            return Ok(());
        };
        bounds.step(metrics.step)?;
        // The loss and the norm may be anything: that they are no numbers is what is to be told.
        for (name, amount) in [
            ("audio_seconds", metrics.audio_seconds),
            ("seconds", metrics.seconds),
            ("comm_exposed_seconds", metrics.comm_exposed_seconds),
            ("compute_seconds", metrics.compute_seconds),
            ("checkpoint_seconds", metrics.checkpoint_seconds),
            ("memory_seconds", metrics.memory_seconds),
        ] {
            number(name, amount)?;
        }
        if let Some(parts) = &metrics.parts {
            for (name, amount) in [
                ("parts.data", parts.data),
                ("parts.encoder", parts.encoder),
                ("parts.forward", parts.forward),
                ("parts.backward", parts.backward),
                ("parts.exchange", parts.exchange),
                ("parts.update", parts.update),
            ] {
                number(name, amount)?;
            }
        }
        for (name, amount) in [
            ("tokens", metrics.tokens),
            ("comm_bytes_shared", metrics.comm_bytes_shared),
            ("comm_bytes_banks", metrics.comm_bytes_banks),
        ] {
            count(name, amount)?;
        }
        if metrics.world_size > bounds.crew.max_workers {
            return Err(format!("there are no {} ranks", metrics.world_size));
        }
        metrics.by_language.iter().try_for_each(|(lang, language)| {
            bounds.language(lang)?;
            count("tokens", language.tokens)?;
            count("utterances", language.utterances)
        })?;
        metrics.gates.as_mut().map_or(Ok(()), |gates| gates.check(bounds))
    }
}

impl Bounded for v1::GateShares {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        few("layers", self.layers.len(), LAYERS)?;
        self.layers.iter_mut().for_each(|layer| cut(layer, NAME));
        for (lang, shares) in &self.by_language {
            bounds.language(lang)?;
            if shares.shares.len() != self.layers.len() {
                return Err(format!("there are no {} layers", shares.shares.len()));
            }
        }
        Ok(())
    }
}

impl Bounded for v1::BeginCheckpointRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.member(self.member.as_ref())?;
        bounds.step(self.step)
    }
}

impl Bounded for v1::ReportCheckpointPartsRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.member(self.member.as_ref())?;
        bounds.step(self.step)?;
        few("parts", self.parts.len(), PARTS)?;
        for part in &self.parts {
            path(&part.path)?;
            part.object.as_deref().map_or(Ok(()), path)?;
            count("bytes", part.bytes)?;
            if part.blake3.len() != 64 || !part.blake3.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(format!("`{}` is no BLAKE3 hash", short(&part.blake3)));
            }
        }
        Ok(())
    }
}

impl Bounded for v1::RegisterNodeRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        cut(&mut self.hostname, NAME);
        bounds.agent(self.agent.as_ref())
    }
}

impl Bounded for v1::AgentHeartbeatRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.agent(self.agent.as_ref())
    }
}

impl Bounded for v1::ReportWorkerExitRequest {
    fn check(&mut self, bounds: &Bounds) -> Result<(), String> {
        bounds.agent(self.agent.as_ref())?;
        self.last_lines.truncate(LINES);
        for line in &mut self.last_lines {
            cut(line, TEXT);
        }
        if let (Some(agent), Some(worker)) = (&self.agent, &self.worker) {
            let (node, _) = bounds.slot(&worker.worker_id)?;
            if node != agent.node_rank {
                return Err(format!(
                    "the agent of node {} reports of worker `{}`",
                    agent.node_rank, worker.worker_id
                ));
            }
        }
        Ok(())
    }
}

impl Bounded for v1::StopRequest {
    fn check(&mut self, _: &Bounds) -> Result<(), String> {
        cut(&mut self.reason, NAME);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! One run with one fault, judged against the run without.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use zipper_checkpoint::RunStore;
use zipper_proto::v1::watch_response::Event;

use super::inject::{Props, inject};
use super::live::{Ended, orphans, step_of};
use super::{Kind, LiveRun, Plan, Site};
use crate::Parameters;
use crate::rigs::{FalseClock, Mode, SmallDisk};

/// Size of the disk that gets full.
const DISK_MEBIBYTES: u32 = 64;
/// Exit code of a run that was stopped so that it can be resumed.
const STOPPED: i32 = 75;

/// What became of one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    /// The fault.
    pub plan: Plan,
    /// What should not have been; empty for a round that went well.
    pub problems: Vec<String>,
    /// Seconds from the fault to the next completed step.
    pub recovery: Option<f64>,
    /// Seconds of the whole round.
    pub seconds: f64,
    /// How far the final parameters are from those without a fault, relative to the worst tensor's norm.
    pub difference: Option<f64>,
    /// Generations that were broken.
    pub broken: u64,
    /// Completed steps that had to be made again.
    pub repeated_steps: u64,
    /// Recoveries from the object store instead of the workers' memory.
    pub from_store: u64,
    /// Objects that workers read for recoveries.
    pub store_reads: u64,
    /// Processes left behind.
    pub orphans: u64,
    /// Checkpoints that cannot be read.
    pub corrupt: u64,
}

impl Round {
    /// Plays a round; all that it leaves is in a folder of the site that has the round's number.
    pub async fn play(site: &Site, plan: Plan) -> Self {
        let started = Instant::now();
        let mut round = Self {
            plan,
            problems: Vec::new(),
            recovery: None,
            seconds: 0.0,
            difference: None,
            broken: 0,
            repeated_steps: 0,
            from_store: 0,
            store_reads: 0,
            orphans: 0,
            corrupt: 0,
        };
        if let Err(problem) = round.play_on(site).await {
            round.problems.push(problem);
        }
        round.seconds = started.elapsed().as_secs_f64();
        round
    }

    async fn play_on(&mut self, site: &Site) -> Result<(), String> {
        let name = format!("round-{:04}", self.plan.round);
        let folder = site.folder(&name);
        let mut props = Props::default();
        let (url, store) = if self.plan.kind == Kind::DiskFull {
            let disk = SmallDisk::mount(DISK_MEBIBYTES).map_err(|why| why.to_string())?;
            let url = format!("file://{}/{name}", disk.path().display());
            props.disk = Some(disk);
            let store = RunStore::open(&url).map_err(|error| error.to_string())?;
            (url, store)
        } else {
            site.run_in_store(&name)
        };
        let mut command = site.launch(&url, &folder);
        if self.plan.kind == Kind::ClockStep {
            let clock = FalseClock::new().map_err(|why| why.to_string())?;
            command.envs(clock.env());
            props.clock = Some(clock);
        }
        let mut run = LiveRun::start(&mut command, &url, &folder)?;
        let mut events = Vec::new();
        let injected = self.strike(site, &mut run, &props).await;
        let injected = match injected {
            Ok(began) => {
                if self.plan.kind.ends_the_launch() {
                    let ended = run.wait().await;
                    self.check_end_of_launch(&ended);
                    self.check_orphans(&url).await;
                    events.extend(ended.events);
                    run = LiveRun::start(&mut command, &url, &folder)?;
                }
                Some(began)
            }
            Err(problem) => {
                self.problems.push(problem);
                site.proxy().set(Mode::Pass);
                run.signal(Signal::SIGKILL);
                None
            }
        };
        let ended = run.wait().await;
        self.check_orphans(&url).await;
        let Some(began) = injected else { return Ok(()) };
        if ended.code != Some(0) {
            let how = if ended.hung { "it did not end" } else { "it failed" };
            let (code, last) = (ended.code, ended.last_words());
            self.problems.push(format!("{how} (exit code {code:?}):\n{last}"));
        }
        events.extend(ended.events);
        self.recovery = recovery(&events, began).map(|time| time.as_secs_f64());
        if self.recovery.is_none() {
            self.problems
                .push("no step was completed after the fault".to_owned());
        }
        self.account(&events, site.size().snapshot_every);
        self.check_result(site, &store).await
    }

    /// Does the fault when its time has come.
    async fn strike(&self, site: &Site, run: &mut LiveRun, props: &Props) -> Result<Instant, String> {
        run.wait_for_step(self.plan.after_step).await?;
        tokio::time::sleep(self.plan.delay).await;
        inject(site, run, &self.plan, props).await
    }

    fn check_end_of_launch(&mut self, ended: &Ended) {
        let expected = (self.plan.kind == Kind::Preempted).then_some(STOPPED);
        if ended.code != expected || ended.hung {
            let problem = format!(
                "zipper-launch ended with {:?}:\n{}",
                ended.code,
                ended.last_words()
            );
            self.problems.push(problem);
        }
    }

    async fn check_orphans(&mut self, url: &str) {
        let left = orphans(url).await;
        self.orphans += left.len() as u64;
        self.problems
            .extend(left.into_iter().map(|process| format!("left behind: {process}")));
    }

    /// Adds up what was lost, and checks it against the policy: never further back than the newest checkpoint, and from memory
    /// never more than the steps between two copies of a bank.
    fn account(&mut self, events: &[(Instant, Event)], snapshot_every: u64) {
        let mut committed = 0;
        // A watcher that connects again is told again what it needs to catch up.
        let (mut broken, mut recovered_in, mut resumed_at) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (_, event) in events {
            let is_new = match event {
                Event::GenerationBroken(loss) => broken.insert(loss.generation),
                Event::Recovered(recovered) => recovered_in.insert(recovered.generation),
                Event::Resumed(resumed) => resumed_at.insert(resumed.step),
                _ => true,
            };
            if !is_new {
                continue;
            }
            match event {
                Event::CheckpointCommitted(checkpoint) => committed = committed.max(checkpoint.step),
                Event::GenerationBroken(_) => self.broken += 1,
                Event::Recovered(recovered) => {
                    self.repeated_steps += recovered.repeated_steps;
                    self.store_reads += recovered.store_reads;
                    self.from_store += u64::from(recovered.from_checkpoint);
                    let (from, repeated) = (recovered.from_step, recovered.repeated_steps);
                    if !recovered.from_checkpoint && repeated > snapshot_every {
                        let problem = format!("from memory, {repeated} completed steps were lost");
                        self.problems.push(problem);
                    }
                    if from < committed {
                        let problem =
                            format!("went back to step {from}, behind the checkpoint of step {committed}");
                        self.problems.push(problem);
                    }
                }
                Event::Resumed(resumed) if resumed.step < committed => {
                    let problem = format!(
                        "resumed at {}, behind the checkpoint of step {committed}",
                        resumed.step
                    );
                    self.problems.push(problem);
                }
                _ => {}
            }
        }
    }

    /// What the run left is what it should have left.
    async fn check_result(&mut self, site: &Site, store: &RunStore) -> Result<(), String> {
        let said = |error: zipper_checkpoint::CheckpointError| error.to_string();
        let checkpoints = store.checkpoints();
        let list = checkpoints.list().await.map_err(said)?;
        let mut damaged: Vec<String> = list.unreadable.iter().map(|found| format!("{found:?}")).collect();
        for checkpoint in &list.checkpoints {
            if let Err(error) = checkpoints.verify(checkpoint.manifest.step).await {
                damaged.push(error.to_string());
            }
        }
        self.corrupt = damaged.len() as u64;
        self.problems.extend(damaged);
        if list.checkpoints.is_empty() {
            return Err("there is no checkpoint".to_owned());
        }
        let found = Parameters::newest(store).await.map_err(said)?;
        let expected = site.expected().await?;
        if found.step == expected.step {
            let difference = expected.difference(&found);
            self.difference = Some(difference.relative);
            if difference.relative > expected.tolerance {
                let tensor = difference.tensor;
                let problem = format!("`{tensor}` differs by {:e} of its norm", difference.relative);
                self.problems.push(problem);
            }
        } else {
            self.problems
                .push(format!("it ended with a checkpoint of step {}", found.step));
        }
        let metrics = store.get("metrics/train.jsonl").await.map_err(said)?;
        self.problems.extend(wrong_lines(&metrics, site.steps()));
        if !store.exists("eval/table.json").await.map_err(said)? {
            self.problems.push("there is no table of results".to_owned());
        }
        Ok(())
    }
}

/// From the fault until a step is completed that the fault can have had to do with: the first one of the next generation where
/// one was formed, else one that began after the fault.
pub(crate) fn recovery(events: &[(Instant, Event)], began: Instant) -> Option<Duration> {
    let (before, after): (Vec<_>, Vec<_>) = events.iter().partition(|(when, _)| *when <= began);
    let generation_of = |event: &Event| match event {
        Event::GenerationFormed(formed) => Some(formed.generation),
        _ => None,
    };
    let generation = before.iter().filter_map(|(_, event)| generation_of(event)).max();
    let step = before
        .iter()
        .filter_map(|(_, event)| step_of(event))
        .max()
        .unwrap_or(0);
    let formed = after
        .iter()
        .position(|(_, event)| generation_of(event) > generation.max(Some(0)));
    let found = match formed {
        Some(place) => after[place..].iter().find(|(_, event)| step_of(event).is_some()),
        // The next one may have been completed already, and be under way to us.
        None => after.iter().find(|(_, event)| step_of(event) > Some(step + 1)),
    };
    found.map(|(when, _)| *when - began)
}

/// What is wrong with metrics that should have one line for each step.
fn wrong_lines(metrics: &Bytes, steps: u64) -> Option<String> {
    let text = String::from_utf8_lossy(metrics);
    let numbers = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        line["step"].as_u64().unwrap_or(0)
    });
    let found: Vec<u64> = numbers.collect();
    let wrong = (1..=steps)
        .zip(&found)
        .find(|(expected, found)| expected != *found);
    match wrong {
        Some((expected, found)) => Some(format!("metrics have step {found} where {expected} should be")),
        None if found.len() as u64 != steps => Some(format!("metrics have {} lines", found.len())),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use zipper_proto::v1::{GenerationFormed, StepMetrics};

    use super::*;

    fn step(step: u64) -> Event {
        Event::Step(StepMetrics {
            step,
            ..StepMetrics::default()
        })
    }

    fn formed(generation: u64) -> Event {
        Event::GenerationFormed(GenerationFormed {
            generation,
            ..GenerationFormed::default()
        })
    }

    /// Steps that were on their way do not count as recovery; a repeated announcement of a generation is none.
    #[test]
    fn recovery_ends_with_a_step_that_came_after_the_fault() {
        let start = Instant::now();
        let at = |second: u64, event: Event| (start + Duration::from_secs(second), event);
        let fault = start + Duration::from_secs(10);
        let peace = [at(1, formed(1)), at(9, step(5))];
        let with = |more: &[(Instant, Event)]| {
            let events: Vec<_> = peace.iter().chain(more).cloned().collect();
            recovery(&events, fault).map(|time| time.as_secs())
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[at(11, step(6))]), None);
        assert_eq!(with(&[at(11, step(6)), at(12, step(7))]), Some(2));
        assert_eq!(
            with(&[at(11, step(6)), at(14, formed(2)), at(15, step(6))]),
            Some(5)
        );
        assert_eq!(
            with(&[at(11, formed(1)), at(12, step(5)), at(13, step(7))]),
            Some(3)
        );
    }

    #[test]
    fn metrics_have_each_step_once() {
        let lines = |steps: &[u64]| -> Bytes {
            let lines: Vec<String> = steps.iter().map(|step| format!("{{\"step\": {step}}}")).collect();
            lines.join("\n").into()
        };
        assert_eq!(wrong_lines(&lines(&[1, 2, 3]), 3), None);
        for wrong in [&[1, 2][..], &[1, 2, 2, 3], &[1, 3], &[1, 2, 3, 4], &[]] {
            assert!(wrong_lines(&lines(wrong), 3).is_some(), "{wrong:?}");
        }
    }
}

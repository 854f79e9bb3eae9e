//! One long run with a fault every so often: how much of its time was not lost.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Serialize;
use zipper_proto::v1;
use zipper_proto::v1::watch_response::Event;

use super::inject::{Props, inject};
use super::live::orphans;
use super::round::recovery;
use super::{Kind, LiveRun, Plan, Site};

/// What became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Soak {
    /// Each fault with the seconds until the next completed step.
    pub faults: Vec<(Plan, Option<f64>)>,
    /// Steps that were completed.
    pub steps: u64,
    /// Wall-clock seconds, as the run's own summary says.
    pub total: f64,
    /// Seconds of steps that counted.
    pub productive: f64,
    /// Lost seconds by cause.
    pub lost: Vec<(String, f64)>,
    /// What should not have been.
    pub problems: Vec<String>,
}

impl Soak {
    /// Trains for `lasts`, with a random fault after every `every`, then stops the run.
    ///
    /// # Errors
    /// If the run ends before its time, or without a summary.
    pub async fn run(site: &Site, lasts: Duration, every: Duration, seed: u64) -> Result<Self, String> {
        let folder = site.folder("soak");
        let (url, _) = site.run_in_store("soak");
        let (kinds, _) = site.kinds();
        let one_launch =
            |kind: &Kind| !kind.ends_the_launch() && !matches!(kind, Kind::DiskFull | Kind::ClockStep);
        let kinds: Vec<Kind> = kinds.into_iter().filter(one_launch).collect();
        let mut run = LiveRun::start(&mut site.launch(&url, &folder), &url, &folder)?;
        run.wait_for_step(1).await?;
        let started = Instant::now();
        let (mut struck, mut problems) = (Vec::new(), Vec::new());
        for round in 0.. {
            let next = started + every * (round as u32 + 1);
            if next > started + lasts {
                break;
            }
            tokio::time::sleep_until(next.into()).await;
            let plan = Plan::draw(seed, round, &kinds, site.size().nodes, site.steps());
            let began = inject(site, &run, &plan, &Props::default()).await;
            println!(
                "{:>6.0} s: {} at step {}",
                started.elapsed().as_secs_f64(),
                plan.kind,
                run.step()
            );
            match began {
                Ok(began) => struck.push((plan, began)),
                Err(problem) => problems.push(problem),
            }
        }
        tokio::time::sleep_until((started + lasts).into()).await;
        run.signal(Signal::SIGTERM);
        let ended = run.wait().await;
        problems.extend(orphans(&url).await);
        if ended.code != Some(75) {
            problems.push(format!("it ended with {:?}:\n{}", ended.code, ended.last_words()));
        }
        let summary = ended.events.iter().rev().find_map(|(_, event)| match event {
            Event::Summary(summary) => Some(summary.clone()),
            _ => None,
        });
        let summary = summary.ok_or_else(|| format!("there is no summary:\n{}", ended.last_words()))?;
        let steps = ended
            .events
            .iter()
            .filter_map(|(_, event)| super::live::step_of(event));
        let faults = struck.into_iter().map(|(plan, began)| {
            let time = recovery(&ended.events, began);
            (plan, time.map(|time| time.as_secs_f64()))
        });
        Ok(Self {
            faults: faults.collect(),
            steps: steps.max().unwrap_or(0),
            total: seconds(summary.total.as_ref()),
            productive: seconds(summary.productive.as_ref()),
            lost: lost(&summary),
            problems,
        })
    }

    /// Share of the time that was not lost.
    pub fn effective(&self) -> f64 {
        self.productive / self.total
    }
}

fn lost(summary: &v1::Summary) -> Vec<(String, f64)> {
    let causes = summary.lost.iter();
    let mut lost: Vec<(String, f64)> = causes
        .map(|(cause, time)| (cause.clone(), seconds(Some(time))))
        .collect();
    lost.sort_by(|a, b| b.1.total_cmp(&a.1));
    lost
}

fn seconds(duration: Option<&prost_types::Duration>) -> f64 {
    duration.map_or(0.0, |time| time.seconds as f64 + f64::from(time.nanos) * 1e-9)
}

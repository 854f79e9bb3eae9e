//! One long run with a fault every so often: how much of its time was not lost.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Serialize;
use zipper_proto::v1;
use zipper_proto::v1::watch_response::Event;

use super::inject::{Props, inject};
use super::live::orphans;
use super::resources::{Course, Sample, courses, markdown};
use super::round::recovery;
use super::{Kind, LiveRun, Plan, Site};

/// A step that takes longer than so many times the median was held up,
const LONG: f64 = 5.0;
/// unless it is shorter than this (seconds): steps of milliseconds on a machine with other work are that uneven by themselves.
const SHORT: f64 = 1.0;

/// How it is to be.
#[derive(Debug, Clone)]
pub struct SoakPlan {
    /// What may happen. Kinds that one launch in the store cannot have are left out.
    pub kinds: Vec<Kind>,
    /// How long it trains,
    pub lasts: Duration,
    /// and from one fault to the next.
    pub every: Duration,
    /// Of everything random.
    pub seed: u64,
    /// Nothing happens to node 0, so that growth of its processes can be seen.
    pub leave_first_node: bool,
}

impl SoakPlan {
    fn kinds(&self) -> Result<Vec<Kind>, String> {
        let one_launch =
            |kind: &Kind| !kind.ends_the_launch() && !matches!(kind, Kind::DiskFull | Kind::ClockStep);
        let kinds: Vec<Kind> = self.kinds.iter().copied().filter(one_launch).collect();
        if kinds.is_empty() {
            return Err("none of these faults can happen within one launch".to_owned());
        }
        Ok(kinds)
    }

    fn fault(&self, kinds: &[Kind], round: u64, site: &Site) -> Plan {
        let nodes = site.size().nodes - u32::from(self.leave_first_node);
        let mut plan = Plan::draw(self.seed, round, kinds, nodes, site.steps());
        plan.node += u32::from(self.leave_first_node);
        plan
    }
}

/// What became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Soak {
    /// Each fault with the seconds until the next completed step.
    pub faults: Vec<(Plan, Option<f64>)>,
    /// Steps that were completed.
    pub steps: u64,
    /// Wall-clock seconds, as the run's own summary says.
    pub total: f64,
    /// Seconds of steps that counted, as the run's own summary says.
    pub productive: f64,
    /// Seconds between two steps: the median.
    pub step: f64,
    /// Seconds of steps that counted, as seen from outside.
    pub useful: f64,
    /// Lost seconds by cause.
    pub lost: Vec<(String, f64)>,
    /// What it held, before each fault.
    pub samples: Vec<Sample>,
    /// Whether that grew.
    pub courses: Vec<Course>,
    /// What should not have been.
    pub problems: Vec<String>,
}

impl Soak {
    /// Trains as planned, then stops the run.
    ///
    /// # Errors
    /// If the run ends before its time, or without a summary.
    pub async fn run(site: &Site, soak: &SoakPlan) -> Result<Self, String> {
        let &SoakPlan { lasts, every, .. } = soak;
        let folder = site.folder("soak");
        let (url, store) = site.run_in_store("soak");
        let kinds = soak.kinds()?;
        let mut run = LiveRun::start(&mut site.launch(&url, &folder), &url, &folder)?;
        run.wait_for_step(1).await?;
        let started = Instant::now();
        let (mut struck, mut samples, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0.. {
            let next = started + every * (round as u32 + 1);
            if next > started + lasts {
                break;
            }
            tokio::time::sleep_until(next.into()).await;
            let plan = soak.fault(&kinds, round, site);
            run.wait_for_worker(plan.node).await;
            let at = started.elapsed().as_secs_f64();
            match Sample::take(at, &run, site.size().nodes, &store).await {
                Ok(sample) => samples.push(sample),
                Err(problem) => problems.push(format!("at {at:.0} s: {problem}")),
            }
            let began = inject(site, &run, &plan, &Props::default()).await;
            println!(
                "{at:>6.0} s: {} of node {} at step {}",
                plan.kind,
                plan.node,
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
        let (step, useful) = useful(&ended.events);
        let ends: Vec<Option<Instant>> = struck.iter().skip(1).map(|(_, began)| Some(*began)).collect();
        let ends = ends.into_iter().chain([None]);
        let faults = struck.into_iter().zip(ends).map(|((plan, began), next)| {
            // A generation that is formed after the next fault has nothing to do with this one.
            let until = ended.events.iter();
            let until = until.take_while(|(when, _)| next.is_none_or(|next| *when < next));
            let time = recovery(&until.cloned().collect::<Vec<_>>(), began);
            (plan, time.map(|time| time.as_secs_f64()))
        });
        let courses = courses(&samples);
        let grew = courses.iter().filter(|course| course.grows);
        problems.extend(grew.map(|course| format!("{} grew: {:?}", course.of, course.thirds)));
        Ok(Self {
            samples,
            courses,
            faults: faults.collect(),
            steps: steps.max().unwrap_or(0),
            total: seconds(summary.total.as_ref()),
            productive: seconds(summary.productive.as_ref()),
            step,
            useful,
            lost: lost(&summary),
            problems,
        })
    }

    /// Share of the time that was not lost: the lower one of what the run says of itself and what is seen from outside.
    pub fn effective(&self) -> f64 {
        self.productive.min(self.useful) / self.total
    }

    /// What it held in the three thirds of the time, as a table.
    pub fn holdings(&self) -> String {
        markdown(&self.courses)
    }
}

/// The median time between two steps, and how much of the run's time went into steps that counted, in seconds.
///
/// Told without the run's own accounts: of the time between two steps that nobody had heard of before, no more counts than
/// [`LONG`] times the median, or [`SHORT`]. The rest is lost, whatever the workers did; so is all of it for steps that are made
/// again.
fn useful(events: &[(Instant, Event)]) -> (f64, f64) {
    let mut furthest = 0;
    let mut last = None;
    let mut times = Vec::new();
    for (when, event) in events {
        let Some(step) = super::live::step_of(event) else {
            continue;
        };
        let new = u64::saturating_sub(step, furthest);
        if let Some(last) = last.replace(*when)
            && new > 0
        {
            let each = when.duration_since(last).as_secs_f64() / new as f64;
            times.extend(std::iter::repeat_n(each, new as usize));
        }
        furthest = furthest.max(step);
    }
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let most = SHORT.max(LONG * median);
    (median, times.iter().map(|time| time.min(most)).sum())
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

#[cfg(test)]
mod tests {
    use zipper_proto::v1::StepMetrics;

    use super::*;

    /// Goal: a stall and steps that are made again do not count as useful.
    #[test]
    fn time_is_useful_when_new_steps_are_completed() {
        let start = Instant::now();
        let at = |second: u64, step: u64| {
            let step = Event::Step(StepMetrics {
                step,
                ..StepMetrics::default()
            });
            (start + Duration::from_secs(second), step)
        };
        let mut events: Vec<_> = (0..=20).map(|second| at(second, second)).collect();
        // A minute without a step, two steps again, then on.
        events.extend([at(80, 19), at(81, 20), at(82, 21), at(83, 22), at(85, 24)]);
        let (step, useful) = useful(&events);
        assert!((step - 1.0).abs() < 1e-9, "{step}");
        assert!((useful - 24.0).abs() < 1e-9, "{useful}");
        // The same minute before a step that nobody had heard of.
        let (_, useful) = super::useful(&[at(0, 1), at(1, 2), at(2, 3), at(62, 4), at(63, 5)]);
        assert!((useful - (3.0 + LONG)).abs() < 1e-9, "{useful}");
    }
}

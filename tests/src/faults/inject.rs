//! Doing a fault, and undoing it.

use std::time::Instant;

use nix::sys::signal::Signal;

use super::live::send;
use super::{Kind, LiveRun, Plan, Site};
use crate::rigs::{FalseClock, Mode, SmallDisk};

/// Bytes a second of a slow store.
const SLOW: u32 = 20_000;

/// What a round has besides its run.
#[derive(Debug, Default)]
pub(crate) struct Props {
    /// The disk that the run is kept on.
    pub(crate) disk: Option<SmallDisk>,
    /// The clock that its processes believe.
    pub(crate) clock: Option<FalseClock>,
}

/// Does the fault of `plan`, waits while it lasts, and undoes it where it passes over. Returns when it began.
///
/// # Errors
/// If its victim is not there.
pub(crate) async fn inject(
    site: &Site,
    run: &LiveRun,
    plan: &Plan,
    props: &Props,
) -> Result<Instant, String> {
    let missing = |what: &str| format!("{what} of node {} is not there", plan.node);
    let worker = || run.worker(plan.node).ok_or_else(|| missing("the worker"));
    let agent = || run.agent(plan.node).ok_or_else(|| missing("the agent"));
    let coordinator = || run.coordinator().ok_or("there is no coordinator".to_owned());
    let proxy = async |mode| {
        let began = Instant::now();
        site.proxy().set(mode);
        tokio::time::sleep(plan.lasts).await;
        site.proxy().set(Mode::Pass);
        began
    };
    let stopped = async |process| {
        let began = Instant::now();
        send(process, Signal::SIGSTOP);
        tokio::time::sleep(plan.lasts).await;
        send(process, Signal::SIGCONT);
        began
    };
    let killed = |process| {
        let began = Instant::now();
        send(process, Signal::SIGKILL);
        began
    };
    let began = match plan.kind {
        Kind::WorkerKilled => killed(worker()?),
        Kind::AgentKilled => killed(agent()?),
        Kind::CoordinatorKilled => killed(coordinator()?),
        Kind::WorkerStopped => stopped(worker()?).await,
        Kind::AgentStopped => stopped(agent()?).await,
        Kind::CoordinatorStopped => stopped(coordinator()?).await,
        Kind::LauncherKilled => signalled(run, Signal::SIGKILL),
        Kind::Preempted => signalled(run, Signal::SIGTERM),
        Kind::Partition => {
            let host = site.host(plan.node).ok_or("there are no hosts")?;
            let began = Instant::now();
            host.cut_off();
            tokio::time::sleep(plan.lasts).await;
            host.connect();
            began
        }
        Kind::StoreKilled => {
            let began = Instant::now();
            site.s3().kill();
            tokio::time::sleep(plan.lasts).await;
            tokio::task::block_in_place(|| site.s3().restart());
            began
        }
        Kind::StoreRefuses => proxy(Mode::Refuse).await,
        Kind::StoreSlow => {
            proxy(Mode::Slow {
                bytes_per_second: SLOW,
            })
            .await
        }
        Kind::StoreAnswers500 => proxy(Mode::Answer(500)).await,
        Kind::StoreAnswers503 => proxy(Mode::Answer(503)).await,
        Kind::StoreCutsRequests => proxy(Mode::CutRequests).await,
        Kind::StoreCutsAnswers => proxy(Mode::CutAnswers).await,
        Kind::StoreLosesAnswers => proxy(Mode::LoseAnswers).await,
        Kind::StoreHangs => proxy(Mode::Hang).await,
        Kind::DiskFull => {
            let disk = props.disk.as_ref().ok_or("the run is not on a small disk")?;
            let began = Instant::now();
            disk.fill();
            tokio::time::sleep(plan.lasts).await;
            disk.free();
            began
        }
        Kind::ClockStep => {
            let clock = props.clock.as_ref().ok_or("the run has the right clock")?;
            let began = Instant::now();
            clock.step(plan.clock_step);
            tokio::time::sleep(plan.lasts).await;
            clock.step(0);
            began
        }
    };
    Ok(began)
}

fn signalled(run: &LiveRun, signal: Signal) -> Instant {
    let began = Instant::now();
    run.signal(signal);
    began
}

//! Signals to zipper-launch: the first one stops the run with a checkpoint, a second Ctrl-C ends everything at once.

use std::time::Duration;

use anyhow::Context;
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tonic::transport::Channel;
use zipper_proto::v1;
use zipper_proto::v1::run_service_client::RunServiceClient;

/// How often the coordinator is asked to stop: one that was started again does not know.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Time besides the grace time in which the coordinator ends the run; after that it is taken for stuck.
const MARGIN: Duration = Duration::from_secs(15);

/// A signal that asks for a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGUSR1: the machine is about to be taken away.
    Preempt,
}

impl Asked {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "Ctrl-C",
            Self::Terminate => "SIGTERM",
            Self::Preempt => "SIGUSR1",
        }
    }

    /// Sends it to the process `pid`, too.
    pub(crate) fn pass_on(self, pid: u32) {
        use nix::sys::signal::{Signal, kill};
        let same = match self {
            Self::Interrupt => Signal::SIGINT,
            Self::Terminate => Signal::SIGTERM,
            Self::Preempt => Signal::SIGUSR1,
        };
        // A process that has just ended is noticed by itself.
        let _ = kill(Pid::from_raw(pid.cast_signed()), same);
    }
}

/// The signals that are handled, from when this is made on.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    preempt: Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let handled = |kind, name| signal(kind).with_context(|| format!("{name} cannot be handled"));
        Ok(Self {
            interrupt: handled(SignalKind::interrupt(), "SIGINT")?,
            terminate: handled(SignalKind::terminate(), "SIGTERM")?,
            preempt: handled(SignalKind::user_defined1(), "SIGUSR1")?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
            _ = self.preempt.recv() => Asked::Preempt,
        }
    }
}

/// Why a run is not waited for any longer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// A second Ctrl-C.
    Interrupted,
    /// Nobody ended the run in time after this request.
    Overdue(String),
}

/// What has come until now.
#[derive(Default)]
struct Heard {
    interrupts: u32,
}

impl Heard {
    /// Whether this signal says to give the run up: Slurm repeats its own, so only people can.
    fn gives_up(&mut self, signal: Asked) -> bool {
        self.interrupts += u32::from(signal == Asked::Interrupt);
        self.interrupts > 1
    }
}

/// Waits for a signal, then asks the coordinator to stop the run, again and again, until the run is to be given up; lines for people go
/// to `lines`.
pub(crate) async fn attend(
    signals: &mut Signals,
    client: &RunServiceClient<Channel>,
    grace: Duration,
    lines: &mpsc::UnboundedSender<String>,
) -> GivenUp {
    let mut heard = Heard::default();
    let first = signals.next().await;
    heard.gives_up(first);
    let name = first.name();
    // The receiver lives as long as the run is watched.
    let _ = lines.send(format!(
        "{name}: stopping at the next step, with a checkpoint; Ctrl-C {} ends the run at once",
        if first == Asked::Interrupt {
            "once more"
        } else {
            "twice"
        }
    ));
    let reason = format!("{name} to zipper-launch");
    let deadline = Instant::now() + grace + MARGIN;
    let mut asking = interval(ASK_EVERY);
    asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            signal = signals.next() => {
                if heard.gives_up(signal) {
                    return GivenUp::Interrupted;
                }
            }
            _ = asking.tick() => ask(client, &reason),
            () = sleep_until(deadline) => return GivenUp::Overdue(reason),
        }
    }
}

/// Asks once; no answer is waited for.
fn ask(client: &RunServiceClient<Channel>, reason: &str) {
    let (mut client, reason) = (client.clone(), reason.to_owned());
    tokio::spawn(async move {
        let mut request = tonic::Request::new(v1::StopRequest { reason });
        request.set_timeout(ASK_EVERY);
        if let Err(status) = client.stop(request).await {
            tracing::debug!("the coordinator did not take the request to stop: {status}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_interrupts_end_the_waiting_whatever_else_comes() {
        use Asked::{Interrupt, Preempt, Terminate};
        for (signals, gives_up) in [
            (&[Interrupt][..], false),
            (&[Interrupt, Interrupt], true),
            (&[Terminate, Interrupt], false),
            (&[Preempt, Terminate, Preempt, Terminate], false),
            (&[Preempt, Interrupt, Terminate, Interrupt], true),
        ] {
            let mut heard = Heard::default();
            let given_up = signals.iter().map(|&signal| heard.gives_up(signal)).last();
            assert_eq!(given_up, Some(gives_up), "{signals:?}");
        }
    }
}

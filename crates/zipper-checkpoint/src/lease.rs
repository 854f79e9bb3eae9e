//! One coordinator per run: a claim that others respect, on a store that offers nothing but create-if-absent.
//!
//! ```text
//! lease/000000000007/claim.json      who holds the run; created by exactly one contender
//! lease/000000000007/renewed.json    a counter that the holder overwrites while it lives
//! lease/000000000007/released.json   the holder has ended in order
//! lease/000000000007/stop.json       somebody asks the holder to stop the run
//! ```
//!
//! The newest claim counts. A contender watches its counter by its own monotonic clock, so no two clocks are compared: a counter
//! that moves is a holder that lives, and one that stands still for the time to live is a holder that is gone. The contender
//! then creates the next claim. A holder that was only slow finds that claim when it renews its own, or when it
//! [checks](Lease::check) before it writes, and writes nothing any more.
//!
//! - `LEASE-1`: of all contenders for one claim, one gets it.
//! - `LEASE-2`: a holder whose last verified renewal is older than two thirds of the time to live verifies before it writes.
//! - `LEASE-3`: two holders never pass their checks at the same time. A holder renews, then looks for newer claims; a contender
//!   claims, then looks at the counter again. If it has not moved, any later renewal sees the claim. If it has, the contender
//!   waits until that renewal is too old to count.
//! - `LEASE-4`: who has lost a claim never gets it back.
//!
//! Between a check and the arrival of the write that it allowed there is always time, in which a holder can be stopped. So what
//! must not be written twice is created, not replaced: journal entries, manifests, claims on folders.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{CheckpointError, ErrorKind, Result, RunStore, layout};

/// How often a contender looks whether the holder lives.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Who holds a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// When it claimed the run, in RFC 3339.
    pub since: String,
    /// Where workers reach it: `https://host:port`.
    pub address: String,
}

/// How a claim is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseOptions {
    /// How long a claim counts without a sign of life.
    pub ttl: Duration,
}

/// Somebody else has the run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the run in `{url}` is held by the coordinator on {} (process {}) since {}, which lives",
    holder.host,
    holder.pid,
    holder.since
)]
pub struct Refused {
    /// The run.
    pub url: String,
    /// Its claim.
    pub epoch: u64,
    /// Who.
    pub holder: Holder,
}

/// Why a holder may not write.
#[derive(Debug, thiserror::Error)]
pub enum LeaseLost {
    /// Whether the claim still counts cannot be found out.
    #[error("the claim on the run cannot be verified")]
    Store(#[source] CheckpointError),
    /// Another coordinator has the run.
    #[error("this coordinator's claim {epoch} on the run is over: claim {newer} was made by {by}")]
    Superseded {
        /// The claim that is over.
        epoch: u64,
        /// The one that counts.
        newer: u64,
        /// Who made it.
        by: String,
    },
}

/// A claim on a run.
pub struct Lease {
    run: RunStore,
    epoch: u64,
    ttl: Duration,
    kept: Mutex<Kept>,
}

/// What is known of our own claim.
#[derive(Debug, Clone)]
struct Kept {
    renewals: u64,
    /// When the newest renewal that succeeded was begun.
    verified: Instant,
    /// The claim that ended ours, and who made it.
    lost: Option<(u64, String)>,
    /// The newest look found a request to stop.
    asked_to_stop: bool,
}

/// A claim as others see it. Two that are equal, seen at different times, are a holder that gave no sign of life in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its number: the newest one counts.
    pub epoch: u64,
    /// Who made it.
    pub holder: Holder,
    /// The holder has ended in order.
    pub released: bool,
    /// Bytes of the counter.
    renewed: Option<Bytes>,
}

/// Who asks for the end of a run: a person, whose wish holds for one claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Name of the user.
    pub user: String,
    /// The machine that it was asked on.
    pub host: String,
    /// When, in RFC 3339.
    pub at: String,
}

/// How a claim that another one had before is known to be free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Free {
    /// Its holder has ended, or there was none.
    Certainly,
    /// Its holder has given no sign of life for the time to live.
    Presumably,
}

impl Lease {
    /// Claims the run for `holder`, if need be after waiting until the one before is known to be gone.
    ///
    /// With `supersede` the caller knows that the holder of that claim is dead: it is not waited for.
    ///
    /// # Errors
    /// The inner one: another coordinator holds the run and lives. The outer one: the store fails, or does not honour the
    /// condition of a conditional write ([`CheckpointError::Unconditional`]). Repeating it with the same `holder` is safe.
    pub async fn acquire(
        run: &RunStore,
        holder: Holder,
        options: LeaseOptions,
        supersede: Option<u64>,
    ) -> Result<std::result::Result<Self, Refused>> {
        probe(run).await?;
        let mut watched: Option<(Claim, Instant)> = None;
        loop {
            let begun = Instant::now();
            let seen = newest(run).await?;
            if let Some(seen) = &seen
                && seen.holder == holder
            {
                // An earlier request of ours did succeed, though we were not told. Who had the run before may not know it.
                let lease = Self::of(run, seen.epoch, options, begun);
                sleep(options.ttl * 2 / 3).await;
                return Ok(Ok(lease));
            }
            let next = seen.as_ref().map_or(1, |seen| seen.epoch + 1);
            if let Some(free) = is_free(seen.as_ref(), watched.as_ref(), options, supersede) {
                let begun = Instant::now();
                match run.put_create(&layout::lease_claim(next), json(&holder)).await {
                    Ok(()) => {
                        if let (Free::Presumably, Some(before)) = (free, &seen) {
                            let_it_notice(run, before, options).await;
                        }
                        return Ok(Ok(Self::of(run, next, options, begun)));
                    }
                    // Another contender was faster and is the holder now; or it was ourselves.
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
            match (seen, &watched) {
                (Some(seen), Some((before, _))) if seen == *before => {}
                (Some(seen), Some((before, _))) if seen.epoch == before.epoch && !seen.released => {
                    return Ok(Err(Refused {
                        url: run.url().to_owned(),
                        epoch: seen.epoch,
                        holder: seen.holder,
                    }));
                }
                (Some(seen), _) => watched = Some((seen, Instant::now())),
                (None, _) => {}
            }
            sleep(LOOK_EVERY.min(options.ttl / 3)).await;
        }
    }

    fn of(run: &RunStore, epoch: u64, options: LeaseOptions, verified: Instant) -> Self {
        Self {
            run: run.clone(),
            epoch,
            ttl: options.ttl,
            kept: Mutex::new(Kept {
                renewals: 0,
                verified,
                lost: None,
                asked_to_stop: false,
            }),
        }
    }

    /// The number of the claim: higher than all before it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How often the holder has to renew it.
    pub fn renew_every(&self) -> Duration {
        self.ttl / 3
    }

    /// Says that the holder lives, and finds out whether its claim still counts.
    ///
    /// # Errors
    /// [`LeaseLost`].
    pub async fn renew(&self) -> std::result::Result<(), LeaseLost> {
        let begun = Instant::now();
        let renewals = {
            let mut kept = self.still_ours()?;
            kept.renewals += 1;
            kept.renewals
        };
        let counter = json(&serde_json::json!({ "renewals": renewals }));
        self.run
            .put(&layout::lease_renewed(self.epoch), counter)
            .await
            .map_err(LeaseLost::Store)?;
        // Looked at after our own sign of life: who makes a claim later has seen it.
        let objects = self.run.list(layout::LEASE).await;
        let objects = objects.map_err(LeaseLost::Store)?;
        if let Some(newer) = newest_epoch(&objects)
            && newer > self.epoch
        {
            let by = match read_holder(&self.run, newer).await {
                Ok(holder) => format!("the coordinator on {} (process {})", holder.host, holder.pid),
                Err(_) => "another coordinator".to_owned(),
            };
            self.kept().lost.get_or_insert((newer, by));
        }
        let asked_to_stop = objects.contains(&layout::lease_stop(self.epoch));
        let mut kept = self.still_ours()?;
        kept.verified = kept.verified.max(begun);
        kept.asked_to_stop = asked_to_stop;
        Ok(())
    }

    /// Who asks for the end of the run, as far as the newest [renewal](Lease::renew) saw it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn stop_request(&self) -> Result<Option<StopRequest>> {
        let asked = self.kept().asked_to_stop;
        if asked {
            stop_request(&self.run, self.epoch).await
        } else {
            Ok(None)
        }
    }

    /// Whether the holder may write (`LEASE-2`). Asks the store only if the last renewal is long ago.
    ///
    /// # Errors
    /// [`LeaseLost`].
    pub async fn check(&self) -> std::result::Result<(), LeaseLost> {
        loop {
            let verified = self.still_ours()?.verified;
            if verified.elapsed() < self.ttl * 2 / 3 {
                return Ok(());
            }
            // Once more if it took so long that it is too old already: whoever was stopped meanwhile knows nothing.
            self.renew().await?;
        }
    }

    /// Gives the run back: the next coordinator need not wait.
    ///
    /// # Errors
    /// If the store fails: then the next coordinator waits for the time to live.
    pub async fn release(&self) -> Result<()> {
        let path = layout::lease_released(self.epoch);
        match self.run.put_create(&path, Bytes::from_static(b"{}\n")).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// What is known, unless it is that the claim is lost (`LEASE-4`).
    fn still_ours(&self) -> std::result::Result<MutexGuard<'_, Kept>, LeaseLost> {
        let kept = self.kept();
        match &kept.lost {
            None => Ok(kept),
            Some((newer, by)) => Err(LeaseLost::Superseded {
                epoch: self.epoch,
                newer: *newer,
                by: by.clone(),
            }),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the next claim may be made, when the newest is `seen` and was `watched` before.
fn is_free(
    seen: Option<&Claim>,
    watched: Option<&(Claim, Instant)>,
    options: LeaseOptions,
    supersede: Option<u64>,
) -> Option<Free> {
    let Some(seen) = seen else {
        return Some(Free::Certainly);
    };
    if seen.released || supersede.is_some_and(|dead| dead >= seen.epoch) {
        return Some(Free::Certainly);
    }
    let (before, since) = watched?;
    (before == seen && since.elapsed() >= options.ttl).then_some(Free::Presumably)
}

/// Waits, after the claim that follows `before`, until its holder can no longer take itself for one (`LEASE-3`).
async fn let_it_notice(run: &RunStore, before: &Claim, options: LeaseOptions) {
    let renewed = run.get_if_there(&layout::lease_renewed(before.epoch)).await;
    if !renewed.is_ok_and(|renewed| renewed == before.renewed) {
        sleep(options.ttl * 2 / 3).await;
    }
}

/// Finds out whether the store honours the condition of a conditional write: everything here rests on that.
async fn probe(run: &RunStore) -> Result<()> {
    for _ in 0..2 {
        match run
            .put_create(layout::LEASE_PROBE, Bytes::from_static(b"{}\n"))
            .await
        {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    let url = run.url().to_owned();
    Err(CheckpointError::Unconditional { url })
}

/// The newest claim on a run: who has it, or had it last.
///
/// # Errors
/// If the store fails.
pub async fn newest(run: &RunStore) -> Result<Option<Claim>> {
    let Some(epoch) = newest_epoch(&run.list(layout::LEASE).await?) else {
        return Ok(None);
    };
    let holder = read_holder(run, epoch).await?;
    let released = run.exists(&layout::lease_released(epoch)).await?;
    let renewed = run.get_if_there(&layout::lease_renewed(epoch)).await?;
    Ok(Some(Claim {
        epoch,
        holder,
        released,
        renewed,
    }))
}

/// Asks the holder of a claim to stop the run, which finds it when it renews its claim. The first who asks is remembered.
///
/// # Errors
/// If the store fails.
pub async fn ask_to_stop(run: &RunStore, epoch: u64, request: &StopRequest) -> Result<()> {
    match run.put_create(&layout::lease_stop(epoch), json(request)).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Who asked the holder of a claim to stop the run.
///
/// # Errors
/// If the store fails.
pub async fn stop_request(run: &RunStore, epoch: u64) -> Result<Option<StopRequest>> {
    let path = layout::lease_stop(epoch);
    let request = run.get_if_there(&path).await?;
    request
        .map(|bytes| parse(run, &path, "a request to stop", &bytes))
        .transpose()
}

fn newest_epoch(objects: &[String]) -> Option<u64> {
    objects
        .iter()
        .filter_map(|path| layout::epoch_of_claim(path))
        .max()
}

async fn read_holder(run: &RunStore, epoch: u64) -> Result<Holder> {
    let path = layout::lease_claim(epoch);
    parse(run, &path, "a claim on the run", &run.get(&path).await?)
}

fn parse<T: DeserializeOwned>(run: &RunStore, path: &str, expected: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| CheckpointError::Damaged {
        object: run.object_url(path),
        expected: expected.to_owned(),
        found: format!("{} bytes that are not one ({error})", bytes.len()),
    })
}

fn json(value: &impl Serialize) -> Bytes {
    let mut json = serde_json::to_vec(value).expect("claims and requests have only strings and numbers");
    json.push(b'\n');
    json.into()
}

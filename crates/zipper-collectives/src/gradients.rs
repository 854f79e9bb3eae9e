//! Gradients that are summed over ranks in buckets, while the backward pass is still under way.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Tensor;
use zipper_collectives_sys as sys;

use crate::error::CollectiveError;
use crate::ffi::RawReducer;
use crate::group::{Inner, ProcessGroup};
use crate::recorder::RecordId;

/// Parameters whose gradients are summed together.
pub struct BucketSpec<'a> {
    /// Its name in errors.
    pub name: String,
    /// The ranks that hold these parameters; nothing if no other rank does.
    pub group: Option<&'a ProcessGroup>,
    /// Leaves with `requires_grad`, of one kind and on one device; at least one.
    pub params: Vec<&'a Tensor>,
}

/// What happens to a bucket between [`GradientReducer::begin`] and [`GradientReducer::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketPlan {
    /// It is not summed.
    Skip,
    /// Every parameter gets a gradient in the coming backward pass: it is summed as soon as they all have, and all
    /// buckets before it are under way.
    AsReady,
    /// No more gradients come: it is summed as soon as all buckets before it are under way.
    Now,
    /// It is summed by `finish`, and so is what comes after it.
    AtEnd,
}

/// What [`GradientReducer::finish`] has done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReduceReport {
    /// Bytes of each bucket that were summed; 0 for a bucket that was left out or has no group.
    pub bytes_by_bucket: Vec<u64>,
    /// How long `finish` was waiting: what the backward pass did not hide.
    pub exposed: Duration,
    /// Buckets that were under way before `finish` was called.
    pub launched_in_backward: usize,
}

/// The gradients of one rank's parameters, in buckets.
///
/// The gradient of each parameter is a view of its bucket's memory for as long as the reducer lives.
pub struct GradientReducer {
    raw: RawReducer,
    buckets: Vec<Bucket>,
    /// Of the buckets under way.
    flights: RefCell<Flights>,
}

/// The records of one step's buckets.
#[derive(Default)]
struct Flights {
    /// When the step's reductions began, in the time of the recorder.
    began: f64,
    records: Vec<Option<RecordId>>,
}

struct Bucket {
    name: String,
    group: Option<Arc<Inner>>,
    bytes: u64,
    tensor: String,
}

impl GradientReducer {
    /// Lays out the gradients, all zero. Buckets are summed in the order of `specs`.
    ///
    /// # Collective
    /// Where the groups check their calls, every rank of each group calls it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Mismatch`] if the ranks of a group have different buckets, [`crate::ErrorKind::Other`] for
    /// parameters that cannot be in a bucket.
    pub fn new(specs: &[BucketSpec<'_>]) -> Result<Self, CollectiveError> {
        let layout = |failure| CollectiveError::unplaced("layout", "gradient buckets", &failure);
        let raw = RawReducer::new().map_err(layout)?;
        let mut buckets = Vec::with_capacity(specs.len());
        for spec in specs {
            let group = spec.group.map(ProcessGroup::inner);
            raw.add_bucket(group.map(|group| group.raw()), &spec.params)
                .map_err(layout)?;
            let elements: usize = spec.params.iter().map(|param| param.numel()).sum();
            let kind = spec.params[0].kind();
            buckets.push(Bucket {
                name: spec.name.clone(),
                group: group.cloned(),
                bytes: (elements * kind.elt_size_in_bytes()) as u64,
                tensor: format!("{kind:?} [{elements}]"),
            });
        }
        let reducer = Self {
            raw,
            buckets,
            flights: RefCell::default(),
        };
        reducer.compare("layout of gradients", |bucket| {
            Some(format!("{} {}", bucket.name, bucket.tensor))
        })?;
        Ok(reducer)
    }

    /// Sets the gradients of those buckets to zero that are `wanted` by their index.
    pub fn zero(&self, wanted: impl Fn(usize) -> bool) {
        let wanted: Vec<u8> = (0..self.buckets.len())
            .map(|index| u8::from(wanted(index)))
            .collect();
        self.raw
            .zero(&wanted)
            .unwrap_or_else(|failure| panic!("gradients cannot be set to zero: {}", failure.message));
    }

    /// Before the last backward pass of a step: from now on buckets are summed as their plans say. `what` names the step
    /// in errors.
    ///
    /// # Collective
    /// Every rank of a group gives the group's buckets [`BucketPlan::Skip`] or none does. No other collective of these
    /// groups may be called until `finish` has returned.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Mismatch`] where groups check their calls, and the error of a group that is dead. The groups of
    /// all buckets are then dead.
    ///
    /// # Panics
    /// If there is not one plan for each bucket.
    pub fn begin(&self, what: &str, plans: &[BucketPlan]) -> Result<(), CollectiveError> {
        assert_eq!(plans.len(), self.buckets.len(), "one plan for each bucket");
        let takes_part = |index: usize| plans[index] != BucketPlan::Skip;
        let dead = self.buckets.iter().find_map(|bucket| {
            let group = bucket.group.as_ref()?;
            Some((group, group.first_error()?))
        });
        if let Some((group, error)) = dead {
            self.give_up(group, &error);
            return Err(error);
        }
        let mut index = 0;
        self.compare(&format!("gradients of {what}"), |bucket| {
            index += 1;
            takes_part(index - 1).then(|| bucket.name.clone())
        })?;
        let mut timeout = Duration::ZERO;
        let mut flights = Flights::default();
        for (index, bucket) in self.buckets.iter().enumerate() {
            let flight = match &bucket.group {
                Some(group) if takes_part(index) => {
                    timeout = timeout.max(group.timeout_now());
                    flights.began = group.recorder().now();
                    Some(group.record(
                        "all_reduce",
                        &format!("{} of {what}", bucket.name),
                        bucket.bytes,
                        &bucket.tensor,
                    ))
                }
                _ => None,
            };
            flights.records.push(flight);
        }
        *self.flights.borrow_mut() = flights;
        let plans: Vec<i32> = plans
            .iter()
            .map(|plan| match plan {
                BucketPlan::Skip => sys::SKIP,
                BucketPlan::AsReady => sys::AS_READY,
                BucketPlan::Now => sys::NOW,
                BucketPlan::AtEnd => sys::AT_END,
            })
            .collect();
        self.raw
            .begin(&plans, timeout)
            .map_err(|failure| CollectiveError::unplaced("all_reduce", what, &failure))
    }

    /// Waits until all buckets are summed.
    ///
    /// # Errors
    /// The failure of the first bucket that could not be summed, or could not be launched during the backward pass. The
    /// values of all gradients are then undefined, and the groups of all buckets are dead.
    pub fn finish(&self) -> Result<ReduceReport, CollectiveError> {
        let called = Instant::now();
        self.show_as_begun();
        let finished = self.raw.finish(self.buckets.len());
        let exposed = called.elapsed();
        let flights = self.flights.take();
        let at = |nanoseconds: i64| (nanoseconds >= 0).then_some(flights.began + nanoseconds as f64 * 1e-9);
        for ((bucket, flight), report) in self.buckets.iter().zip(&flights.records).zip(&finished.reports) {
            let (Some(group), Some(flight)) = (&bucket.group, flight) else {
                continue;
            };
            group.recorder().change(flight, |record| {
                record.started = at(report.launched_ns);
                record.finished = at(report.finished_ns);
            });
            if report.finished_ns >= 0 {
                group.worked();
            }
        }
        if let Some((index, failure)) = finished.failure {
            let (Some(group), Some(Some(flight))) = (&self.buckets[index].group, flights.records.get(index))
            else {
                return Err(CollectiveError::unplaced(
                    "all_reduce",
                    &self.buckets[index].name,
                    &failure,
                ));
            };
            // Before the roll is called: nobody has to wait for sums that this rank has given up.
            let others = self.groups_but(group);
            for other in &others {
                other.close();
            }
            let launched = finished.reports[index].launched_ns;
            let elapsed = at(launched).map_or(0.0, |launched| group.recorder().now() - launched);
            let error = group.fail(flight, &failure, Duration::from_secs_f64(elapsed.max(0.0)));
            for other in others {
                other.die(error.clone());
            }
            return Err(error);
        }
        Ok(ReduceReport {
            bytes_by_bucket: finished.reports.iter().map(|report| report.bytes).collect(),
            exposed,
            launched_in_backward: finished.launched_early,
        })
    }

    /// While `finish` waits, the recorder shows what for. When each bucket really began is known afterwards.
    fn show_as_begun(&self) {
        for (bucket, flight) in self.buckets.iter().zip(&self.flights.borrow().records) {
            if let (Some(group), Some(flight)) = (&bucket.group, flight) {
                let now = group.recorder().now();
                group
                    .recorder()
                    .change(flight, |record| record.started = Some(now));
            }
        }
    }

    /// The groups of all buckets, without `group`.
    fn groups_but(&self, group: &Arc<Inner>) -> Vec<&Arc<Inner>> {
        let mut others: Vec<&Arc<Inner>> = Vec::new();
        for other in self.buckets.iter().filter_map(|bucket| bucket.group.as_ref()) {
            if !others.iter().any(|known| Arc::ptr_eq(known, other)) && !Arc::ptr_eq(other, group) {
                others.push(other);
            }
        }
        others
    }

    /// Frees those who wait for this rank in another group than `group`, which has failed with `error`.
    fn give_up(&self, group: &Arc<Inner>, error: &CollectiveError) {
        for other in self.groups_but(group) {
            other.close();
            other.die(error.clone());
        }
    }

    /// Compares a description of each group's buckets between its ranks, where the groups want that.
    fn compare(
        &self,
        what: &str,
        mut describe: impl FnMut(&Bucket) -> Option<String>,
    ) -> Result<(), CollectiveError> {
        let described: Vec<Option<String>> = self.buckets.iter().map(&mut describe).collect();
        let mut compared: Vec<&Arc<Inner>> = Vec::new();
        for bucket in &self.buckets {
            let Some(group) = &bucket.group else { continue };
            if !group.checks() || compared.iter().any(|done| Arc::ptr_eq(done, group)) {
                continue;
            }
            compared.push(group);
            let of_group: Vec<&str> = self
                .buckets
                .iter()
                .zip(&described)
                .filter(|(other, _)| {
                    other
                        .group
                        .as_ref()
                        .is_some_and(|other| Arc::ptr_eq(other, group))
                })
                .filter_map(|(_, description)| description.as_deref())
                .collect();
            // Of a bank that does not occur in the batch, its owners do not speak.
            if !of_group.is_empty() {
                let description = format!("{what}: {}", of_group.join(", "));
                if let Err(error) = group.compare("all_reduce", what, &description) {
                    self.give_up(group, &error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Drop for GradientReducer {
    /// A step that was begun and is not finished, because its backward pass failed, leaves the others waiting for this rank:
    /// they learn of it now and not at their timeout.
    fn drop(&mut self) {
        for (bucket, flight) in self.buckets.iter().zip(&self.flights.get_mut().records) {
            if let (Some(group), Some(_)) = (&bucket.group, flight) {
                group.abort();
            }
        }
    }
}

//! The process group: the communicator of exactly one generation.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use zipper_types::{Rank, WorldSize};

use crate::error::{CollectiveError, Operation, Place};
use crate::ffi::{Failure, RawGroup};
use crate::recorder::{FlightRecord, FlightRecorder, RecordId};
use crate::roll_call::RollCall;
use crate::store::Store;

/// Longest description of a call that ranks compare, in bytes.
const DESCRIPTION: usize = 512;

/// What moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Gloo: TCP, for tensors on the CPU; libtorch copies tensors of a GPU to the CPU and back.
    Gloo,
    /// NCCL: between GPUs, one for each rank.
    Nccl,
}

impl Backend {
    /// Whether this program was built with it.
    #[must_use]
    pub fn is_built(self) -> bool {
        self == Self::Gloo || cfg!(feature = "cuda")
    }
}

/// How a group works.
#[derive(Clone)]
pub struct GroupOptions {
    /// Its name in errors and records.
    pub name: String,
    /// Its ranks as ranks of the generation, in the order of their ranks in the group; empty: they are the same.
    pub members: Vec<Rank>,
    /// What moves the bytes.
    pub backend: Backend,
    /// Where this rank's tensors are.
    pub device: Device,
    /// An address of this machine that the other ranks can reach; not used by a group of one rank.
    pub host: String,
    /// For how long a collective waits for a peer.
    pub timeout: Duration,
    /// The same for the group's construction and first collective, if that is longer.
    pub first_timeout: Duration,
    /// Compare what the ranks are about to call, before each collective. Always on in debug builds.
    pub check: bool,
    /// Where its collectives are recorded.
    pub recorder: FlightRecorder,
    /// Where ranks say that a collective has failed; nothing: errors do not say who had come.
    pub roll_call: Option<RollCall>,
}

impl GroupOptions {
    /// A Gloo group on the CPU, reached at `host`.
    #[must_use]
    pub fn gloo(host: &str, timeout: Duration) -> Self {
        Self {
            name: "world".to_owned(),
            members: Vec::new(),
            backend: Backend::Gloo,
            device: Device::Cpu,
            host: host.to_owned(),
            timeout,
            first_timeout: timeout,
            check: false,
            recorder: FlightRecorder::default(),
            roll_call: None,
        }
    }
}

/// A connected group of ranks.
///
/// Every collective has to be called by every rank, in the same order, with tensors of the same shape and kind. Results
/// are the same bits on every rank and in every run of the same world size. Before the first rank lets go of its group,
/// all should have passed a [`ProcessGroup::barrier`]; otherwise a slower rank sees a lost peer.
///
/// After an error the group is dead, and every later call returns that error again.
pub struct ProcessGroup {
    inner: Arc<Inner>,
    /// Collectives are called from one thread at a time.
    _not_sync: PhantomData<Cell<()>>,
}

/// A group as its reducers and abort handles see it, too.
pub(crate) struct Inner {
    raw: RawGroup,
    rank: Rank,
    world_size: WorldSize,
    options: GroupOptions,
    aborted: AtomicBool,
    /// Whether a collective has ended well.
    worked: AtomicBool,
    /// Collectives so far.
    sequence: AtomicU64,
    /// Why the group is dead.
    first_error: Mutex<Option<CollectiveError>>,
}

impl ProcessGroup {
    /// Connects this rank to the others of its group.
    ///
    /// Each group needs a fresh prefix of the store; `rank` and `world_size` are those of the group.
    ///
    /// # Collective
    /// Returns when all ranks have called it; with NCCL the first collective does the waiting. Where groups overlap in a
    /// chain, a, b in the first, b, c in the second and so on, forming them in this order makes each wait for the one
    /// before it; form every other one first, then the rest, and nothing waits for more than one.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidArgument`] for an empty world, a rank outside it or a backend that this device or this
    /// build does not have, [`crate::ErrorKind::Timeout`] when a rank does not come, [`crate::ErrorKind::Network`] when
    /// the store or the host cannot be used.
    pub fn connect(
        store: &Store,
        rank: Rank,
        world_size: WorldSize,
        options: &GroupOptions,
    ) -> Result<Self, CollectiveError> {
        let mut options = options.clone();
        if options.members.is_empty() {
            options.members = (0..world_size.0).map(Rank).collect();
        }
        let timeout = options.first_timeout.max(options.timeout);
        let operation = || Operation {
            name: "construction",
            what: format!("process group at {}", options.host),
            place: Some(Place {
                group: options.name.clone(),
                rank: options.members.get(rank.0 as usize).copied().unwrap_or(rank),
                size: world_size,
                sequence: 0,
            }),
        };
        if rank.0 >= world_size.0 || options.members.len() != world_size.0 as usize {
            let problem = format!("rank {rank} is not in a world of {world_size} ranks");
            return Err(CollectiveError::invalid(operation(), timeout, problem));
        }
        let start = Instant::now();
        let raw = connect(store, rank, world_size, &options, timeout).map_err(|problem| match problem {
            Refused::Unusable(problem) => CollectiveError::invalid(operation(), timeout, problem),
            Refused::Failed(failure) => {
                CollectiveError::from_failure(operation(), &failure, start.elapsed(), timeout, false)
            }
        })?;
        let inner = Inner {
            raw,
            rank,
            world_size,
            options,
            aborted: AtomicBool::new(false),
            worked: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            first_error: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
            _not_sync: PhantomData,
        })
    }

    /// [`ProcessGroup::connect`] with Gloo on the CPU, the same timeout for everything and nothing else.
    ///
    /// # Errors
    /// As [`ProcessGroup::connect`].
    pub fn gloo(
        store: &Store,
        rank: Rank,
        world_size: WorldSize,
        host: &str,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        Self::connect(store, rank, world_size, &GroupOptions::gloo(host, timeout))
    }

    /// This process's place in the group.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.inner.rank
    }

    /// How many ranks the group has.
    #[must_use]
    pub fn world_size(&self) -> WorldSize {
        self.inner.world_size
    }

    /// A handle with which another thread can end a collective that waits for a peer.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle {
            inner: Arc::downgrade(&self.inner),
        }
    }

    /// Replaces `tensor` on every rank with the sum over all ranks. `what` names it in errors.
    ///
    /// # Collective
    /// Every rank of the group calls it, with tensors of the same shape and kind.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`]; the values of `tensor` are then undefined.
    pub fn all_reduce_sum(&self, tensor: &Tensor, what: &str) -> Result<(), CollectiveError> {
        self.inner
            .run("all_reduce", what, "", Some(tensor), |raw, timeout| {
                raw.all_reduce_sum(tensor, timeout)
            })
    }

    /// Replaces `tensor` on every rank with the one of `root`, a rank of the group. `what` names it in errors.
    ///
    /// # Collective
    /// Every rank of the group calls it, with tensors of the same shape and kind and the same `root`.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`]; the values of `tensor` are then undefined.
    pub fn broadcast(&self, tensor: &Tensor, root: Rank, what: &str) -> Result<(), CollectiveError> {
        if root.0 >= self.inner.world_size.0 {
            let problem = format!("the root, rank {root}, is not in the group");
            return Err(self.inner.invalid("broadcast", what, problem));
        }
        let from = format!("from rank {root}, ");
        self.inner
            .run("broadcast", what, &from, Some(tensor), |raw, timeout| {
                raw.broadcast(tensor, root.0, timeout)
            })
    }

    /// The `tensor` of every rank, in rank order. `what` names it in errors.
    ///
    /// # Collective
    /// Every rank of the group calls it, with tensors of the same shape and kind.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`].
    pub fn all_gather(&self, tensor: &Tensor, what: &str) -> Result<Vec<Tensor>, CollectiveError> {
        let outputs: Vec<Tensor> = (0..self.inner.world_size.0)
            .map(|_| tensor.detach().empty_like())
            .collect();
        self.inner
            .run("all_gather", what, "", Some(tensor), |raw, timeout| {
                raw.all_gather(&outputs, tensor, timeout)
            })?;
        Ok(outputs)
    }

    /// Sends tensors to single ranks of the group and receives others; `what` names it in errors. Between two ranks tensors are matched in
    /// their order, and are of the same length and kind.
    ///
    /// # Collective
    /// Every rank of the group calls it, also one that does neither.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`]; the values of what was to be received are then undefined.
    pub fn exchange(
        &self,
        sent: &[(&Tensor, Rank)],
        received: &[(&Tensor, Rank)],
        what: &str,
    ) -> Result<(), CollectiveError> {
        for &(tensor, rank) in sent.iter().chain(received) {
            let problem = if rank.0 >= self.inner.world_size.0 || rank == self.inner.rank {
                Some(format!("rank {rank} is not another rank of the group"))
            } else {
                self.inner.unusable(tensor)
            };
            if let Some(problem) = problem {
                return Err(self.inner.invalid("exchange", what, problem));
            }
        }
        self.inner.run("exchange", what, "", None, |raw, timeout| {
            raw.exchange(sent, received, timeout)
        })
    }

    /// Returns when every rank has called it. `what` names it in errors.
    ///
    /// # Collective
    /// Every rank of the group calls it.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`].
    pub fn barrier(&self, what: &str) -> Result<(), CollectiveError> {
        self.inner.run("barrier", what, "", None, RawGroup::barrier)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

/// Why a group was not made.
enum Refused {
    Unusable(String),
    Failed(Failure),
}

fn connect(
    store: &Store,
    rank: Rank,
    world_size: WorldSize,
    options: &GroupOptions,
    timeout: Duration,
) -> Result<RawGroup, Refused> {
    match options.backend {
        Backend::Gloo => {
            let host = if world_size.0 == 1 {
                "127.0.0.1"
            } else {
                &options.host
            };
            RawGroup::gloo(&store.raw, rank.0, world_size.0, host, timeout).map_err(Refused::Failed)
        }
        Backend::Nccl => nccl(store, rank, world_size, options, timeout),
    }
}

#[cfg(feature = "cuda")]
fn nccl(
    store: &Store,
    rank: Rank,
    world_size: WorldSize,
    options: &GroupOptions,
    timeout: Duration,
) -> Result<RawGroup, Refused> {
    let Device::Cuda(index) = options.device else {
        let problem = format!(
            "NCCL works on GPUs, and this rank's device is {:?}",
            options.device
        );
        return Err(Refused::Unusable(problem));
    };
    let devices = tch::Cuda::device_count();
    if i64::try_from(index).is_ok_and(|index| index >= devices) {
        let problem = format!("there is no GPU {index}: libtorch finds {devices}");
        return Err(Refused::Unusable(problem));
    }
    RawGroup::nccl(&store.raw, rank.0, world_size.0, index, timeout).map_err(Refused::Failed)
}

#[cfg(not(feature = "cuda"))]
fn nccl(
    _store: &Store,
    _rank: Rank,
    _world_size: WorldSize,
    _options: &GroupOptions,
    _timeout: Duration,
) -> Result<RawGroup, Refused> {
    let problem = "this program was built without NCCL: run `cargo xtask setup --cuda` and build with \
                   `--features cuda`, or use Gloo";
    Err(Refused::Unusable(problem.to_owned()))
}

impl Inner {
    pub(crate) fn raw(&self) -> &RawGroup {
        &self.raw
    }

    pub(crate) fn recorder(&self) -> &FlightRecorder {
        &self.options.recorder
    }

    /// Whether the ranks compare their calls.
    pub(crate) fn checks(&self) -> bool {
        (self.options.check || cfg!(debug_assertions)) && self.world_size.0 > 1
    }

    /// For how long the next collective waits.
    pub(crate) fn timeout_now(&self) -> Duration {
        if self.worked.load(Ordering::Relaxed) {
            self.options.timeout
        } else {
            self.options.timeout.max(self.options.first_timeout)
        }
    }

    /// Notes that a collective has ended well.
    pub(crate) fn worked(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    /// Records a collective that is about to come.
    pub(crate) fn record(&self, operation: &'static str, what: &str, bytes: u64, tensor: &str) -> RecordId {
        self.options.recorder.add(FlightRecord {
            group: self.options.name.clone(),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            operation,
            what: what.to_owned(),
            bytes,
            tensor: tensor.to_owned(),
            started: None,
            finished: None,
            error: None,
        })
    }

    fn operation(&self, name: &'static str, what: &str, sequence: u64) -> Operation {
        Operation {
            name,
            what: what.to_owned(),
            place: Some(Place {
                group: self.options.name.clone(),
                rank: self.own_rank(),
                size: self.world_size,
                sequence,
            }),
        }
    }

    /// This rank as a rank of the generation.
    fn own_rank(&self) -> Rank {
        self.options.members[self.rank.0 as usize]
    }

    fn invalid(&self, name: &'static str, what: &str, problem: String) -> CollectiveError {
        CollectiveError::invalid(self.operation(name, what, 0), self.options.timeout, problem)
    }

    fn run(
        &self,
        name: &'static str,
        what: &str,
        arguments: &str,
        tensor: Option<&Tensor>,
        call: impl FnOnce(&RawGroup, Duration) -> Result<(), Failure>,
    ) -> Result<(), CollectiveError> {
        if let Some(error) = self.first_error() {
            return Err(error);
        }
        if let Some(problem) = tensor.and_then(|tensor| self.unusable(tensor)) {
            return Err(self.invalid(name, what, problem));
        }
        let description = tensor.map_or_else(String::new, |tensor| {
            format!("{:?} {:?}", tensor.kind(), tensor.size())
        });
        if self.checks() {
            self.compare(
                name,
                what,
                &format!("{name} of `{what}` {arguments}{description}"),
            )?;
        }
        let bytes = tensor.map_or(0, |tensor| tensor.numel() * tensor.kind().elt_size_in_bytes());
        let flight = self.record(name, what, bytes as u64, &description);
        self.fly(&flight, call)
    }

    /// Makes a recorded call.
    fn fly(
        &self,
        flight: &RecordId,
        call: impl FnOnce(&RawGroup, Duration) -> Result<(), Failure>,
    ) -> Result<(), CollectiveError> {
        let recorder = &self.options.recorder;
        recorder.change(flight, |record| record.started = Some(recorder.now()));
        let start = Instant::now();
        let result = if self.aborted.load(Ordering::Acquire) {
            Err(Failure::aborted())
        } else {
            call(&self.raw, self.timeout_now())
        };
        if let Err(failure) = result {
            return Err(self.fail(flight, &failure, start.elapsed()));
        }
        recorder.change(flight, |record| record.finished = Some(recorder.now()));
        self.worked();
        Ok(())
    }

    /// What has become of this group: the error of a recorded call, with who had come to it. Closes the group, so that
    /// the ranks that wait for this one learn of it now and not at their timeout.
    pub(crate) fn fail(&self, flight: &RecordId, failure: &Failure, elapsed: Duration) -> CollectiveError {
        let (operation, what, sequence) = (flight.operation, &flight.what, flight.sequence);
        let timeout = self.timeout_now();
        self.close();
        let aborted = self.aborted.load(Ordering::Acquire);
        let place = self.operation(operation, what, sequence);
        let mut error = CollectiveError::from_failure(place, failure, elapsed, timeout, aborted);
        if let Some(roll_call) = self.options.roll_call.as_ref().filter(|_| !aborted) {
            let place = format!("{operation} {sequence} of `{}`, `{what}`", self.options.name);
            let is_over = || self.aborted.load(Ordering::Acquire);
            if let Some(attendance) = roll_call.call(self.own_rank(), &self.options.members, &place, is_over)
            {
                error = error.with_attendance(attendance);
            }
        }
        self.options
            .recorder
            .change(flight, |record| record.error = Some(error.to_string()));
        self.die(error.clone());
        error
    }

    /// Every later call returns `error`.
    pub(crate) fn die(&self, error: CollectiveError) {
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }

    /// Why the group is dead, if it is.
    pub(crate) fn first_error(&self) -> Option<CollectiveError> {
        let first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.clone()
    }

    /// Compares what the ranks are about to call: `operation`, for `what`.
    pub(crate) fn compare(
        &self,
        operation: &'static str,
        what: &str,
        description: &str,
    ) -> Result<(), CollectiveError> {
        if let Some(error) = self.first_error() {
            return Err(error);
        }
        let mut bytes = description.as_bytes().to_vec();
        if bytes.len() > DESCRIPTION {
            // Cut off, but not equal by being cut off: the end says how the whole differs.
            let end = format!("... [{:x}]", checksum(&bytes));
            bytes.truncate(DESCRIPTION - end.len());
            bytes.extend(end.into_bytes());
        }
        bytes.resize(DESCRIPTION, 0);
        let own = Tensor::from_slice(&bytes).to_device(self.options.device);
        let all: Vec<Tensor> = (0..self.world_size.0).map(|_| own.empty_like()).collect();
        let flight = self.record(operation, what, DESCRIPTION as u64, "comparison");
        self.fly(&flight, |raw, timeout| raw.all_gather(&all, &own, timeout))?;
        let texts: Vec<String> = all.iter().map(text).collect();
        if texts.iter().all(|text| *text == texts[0]) {
            return Ok(());
        }
        let calls: Vec<String> = self
            .options
            .members
            .iter()
            .zip(&texts)
            .map(|(rank, text)| format!("rank {rank}: {text}"))
            .collect();
        let place = self.operation(operation, what, flight.sequence);
        let error = CollectiveError::mismatch(place, self.options.timeout, calls.join("; "));
        let recorder = &self.options.recorder;
        recorder.change(&flight, |record| record.error = Some(error.to_string()));
        self.die(error.clone());
        Err(error)
    }

    /// Why the backend cannot work on this tensor's memory as it lies, if it cannot.
    fn unusable(&self, tensor: &Tensor) -> Option<String> {
        let device = tensor.device();
        if device != self.options.device {
            return Some(format!(
                "the tensor is on {device:?}, and the group works on {:?}",
                self.options.device
            ));
        }
        // Raw memory is summed: ranks with different strides would add different elements to each other.
        (!tensor.is_contiguous()).then(|| "the tensor is not contiguous".to_owned())
    }

    /// Ends every collective of this rank, now and later.
    pub(crate) fn abort(&self) {
        if !self.aborted.swap(true, Ordering::AcqRel) {
            self.close();
        }
    }

    /// Ends what is under way on this rank and, through it, on the others.
    pub(crate) fn close(&self) {
        // A connection that cannot be closed is closed already, or its users fail by themselves at the timeout.
        let _ = self.raw.abort();
    }
}

/// Tells two long descriptions apart; all ranks run the same program.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The description in a tensor of bytes.
fn text(tensor: &Tensor) -> String {
    let bytes = Vec::<u8>::try_from(tensor.to_kind(Kind::Uint8).to_device(Device::Cpu)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

/// Ends the collectives of one rank from another thread. See [`ProcessGroup::abort_handle`].
#[derive(Clone)]
pub struct AbortHandle {
    inner: Weak<Inner>,
}

impl AbortHandle {
    /// Closes this rank's connections.
    ///
    /// A collective under way on this rank fails with [`crate::ErrorKind::Aborted`], as does every later one; the other
    /// ranks see a lost peer. Does nothing when the group is gone already.
    pub fn abort(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.abort();
        }
    }
}

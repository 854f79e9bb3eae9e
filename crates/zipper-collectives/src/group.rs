//! The process group: the communicator of exactly one generation.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tch::{Device, Tensor};
use zipper_types::{Rank, WorldSize};

use crate::error::{CollectiveError, Operation};
use crate::ffi::{Failure, RawGroup};
use crate::store::Store;

/// A connected group of ranks.
///
/// Every collective has to be called by every rank, in the same order, with tensors of the same shape and kind. Results
/// are the same bits on every rank and in every run of the same world size. Before the first rank lets go of its group,
/// all should have passed a [`ProcessGroup::barrier`]; otherwise a slower rank sees a lost peer.
///
/// After an error the group is dead, and every later call returns that error again.
pub struct ProcessGroup {
    shared: Arc<Shared>,
    rank: Rank,
    world_size: WorldSize,
    timeout: Duration,
    /// Why the group is dead. The cell also makes the type not `Sync`, which the collectives need.
    first_error: RefCell<Option<CollectiveError>>,
}

struct Shared {
    raw: RawGroup,
    aborted: AtomicBool,
}

impl Shared {
    fn close(&self) {
        // A connection that cannot be closed is closed already, or its users fail by themselves at the timeout.
        let _ = self.raw.abort();
    }
}

impl ProcessGroup {
    /// Connects this rank to the others of its generation, over TCP with Gloo.
    ///
    /// Each group needs a fresh prefix of the store. `host` is an address of this machine that the other ranks can
    /// reach; it is not used when the world has one rank. `timeout` bounds this call and the time for which any later
    /// collective waits for a peer without progress.
    ///
    /// # Collective
    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidArgument`] for an empty world or a rank outside it, [`crate::ErrorKind::Timeout`] when
    /// a rank does not come, [`crate::ErrorKind::Network`] when the store or `host` cannot be used.
    pub fn gloo(
        store: &Store,
        rank: Rank,
        world_size: WorldSize,
        host: &str,
        timeout: Duration,
    ) -> Result<Self, CollectiveError> {
        let place = Some((rank, world_size));
        let operation = || Operation {
            name: "construction",
            what: format!("process group at {host}"),
            place,
        };
        if rank.0 >= world_size.0 {
            let problem = format!("rank {rank} is not in a world of {world_size} ranks");
            return Err(CollectiveError::invalid(operation(), timeout, problem));
        }
        let host = if world_size.0 == 1 { "127.0.0.1" } else { host };
        let start = Instant::now();
        let raw = RawGroup::gloo(&store.raw, rank.0, world_size.0, host, timeout).map_err(|failure| {
            CollectiveError::from_failure(operation(), &failure, start.elapsed(), timeout, false)
        })?;
        let shared = Arc::new(Shared {
            raw,
            aborted: AtomicBool::new(false),
        });
        Ok(Self {
            shared,
            rank,
            world_size,
            timeout,
            first_error: RefCell::new(None),
        })
    }

    /// This process's place in the group.
    #[must_use]
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// How many ranks the group has.
    #[must_use]
    pub fn world_size(&self) -> WorldSize {
        self.world_size
    }

    /// For how long a collective waits for a peer.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A handle with which another thread can end a collective that waits for a peer.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle {
            shared: Arc::downgrade(&self.shared),
        }
    }

    /// Replaces `tensor` on every rank with the sum over all ranks. `what` names it in errors.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`]; the values of `tensor` are then undefined.
    pub fn all_reduce_sum(&self, tensor: &Tensor, what: &str) -> Result<(), CollectiveError> {
        self.run("all_reduce", what, Some(tensor), |raw| raw.all_reduce_sum(tensor))
    }

    /// Replaces `tensor` on every rank with the one of `root`. `what` names it in errors.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`]; the values of `tensor` are then undefined.
    pub fn broadcast(&self, tensor: &Tensor, root: Rank, what: &str) -> Result<(), CollectiveError> {
        if root.0 >= self.world_size.0 {
            let problem = format!("the root, rank {root}, is not in the group");
            return Err(CollectiveError::invalid(
                self.operation("broadcast", what),
                self.timeout,
                problem,
            ));
        }
        self.run("broadcast", what, Some(tensor), |raw| {
            raw.broadcast(tensor, root.0)
        })
    }

    /// The `tensor` of every rank, in rank order. `what` names it in errors.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`].
    pub fn all_gather(&self, tensor: &Tensor, what: &str) -> Result<Vec<Tensor>, CollectiveError> {
        let outputs: Vec<Tensor> = (0..self.world_size.0)
            .map(|_| tensor.detach().empty_like())
            .collect();
        self.run("all_gather", what, Some(tensor), |raw| {
            raw.all_gather(&outputs, tensor)
        })?;
        Ok(outputs)
    }

    /// Returns when every rank has called it. `what` names it in errors.
    ///
    /// # Errors
    /// Any [`crate::ErrorKind`].
    pub fn barrier(&self, what: &str) -> Result<(), CollectiveError> {
        self.run("barrier", what, None, RawGroup::barrier)
    }

    fn operation(&self, name: &'static str, what: &str) -> Operation {
        Operation {
            name,
            what: what.to_owned(),
            place: Some((self.rank, self.world_size)),
        }
    }

    fn run(
        &self,
        name: &'static str,
        what: &str,
        tensor: Option<&Tensor>,
        call: impl FnOnce(&RawGroup) -> Result<(), Failure>,
    ) -> Result<(), CollectiveError> {
        if let Some(error) = self.first_error.borrow().as_ref() {
            return Err(error.clone());
        }
        if let Some(problem) = tensor.and_then(unusable) {
            return Err(CollectiveError::invalid(
                self.operation(name, what),
                self.timeout,
                problem,
            ));
        }
        let start = Instant::now();
        let result = if self.shared.aborted.load(Ordering::Acquire) {
            Err(Failure::aborted())
        } else {
            call(&self.shared.raw)
        };
        result.map_err(|failure| {
            let aborted = self.shared.aborted.load(Ordering::Acquire);
            let operation = self.operation(name, what);
            let error =
                CollectiveError::from_failure(operation, &failure, start.elapsed(), self.timeout, aborted);
            *self.first_error.borrow_mut() = Some(error.clone());
            // The ranks that wait for this one learn of the failure now and not at their timeout.
            self.shared.close();
            error
        })
    }
}

/// Why Gloo cannot work on this tensor's memory as it lies, if it cannot.
fn unusable(tensor: &Tensor) -> Option<String> {
    if tensor.device() != Device::Cpu {
        return Some(format!(
            "the tensor is on {:?}, and Gloo works on the CPU",
            tensor.device()
        ));
    }
    // Gloo sums raw memory: ranks with different strides would add different elements to each other.
    (!tensor.is_contiguous()).then(|| "the tensor is not contiguous".to_owned())
}

/// Ends the collectives of one rank from another thread. See [`ProcessGroup::abort_handle`].
#[derive(Clone)]
pub struct AbortHandle {
    shared: Weak<Shared>,
}

impl AbortHandle {
    /// Closes this rank's connections.
    ///
    /// A collective under way on this rank fails with [`crate::ErrorKind::Aborted`], as does every later one; the other
    /// ranks see a lost peer. Does nothing when the group is gone already.
    pub fn abort(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        shared.aborted.store(true, Ordering::Release);
        shared.close();
    }
}

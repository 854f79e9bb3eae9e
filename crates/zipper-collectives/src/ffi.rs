//! The calls into the shim: ownership of its objects and strings, and nothing else.

#![expect(unsafe_code, reason = "calls the C interface of the c10d shim")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;
use zipper_collectives_sys as sys;
use zipper_types::Rank;

/// A status other than OK, and libtorch's words for it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: i32,
    pub(crate) message: String,
}

impl Failure {
    /// Of a collective that was not begun.
    pub(crate) fn aborted() -> Self {
        Self::other("it was aborted before this call")
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self {
            status: sys::OTHER,
            message: message.into(),
        }
    }
}

/// See `zipper_cuda_peak_bytes`.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_peak_bytes(device_index: usize) -> Result<i64, Failure> {
    let too_large = |_| Failure::other(format!("there is no GPU {device_index}"));
    let device_index = c_int::try_from(device_index).map_err(too_large)?;
    let mut bytes = 0;
    // SAFETY: `bytes` lives during the call, which writes to nothing else.
    checked(|error| unsafe { sys::zipper_cuda_peak_bytes(device_index, &raw mut bytes, error) })?;
    Ok(bytes)
}

/// Calls the shim with a place for its message and takes over what it puts there.
fn checked(call: impl FnOnce(*mut *mut c_char) -> i32) -> Result<(), Failure> {
    let mut error: *mut c_char = ptr::null_mut();
    let status = call(&raw mut error);
    if status == sys::OK {
        return Ok(());
    }
    if error.is_null() {
        return Err(Failure {
            status,
            message: "no memory for a message".to_owned(),
        });
    }
    // SAFETY: a non-null `error` is a NUL-terminated string that the shim made for us; it is freed once, after copying.
    let message = unsafe {
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        sys::zipper_c10d_string_free(error);
        message
    };
    Err(Failure { status, message })
}

fn checked_new<T>(call: impl FnOnce(*mut *mut T, *mut *mut c_char) -> i32) -> Result<NonNull<T>, Failure> {
    let mut out: *mut T = ptr::null_mut();
    checked(|error| call(&raw mut out, error))?;
    Ok(NonNull::new(out).expect("the shim gives an object whenever it reports success"))
}

fn checked_abi() -> Result<(), Failure> {
    let found = sys::zipper_c10d_abi_version();
    if found == sys::ABI_VERSION {
        return Ok(());
    }
    let expected = sys::ABI_VERSION;
    Err(Failure::other(format!(
        "the c10d shim has interface version {found}, expected {expected}: rebuild everything"
    )))
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::other(format!("`{}` holds a NUL character", text.escape_debug())))
}

fn milliseconds(timeout: Duration) -> i64 {
    // Zero would mean "for ever" to c10d.
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

/// An owned store of the shim.
pub(crate) struct RawStore(NonNull<sys::RawStore>);

// SAFETY: shim/c10d.h: the store functions may be called from any thread at any time (TCPStore takes a lock).
unsafe impl Send for RawStore {}
// SAFETY: as above.
unsafe impl Sync for RawStore {}

impl RawStore {
    pub(crate) fn serve(
        listener: TcpListener,
        host: &str,
        port: u16,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        checked_abi()?;
        let host = c_string(host)?;
        let socket = listener.into_raw_fd();
        // SAFETY: `host` lives during the call, and the socket now belongs to the shim.
        checked_new(|out, error| unsafe {
            sys::zipper_c10d_store_serve(socket, host.as_ptr(), port, milliseconds(timeout), out, error)
        })
        .map(Self)
    }

    pub(crate) fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, Failure> {
        checked_abi()?;
        let host = c_string(host)?;
        // SAFETY: `host` lives during the call.
        checked_new(|out, error| unsafe {
            sys::zipper_c10d_store_connect(host.as_ptr(), port, milliseconds(timeout), out, error)
        })
        .map(Self)
    }

    pub(crate) fn prefix(&self, prefix: &str) -> Result<Self, Failure> {
        let prefix = c_string(prefix)?;
        // SAFETY: our store and `prefix` live during the call.
        checked_new(|out, error| unsafe {
            sys::zipper_c10d_store_prefix(self.0.as_ptr(), prefix.as_ptr(), out, error)
        })
        .map(Self)
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), Failure> {
        let (key, value) = (c_string(key)?, c_string(value)?);
        // SAFETY: our store, `key` and `value` live during the call.
        checked(|error| unsafe {
            sys::zipper_c10d_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), error)
        })
    }

    /// Waits for the value of `key`.
    pub(crate) fn get(&self, key: &str, timeout: Duration) -> Result<String, Failure> {
        let key = c_string(key)?;
        // SAFETY: our store and `key` live during the call.
        let value = checked_new(|out, error| unsafe {
            sys::zipper_c10d_store_get(self.0.as_ptr(), key.as_ptr(), milliseconds(timeout), out, error)
        })?;
        // SAFETY: a NUL-terminated string that the shim made for us; it is freed once, after copying.
        let text = unsafe {
            let text = CStr::from_ptr(value.as_ptr()).to_string_lossy().into_owned();
            sys::zipper_c10d_string_free(value.as_ptr());
            text
        };
        Ok(text)
    }

    /// Whether `key` has a value now.
    pub(crate) fn has(&self, key: &str) -> Result<bool, Failure> {
        let key = c_string(key)?;
        let mut found = 0;
        // SAFETY: our store, `key` and `found` live during the call.
        checked(|error| unsafe {
            sys::zipper_c10d_store_has(self.0.as_ptr(), key.as_ptr(), &raw mut found, error)
        })?;
        Ok(found != 0)
    }
}

impl Drop for RawStore {
    fn drop(&mut self) {
        // SAFETY: we own the store and nobody can use it after this.
        unsafe { sys::zipper_c10d_store_free(self.0.as_ptr()) }
    }
}

/// An owned process group of the shim.
///
/// `abort` may be called from any thread. The collectives may not run at the same time: [`crate::ProcessGroup`], the only
/// caller of them, is not `Sync`.
pub(crate) struct RawGroup(NonNull<sys::RawGroup>);

// SAFETY: the group is not tied to the thread that made it, and shim/c10d.h allows abort from any thread; see above for
// the collectives.
unsafe impl Send for RawGroup {}
// SAFETY: as above.
unsafe impl Sync for RawGroup {}

impl RawGroup {
    pub(crate) fn gloo(
        store: &RawStore,
        rank: u32,
        world_size: u32,
        host: &str,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let host = c_string(host)?;
        let (Ok(rank), Ok(world_size)) = (c_int::try_from(rank), c_int::try_from(world_size)) else {
            return Err(Failure::other(format!(
                "a world of {world_size} ranks is too large"
            )));
        };
        // SAFETY: the store and `host` live during the call; the group keeps its own reference to the store.
        checked_new(|out, error| unsafe {
            let timeout = milliseconds(timeout);
            sys::zipper_c10d_group_gloo(
                store.0.as_ptr(),
                rank,
                world_size,
                host.as_ptr(),
                timeout,
                out,
                error,
            )
        })
        .map(Self)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn nccl(
        store: &RawStore,
        rank: u32,
        world_size: u32,
        device_index: usize,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let too_large = |_| Failure::other(format!("a world of {world_size} ranks is too large"));
        let (rank, world_size) = (
            c_int::try_from(rank).map_err(too_large)?,
            c_int::try_from(world_size).map_err(too_large)?,
        );
        let device_index = c_int::try_from(device_index).map_err(too_large)?;
        // SAFETY: the store lives during the call; the group keeps its own reference to the store.
        checked_new(|out, error| unsafe {
            let timeout = milliseconds(timeout);
            sys::zipper_c10d_group_nccl(
                store.0.as_ptr(),
                rank,
                world_size,
                device_index,
                timeout,
                out,
                error,
            )
        })
        .map(Self)
    }

    pub(crate) fn abort(&self) -> Result<(), Failure> {
        // SAFETY: the group lives as long as `self`, and abort is safe beside any other call.
        checked(|error| unsafe { sys::zipper_c10d_group_abort(self.0.as_ptr(), error) })
    }

    pub(crate) fn all_reduce_sum(&self, tensor: &Tensor, timeout: Duration) -> Result<(), Failure> {
        let timeout = milliseconds(timeout);
        // SAFETY: group and tensor live during the call; where libtorch still holds the tensor after an error, it has a
        // reference of its own.
        checked(|error| unsafe {
            sys::zipper_c10d_all_reduce_sum(self.0.as_ptr(), pointer(tensor), timeout, error)
        })
    }

    pub(crate) fn broadcast(&self, tensor: &Tensor, root: u32, timeout: Duration) -> Result<(), Failure> {
        let root = c_int::try_from(root).expect("a root is a rank, checked when the group was made");
        let timeout = milliseconds(timeout);
        // SAFETY: as in `all_reduce_sum`.
        checked(|error| unsafe {
            sys::zipper_c10d_broadcast(self.0.as_ptr(), pointer(tensor), root, timeout, error)
        })
    }

    pub(crate) fn all_gather(
        &self,
        outputs: &[Tensor],
        tensor: &Tensor,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let pointers: Vec<*mut c_void> = outputs.iter().map(pointer).collect();
        let num_outputs = u32::try_from(pointers.len()).expect("one output for each rank");
        let timeout = milliseconds(timeout);
        // SAFETY: as in `all_reduce_sum`; `pointers` holds `num_outputs` tensors.
        checked(|error| unsafe {
            sys::zipper_c10d_all_gather(
                self.0.as_ptr(),
                pointers.as_ptr(),
                num_outputs,
                pointer(tensor),
                timeout,
                error,
            )
        })
    }

    pub(crate) fn exchange(
        &self,
        sent: &[(&Tensor, Rank)],
        received: &[(&Tensor, Rank)],
        timeout: Duration,
    ) -> Result<(), Failure> {
        let ends = |ends: &[(&Tensor, Rank)]| -> (Vec<*mut c_void>, Vec<c_int>, u32) {
            let rank =
                |rank: &Rank| c_int::try_from(rank.0).expect("a rank, checked when the group was made");
            (
                ends.iter().map(|(tensor, _)| pointer(tensor)).collect(),
                ends.iter().map(|(_, peer)| rank(peer)).collect(),
                u32::try_from(ends.len()).expect("a few tensors"),
            )
        };
        let (sent, to, num_sent) = ends(sent);
        let (received, from, num_received) = ends(received);
        let timeout = milliseconds(timeout);
        // SAFETY: as in `all_reduce_sum`; each array has as many elements as is said.
        checked(|error| unsafe {
            sys::zipper_c10d_exchange(
                self.0.as_ptr(),
                sent.as_ptr(),
                to.as_ptr(),
                num_sent,
                received.as_ptr(),
                from.as_ptr(),
                num_received,
                timeout,
                error,
            )
        })
    }

    pub(crate) fn barrier(&self, timeout: Duration) -> Result<(), Failure> {
        // SAFETY: the group lives during the call.
        checked(|error| unsafe { sys::zipper_c10d_barrier(self.0.as_ptr(), milliseconds(timeout), error) })
    }
}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: we own the group and nobody can use it after this.
        unsafe { sys::zipper_c10d_group_free(self.0.as_ptr()) }
    }
}

/// An owned reducer of the shim. It is used from one thread at a time, its owner's.
pub(crate) struct RawReducer(NonNull<sys::RawReducer>);

// SAFETY: the reducer is not tied to the thread that made it; what autograd's threads do with it is under its own lock.
unsafe impl Send for RawReducer {}

/// What [`RawReducer::finish`] reports, also when it fails.
pub(crate) struct Finished {
    pub(crate) reports: Vec<sys::BucketReport>,
    pub(crate) launched_early: usize,
    /// The bucket at fault and what libtorch says.
    pub(crate) failure: Option<(usize, Failure)>,
}

impl RawReducer {
    pub(crate) fn new() -> Result<Self, Failure> {
        checked_abi()?;
        // SAFETY: the call takes nothing of ours.
        checked_new(|out, error| unsafe { sys::zipper_c10d_reducer_new(out, error) }).map(Self)
    }

    pub(crate) fn add_bucket(&self, group: Option<&RawGroup>, params: &[&Tensor]) -> Result<(), Failure> {
        let pointers: Vec<*mut c_void> = params.iter().map(|param| pointer(param)).collect();
        let num_params = u32::try_from(pointers.len()).expect("a model has fewer parameters");
        let group = group.map_or(ptr::null_mut(), |group| group.0.as_ptr());
        // SAFETY: everything lives during the call; the reducer keeps references of its own to backend and tensors.
        checked(|error| unsafe {
            sys::zipper_c10d_reducer_add_bucket(self.0.as_ptr(), group, pointers.as_ptr(), num_params, error)
        })
    }

    pub(crate) fn zero(&self, wanted: &[u8]) -> Result<(), Failure> {
        let num_buckets = u32::try_from(wanted.len()).expect("a model has fewer buckets");
        // SAFETY: `wanted` holds `num_buckets` values during the call.
        checked(|error| unsafe {
            sys::zipper_c10d_reducer_zero(self.0.as_ptr(), wanted.as_ptr(), num_buckets, error)
        })
    }

    pub(crate) fn begin(&self, plans: &[i32], timeout: Duration) -> Result<(), Failure> {
        let num_plans = u32::try_from(plans.len()).expect("a model has fewer buckets");
        // SAFETY: `plans` holds `num_plans` values during the call.
        checked(|error| unsafe {
            let timeout = milliseconds(timeout);
            sys::zipper_c10d_reducer_begin(self.0.as_ptr(), plans.as_ptr(), num_plans, timeout, error)
        })
    }

    pub(crate) fn finish(&self, num_buckets: usize) -> Finished {
        let mut reports = vec![sys::BucketReport::default(); num_buckets];
        let (mut launched_early, mut failed_bucket) = (0, 0);
        let num_reports = u32::try_from(num_buckets).expect("a model has fewer buckets");
        // SAFETY: `reports` has room for `num_reports`, and all outputs live during the call.
        let result = checked(|error| unsafe {
            sys::zipper_c10d_reducer_finish(
                self.0.as_ptr(),
                reports.as_mut_ptr(),
                num_reports,
                &raw mut launched_early,
                &raw mut failed_bucket,
                error,
            )
        });
        Finished {
            reports,
            launched_early: launched_early as usize,
            failure: result.err().map(|failure| (failed_bucket as usize, failure)),
        }
    }
}

impl Drop for RawReducer {
    fn drop(&mut self) {
        // SAFETY: we own the reducer and nobody can use it after this; hooks that are left over find it gone.
        unsafe { sys::zipper_c10d_reducer_free(self.0.as_ptr()) }
    }
}

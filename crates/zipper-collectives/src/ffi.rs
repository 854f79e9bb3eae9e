//! The calls into the shim: ownership of its objects and strings, and nothing else.

#![expect(unsafe_code, reason = "calls the C interface of the c10d shim")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;
use zipper_collectives_sys as sys;

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

    fn other(message: impl Into<String>) -> Self {
        Self {
            status: sys::OTHER,
            message: message.into(),
        }
    }
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

    pub(crate) fn abort(&self) -> Result<(), Failure> {
        // SAFETY: the group lives as long as `self`, and abort is safe beside any other call.
        checked(|error| unsafe { sys::zipper_c10d_group_abort(self.0.as_ptr(), error) })
    }

    pub(crate) fn all_reduce_sum(&self, tensor: &Tensor) -> Result<(), Failure> {
        // SAFETY: group and tensor live during the call, which returns when libtorch has let go of the tensor.
        checked(|error| unsafe { sys::zipper_c10d_all_reduce_sum(self.0.as_ptr(), pointer(tensor), error) })
    }

    pub(crate) fn broadcast(&self, tensor: &Tensor, root: u32) -> Result<(), Failure> {
        let root = c_int::try_from(root).expect("a root is a rank, checked when the group was made");
        // SAFETY: as in `all_reduce_sum`.
        checked(|error| unsafe { sys::zipper_c10d_broadcast(self.0.as_ptr(), pointer(tensor), root, error) })
    }

    pub(crate) fn all_gather(&self, outputs: &[Tensor], tensor: &Tensor) -> Result<(), Failure> {
        let pointers: Vec<*mut c_void> = outputs.iter().map(pointer).collect();
        let num_outputs = u32::try_from(pointers.len()).expect("one output for each rank");
        // SAFETY: as in `all_reduce_sum`; `pointers` holds `num_outputs` tensors.
        checked(|error| unsafe {
            sys::zipper_c10d_all_gather(
                self.0.as_ptr(),
                pointers.as_ptr(),
                num_outputs,
                pointer(tensor),
                error,
            )
        })
    }

    pub(crate) fn barrier(&self) -> Result<(), Failure> {
        // SAFETY: the group lives during the call.
        checked(|error| unsafe { sys::zipper_c10d_barrier(self.0.as_ptr(), error) })
    }
}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // SAFETY: we own the group and nobody can use it after this.
        unsafe { sys::zipper_c10d_group_free(self.0.as_ptr()) }
    }
}

//! The C interface of the c10d shim, declared for Rust.
//!
//! Owns `shim/` (C++ over libtorch's c10d) and its declarations, nothing else: `zipper-collectives` makes it safe.
//! `shim/c10d.h` says what each function does, who owns what, and which calls are safe from which threads.

#![allow(unsafe_code)] // declarations of foreign functions

use std::ffi::{c_char, c_int, c_void};

/// The version of the interface declared here.
pub const ABI_VERSION: u32 = 5;

/// Status of a call that did what it was asked.
pub const OK: i32 = 0;
/// A failure without a type; everything that Gloo reports.
pub const OTHER: i32 = 1;
/// `c10d::TimeoutError`.
pub const TIMEOUT: i32 = 2;
/// `c10::DistNetworkError`.
pub const NETWORK: i32 = 3;
/// `c10::DistStoreError`.
pub const STORE: i32 = 4;
/// `c10::DistBackendError`.
pub const BACKEND: i32 = 5;

/// A key-value store, owned by the caller.
#[repr(C)]
pub struct RawStore {
    _opaque: [u8; 0],
}

/// A process group, owned by the caller.
#[repr(C)]
pub struct RawGroup {
    _opaque: [u8; 0],
}

/// Gradients in buckets, owned by the caller.
#[repr(C)]
pub struct RawReducer {
    _opaque: [u8; 0],
}

/// A bucket is not summed.
pub const SKIP: i32 = 0;
/// A bucket is summed as soon as it is complete.
pub const AS_READY: i32 = 1;
/// A bucket is complete already.
pub const NOW: i32 = 2;
/// A bucket is summed in the end.
pub const AT_END: i32 = 3;

/// How one bucket fared, `zipper_c10d_bucket_report`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct BucketReport {
    /// Bytes that were summed.
    pub bytes: u64,
    /// Nanoseconds after begin, or -1.
    pub launched_ns: i64,
    /// Nanoseconds after begin, or -1.
    pub finished_ns: i64,
}

#[allow(missing_docs)] // documented in shim/c10d.h
unsafe extern "C" {
    pub safe fn zipper_c10d_abi_version() -> u32;
    pub fn zipper_c10d_string_free(string: *mut c_char);

    pub fn zipper_c10d_store_serve(
        listen_fd: c_int,
        host: *const c_char,
        port: u16,
        timeout_ms: i64,
        out: *mut *mut RawStore,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_store_connect(
        host: *const c_char,
        port: u16,
        timeout_ms: i64,
        out: *mut *mut RawStore,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_store_prefix(
        store: *const RawStore,
        prefix: *const c_char,
        out: *mut *mut RawStore,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_store_set(
        store: *const RawStore,
        key: *const c_char,
        value: *const c_char,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_store_get(
        store: *const RawStore,
        key: *const c_char,
        timeout_ms: i64,
        value: *mut *mut c_char,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_store_has(
        store: *const RawStore,
        key: *const c_char,
        found: *mut i32,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_store_free(store: *mut RawStore);

    pub fn zipper_c10d_group_gloo(
        store: *const RawStore,
        rank: c_int,
        world_size: c_int,
        host: *const c_char,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
        error: *mut *mut c_char,
    ) -> i32;
    #[cfg(feature = "cuda")]
    pub fn zipper_c10d_group_nccl(
        store: *const RawStore,
        rank: c_int,
        world_size: c_int,
        device_index: c_int,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
        error: *mut *mut c_char,
    ) -> i32;
    #[cfg(feature = "cuda")]
    pub fn zipper_cuda_peak_bytes(device_index: c_int, out: *mut i64, error: *mut *mut c_char) -> i32;
    pub fn zipper_c10d_group_abort(group: *mut RawGroup, error: *mut *mut c_char) -> i32;
    pub fn zipper_c10d_group_free(group: *mut RawGroup);

    pub fn zipper_c10d_all_reduce_sum(
        group: *mut RawGroup,
        tensor: *mut c_void,
        timeout_ms: i64,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_broadcast(
        group: *mut RawGroup,
        tensor: *mut c_void,
        root: c_int,
        timeout_ms: i64,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_all_gather(
        group: *mut RawGroup,
        outputs: *const *mut c_void,
        num_outputs: u32,
        tensor: *mut c_void,
        timeout_ms: i64,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_barrier(group: *mut RawGroup, timeout_ms: i64, error: *mut *mut c_char) -> i32;
    pub fn zipper_c10d_exchange(
        group: *mut RawGroup,
        sent: *const *mut c_void,
        to: *const c_int,
        num_sent: u32,
        received: *const *mut c_void,
        from: *const c_int,
        num_received: u32,
        timeout_ms: i64,
        error: *mut *mut c_char,
    ) -> i32;

    pub fn zipper_c10d_reducer_new(out: *mut *mut RawReducer, error: *mut *mut c_char) -> i32;
    pub fn zipper_c10d_reducer_add_bucket(
        reducer: *mut RawReducer,
        group: *mut RawGroup,
        params: *const *mut c_void,
        num_params: u32,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_reducer_zero(
        reducer: *mut RawReducer,
        wanted: *const u8,
        num_buckets: u32,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_reducer_begin(
        reducer: *mut RawReducer,
        plans: *const i32,
        num_plans: u32,
        timeout_ms: i64,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_reducer_finish(
        reducer: *mut RawReducer,
        reports: *mut BucketReport,
        num_reports: u32,
        launched_early: *mut u32,
        failed_bucket: *mut u32,
        error: *mut *mut c_char,
    ) -> i32;
    pub fn zipper_c10d_reducer_free(reducer: *mut RawReducer);
}

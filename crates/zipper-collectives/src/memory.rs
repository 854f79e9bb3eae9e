//! Memory of a GPU, as libtorch's allocator counts it.

/// The most bytes that tensors of this process have had on GPU `device` so far; nothing if that cannot be told, as in builds without CUDA.
pub fn gpu_peak_bytes(device: usize) -> Option<u64> {
    #[cfg(feature = "cuda")]
    let peak = crate::ffi::cuda_peak_bytes(device).ok();
    #[cfg(not(feature = "cuda"))]
    let peak = {
        let _ = device;
        None::<i64>
    };
    peak.and_then(|bytes| bytes.try_into().ok())
}

//! libtorch: the C++ libraries and headers inside PyTorch's wheel, in `.deps/libtorch`.
//!
//! Without CUDA, two of the wheels that PyTorch depends on are enough, because `libtorch_cpu.so` is linked to the libraries in
//! them.

use super::wheels::Wheels;

const GIB: u64 = 1 << 30;
/// The libraries that programs are linked to, and headers.
const ESSENTIAL: &[&str] = &[
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libtorch.so",
    "torch/include/torch/csrc/distributed/c10d/TCPStore.hpp",
];

/// Which install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    /// What a CPU needs.
    Cpu,
    /// With CUDA, cuDNN and NCCL.
    Cuda,
}

impl Flavor {
    /// The wheels of this install.
    pub(crate) fn wheels(self) -> Wheels {
        let (requirements, bytes_needed) = match self {
            Self::Cpu => ("crates/xtask/requirements/libtorch-cpu.txt", 2 * GIB),
            Self::Cuda => ("crates/xtask/requirements/libtorch-cuda.txt", 7 * GIB),
        };
        Wheels {
            name: "libtorch",
            requirements,
            essential: ESSENTIAL,
            bytes_needed,
        }
    }
}

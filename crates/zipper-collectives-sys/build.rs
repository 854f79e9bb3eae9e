//! Compiles the shim against libtorch.

fn main() {
    let libtorch = zipper_build::libtorch();
    let cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();

    let mut libraries = vec!["torch_cpu", "c10"];
    let mut shim = zipper_build::shim(&libtorch);
    shim.define("USE_C10D_GLOO", None)
        .define("USE_DISTRIBUTED", None)
        .include("shim/gloo_stub")
        .include(libtorch.join("include/torch/csrc/api/include"))
        .file("shim/c10d.cpp")
        .file("shim/reducer.cpp");
    if cuda {
        shim.define("ZIPPER_CUDA", None)
            .define("USE_C10D_NCCL", None)
            .define("USE_CUDA", None)
            .includes(zipper_build::cuda_includes(&libtorch))
            .file("shim/nccl.cpp");
        libraries.extend(["torch_cuda", "c10_cuda"]);
    }
    shim.compile("zipper_c10d");
    zipper_build::link(&libtorch, &libraries);
}

//! Compiles the shim against libtorch.

fn main() {
    let libtorch = zipper_build::libtorch();
    let include = libtorch.join("include");
    println!("cargo::rerun-if-changed=shim");
    let cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();

    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .pic(true)
        .flag_if_supported("-fvisibility=hidden")
        // libtorch's own headers are full of warnings: they are not ours to show.
        .warnings(false)
        .define("USE_C10D_GLOO", None)
        .define("USE_DISTRIBUTED", None)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include("shim/gloo_stub")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("shim/c10d.cpp")
        .file("shim/reducer.cpp");
    if cuda {
        shim.define("ZIPPER_CUDA", None)
            .define("USE_C10D_NCCL", None)
            .define("USE_CUDA", None)
            .includes(zipper_build::cuda_includes(&libtorch))
            .file("shim/nccl.cpp");
    }
    shim.compile("zipper_c10d");

    println!(
        "cargo::rustc-link-search=native={}",
        libtorch.join("lib").display()
    );
    println!("cargo::rustc-link-lib=dylib=torch_cpu");
    println!("cargo::rustc-link-lib=dylib=c10");
    if cuda {
        println!("cargo::rustc-link-lib=dylib=torch_cuda");
        println!("cargo::rustc-link-lib=dylib=c10_cuda");
    }
    zipper_build::find_libtorch_at_run_time();
}

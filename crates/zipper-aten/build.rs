//! Compiles the shim against libtorch.

fn main() {
    let libtorch = zipper_build::libtorch();
    let include = libtorch.join("include");
    println!("cargo::rerun-if-changed=shim");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .flag_if_supported("-fvisibility=hidden")
        // libtorch's own headers are full of warnings: they are not ours to show.
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .file("shim/aten.cpp")
        .compile("zipper_aten");
    println!(
        "cargo::rustc-link-search=native={}",
        libtorch.join("lib").display()
    );
    println!("cargo::rustc-link-lib=dylib=torch_cpu");
    println!("cargo::rustc-link-lib=dylib=c10");
    zipper_build::find_libtorch_at_run_time();
}

//! Where libtorch is, for build scripts.
//!
//! Owns what crates that link libtorch need at build time: finding the install that `cargo xtask setup` made (`LIBTORCH`, set in
//! `.cargo/config.toml`), compiling C++ against it, and making the programs of a package find its shared libraries when they run. A library's
//! link arguments do not reach the programs that use it, so each package with a program, a test or an example that links libtorch has a
//! `build.rs` whose main function calls [`find_libtorch_at_run_time`].
//!
//! Never used at run time.

use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

/// The directory of libtorch, checked to hold its headers and libraries.
///
/// Ends the build script with a message when there is none: a build script has nobody to return an error to.
#[must_use]
pub fn libtorch() -> PathBuf {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let Some(dir) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        fail("LIBTORCH is not set: build inside the repository, whose .cargo/config.toml sets it");
    };
    for needed in [
        "lib/libtorch_cpu.so",
        "lib/libc10.so",
        "include/torch/csrc/distributed/c10d/TCPStore.hpp",
    ] {
        let path = dir.join(needed);
        println!("cargo::rerun-if-changed={}", path.display());
        if !path.exists() {
            fail(&format!(
                "libtorch is not there (no `{}`): run `cargo xtask setup`",
                path.display()
            ));
        }
    }
    dir
}

/// A compiler of C++ in `shim/` of the calling package, with libtorch's headers.
#[must_use]
pub fn shim(libtorch: &Path) -> cc::Build {
    println!("cargo::rerun-if-changed=shim");
    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .pic(true)
        .flag_if_supported("-fvisibility=hidden")
        // libtorch's own headers are full of warnings: they are not ours to show.
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(libtorch.join("include"));
    shim
}

/// Links these of libtorch's libraries to the calling package; its programs find them at run time.
pub fn link(libtorch: &Path, libraries: &[&str]) {
    println!(
        "cargo::rustc-link-search=native={}",
        libtorch.join("lib").display()
    );
    for library in libraries {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    find_libtorch_at_run_time();
}

/// The folders of CUDA's and NCCL's headers, which are in packages beside libtorch.
///
/// Ends the build script with a message when they are not there.
#[must_use]
pub fn cuda_includes(libtorch: &Path) -> Vec<PathBuf> {
    let packages = libtorch.parent().unwrap_or(libtorch).join("nvidia");
    [
        ("nccl/include", "nccl.h"),
        ("cu13/include", "cublas_v2.h"),
        ("cu13/include/cccl", "cuda/std/version"),
    ]
    .into_iter()
    .map(|(folder, header)| {
        let folder = packages.join(folder);
        if !folder.join(header).exists() {
            fail(&format!(
                "the headers of CUDA are not there (no `{}`): run `cargo xtask setup --cuda`",
                folder.join(header).display()
            ));
        }
        folder
    })
    .collect()
}

/// Makes every program, test and example of the calling package look for libtorch beside its folder, where `cargo xtask dist` has it,
/// and then where it was at build time.
///
/// The paths go into the program as `RUNPATH`, so on another machine `LD_LIBRARY_PATH` takes precedence over them. The
/// libraries that libtorch itself is linked to need not be there at build time: `libtorch_cuda.so` names a dozen.
pub fn find_libtorch_at_run_time() {
    let here = libtorch().join("lib");
    // The linker's own word for the folder of the program.
    for folder in ["$ORIGIN/../libtorch/torch/lib", &here.to_string_lossy()] {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
}

fn fail(problem: &str) -> ! {
    println!("cargo::error={problem}");
    exit(1)
}

//! Compiles the shim against libtorch.

fn main() {
    let libtorch = zipper_build::libtorch();
    zipper_build::shim(&libtorch)
        .files(["shim/fused.cpp", "shim/lists.cpp"])
        // Its loops are as much work as libtorch's own, which are optimized in every build.
        .opt_level(3)
        .compile("zipper_aten");
    zipper_build::link(&libtorch, &["torch_cpu", "c10"]);
}

//! Compiles the shim against libtorch.

fn main() {
    let libtorch = zipper_build::libtorch();
    zipper_build::shim(&libtorch)
        .file("shim/aten.cpp")
        .compile("zipper_aten");
    zipper_build::link(&libtorch, &["torch_cpu", "c10"]);
}

//! Lets the programs and tests of this package find libtorch.

fn main() {
    zipper_build::find_libtorch_at_run_time();
}

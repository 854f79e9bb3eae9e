//! Goal: NCCL refuses what it cannot do with words, and between GPUs gives the numbers that Gloo gives on the CPU.
//! Method: refusals are seen on any machine. What needs a GPU is ignored: `cargo xtask gpu` runs it, with one rank.

use std::time::Duration;

use tch::Device;
use zipper_collectives::{Backend, ErrorKind, GroupOptions, ProcessGroup, Store};
use zipper_types::{Rank, WorldSize};

const HOST: &str = "127.0.0.1";
const TIMEOUT: Duration = Duration::from_mins(1);

/// What somebody is told who asks for NCCL on `device`.
fn refusal(device: Device) -> String {
    let (store, _) = Store::serve(HOST, TIMEOUT).unwrap();
    let options = GroupOptions {
        backend: Backend::Nccl,
        device,
        ..GroupOptions::gloo(HOST, TIMEOUT)
    };
    let Err(error) = ProcessGroup::connect(&store, Rank(0), WorldSize(1), &options) else {
        panic!("a group was made on {device:?}");
    };
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    error.to_string()
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_program_without_nccl_says_how_to_get_it() {
    assert!(!Backend::Nccl.is_built());
    let said = refusal(Device::Cuda(0));
    for part in [
        "without NCCL",
        "cargo xtask setup --cuda",
        "--features cuda",
        "Gloo",
    ] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[cfg(feature = "cuda")]
mod with_cuda {
    use tch::{Cuda, Kind, Tensor};
    use zipper_collectives::{BucketPlan, BucketSpec, GradientReducer};

    use super::*;

    /// Also on a machine without any.
    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        assert!(Backend::Nccl.is_built());
        let found = Cuda::device_count();
        let said = refusal(Device::Cuda(found as usize));
        let expected = format!("there is no GPU {found}: libtorch finds {found}");
        assert!(said.contains(&expected), "{said}");
    }

    #[test]
    fn nccl_is_not_for_the_cpu() {
        let said = refusal(Device::Cpu);
        assert!(
            said.contains("NCCL works on GPUs, and this rank's device is Cpu"),
            "{said}"
        );
    }

    /// A group of one rank on the first GPU.
    fn group(store: &Store) -> ProcessGroup {
        let options = GroupOptions {
            backend: Backend::Nccl,
            device: Device::Cuda(0),
            ..GroupOptions::gloo(HOST, TIMEOUT)
        };
        ProcessGroup::connect(store, Rank(0), WorldSize(1), &options).expect("NCCL makes a group")
    }

    #[test]
    #[ignore = "needs a GPU: cargo xtask gpu"]
    fn gpu_collectives_of_one_rank_change_nothing() {
        let (store, _) = Store::serve(HOST, TIMEOUT).unwrap();
        let group = group(&store);
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double, Kind::Int64] {
            let tensor = Tensor::arange(1000, (kind, Device::Cuda(0)));
            let expected = tensor.copy();
            group.all_reduce_sum(&tensor, "numbers").unwrap();
            group.broadcast(&tensor, Rank(0), "numbers").unwrap();
            let gathered = group.all_gather(&tensor, "numbers").unwrap();
            assert_eq!(tensor, expected, "{kind:?}");
            assert_eq!(gathered, [expected], "{kind:?}");
        }
        group.barrier("end of the test").unwrap();
        let on_the_cpu = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let error = group.all_reduce_sum(&on_the_cpu, "numbers").unwrap_err();
        assert!(
            error.to_string().contains("the group works on Cuda(0)"),
            "{error}"
        );
    }

    /// A sum that is launched inside backward must see the finished gradient: both are work of other streams.
    #[test]
    #[ignore = "needs a GPU: cargo xtask gpu"]
    fn gpu_gradients_are_summed_when_they_are_complete() {
        let (store, _) = Store::serve(HOST, TIMEOUT).unwrap();
        let group = group(&store);
        let layers = |device| -> Vec<Tensor> {
            let layer = |index: i64| {
                let values = Tensor::arange(1 << 20, (Kind::Float, Device::Cpu)) * 0.37 + index;
                let values = values.sin().reshape([1 << 10, 1 << 10]) * 0.03;
                values.to_device(device).set_requires_grad(true)
            };
            (0..6).map(layer).collect()
        };
        let backward = |layers: &[Tensor], before: &dyn Fn()| {
            let input = Tensor::arange(1 << 18, (Kind::Float, Device::Cpu)) * 0.11;
            let input = input
                .cos()
                .reshape([1 << 8, 1 << 10])
                .to_device(layers[0].device());
            let output = layers.iter().fold(input, |x, layer| x.matmul(layer).tanh());
            before();
            output.square().sum(Kind::Float).backward();
        };
        let (on_cpu, with_nccl) = (layers(Device::Cpu), layers(Device::Cuda(0)));
        backward(&on_cpu, &|| ());
        let buckets: Vec<BucketSpec<'_>> = (0..with_nccl.len())
            .rev()
            .map(|layer| BucketSpec {
                name: format!("layer {layer}"),
                group: Some(&group),
                params: vec![&with_nccl[layer]],
            })
            .collect();
        let reducer = GradientReducer::new(&buckets).unwrap();
        let plans = vec![BucketPlan::AsReady; with_nccl.len()];
        for step in 1..=20 {
            reducer.zero(|_| true);
            backward(&with_nccl, &|| {
                reducer.begin(&format!("step {step}"), &plans).unwrap();
            });
            let report = reducer.finish().unwrap();
            assert_eq!(report.launched_in_backward, plans.len());
            for (layer, (expected, found)) in on_cpu.iter().zip(&with_nccl).enumerate() {
                let (expected, found) = (expected.grad(), found.grad().to_device(Device::Cpu));
                let norm = |tensor: &Tensor| tensor.norm().double_value(&[]);
                let error = norm(&(&expected - found)) / norm(&expected);
                assert!(error < 1e-4, "step {step}, layer {layer}: off by {error:e}");
            }
        }
    }
}

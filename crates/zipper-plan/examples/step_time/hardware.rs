//! Formulas for GPUs and networks: how long a rank computes, launches kernels and sums gradients with others.

use crate::MIB;
use crate::flags::Flags;

impl Flags {
    /// Seconds that a GPU computes for `audio_seconds` of `utterances`, and the part of them that is backward.
    pub(crate) fn compute(&self, audio_seconds: f64, utterances: f64) -> (f64, f64) {
        let text = self.of("text-tokens") + self.of("positions");
        let tokens = audio_seconds * text + utterances * self.of("prompt-tokens");
        let encoder = 2.0 * self.of("encoder-parameters") * audio_seconds * self.of("encoder-frames");
        // The frozen weights have no gradients: backward is one product for each, like forward.
        let pass = 2.0 * self.of("llm-parameters") * tokens;
        let speed = self.of("gpu-tflops") * 1e12 * self.of("mfu");
        ((encoder + 2.0 * pass) / speed, pass / speed)
    }

    /// Seconds of `kernels` small kernels, by the host that launches them.
    pub(crate) fn launches(&self, kernels: f64) -> f64 {
        kernels * self.of("launch-us") * 1e-6
    }

    /// Seconds of an all-reduce of `bytes` among the ranks `first` to `last`: inside each node a ring, between nodes, where each
    /// rank sums its part of the node's bytes, a ring or a tree, whichever is faster.
    pub(crate) fn all_reduce(&self, bytes: f64, first: u32, last: u32) -> f64 {
        let per_node = self.of("gpus-per-node");
        let ranks = f64::from(last - first + 1);
        if ranks < 2.0 || bytes <= 0.0 {
            return 0.0;
        }
        let node = |rank: u32| (f64::from(rank) / per_node).floor();
        let nodes = node(last) - node(first) + 1.0;
        let of_node = (ranks / nodes).clamp(1.0, per_node);
        let buckets = (bytes / (self.of("bucket-mib") * MIB)).ceil();
        let inside = 2.0 * (of_node - 1.0) / of_node * bytes / (self.of("intra-gb-s") * 1e9)
            + buckets * 2.0 * (of_node - 1.0) * self.of("intra-us") * 1e-6;
        if nodes < 2.0 {
            return inside;
        }
        let wire = 2.0 * bytes / of_node / (self.of("inter-gb-s") * 1e9);
        let hops = buckets * 2.0 * self.of("inter-us") * 1e-6;
        let ring = wire * (nodes - 1.0) / nodes + hops * (nodes - 1.0);
        let tree = wire + hops * nodes.log2().ceil();
        inside + ring.min(tree)
    }
}

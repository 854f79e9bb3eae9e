//! What a rank has to hold and to send, as numbers that follow from the shapes of the adapted layers (docs/concepts.md).

use std::collections::BTreeSet;

use zipper_types::Variant;

/// AdamW's moments of each parameter.
const MOMENTS: u64 = 2;
const MIB: f64 = 1024.0 * 1024.0;

/// An adapted linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteShape {
    /// Its name in the model's files, `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Width of its input.
    pub d_in: u64,
    /// Width of its output.
    pub d_out: u64,
}

/// The projector between encoder and LLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProjectorShape {
    /// Two convolutions, two linear layers, a layer norm.
    Conv {
        /// Width of the encoder.
        d_encoder: u64,
        /// Width of the LLM.
        d_llm: u64,
    },
    /// Frames stacked, two linear layers.
    Stack {
        /// Width of the encoder.
        d_encoder: u64,
        /// Width of the LLM.
        d_llm: u64,
        /// Frames in a stack.
        stack: u64,
        /// Width of the hidden layer.
        hidden: u64,
    },
}

/// The adapters of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterShape {
    /// How B is shared.
    pub variant: Variant,
    /// LoRA rank.
    pub rank: u64,
    /// Columns of B that `static` shares.
    pub shared_rank: u64,
    /// Width of a LID embedding.
    pub lid_dim: u64,
    /// Number of routers: one for each adapted layer, each transformer layer, or one.
    pub routers: u64,
    /// Number of languages.
    pub languages: u64,
}

/// Numbers of trainable parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inventory {
    /// Parameters that every rank holds: projector, LID head, A, shared B, routers, LID embeddings.
    pub shared: u64,
    /// Parameters of the bank of one language.
    pub bank: u64,
    /// Bytes of one number.
    pub element_bytes: u64,
}

impl ProjectorShape {
    /// Width of the encoder's frames.
    pub fn d_encoder(self) -> u64 {
        match self {
            Self::Conv { d_encoder, .. } | Self::Stack { d_encoder, .. } => d_encoder,
        }
    }

    /// Number of its parameters.
    pub fn parameters(self) -> u64 {
        let layer = |d_out: u64, inputs: u64| d_out * inputs + d_out;
        match self {
            Self::Conv { d_encoder: d, d_llm } => {
                layer(d, 3 * d) + layer(4 * d, 3 * d) + layer(d, 4 * d) + layer(d_llm, d) + 2 * d_llm
            }
            Self::Stack {
                d_encoder,
                d_llm,
                stack,
                hidden,
            } => layer(hidden, stack * d_encoder) + layer(d_llm, hidden),
        }
    }
}

impl Inventory {
    /// Counts the parameters of a projector and of the adapters at `sites`, `element_bytes` each.
    pub fn new(
        projector: ProjectorShape,
        adapter: &AdapterShape,
        sites: &[SiteShape],
        element_bytes: u64,
    ) -> Self {
        let (mut shared, mut bank) = (projector.parameters(), 0);
        for site in sites {
            let (a, column) = (adapter.rank * site.d_in, site.d_out);
            match adapter.variant {
                Variant::Shared => shared += a + adapter.rank * column,
                Variant::Independent => bank += a + adapter.rank * column,
                Variant::Static => {
                    shared += a + adapter.shared_rank * column;
                    bank += (adapter.rank - adapter.shared_rank) * column;
                }
                Variant::Hard | Variant::Soft => {
                    shared += a + adapter.rank * column;
                    bank += adapter.rank * column;
                }
            }
        }
        if adapter.variant.has_router() {
            shared += adapter.languages * adapter.lid_dim;
            shared += adapter.routers * (adapter.rank * adapter.lid_dim + adapter.rank);
        }
        Self {
            shared,
            bank,
            element_bytes,
        }
    }

    /// With a LID head, which tells `languages` apart by frames of `d_encoder` numbers.
    #[must_use]
    pub fn with_lid_head(self, languages: u64, d_encoder: u64) -> Self {
        Self {
            shared: self.shared + languages * (d_encoder + 1),
            ..self
        }
    }

    /// Bytes of the shared parameters: also those of their gradients, which go through one all-reduce per step.
    pub fn shared_bytes(&self) -> u64 {
        self.shared * self.element_bytes
    }

    /// Bytes of one bank: also those of its gradients.
    pub fn bank_bytes(&self) -> u64 {
        self.bank * self.element_bytes
    }

    /// Bytes of optimizer state for `parameters` bytes of parameters.
    pub fn optimizer_bytes(parameters: u64) -> u64 {
        MOMENTS * parameters
    }

    /// Memory of one bank on a rank: weights, gradients, optimizer state.
    pub fn bank_memory(&self) -> u64 {
        2 * self.bank_bytes() + Self::optimizer_bytes(self.bank_bytes())
    }

    /// Most bytes that a rank beside others remembers, so that a loss needs no checkpoint (docs/recovery.md): the state before the newest step,
    /// and with `snapshots` two more of itself and of the `kept` banks of other ranks. `weights` are the bytes of what it trains.
    pub fn remembered_bytes(&self, weights: u64, kept: u64, snapshots: bool) -> u64 {
        let state = |weights: u64| weights + Self::optimizer_bytes(weights);
        let snapshots = if snapshots {
            2 * state(weights + kept * self.bank_bytes())
        } else {
            0
        };
        state(weights) + snapshots
    }

    /// Bytes of the tensors in a checkpoint of `languages` languages.
    pub fn checkpoint_bytes(&self, languages: u64) -> u64 {
        let weights = self.shared_bytes() + languages * self.bank_bytes();
        weights + Self::optimizer_bytes(weights)
    }
}

/// Banks of `bank_memory` bytes each that fit into `memory_mib` MiB.
pub fn banks_that_fit(memory_mib: f64, bank_memory: u64) -> u32 {
    (memory_mib * MIB / bank_memory.max(1) as f64) as u32
}

/// The transformer layers among `sites`, each named once: `model.layers.3` of `model.layers.3.self_attn.q_proj`.
pub fn transformer_layers(sites: &[SiteShape]) -> BTreeSet<&str> {
    sites
        .iter()
        .map(|site| {
            let name = site.name.as_str();
            let index = name.split('.').position(|part| part.parse::<u32>().is_ok());
            let end = index.and_then(|index| name.match_indices('.').nth(index));
            end.map_or(name, |(end, _)| &name[..end])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_banks_fit() {
        let mib = 1024 * 1024;
        assert_eq!(
            [(1.0, mib), (2.9, mib), (0.9, mib), (1.0, 0)].map(|(memory, bank)| banks_that_fit(memory, bank)),
            [1, 2, 0, 1024 * 1024]
        );
    }

    /// The adapted layers of Qwen2.5-7B.
    fn qwen() -> Vec<SiteShape> {
        let site = |layer: usize, name: &str, d_in, d_out| SiteShape {
            name: format!("model.layers.{layer}.{name}"),
            d_in,
            d_out,
        };
        (0..28)
            .flat_map(|layer| {
                [
                    site(layer, "self_attn.q_proj", 3584, 3584),
                    site(layer, "self_attn.k_proj", 3584, 512),
                    site(layer, "self_attn.v_proj", 3584, 512),
                    site(layer, "self_attn.o_proj", 3584, 3584),
                    site(layer, "mlp.gate_proj", 3584, 18944),
                    site(layer, "mlp.up_proj", 3584, 18944),
                    site(layer, "mlp.down_proj", 18944, 3584),
                ]
            })
            .collect()
    }

    fn adapter(variant: Variant) -> AdapterShape {
        AdapterShape {
            variant,
            rank: 16,
            shared_rank: 8,
            lid_dim: 64,
            routers: 196,
            languages: 12,
        }
    }

    /// Goal: the sizes that are known of Qwen2.5-7B with rank 16: A 18 M, one B 22 M, plain LoRA 40 M.
    #[test]
    fn sizes_of_qwen_are_those_that_are_known() {
        let projector = ProjectorShape::Conv {
            d_encoder: 1280,
            d_llm: 3584,
        };
        let of = |variant| Inventory::new(projector, &adapter(variant), &qwen(), 4);
        let plain = of(Variant::Shared);
        let lora = plain.shared - projector.parameters();
        assert_eq!(lora / 1_000_000, 40);
        assert_eq!((projector.parameters() / 1_000_000, plain.bank), (35, 0));
        let soft = of(Variant::Soft);
        assert_eq!(soft.bank / 100_000, 222);
        assert_eq!((lora - soft.bank) / 1_000_000, 18);
        assert_eq!(of(Variant::Independent).bank, lora);
        assert_eq!(of(Variant::Static).bank * 2, soft.bank);
        assert_eq!(
            soft.checkpoint_bytes(12),
            3 * (soft.shared_bytes() + 12 * soft.bank_bytes())
        );
        assert_eq!(soft.bank_memory(), 4 * soft.bank_bytes());
    }

    /// Goal: every variant's numbers are those of its formula. Method: counted by hand, where no two sizes are the same.
    #[test]
    fn parameters_are_those_counted_by_hand() {
        let conv = ProjectorShape::Conv {
            d_encoder: 2,
            d_llm: 3,
        };
        // Two convolutions of three frames, two linear layers, and a norm; each layer has its biases.
        assert_eq!(
            conv.parameters(),
            (2 * 6 + 2) + (8 * 6 + 8) + (2 * 8 + 2) + (3 * 2 + 3) + 6
        );
        let stack = ProjectorShape::Stack {
            d_encoder: 2,
            d_llm: 3,
            stack: 5,
            hidden: 13,
        };
        let of_projector = (13 * 10 + 13) + (3 * 13 + 3);
        assert_eq!(stack.parameters(), of_projector);
        assert_eq!((conv.d_encoder(), stack.d_encoder()), (2, 2));

        let site = SiteShape {
            name: "model.layers.0.q_proj".to_owned(),
            d_in: 7,
            d_out: 11,
        };
        let of = |variant| {
            let adapter = AdapterShape {
                variant,
                rank: 4,
                shared_rank: 1,
                lid_dim: 6,
                routers: 9,
                languages: 5,
            };
            Inventory::new(stack, &adapter, std::slice::from_ref(&site), 8)
        };
        let (a, b) = (4 * 7, 4 * 11);
        // Five LID embeddings, and of each router a weight and a bias for each column.
        let of_routers = 5 * 6 + 9 * (4 * 6 + 4);
        for (variant, shared, bank) in [
            (Variant::Shared, a + b, 0),
            (Variant::Independent, 0, a + b),
            (Variant::Static, a + 11, 3 * 11),
            (Variant::Hard, a + b + of_routers, b),
            (Variant::Soft, a + b + of_routers, b),
        ] {
            let found = of(variant);
            assert_eq!(
                (found.shared, found.bank),
                (of_projector + shared, bank),
                "{variant}"
            );
        }

        let soft = of(Variant::Soft);
        assert_eq!(soft.with_lid_head(5, 2).shared, soft.shared + 5 * (2 + 1));
        assert_eq!(soft.bank_bytes(), 8 * b);
        assert_eq!(soft.shared_bytes(), 8 * soft.shared);
        // A state is weights and two moments; two snapshots hold the kept banks, too.
        assert_eq!(soft.remembered_bytes(100, 2, false), 3 * 100);
        assert_eq!(
            soft.remembered_bytes(100, 2, true),
            3 * 100 + 2 * 3 * (100 + 2 * 8 * b)
        );
    }

    #[test]
    fn layers_are_named_once() {
        let layers = transformer_layers(&qwen()).len();
        assert_eq!(layers, 28);
        let encoder = SiteShape {
            name: "model.encoder.layers.3.fc1".to_owned(),
            d_in: 1,
            d_out: 1,
        };
        assert!(transformer_layers(&[encoder]).contains("model.encoder.layers.3"));
    }
}

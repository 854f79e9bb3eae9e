//! The last backward pass of a step: gradients go through the merging into the parameters, layer by layer, so that they
//! can be reduced over the ranks while the layers below are still at work.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tch::Tensor;

use super::Adapters;
use super::merged::{AdaptedRows, Matrices, MergedAdapters};
use crate::carry::{self, carry};
use crate::linear::SiteId;

/// The forward pass of a step's last micro batch, made by [`MergedAdapters::last_pass`].
///
/// Every layer's B(l) is merged anew when the forward pass reaches it. Backward runs what was recorded last first, so
/// the gradients of a layer's parameters are complete before the layer below has been reached. What earlier micro
/// batches have gathered in B(l) joins in through [`LastPass::carried`].
///
/// Where every layer has a backward pass of its own ([`LastPass::layer_by_layer`]), gradients of gates, which layers may share, gather
/// until [`LastPass::routers`] takes them on.
#[derive(Debug)]
pub struct LastPass<'a> {
    adapters: &'a Adapters,
    merged: &'a MergedAdapters,
    layer_by_layer: bool,
    lid: OnceCell<Tensor>,
    /// By router.
    gates: RefCell<BTreeMap<usize, Gates>>,
    sites: RefCell<BTreeMap<SiteId, Rc<Matrices>>>,
    carried: RefCell<Vec<Tensor>>,
}

/// What a router says, `[P, r]`.
#[derive(Debug)]
struct Gates {
    /// Connected to the router.
    connected: Tensor,
    /// What layers multiply by: the same, or a leaf in which their gradients gather.
    used: Tensor,
}

impl<'a> LastPass<'a> {
    pub(super) fn new(adapters: &'a Adapters, merged: &'a MergedAdapters) -> Self {
        Self {
            adapters,
            merged,
            layer_by_layer: false,
            lid: OnceCell::new(),
            gates: RefCell::default(),
            sites: RefCell::default(),
            carried: RefCell::default(),
        }
    }

    /// The same for layers that have backward passes of their own, one after the other: [`LastPass::carried_so_far`] is asked after
    /// the forward pass of each of them, and [`LastPass::routers`] in the end.
    #[must_use]
    pub fn layer_by_layer(self) -> Self {
        Self {
            layer_by_layer: true,
            ..self
        }
    }

    /// What it goes back to.
    pub fn merged(&self) -> &'a MergedAdapters {
        self.merged
    }

    /// The adapters as the rows of the last micro batch see them; otherwise as [`MergedAdapters::rows`].
    ///
    /// # Panics
    /// As [`MergedAdapters::rows`].
    pub fn rows(&self, languages: &[usize], dropout_seeds: Option<&[u64]>) -> AdaptedRows<'_> {
        self.merged.rows_of(languages, dropout_seeds, Some(self))
    }

    /// What has to be added to the loss of the last micro batch so that its backward pass also takes back the gradients
    /// that earlier micro batches have gathered: `sum(B(l) * gradient)`, whose derivative by B(l) is that gradient.
    /// Nothing if there are none. Its value means nothing.
    pub fn carried(&self) -> Option<Tensor> {
        for site in 0..self.merged.sites.len() {
            self.b(site);
        }
        self.carried_so_far()
    }

    /// Like [`LastPass::carried`], of the layers that the forward pass has reached; of each of them only once.
    pub fn carried_so_far(&self) -> Option<Tensor> {
        carry::all(&self.carried.take())
    }

    /// After the backward passes of all layers, the loss whose backward pass takes the gradients of gates on into the routers. Nothing
    /// where there are none, or where layers have had their backward pass together. Its value means nothing.
    pub fn routers(&self) -> Option<Tensor> {
        if !self.layer_by_layer {
            return None;
        }
        let gates = self.gates.borrow();
        let losses: Vec<Tensor> = gates
            .values()
            .filter(|gates| gates.used.grad().defined())
            .map(|gates| carry(&gates.connected, &gates.used.grad()))
            .collect();
        carry::all(&losses)
    }

    /// B(l) of a layer, connected to the parameters.
    pub(super) fn b(&self, site: SiteId) -> Rc<Matrices> {
        if let Some(b) = self.sites.borrow().get(&site) {
            return Rc::clone(b);
        }
        let adapter = &self.adapters.sites[site];
        let gates = self.gates(adapter.unit);
        let (_, b) = self
            .adapters
            .matrices(adapter, &self.merged.languages, gates.as_ref());
        if b.is_graph
            && let (Matrices::BySlot(connected), Matrices::BySlot(leaves)) =
                (&b.matrices, &self.merged.sites[site].b)
        {
            for (b, leaf) in connected.iter().zip(leaves) {
                let gradient = leaf.grad();
                if gradient.defined() {
                    self.carried.borrow_mut().push(carry(b, &gradient));
                }
            }
        }
        let b = Rc::new(b.matrices);
        self.sites.borrow_mut().insert(site, Rc::clone(&b));
        b
    }

    fn gates(&self, unit: usize) -> Option<Tensor> {
        let router = self.adapters.router.as_ref()?;
        let lid = self
            .lid
            .get_or_init(|| self.adapters.lid_of(router, &self.merged.languages));
        let mut gates = self.gates.borrow_mut();
        let gates = gates.entry(unit).or_insert_with(|| {
            let connected = self.adapters.gates_of_unit(router, unit, lid);
            let used = if self.layer_by_layer {
                connected.detach().set_requires_grad(true)
            } else {
                connected.shallow_clone()
            };
            Gates { connected, used }
        });
        Some(gates.used.shallow_clone())
    }
}

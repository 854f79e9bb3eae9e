//! The last backward pass of a step: gradients go through the merging into the parameters, layer by layer, so that they
//! can be reduced over the ranks while the layers below are still at work.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tch::Tensor;

use super::Adapters;
use super::merged::{AdaptedRows, Matrices, MergedAdapters};
use crate::linear::SiteId;

/// The forward pass of a step's last micro batch, made by [`MergedAdapters::last_pass`].
///
/// Every layer's B(l) is merged anew when the forward pass reaches it. Backward runs what was recorded last first, so
/// the gradients of a layer's parameters are complete before the layer below has been reached. What earlier micro
/// batches have gathered in B(l) joins in through [`LastPass::carried`].
#[derive(Debug)]
pub struct LastPass<'a> {
    adapters: &'a Adapters,
    merged: &'a MergedAdapters,
    lid: OnceCell<Tensor>,
    /// `[P, r]` by router.
    gates: RefCell<BTreeMap<usize, Tensor>>,
    sites: RefCell<BTreeMap<SiteId, Rc<Matrices>>>,
    carried: RefCell<Vec<Tensor>>,
}

impl<'a> LastPass<'a> {
    pub(super) fn new(adapters: &'a Adapters, merged: &'a MergedAdapters) -> Self {
        Self {
            adapters,
            merged,
            lid: OnceCell::new(),
            gates: RefCell::default(),
            sites: RefCell::default(),
            carried: RefCell::default(),
        }
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
        let carried = self.carried.borrow();
        let kind = carried.first()?.kind();
        Some(Tensor::stack(&carried, 0).sum(kind))
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
                    self.carried.borrow_mut().push((b * gradient).sum(b.kind()));
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
        let gates = gates
            .entry(unit)
            .or_insert_with(|| self.adapters.gates_of_unit(router, unit, lid));
        Some(gates.shallow_clone())
    }
}

//! Which serial gates wait for which, as long as they do, so that waiting that would never end is told instead.
//! Touched only when an event that somebody waits for finds a serial gate taken.

use std::collections::HashMap;
use std::sync::Arc;

use happen_core::{Error, ErrorKind, Result};

use crate::flow::{GateId, Held};
use crate::node::NodeInner;
use crate::sync::{Mutex, lock};

/// The waiting between serial gates of one space.
#[derive(Debug, Default)]
pub(crate) struct Waits(Arc<Mutex<Edges>>);

#[derive(Debug, Default)]
struct Edges {
    waits_for: HashMap<GateId, Vec<(GateId, Arc<str>)>>,
}

/// Takes the waiting back when it is over.
#[derive(Debug)]
pub(crate) struct WaitGuard {
    waits: Arc<Mutex<Edges>>,
    from: Vec<GateId>,
    to: GateId,
}

impl Waits {
    /// Notes that the gates in `held` wait for `to`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Deadlock`] when `to` waits for one of them already, or is one.
    pub(crate) fn enter(
        &self,
        node: &NodeInner,
        to: GateId,
        held: Option<&Held>,
    ) -> Result<Option<WaitGuard>> {
        let Some(nearest) = held else { return Ok(None) };
        let mut chain = Vec::new();
        let mut at = Some(nearest);
        while let Some(held) = at {
            chain.push((held.gate, Arc::clone(&held.node)));
            at = held.up.as_deref();
        }
        chain.reverse();
        let mut edges = lock(&self.0);
        if let Some(rest) = edges.way(to, &node.name, &chain) {
            return Err(deadlock(&chain, &rest));
        }
        let from: Vec<_> = chain.iter().map(|(gate, _)| *gate).collect();
        for gate in &from {
            edges.waits_for.entry(*gate).or_default().push((to, Arc::clone(&node.name)));
        }
        drop(edges);
        Ok(Some(WaitGuard { waits: Arc::clone(&self.0), from, to }))
    }
}

impl Edges {
    /// The way from `to` back into the chain, when there is one: names from `to` on, the last one in the chain.
    fn way(
        &self,
        to: GateId,
        name: &Arc<str>,
        chain: &[(GateId, Arc<str>)],
    ) -> Option<Vec<(GateId, Arc<str>)>> {
        let mut ways = vec![vec![(to, Arc::clone(name))]];
        let mut seen = vec![to];
        while let Some(way) = ways.pop() {
            let last = way.last()?.0;
            if chain.iter().any(|(gate, _)| *gate == last) {
                return Some(way);
            }
            for (next, name) in self.waits_for.get(&last).into_iter().flatten() {
                if !seen.contains(next) {
                    seen.push(*next);
                    let mut longer = way.clone();
                    longer.push((*next, Arc::clone(name)));
                    ways.push(longer);
                }
            }
        }
        None
    }
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut edges = lock(&self.waits);
        for gate in &self.from {
            if let Some(waits_for) = edges.waits_for.get_mut(gate) {
                if let Some(at) = waits_for.iter().position(|(to, _)| *to == self.to) {
                    waits_for.swap_remove(at);
                }
                if waits_for.is_empty() {
                    edges.waits_for.remove(gate);
                }
            }
        }
    }
}

#[cold]
fn deadlock(chain: &[(GateId, Arc<str>)], rest: &[(GateId, Arc<str>)]) -> Error {
    let end = rest.last().map(|(gate, _)| *gate);
    let start = chain.iter().position(|(gate, _)| Some(*gate) == end).unwrap_or(0);
    let names = chain[start..].iter().chain(rest).map(|(_, name)| name.to_string());
    Error::new(ErrorKind::Deadlock { cycle: names.collect() })
}

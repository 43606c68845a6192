//! A part of the causal web drawn as a tree: causes before effects, each event once. Owns the order of the lines and
//! their guides; does not know where the web was remembered.

use std::collections::{BTreeSet, HashMap, HashSet};

use happen_core::EventId;

use crate::trace::{Handled, Line};

/// A part of the causal web, however it was remembered.
pub(crate) trait Web {
    /// The causes of an event, also those that are not known themselves; `None` when the event is not known.
    fn causes(&self, event: EventId) -> Option<&[EventId]>;

    /// The known events that it caused, in the order in which they are shown.
    fn effects(&self, event: EventId) -> &[EventId];

    /// What is told of a known event beside its place in the web.
    fn told(&self, event: EventId) -> Option<Told>;
}

/// What is told of an event in its line.
pub(crate) struct Told {
    pub(crate) event_type: String,
    pub(crate) sender: Option<String>,
    pub(crate) handled: Vec<Handled>,
    pub(crate) at_unix_ms: u64,
}

/// The lines of everything below these roots.
pub(crate) fn draw(web: &impl Web, roots: &BTreeSet<EventId>, asked: &HashSet<EventId>) -> Vec<Line> {
    let start_unix_ms = roots.first().and_then(|root| web.told(*root)).map_or(0, |told| told.at_unix_ms);
    let mut tree = Tree { web, asked, waits: causes_below(web, roots), start_unix_ms };
    let mut lines = Vec::new();
    for root in roots {
        tree.add(*root, &mut lines);
    }
    lines
}

/// The farthest causes of an event that are known.
pub(crate) fn first_known(web: &impl Web, event: EventId) -> BTreeSet<EventId> {
    let mut first = BTreeSet::new();
    let mut seen = HashSet::new();
    let mut next = vec![event];
    while let Some(at) = next.pop() {
        if !seen.insert(at) {
            continue;
        }
        let causes = web.causes(at).unwrap_or_default();
        let known: Vec<_> = causes.iter().copied().filter(|cause| web.causes(*cause).is_some()).collect();
        if known.is_empty() {
            first.insert(at);
        }
        next.extend(known);
    }
    first
}

/// The events below these, each with the number of its causes that are there too.
fn causes_below(web: &impl Web, roots: &BTreeSet<EventId>) -> HashMap<EventId, usize> {
    let mut waits = HashMap::new();
    let mut next: Vec<_> = roots.iter().copied().collect();
    while let Some(cause) = next.pop() {
        for &effect in web.effects(cause) {
            let waiting = waits.entry(effect).or_insert(0);
            *waiting += 1;
            if *waiting == 1 {
                next.push(effect);
            }
        }
    }
    waits
}

struct Tree<'w, W> {
    web: &'w W,
    asked: &'w HashSet<EventId>,
    /// For each event below the roots, how many of its causes there are still to be shown.
    waits: HashMap<EventId, usize>,
    start_unix_ms: u64,
}

impl<W: Web> Tree<'_, W> {
    /// Adds a root and what is below it. An event of several causes is shown once, under the last of them.
    fn add(&mut self, root: EventId, lines: &mut Vec<Line>) {
        // A stack of its own: a cascade may be deeper than the thread's.
        let mut stack = vec![(root, 0, Vec::<bool>::new())];
        while let Some((event, depth, last)) = stack.pop() {
            let Some(told) = self.web.told(event) else { continue };
            lines.push(self.line(event, told, depth, &last));
            let web = self.web;
            let shown: Vec<_> =
                web.effects(event).iter().copied().filter(|effect| self.is_last_cause_of(*effect)).collect();
            for (index, &effect) in shown.iter().enumerate().rev() {
                let mut last = last.clone();
                // Guides end at a depth, and so does what is kept for them: a cascade may be many thousand deep.
                if last.len() < GUIDES_MAX + 2 {
                    last.push(index + 1 == shown.len());
                }
                stack.push((effect, depth + 1, last));
            }
        }
    }

    fn is_last_cause_of(&mut self, effect: EventId) -> bool {
        let Some(waits) = self.waits.get_mut(&effect) else { return false };
        *waits -= 1;
        *waits == 0
    }

    fn line(&self, event: EventId, told: Told, depth: usize, last: &[bool]) -> Line {
        let mut guides = String::new();
        let mut below = String::new();
        if let Some((own, above)) = last.split_last() {
            // Beyond a depth a person can follow, the indent stays and the number of levels is written out.
            if above.len() > GUIDES_MAX {
                guides.push_str(&format!("({depth}) "));
            } else {
                above.iter().for_each(|last| guides.push_str(if *last { "   " } else { "│  " }));
                below.clone_from(&guides);
                guides.push_str(if *own { "└─ " } else { "├─ " });
                below.push_str(if *own { "   " } else { "│  " });
            }
        }
        let is_shown_last = self.web.effects(event).is_empty();
        below.push_str(if is_shown_last { "   " } else { "│  " });
        let Told { event_type, sender, handled, at_unix_ms } = told;
        Line {
            depth,
            event,
            event_type,
            causes: self.web.causes(event).unwrap_or_default().to_vec(),
            sender,
            handled,
            at_unix_ms,
            after_ms: at_unix_ms.saturating_sub(self.start_unix_ms),
            asked_for: self.asked.contains(&event),
            guides,
            below,
        }
    }
}

/// Levels of a tree that are drawn.
const GUIDES_MAX: usize = 20;

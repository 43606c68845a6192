//! Who is there: the other members, their nodes, and who of them takes what. Owns what is known of them and for how long;
//! does not know how it comes here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use happen_core::link::{Peer, is_addressable};
use happen_core::pattern::is_runtime;
use happen_core::{Pattern, Result};

use super::frame::Header;
use super::member::Member;
use super::presence::{Nodes, Presence, presence_of, shares_of};
use super::silence::Silence;
use super::wire::Wire;
use crate::limits;

/// The other members.
#[derive(Default)]
pub(super) struct Roster {
    members: HashMap<u64, Entry>,
    /// How those were heard who were silent for too long, for when they come back.
    silenced: HashMap<u64, Silence>,
    index: Index,
    /// Raised by whatever changes who takes what.
    revision: u64,
    stale: bool,
}

struct Entry {
    member: Arc<Member>,
    silence: Silence,
    /// What it told of itself. Somebody may send before its announcement has come.
    told: Option<Told>,
    /// An announcement of which not all parts have come.
    parts: Option<(u64, u32, Nodes)>,
}

struct Told {
    stamp: u64,
    revision: u64,
    nodes: Nodes,
}

/// Who takes what, found once for each question until something changes.
#[derive(Default)]
struct Index {
    /// The members that have a node, in the order in which they joined.
    by_node: HashMap<String, Vec<Arc<Member>>>,
    patterns: Vec<(Arc<Member>, Vec<Pattern>)>,
    listeners: HashMap<String, Arc<[Arc<Member>]>>,
}

/// What has to be done about what a member told.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) member: Option<Arc<Member>>,
    /// What is known is not what it told of.
    pub(super) ask: bool,
    /// Earlier runs of it, which are over.
    pub(super) over: Vec<Arc<Member>>,
}

impl Roster {
    /// The member that a message is from, known or new. `None` when there are too many.
    pub(super) fn member(&mut self, wire: &Wire, header: &Header<'_>) -> Result<Option<Arc<Member>>> {
        if let Some(entry) = self.members.get(&header.instance) {
            return Ok(Some(Arc::clone(&entry.member)));
        }
        if self.members.len() >= limits::MEMBERS_MAX {
            return Ok(None);
        }
        let member = Arc::new(Member::new(wire, header.name, header.instance)?);
        let silence = self.silence_of(header.instance, wire.env.monotonic());
        self.members
            .insert(header.instance, Entry { member: Arc::clone(&member), silence, told: None, parts: None });
        Ok(Some(member))
    }

    /// The silence of a member that is heard now, for the first time or again.
    fn silence_of(&mut self, instance: u64, now: Duration) -> Silence {
        let mut silence = self.silenced.remove(&instance).unwrap_or_else(|| Silence::begins(now));
        // By whatever it was heard: it may be an event, and its next heartbeat not have come.
        silence.ends(now, false);
        silence
    }

    /// Notes what a member tells of itself.
    pub(super) fn hear(&mut self, wire: &Wire, header: &Header<'_>, presence: Presence<'_>) -> Result<Heard> {
        let mut heard = Heard { member: self.member(wire, header)?, ..Heard::default() };
        let Some(entry) = self.members.get_mut(&header.instance) else { return Ok(heard) };
        entry.silence.ends(wire.env.monotonic(), matches!(presence, Presence::Beat { .. }));
        let revision = header.number;
        match presence {
            Presence::Announce { stamp, part, parts, nodes } => {
                let begun = entry.parts.take().filter(|(of, next, _)| (*of, *next) == (revision, part));
                let mut all = match (begun, part) {
                    (Some((_, _, all)), _) => all,
                    (None, 0) => Nodes::new(),
                    (None, _) => return Ok(heard),
                };
                all.extend(nodes);
                if part + 1 < parts {
                    entry.parts = Some((revision, part + 1, all));
                    return Ok(heard);
                }
                entry.told = Some(Told { stamp, revision, nodes: all });
                self.changed();
                heard.over = self.earlier_runs(header.name, stamp, header.instance);
            }
            Presence::Change { base, removed, nodes, .. } => match &mut entry.told {
                Some(told) if told.revision == base => {
                    removed.iter().for_each(|id| drop(told.nodes.remove(*id)));
                    told.nodes.extend(nodes);
                    told.revision = revision;
                    self.changed();
                }
                told => heard.ask = told.as_ref().is_none_or(|told| told.revision < revision),
            },
            Presence::Beat { .. } => {
                heard.ask = entry.told.as_ref().is_none_or(|told| told.revision != revision);
            }
            Presence::Leave | Presence::Ask { .. } | Presence::Hello => {}
        }
        Ok(heard)
    }

    fn earlier_runs(&self, name: &str, stamp: u64, instance: u64) -> Vec<Arc<Member>> {
        let same = self.members.values().filter(|entry| entry.member.name == name);
        // Of one that has not told of itself it is not known whether it is an earlier one.
        let told = same.filter_map(|entry| Some((&entry.member, entry.told.as_ref()?.stamp)));
        told.filter(|(member, earlier)| (*earlier, member.instance) < (stamp, instance))
            .map(|(member, _)| Arc::clone(member))
            .collect()
    }

    pub(super) fn by_instance(&self, instance: u64) -> Option<Arc<Member>> {
        self.members.get(&instance).map(|entry| Arc::clone(&entry.member))
    }

    /// A member, if it has told of itself.
    pub(super) fn told(&self, instance: u64) -> Option<Arc<Member>> {
        let entry = self.members.get(&instance).filter(|entry| entry.told.is_some());
        entry.map(|entry| Arc::clone(&entry.member))
    }

    pub(super) fn forget(&mut self, instance: u64) -> Option<Arc<Member>> {
        self.changed();
        self.members.remove(&instance).map(|entry| entry.member)
    }

    fn changed(&mut self) {
        self.stale = true;
        self.revision += 1;
    }

    /// A number that is another one whenever what the members told of themselves is.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn all(&self) -> Vec<Arc<Member>> {
        self.members.values().map(|entry| Arc::clone(&entry.member)).collect()
    }

    /// Those who have been silent for too long.
    pub(super) fn silent(&mut self, now: Duration) -> Vec<Arc<Member>> {
        self.silenced.retain(|_, silence| silence.may_be_a_pause(now));
        let silent = self.members.values().filter(|entry| entry.silence.is_too_long(now));
        let silent: Vec<_> = silent.map(|entry| (Arc::clone(&entry.member), entry.silence)).collect();
        self.silenced.extend(silent.iter().map(|(member, silence)| (member.instance, *silence)));
        silent.into_iter().map(|(member, _)| member).collect()
    }

    /// Begins to count the silence of everyone anew: nobody could be heard.
    pub(super) fn hear_anew(&mut self, now: Duration) {
        self.members.values_mut().for_each(|entry| entry.silence.begins_anew(now));
    }

    /// The member that gets what is sent to a node.
    pub(super) fn find(&mut self, node: &str) -> Option<Arc<Member>> {
        self.index().by_node.get(node)?.first().cloned()
    }

    /// The member of this name, if it has the node.
    pub(super) fn find_at(&mut self, member: &str, node: &str) -> Option<Arc<Member>> {
        self.index().by_node.get(node)?.iter().find(|known| known.name == member).cloned()
    }

    /// The members that listen to a type.
    pub(super) fn listeners(&mut self, event_type: &str) -> Arc<[Arc<Member>]> {
        let index = self.index();
        if let Some(known) = index.listeners.get(event_type) {
            return Arc::clone(known);
        }
        let runtime = is_runtime(event_type);
        let takes = |pattern: &Pattern| match runtime {
            true => pattern.matches_runtime(event_type),
            false => pattern.matches(event_type),
        };
        let listening = index.patterns.iter().filter(|(_, patterns)| patterns.iter().any(takes));
        let listeners: Arc<[_]> = listening.map(|(member, _)| Arc::clone(member)).collect();
        if index.listeners.len() < limits::LINK_TYPES_MAX {
            index.listeners.insert(event_type.to_owned(), Arc::clone(&listeners));
        }
        listeners
    }

    /// The members that told of themselves, in the order in which they joined.
    pub(super) fn peers(&self) -> Vec<Peer> {
        let in_order = self.in_order().into_iter();
        in_order
            .map(|(member, told)| Peer { name: member.name.clone(), nodes: presence_of(&told.nodes) })
            .collect()
    }

    fn in_order(&self) -> Vec<(&Arc<Member>, &Told)> {
        let told = self.members.values().filter_map(|entry| Some((&entry.member, entry.told.as_ref()?)));
        let by_stamp: BTreeMap<_, _> =
            told.map(|(member, told)| ((told.stamp, member.instance), (member, told))).collect();
        by_stamp.into_values().collect()
    }

    fn index(&mut self) -> &mut Index {
        if std::mem::take(&mut self.stale) {
            let mut index = Index::default();
            for (member, told) in self.in_order() {
                for id in told.nodes.keys().filter(|id| is_addressable(id)) {
                    index.by_node.entry(id.clone()).or_default().push(Arc::clone(member));
                }
                let shares = shares_of(&told.nodes);
                let for_all = told.nodes.iter().filter(|(id, _)| !shares.contains_key(id.as_str()));
                let patterns = for_all.flat_map(|(_, handles)| handles).cloned().collect();
                index.patterns.push((Arc::clone(member), patterns));
            }
            self.index = index;
        }
        &mut self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_is_not_silent_any_more() {
        let mut roster = Roster::default();
        let last = Duration::from_secs(100);
        let mut silence = Silence::begins(last);
        silence.ends(last, true);
        roster.silenced.insert(7, silence);
        let back = last + limits::SILENT_ADAPTED_MAX;
        let mut silence = roster.silence_of(7, back);
        assert!(!silence.is_too_long(back + limits::SILENT_MAX));
        // Its next heartbeat tells that it made a pause.
        silence.ends(back, true);
        assert!(!silence.is_too_long(back + limits::SILENT_ADAPTED_MAX));
        assert!(roster.silenced.is_empty());
    }

    #[test]
    fn listeners_are_remembered_up_to_a_limit() {
        let mut roster = Roster::default();
        for (count, remembered) in
            [(1, 1), (limits::LINK_TYPES_MAX, limits::LINK_TYPES_MAX), (1, limits::LINK_TYPES_MAX)]
        {
            for number in 0..count - 1 {
                roster.listeners(&format!("type-{number}"));
            }
            roster.listeners(&format!("one of {remembered} and {count}"));
            assert_eq!(roster.index.listeners.len(), remembered);
        }
        roster.stale = true;
        roster.listeners("anew");
        assert_eq!(roster.index.listeners.len(), 1);
    }
}

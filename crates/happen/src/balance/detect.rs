//! What the figures of looks mean: which of the four patterns they are, when it begins and when it is over. Owns every
//! decision and the events that tell of them; asks nobody for anything, so it can be tried with figures alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::rates::{self, Point};
use super::sample::{Look, Presence, Seen};
use super::{Finding, FlowPattern, NodeBalance, NodePlace, NodeStanding, Pressure};
use crate::config::BalanceOptions;
use crate::limits;

/// What is known of the nodes and of the system from look to look.
#[derive(Debug)]
pub(super) struct Detector {
    options: BalanceOptions,
    tracks: BTreeMap<Arc<str>, Track>,
    /// Whether many nodes fall behind together.
    crowd: Lasting,
    /// Whether looks are late.
    late: Lasting,
    /// Whether the link is cut.
    cut: Lasting,
    /// Whether most of the nodes are affected.
    most: Lasting,
    /// Since when an overload was told.
    overload: Option<Duration>,
    partition: Option<Duration>,
    down: Option<(Duration, FlowPattern)>,
}

/// An event that tells of something.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) event_type: &'static str,
    pub(super) content: Json,
}

/// What is known of a node.
#[derive(Debug, Default)]
struct Track {
    seen: Seen,
    points: VecDeque<Point>,
    slow: Lasting,
    down: Lasting,
    found: Option<Found>,
}

/// What was found about a node, and when.
#[derive(Debug, Clone, Copy)]
struct Found {
    pattern: FlowPattern,
    at: Duration,
}

/// A condition that is told once it held for a while, and is over once it was gone for a while.
#[derive(Debug, Default)]
struct Lasting {
    holds: bool,
    /// Since when it is otherwise, at every look.
    otherwise: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Begins,
    Ends,
}

/// How long a condition has to be there, and to be gone.
#[derive(Debug, Clone, Copy)]
struct Times {
    now: Duration,
    begins: Duration,
    ends: Duration,
}

/// What changed at nodes in one look, by id.
#[derive(Debug, Default)]
struct Changes {
    failed: BTreeSet<Arc<str>>,
    /// Those elsewhere that are lost without having said that they go.
    lost: BTreeSet<Arc<str>>,
    /// What was told of a node alone and is over.
    well: BTreeMap<Arc<str>, Found>,
}

impl Lasting {
    /// Notes whether the condition is there. It does not begin while `may_begin` says no.
    fn look(&mut self, is_there: bool, may_begin: bool, times: Times) -> Option<Change> {
        if is_there == self.holds {
            self.otherwise = None;
            return None;
        }
        let since = *self.otherwise.get_or_insert(times.now);
        let (needed, change) =
            if is_there { (times.begins, Change::Begins) } else { (times.ends, Change::Ends) };
        if times.now.saturating_sub(since) < needed || (is_there && !may_begin) {
            return None;
        }
        *self = Self { holds: is_there, otherwise: None };
        Some(change)
    }

    /// Whether it holds and was there at the last look, too.
    const fn is_there(&self) -> bool {
        self.holds && self.otherwise.is_none()
    }

    /// Whether it is there and has not been for long enough.
    const fn is_coming(&self) -> bool {
        !self.holds && self.otherwise.is_some()
    }
}

impl Track {
    fn lag(&self) -> u64 {
        self.seen.figures.lag()
    }

    fn is_elsewhere(&self) -> bool {
        self.seen.figures.place == NodePlace::Elsewhere
    }

    fn pattern(&self) -> Option<FlowPattern> {
        self.found.map(|found| found.pattern)
    }

    /// Whether the lag is less than it was at the beginning of the window.
    fn shrinks(&self) -> bool {
        matches!((self.points.front(), self.points.back()), (Some(first), Some(last)) if last.lag < first.lag)
    }

    /// What was told of it is over. It is slow from now on only if it still falls behind, and not while it works off what
    /// it has.
    fn let_go(&mut self) {
        self.found = None;
        if self.shrinks() || !self.slow.is_there() {
            self.slow = Lasting::default();
        }
    }

    /// Whether it is on its way to fall behind: half of what may wait, and more than before.
    fn rises(&self) -> bool {
        let half = self.seen.figures.lag_limit().is_some_and(|limit| self.lag() * 2 >= limit);
        let grows = matches!((self.points.front(), self.points.back()), (Some(first), Some(last)) if last.lag > first.lag);
        half && grows
    }

    fn falls_behind(&self) -> bool {
        self.slow.holds || self.slow.is_coming() || self.rises()
    }

    fn is_busy(&self) -> bool {
        self.points.iter().any(|point| point.lag > 0 || point.active > 0 || point.handled > 0.0)
    }

    /// Takes what a look found, and says whether from now on nobody takes what comes, or no longer.
    fn follow(&mut self, seen: Seen, times: Times) -> Option<Change> {
        let head_before = self.seen.head;
        let refused_before = self.seen.figures.refused;
        let is_new = self.points.is_empty();
        self.seen = seen;
        let Seen { figures, handled, head, presence } = &self.seen;
        // While events wait all places are taken; a look may come just between one event and the next.
        let taken = figures.places.filter(|_| figures.waiting > 0 && figures.is_taken);
        self.points.push_back(Point {
            at: times.now,
            lag: figures.lag(),
            active: figures.active.max(taken.unwrap_or_default()),
            handled: *handled,
            refused: figures.refused,
            failed: figures.failed,
            retried: figures.retried,
        });
        while self.points.len() > 2
            && self.points.get(1).is_some_and(|point| times.now.saturating_sub(point.at) >= times.begins)
        {
            self.points.pop_front();
        }
        let is_stuck = head.is_some() && head_before == *head;
        let is_left_alone = match figures.place {
            NodePlace::Here => figures.lag() > 0 && !figures.is_taken,
            NodePlace::Elsewhere => *presence == Presence::Lost,
        };
        let is_down = is_stuck || is_left_alone;
        let refuses = !is_new && figures.refused > refused_before;
        let has_refused = self.points.front().is_some_and(|first| figures.refused > first.refused);
        let lags = figures.lag_limit().is_some_and(|limit| {
            let relieved = limit * limits::BALANCE_RELIEF_PERCENT as u64 / 100;
            let limit = if self.slow.holds { relieved.max(1) } else { limit };
            figures.lag() >= limit || refuses
        });
        let may_begin = !self.shrinks() || has_refused;
        self.slow.look(lags && !is_down, may_begin, times);
        self.down.look(is_down, true, times)
    }
}

impl Detector {
    pub(super) fn new(options: BalanceOptions) -> Self {
        Self {
            options,
            tracks: BTreeMap::new(),
            crowd: Lasting::default(),
            late: Lasting::default(),
            cut: Lasting::default(),
            most: Lasting::default(),
            overload: None,
            partition: None,
            down: None,
        }
    }

    /// Takes what a look found, and says what is to be told: each event type at most once or, for `system.recovered`, once
    /// for each event that is over.
    pub(super) fn look(&mut self, look: Look) -> Vec<Told> {
        let times = Times {
            now: look.at,
            begins: Duration::from_millis(self.options.window_ms),
            ends: Duration::from_millis(self.options.calm_ms),
        };
        let late = look.late_ms > self.options.late_ms_max;
        let (is_cut, late_ms) = (look.is_cut, look.late_ms);
        let mut changes = self.follow(look.nodes, times);
        let mut told = Vec::new();
        // First, for one that is taken again may be slow from now on.
        self.recover(std::mem::take(&mut changes.well), times.now, &mut told);
        let cut = self.cut.look(is_cut, true, times);
        self.part(&mut changes, cut, times.now, &mut told);
        self.late.look(late, true, times);
        self.load(late_ms, times, &mut told);
        self.fail(&changes, times.now, &mut told);
        self.weigh(times, &mut told);
        told
    }

    /// Follows each node.
    fn follow(&mut self, nodes: Vec<Seen>, times: Times) -> Changes {
        let mut changes = Changes::default();
        let mut before = std::mem::take(&mut self.tracks);
        for seen in nodes {
            let name: Arc<str> = seen.figures.node.as_str().into();
            let mut track = before.remove(&name).unwrap_or_default();
            if track.follow(seen, times) == Some(Change::Begins) {
                let is_lost = track.is_elsewhere() && track.seen.presence != Presence::Left;
                let to = if is_lost { &mut changes.lost } else { &mut changes.failed };
                to.insert(Arc::clone(&name));
            }
            let is_over = match track.pattern() {
                Some(FlowPattern::Bottleneck | FlowPattern::Overload) => {
                    !track.slow.holds && !track.down.holds
                }
                Some(FlowPattern::NodeFailure | FlowPattern::Partition) => !track.down.holds,
                None => false,
            };
            if is_over && let Some(found) = track.found {
                track.let_go();
                if matches!(found.pattern, FlowPattern::Bottleneck | FlowPattern::NodeFailure) {
                    changes.well.insert(Arc::clone(&name), found);
                }
            }
            self.tracks.insert(name, track);
        }
        // What is told of a node ends with the node.
        for (name, track) in before {
            if let Some(found) = track.found
                && matches!(found.pattern, FlowPattern::Bottleneck | FlowPattern::NodeFailure)
            {
                changes.well.insert(name, found);
            }
        }
        if !changes.lost.is_empty() {
            // Those that are missed since a moment ago went with them.
            for (name, track) in &mut self.tracks {
                let goes =
                    track.is_elsewhere() && track.seen.presence != Presence::Left && track.down.is_coming();
                if goes {
                    track.down = Lasting { holds: true, otherwise: None };
                    changes.lost.insert(Arc::clone(name));
                }
            }
        }
        changes
    }

    /// Tells partitions: processes that are lost with all of their nodes.
    fn part(&mut self, changes: &mut Changes, cut: Option<Change>, now: Duration, told: &mut Vec<Told>) {
        let mut nodes_of: BTreeMap<&str, bool> = BTreeMap::new();
        for track in self.tracks.values().filter(|track| track.is_elsewhere()) {
            for process in &track.seen.figures.processes {
                *nodes_of.entry(process).or_insert(true) &= track.down.holds;
            }
        }
        let is_whole = |name: &Arc<str>| {
            let mut processes =
                self.tracks.get(name).into_iter().flat_map(|track| &track.seen.figures.processes);
            processes.any(|process| nodes_of.get(process.as_str()).copied().unwrap_or_default())
        };
        let mut group: BTreeSet<Arc<str>> =
            changes.lost.iter().filter(|name| is_whole(name)).cloned().collect();
        if !self.cut.holds && group.len() < self.options.partition_nodes_min {
            group.clear();
        }
        if self.cut.holds {
            group.append(&mut changes.lost);
        }
        changes.lost.retain(|name| !group.contains(name));
        changes.failed.append(&mut changes.lost);
        if !group.is_empty() || cut == Some(Change::Begins) {
            for name in &group {
                self.find(name, FlowPattern::Partition, now);
            }
            self.partition.get_or_insert(now);
            let members: BTreeSet<&String> = group
                .iter()
                .filter_map(|name| self.tracks.get(name))
                .flat_map(|track| &track.seen.figures.processes)
                .collect();
            let members: Vec<_> = members.into_iter().take(limits::BALANCE_NAMED_MAX).collect();
            let mut content = self.told_of(&group, FlowPattern::Partition);
            content["members"] = json!(members);
            content["is_cut"] = json!(self.cut.holds);
            told.push(Told { event_type: "system.partitioned", content });
        }
        let is_left = self.tracks.values().any(|track| track.pattern() == Some(FlowPattern::Partition));
        if !self.cut.holds
            && !is_left
            && let Some(since) = self.partition.take()
        {
            told.push(over("system.partitioned", FlowPattern::Partition, since, now));
        }
    }

    /// Tells bottlenecks and overloads apart.
    fn load(&mut self, late_ms: u64, times: Times, told: &mut Vec<Told>) {
        let behind: BTreeSet<Arc<str>> =
            self.named(|track| track.falls_behind() && !track.down.holds && !track.down.is_coming());
        let busy = self.tracks.values().filter(|track| track.is_busy()).count();
        let many = behind.len() >= self.options.many_nodes
            && behind.len() as u64 * 100 >= busy as u64 * u64::from(self.options.many_percent);
        // Those that are on their way may still turn back.
        let is_any = self.tracks.values().any(|track| track.slow.holds);
        self.crowd.look(many, is_any, times);
        let is_overloaded = self.crowd.holds || self.late.holds;
        match (is_overloaded, self.overload) {
            (true, None) => {
                self.overload = Some(times.now);
                let mut content = self.told_of(&behind, FlowPattern::Overload);
                let sum = |of: fn(&Track) -> f64| -> f64 {
                    behind.iter().filter_map(|name| self.tracks.get(name)).map(of).sum()
                };
                content["busy_nodes"] = json!(busy);
                content["lag"] = json!(sum(|track| track.lag() as f64));
                content["lag_per_s"] = json!(sum(|track| lag_per_s(&track.points)));
                content["late_ms"] = json!(late_ms);
                told.push(Told { event_type: "system.overloaded", content });
            }
            (false, Some(since)) => {
                self.overload = None;
                let covered = self.tracks.values_mut();
                covered
                    .filter(|track| track.pattern() == Some(FlowPattern::Overload))
                    .for_each(Track::let_go);
                told.push(over("system.overloaded", FlowPattern::Overload, since, times.now));
            }
            _ => {}
        }
        // They wait as long as it is not known whether they are alone.
        if self.crowd.is_coming() && !is_overloaded {
            return;
        }
        let slow = self.named(|track| track.slow.is_there() && !track.down.holds && track.found.is_none());
        let pattern = if is_overloaded { FlowPattern::Overload } else { FlowPattern::Bottleneck };
        slow.iter().for_each(|name| self.find(name, pattern, times.now));
        if !is_overloaded && !slow.is_empty() {
            told.push(self.told_of_nodes("node.slow", &slow, pattern));
        }
    }

    /// Tells nodes that nobody takes anything for.
    fn fail(&mut self, changes: &Changes, now: Duration, told: &mut Vec<Told>) {
        changes.failed.iter().for_each(|name| self.find(name, FlowPattern::NodeFailure, now));
        if !changes.failed.is_empty() {
            told.push(self.told_of_nodes("node.down", &changes.failed, FlowPattern::NodeFailure));
        }
    }

    /// Tells nodes of which nothing is true any more that was told of them, or that are no more.
    fn recover(&self, well: BTreeMap<Arc<str>, Found>, now: Duration, told: &mut Vec<Told>) {
        let names: BTreeSet<_> = well.keys().cloned().collect();
        let Some((first, found)) = well.into_iter().next() else { return };
        let mut content = self.told_of(&names, found.pattern);
        content["node_id"] = json!(&*first);
        content["lag_metrics"] = json!(self.tracks.get(&first).map(|track| self.balance_of(track)));
        content["is_there"] = json!(self.tracks.contains_key(&first));
        content["after_ms"] = json!(now.saturating_sub(found.at).as_millis() as u64);
        told.push(Told { event_type: "node.recovered", content });
    }

    /// Tells whether most of the nodes are affected.
    fn weigh(&mut self, times: Times, told: &mut Vec<Told>) {
        let affected = self.named(|track| track.found.is_some());
        let (some, all) = (affected.len() as u64, self.tracks.len() as u64);
        let is_most = affected.len() >= self.options.many_nodes
            && some * 100 >= all * u64::from(self.options.most_percent);
        match self.most.look(is_most, true, Times { begins: Duration::ZERO, ..times }) {
            Some(Change::Begins) => {
                let mut counts: BTreeMap<FlowPattern, usize> = BTreeMap::new();
                for pattern in self.tracks.values().filter_map(Track::pattern) {
                    *counts.entry(pattern).or_default() += 1;
                }
                let most = counts.into_iter().max_by_key(|(_, count)| *count);
                let pattern = most.map_or(FlowPattern::NodeFailure, |(pattern, _)| pattern);
                self.down = Some((times.now, pattern));
                let mut content = self.told_of(&affected, pattern);
                content["level"] = json!(if some == all { "all" } else { "most" });
                told.push(Told { event_type: "system.down", content });
            }
            Some(Change::Ends) => {
                if let Some((since, pattern)) = self.down.take() {
                    told.push(over("system.down", pattern, since, times.now));
                }
            }
            None => {}
        }
    }

    fn find(&mut self, name: &Arc<str>, pattern: FlowPattern, at: Duration) {
        if let Some(track) = self.tracks.get_mut(name) {
            track.found = Some(Found { pattern, at });
        }
    }

    fn named(&self, which: impl Fn(&Track) -> bool) -> BTreeSet<Arc<str>> {
        self.tracks.iter().filter(|(_, track)| which(track)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// What every event says.
    fn told_of(&self, names: &BTreeSet<Arc<str>>, pattern: FlowPattern) -> Json {
        let named: Vec<&str> = names.iter().take(limits::BALANCE_NAMED_MAX).map(|name| &**name).collect();
        json!({
            "pattern": pattern,
            "affected_nodes": named,
            "affected_len": names.len(),
            "nodes_len": self.tracks.len(),
            "window_ms": self.options.window_ms,
        })
    }

    /// An event about nodes, with the figures of the one that lags most.
    fn told_of_nodes(
        &self,
        event_type: &'static str,
        names: &BTreeSet<Arc<str>>,
        pattern: FlowPattern,
    ) -> Told {
        let mut content = self.told_of(names, pattern);
        let tracks = names.iter().filter_map(|name| self.tracks.get(name));
        // Of equals the first.
        if let Some(worst) = tracks.rev().max_by_key(|track| track.lag()) {
            content["node_id"] = json!(worst.seen.figures.node);
            content["waiting"] = json!(worst.lag());
            content["queue_limit"] = json!(worst.seen.figures.queue_limit);
            content["lag_metrics"] = json!(self.balance_of(worst));
        }
        Told { event_type, content }
    }

    fn balance_of(&self, track: &Track) -> NodeBalance {
        self.judged(track.seen.figures.clone(), track)
    }

    fn judged(&self, mut figures: NodeBalance, track: &Track) -> NodeBalance {
        figures.pattern = track.pattern();
        // An event in an inbox that stays there is seen from look to look alone.
        figures.is_taken &= !track.down.holds || track.down.otherwise.is_some();
        figures.standing = match figures.pattern {
            None => NodeStanding::Well,
            Some(FlowPattern::Bottleneck | FlowPattern::Overload) => NodeStanding::Slow,
            Some(FlowPattern::NodeFailure) => NodeStanding::Down,
            Some(FlowPattern::Partition) => NodeStanding::Cut,
        };
        figures.rates = rates::over(&track.points, figures.places, self.options.utilisation_percent);
        figures
    }

    /// These figures of the moment, with what is known of their node from look to look.
    pub(super) fn judge(&self, figures: NodeBalance) -> NodeBalance {
        match self.tracks.get(figures.node.as_str()) {
            Some(track) => self.judged(figures, track),
            None => figures,
        }
    }

    /// How much waits at a node elsewhere that has a place in the log.
    pub(super) fn pressure_elsewhere(&self, node: &str) -> Option<Pressure> {
        let track = self.tracks.get(node).filter(|track| track.is_elsewhere())?;
        let figures = &track.seen.figures;
        Some(Pressure { waiting: figures.lag(), queue_limit: figures.queue_limit, active: 0, refused: 0 })
    }

    /// What was told and is not over.
    pub(super) fn findings(&self, now: Duration) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut push = |event: &str, pattern, names: BTreeSet<Arc<str>>, since: Duration| {
            findings.push(Finding {
                event: event.to_owned(),
                pattern,
                nodes_len: names.len() as u64,
                nodes: names.iter().take(limits::BALANCE_NAMED_MAX).map(|name| name.to_string()).collect(),
                for_ms: now.saturating_sub(since).as_millis() as u64,
            });
        };
        let of = |pattern| self.named(move |track| track.pattern() == Some(pattern));
        if let Some((since, pattern)) = self.down {
            push("system.down", pattern, self.named(|track| track.found.is_some()), since);
        }
        if let Some(since) = self.partition {
            push("system.partitioned", FlowPattern::Partition, of(FlowPattern::Partition), since);
        }
        if let Some(since) = self.overload {
            push("system.overloaded", FlowPattern::Overload, of(FlowPattern::Overload), since);
        }
        for (event, pattern) in
            [("node.down", FlowPattern::NodeFailure), ("node.slow", FlowPattern::Bottleneck)]
        {
            let found = self.tracks.iter().filter_map(|(name, track)| Some((name, track.found?)));
            for (name, found) in
                found.filter(|(_, found)| found.pattern == pattern).take(limits::BALANCE_NAMED_MAX)
            {
                push(event, pattern, BTreeSet::from([Arc::clone(name)]), found.at);
            }
        }
        findings
    }
}

fn lag_per_s(points: &VecDeque<Point>) -> f64 {
    rates::over(points, None, 100).map_or(0.0, |rates| rates.lag_per_s)
}

/// An event that tells that something is over.
fn over(event: &'static str, pattern: FlowPattern, since: Duration, now: Duration) -> Told {
    let after_ms = now.saturating_sub(since).as_millis() as u64;
    let content = json!({ "event": event, "pattern": pattern, "after_ms": after_ms });
    Told { event_type: "system.recovered", content }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node here with so many events that wait.
    fn here(node: &str, waiting: u64) -> Seen {
        let figures = NodeBalance {
            node: node.to_owned(),
            waiting,
            places: Some(1),
            queue_limit: 10_000,
            lag_max: 100,
            is_taken: true,
            ..NodeBalance::default()
        };
        Seen { figures, handled: 10.0, ..Seen::default() }
    }

    fn elsewhere(node: &str, process: &str, presence: Presence) -> Seen {
        let mut seen = here(node, 0);
        seen.figures.place = NodePlace::Elsewhere;
        seen.figures.processes = vec![process.to_owned()];
        Seen { presence, handled: 0.0, ..seen }
    }

    /// Looks once in each second, and gives what was told when.
    fn told(seconds: u64, of: impl Fn(u64) -> Vec<Seen>) -> Vec<(u64, &'static str, Json)> {
        let mut detector = Detector::new(BalanceOptions::default());
        let mut all = Vec::new();
        for second in 0..seconds {
            let at = Duration::from_secs(second);
            let told = detector.look(Look { at, nodes: of(second), ..Look::default() });
            all.extend(told.into_iter().map(|told| (second, told.event_type, told.content)));
        }
        all
    }

    fn names(told: &[(u64, &'static str, Json)]) -> Vec<(u64, &'static str)> {
        told.iter().map(|(second, event_type, _)| (*second, *event_type)).collect()
    }

    #[test]
    fn lag_is_told_from_its_limit_on_and_after_a_window() {
        for (lag, is_told) in [(99, false), (100, true), (101, true)] {
            for (seconds, lasts) in [(5, false), (6, true)] {
                let told = told(seconds, |_| vec![here("a", lag)]);
                let expected: &[_] = if is_told && lasts { &[(5, "node.slow")] } else { &[] };
                assert_eq!(names(&told), expected, "{lag} for {seconds}");
            }
        }
        // A short queue is behind at four fifths.
        for (lag, is_told) in [(7, false), (8, true)] {
            let mut seen = here("a", lag);
            seen.figures.queue_limit = 10;
            assert_eq!(told(10, |_| vec![seen.clone()]).len(), usize::from(is_told), "{lag}");
        }
        let mut any = here("a", 9_999);
        any.figures.lag_max = 0;
        assert!(told(10, |_| vec![any.clone()]).is_empty());
    }

    #[test]
    fn one_look_without_lag_begins_the_window_anew() {
        let told = told(40, |second| vec![here("a", if second % 6 == 5 { 99 } else { 5_000 })]);
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn lag_is_over_below_half_of_its_limit_and_after_calm() {
        for (lag, is_over) in [(51, false), (50, false), (49, true)] {
            let told = told(40, |second| vec![here("a", if second < 10 { 200 } else { lag })]);
            let expected: &[_] =
                if is_over { &[(5, "node.slow"), (20, "node.recovered")] } else { &[(5, "node.slow")] };
            assert_eq!(names(&told), expected, "{lag}");
        }
    }

    #[test]
    fn a_burst_at_others_makes_no_overload_of_a_bottleneck() {
        // Two others get a burst just when the one is to be told, which waits until it is known to be alone.
        let burst = |node: &str, second| here(node, if (4..8).contains(&second) { 150 } else { 0 });
        let nodes =
            |second| vec![here("a", 100 + 10 * second), burst("b", second), burst("c", second), here("d", 0)];
        let told = told(20, nodes);
        assert_eq!(names(&told), [(8, "node.slow")]);
        assert_eq!(told[0].2["affected_nodes"], json!(["a"]));
    }

    #[test]
    fn as_many_nodes_as_are_many_are_an_overload() {
        for (slow, expected) in [(2, "node.slow"), (3, "system.overloaded"), (4, "system.overloaded")] {
            let nodes =
                |_| (0..6).map(|node| here(&node.to_string(), if node < slow { 100 } else { 0 })).collect();
            let told = told(10, nodes);
            assert_eq!(told[0].1, expected, "{slow}");
            assert_eq!(told[0].2["affected_len"], slow);
        }
        // Three of seven busy nodes are less than half, of six they are not; who has nothing to do does not count.
        for (busy, expected) in [(7, "node.slow"), (6, "system.overloaded")] {
            let node = |node| match node {
                0..3 => here(&node.to_string(), 100),
                _ if node < busy => here(&node.to_string(), 0),
                _ => Seen { handled: 0.0, ..here(&node.to_string(), 0) },
            };
            assert_eq!(told(10, |_| (0..9).map(node).collect())[0].1, expected, "{busy}");
        }
    }

    #[test]
    fn most_nodes_are_as_many_in_a_hundred_as_the_options_say() {
        for (all, is_down) in [(10, true), (11, false)] {
            let nodes =
                |_| (0..all).map(|node| here(&node.to_string(), if node < 6 { 100 } else { 0 })).collect();
            let told = told(10, nodes);
            let down = told.iter().find(|(_, event_type, _)| *event_type == "system.down");
            assert_eq!(down.is_some(), is_down, "{all}");
            assert!(down.is_none_or(|(_, _, content)| content["level"] == "most"));
        }
        let told = told(10, |_| (0..3).map(|node| here(&node.to_string(), 100)).collect());
        assert_eq!((told[1].1, &told[1].2["level"]), ("system.down", &json!("all")));
    }

    #[test]
    fn a_process_that_is_lost_in_part_is_no_partition() {
        let seen = |lost: &[&str]| -> Vec<Seen> {
            let presence = |node: &str| if lost.contains(&node) { Presence::Lost } else { Presence::There };
            let of = |node: &str, process| elsewhere(node, process, presence(node));
            vec![
                of("a", "x"),
                of("b", "x"),
                of("c", "x"),
                of("d", "y"),
                here("e", 0),
                here("f", 0),
                here("g", 0),
            ]
        };
        for (lost, expected) in [
            (&["a"][..], vec!["node.down"]),
            (&["a", "b"], vec!["node.down"]),
            (&["a", "b", "c"], vec!["system.partitioned"]),
            (&["d"], vec!["node.down"]),
            (&["a", "d"], vec!["node.down"]),
            // One of them alone is lost as a whole.
            (&["a", "b", "d"], vec!["node.down"]),
        ] {
            let told = told(10, |second| seen(if second < 2 { &[] } else { lost }));
            assert_eq!(
                told.iter().map(|(_, event_type, _)| *event_type).collect::<Vec<_>>(),
                expected,
                "{lost:?}"
            );
            assert_eq!(told[0].2["affected_len"], lost.len());
        }
    }

    #[test]
    fn what_waits_elsewhere_is_down_when_the_first_of_it_stays() {
        let id = |number: u64| happen_core::EventId::from_halves(number + 1, 1).unwrap();
        let seen = |second: u64, moves: bool| {
            let mut seen = elsewhere("a", "x", Presence::Unknown);
            seen.figures.inbox = 3;
            seen.head = Some(id(if moves { second } else { 0 }));
            vec![seen, here("b", 0), here("c", 0)]
        };
        assert!(told(30, |second| seen(second, true)).is_empty());
        assert_eq!(names(&told(30, |second| seen(second, false))), [(6, "node.down")]);
        // A log that cannot be asked says nothing.
        let unknown = |second: u64| {
            let mut seen = seen(second, false);
            if second % 4 == 3 {
                seen[0].head = None;
            }
            seen
        };
        assert!(told(30, unknown).is_empty());
    }

    #[test]
    fn a_node_that_is_destroyed_ends_what_was_told_of_it() {
        let told = told(
            10,
            |second| if second < 8 { vec![here("a", 100), here("b", 0)] } else { vec![here("b", 0)] },
        );
        assert_eq!(names(&told), [(5, "node.slow"), (8, "node.recovered")]);
        assert_eq!((&told[1].2["node_id"], &told[1].2["is_there"]), (&json!("a"), &json!(false)));
    }

    #[test]
    fn an_event_names_so_many_nodes_and_counts_the_others() {
        let max = limits::BALANCE_NAMED_MAX;
        for (nodes, named) in [(max - 1, max - 1), (max, max), (max + 1, max)] {
            let told = told(6, |_| (0..nodes).map(|node| here(&node.to_string(), 100)).collect());
            let content = &told[0].2;
            assert_eq!(content["affected_nodes"].as_array().unwrap().len(), named);
            assert_eq!(content["affected_len"], nodes);
        }
    }

    proptest::proptest! {
        /// Whatever is seen, what begins ends before it begins again, and never sooner than it may.
        #[test]
        fn beginnings_and_ends_alternate(seed in proptest::collection::vec((0..5usize, 0..300u64, 0..4u8), 1..400)) {
            let mut nodes: Vec<Seen> = (0..5).map(|node| here(&node.to_string(), 0)).collect();
            let mut detector = Detector::new(BalanceOptions::default());
            let mut open: BTreeMap<String, (u64, &str)> = BTreeMap::new();
            for (second, (node, waiting, act)) in (0u64..).zip(seed) {
                nodes[node].figures.waiting = waiting;
                nodes[node].figures.is_taken = act != 0;
                let at = Duration::from_secs(second);
                for told in detector.look(Look { at, nodes: nodes.clone(), ..Look::default() }) {
                    let names: Vec<String> = match told.event_type {
                        "node.slow" | "node.down" | "node.recovered" => {
                            serde_json::from_value(told.content["affected_nodes"].clone()).unwrap()
                        }
                        "system.recovered" => vec![told.content["event"].as_str().unwrap().to_owned()],
                        event_type => vec![event_type.to_owned()],
                    };
                    for name in names {
                        if told.event_type.ends_with(".recovered") {
                            let since = open.remove(&name);
                            proptest::prop_assert!(since.is_some_and(|(since, _)| second - since >= 10), "{name}");
                            continue;
                        }
                        // A node that is slow may fail as well, and is well after both or after none.
                        let before = open.insert(name.clone(), (second, told.event_type));
                        let fails = |before| told.event_type == "node.down" && before == "node.slow";
                        proptest::prop_assert!(before.is_none_or(|(_, before)| fails(before)), "{name} at {second}");
                    }
                }
            }
        }
    }
}

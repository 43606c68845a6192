//! What happened at a node between looks, and what it would need: arithmetic over points in time. Owns the formulas; does
//! not know where the numbers come from.

use std::collections::VecDeque;
use std::time::Duration;

use super::Rates;

/// What one look found at a node. Counts go up from the node's beginning, but for `handled`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Point {
    pub(super) at: Duration,
    pub(super) lag: u64,
    pub(super) active: u32,
    /// Events that were handled since the look before.
    pub(super) handled: f64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) retried: u64,
}

/// What happened from the first of these points to the last; `None` for fewer than two.
pub(super) fn over(points: &VecDeque<Point>, places: Option<u32>, wanted_percent: u32) -> Option<Rates> {
    let (first, last) = (points.front()?, points.back()?);
    let seconds = last.at.saturating_sub(first.at).as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let handled: f64 = points.iter().skip(1).map(|point| point.handled).sum();
    let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (active, lag) = (mean(|point| f64::from(point.active)), mean(|point| point.lag as f64));
    let grown = |of: fn(&Point) -> u64| of(last).saturating_sub(of(first));
    let refused = grown(|point| point.refused);
    let inside = |point: &Point| point.lag as f64 + f64::from(point.active);
    let arrived = (handled + inside(last) - inside(first) + refused as f64).max(0.0);
    let (arrived_per_s, handled_per_s) = (arrived / seconds, handled / seconds);
    let service_s = (handled_per_s > 0.0).then(|| active / handled_per_s);
    let needed = service_s.map(|service_s| {
        let places = arrived_per_s * service_s * 100.0 / f64::from(wanted_percent);
        // Somebody has to be there, and what is a hair above a whole number by the way it was computed is that number.
        ((places - ROUNDING).ceil() as u64).max(1)
    });
    Some(Rates {
        window_ms: last.at.saturating_sub(first.at).as_millis() as u64,
        arrived_per_s,
        handled_per_s,
        lag_per_s: (last.lag as f64 - first.lag as f64) / seconds,
        refused,
        failed: grown(|point| point.failed),
        retried: grown(|point| point.retried),
        utilisation: places.filter(|places| *places > 0).map(|places| active / f64::from(places)),
        service_ms: service_s.map(|seconds| seconds * 1_000.0),
        wait_ms: (handled_per_s > 0.0).then(|| lag / handled_per_s * 1_000.0),
        places_needed: needed,
        instances_needed: needed
            .zip(places.filter(|places| *places > 0))
            .map(|(needed, places)| needed.div_ceil(u64::from(places))),
    })
}

const ROUNDING: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    fn points(of: impl Fn(u64) -> Point, len: u64) -> VecDeque<Point> {
        (0..len).map(|second| Point { at: Duration::from_secs(second), ..of(second) }).collect()
    }

    #[test]
    fn little_tells_how_long_an_event_stays_and_how_many_places_it_takes() {
        // Ten places are taken all the time and 20 events leave in a second, so each stays half a second; 40 come.
        let all =
            points(|second| Point { lag: 20 * second, active: 10, handled: 20.0, ..Point::default() }, 6);
        let rates = over(&all, Some(10), 100).unwrap();
        assert_eq!((rates.window_ms, rates.handled_per_s, rates.arrived_per_s), (5_000, 20.0, 40.0));
        assert_eq!((rates.lag_per_s, rates.utilisation, rates.service_ms), (20.0, Some(1.0), Some(500.0)));
        // Fifty wait on the average, and 20 leave in a second.
        assert_eq!(rates.wait_ms, Some(2_500.0));
        // 40 a second that stay half a second are 20 at once: two nodes of ten.
        assert_eq!((rates.places_needed, rates.instances_needed), (Some(20), Some(2)));
        // At 80 percent of 25 places there is room for 20.
        assert_eq!(over(&all, Some(10), 80).unwrap().places_needed, Some(25));
        assert_eq!(over(&all, Some(10), 80).unwrap().instances_needed, Some(3));
    }

    #[test]
    fn what_was_refused_has_come_too() {
        let all =
            points(|second| Point { refused: 5 * second, handled: 1.0, active: 1, ..Point::default() }, 3);
        let rates = over(&all, None, 50).unwrap();
        assert_eq!((rates.refused, rates.arrived_per_s), (10, 6.0));
        // Each stays a second; where every key has its own places there is no number of nodes.
        assert_eq!((rates.places_needed, rates.instances_needed, rates.utilisation), (Some(12), None, None));
    }

    #[test]
    fn nothing_is_told_of_what_is_not_known() {
        assert_eq!(over(&VecDeque::new(), Some(1), 70), None);
        assert_eq!(over(&points(|_| Point::default(), 1), Some(1), 70), None);
        let still =
            over(&points(|_| Point { lag: 7, active: 1, ..Point::default() }, 2), Some(1), 70).unwrap();
        assert_eq!((still.service_ms, still.wait_ms, still.places_needed), (None, None, None));
        assert_eq!((still.arrived_per_s, still.utilisation), (0.0, Some(1.0)));
        // Who handles on the stack of the sender takes no place, and one is enough.
        let inline = over(&points(|_| Point { handled: 9.0, ..Point::default() }, 2), Some(1), 70).unwrap();
        assert_eq!((inline.service_ms, inline.places_needed), (Some(0.0), Some(1)));
    }
}

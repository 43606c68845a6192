//! Choosing one of several. Owns the arithmetic of each way and what it has to remember; does not know what is chosen
//! between, nor what for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use happen_core::link::Routing;

use crate::limits;
use crate::sync::{Mutex, lock};

/// One of those that may be chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// The hash of its name.
    pub(super) hash: u64,
    /// What it has under way.
    pub(super) load: usize,
}

/// What is remembered between one choice and the next.
#[derive(Debug)]
pub(super) struct Pool {
    turn: AtomicUsize,
    sticky: Mutex<Sticky>,
}

/// Which candidate a key has, both as hashes.
#[derive(Debug, Default)]
struct Sticky {
    at: HashMap<u64, u64>,
    oldest_first: VecDeque<u64>,
}

impl Pool {
    /// A pool that begins its turns somewhere: of many who begin at once, not all begin at the same candidate.
    pub(super) fn new(begin: u64) -> Self {
        Self { turn: AtomicUsize::new(begin as usize), sticky: Mutex::default() }
    }

    /// The place of the one that is chosen; `None` where nobody is. The key is asked for only where it counts.
    pub(super) fn pick(
        &self,
        routing: Routing,
        candidates: &[Candidate],
        key: impl FnOnce() -> u64,
    ) -> Option<usize> {
        let count = candidates.len();
        if count == 0 {
            return None;
        }
        match routing {
            Routing::ByKey => heaviest(key(), candidates),
            Routing::Sticky => {
                let key = key();
                let mut sticky = lock(&self.sticky);
                let at = sticky.at.get(&key);
                let same = at.and_then(|at| candidates.iter().position(|known| known.hash == *at));
                same.or_else(|| {
                    let chosen = heaviest(key, candidates)?;
                    sticky.note(key, candidates[chosen].hash);
                    Some(chosen)
                })
            }
            Routing::LeastLoaded => {
                // Those that are alike take turns.
                let first = self.turn(count);
                (0..count).map(|step| (first + step) % count).min_by_key(|place| candidates[*place].load)
            }
            _ => Some(self.turn(count)),
        }
    }

    fn turn(&self, count: usize) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % count
    }
}

impl Sticky {
    fn note(&mut self, key: u64, at: u64) {
        if self.at.insert(key, at).is_some() {
            return;
        }
        self.oldest_first.push_back(key);
        if self.oldest_first.len() > limits::STICKY_KEYS_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.at.remove(&oldest);
        }
    }
}

/// Counts something as under way until it is dropped.
#[derive(Debug)]
pub(crate) struct Load(Arc<AtomicUsize>);

impl Load {
    pub(super) fn begin(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(of))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The candidate for which the key weighs most. Each candidate has a weight of its own for each key, so whoever goes leaves
/// its keys to the next heaviest and touches no other: highest random weight, by Thaler and Ravishankar (1998).
fn heaviest(key: u64, candidates: &[Candidate]) -> Option<usize> {
    let weight = |place: &usize| (mixed(key ^ candidates[*place].hash), candidates[*place].hash);
    (0..candidates.len()).max_by_key(weight)
}

/// The hash of a name or a key, as docs/format.md has it: all who choose by keys have to agree on it.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a. Its last bytes hardly reach the upper bits, which the mixing makes good.
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mixed(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Has every bit of a number depend on each: the end of SplitMix64.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn candidates(names: &BTreeSet<String>) -> Vec<Candidate> {
        names.iter().map(|name| Candidate { hash: hash(name.as_bytes()), load: 0 }).collect()
    }

    /// Which candidate each of these keys has, by its hash.
    fn spread(pool: &Pool, routing: Routing, among: &[Candidate], keys: u64) -> Vec<u64> {
        let chosen = |key: u64| pool.pick(routing, among, || hash(&key.to_le_bytes())).unwrap();
        (0..keys).map(|key| among[chosen(key)].hash).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn keys_are_spread_evenly_and_only_those_of_who_goes_move(
            names in proptest::collection::btree_set("[a-z0-9-]{1,12}", 2..12), gone in any::<prop::sample::Index>(),
        ) {
            let keys = 4_000;
            let pool = Pool::new(0);
            let before = candidates(&names);
            let of_all = spread(&pool, Routing::ByKey, &before, keys);
            let fair = keys as f64 / before.len() as f64;
            for one in &before {
                let has = of_all.iter().filter(|at| **at == one.hash).count() as f64;
                // Six standard deviations of a fair throw.
                prop_assert!((has - fair).abs() < 6.0 * fair.sqrt(), "{has} of {fair} in {names:?}");
            }
            let gone = before[gone.index(before.len())].hash;
            let rest: Vec<_> = before.iter().copied().filter(|one| one.hash != gone).collect();
            let of_rest = spread(&pool, Routing::ByKey, &rest, keys);
            for (was, is) in of_all.iter().zip(&of_rest) {
                prop_assert!(was == is || *was == gone);
                prop_assert!(*is != gone);
            }
        }

        #[test]
        fn a_key_that_sticks_moves_only_when_its_place_goes(
            names in proptest::collection::btree_set("[a-z]{1,6}", 3..9), gone in any::<prop::sample::Index>(),
        ) {
            let pool = Pool::new(7);
            let all = candidates(&names);
            let few = &all[1..];
            let first = spread(&pool, Routing::Sticky, few, 500);
            // One that comes gets the new keys alone.
            prop_assert_eq!(&spread(&pool, Routing::Sticky, &all, 500), &first);
            let gone = few[gone.index(few.len())].hash;
            let rest: Vec<_> = all.iter().copied().filter(|one| one.hash != gone).collect();
            let second = spread(&pool, Routing::Sticky, &rest, 500);
            for (was, is) in first.iter().zip(&second) {
                prop_assert_eq!(was == is, *was != gone);
            }
            // Whoever comes back gets nothing back.
            prop_assert_eq!(&spread(&pool, Routing::Sticky, &all, 500), &second);
        }
    }

    #[test]
    fn hashes_are_those_of_the_documentation() {
        const FORMAT: &str = include_str!("../../../../docs/format.md");
        for text in ["", "a", "order-789", "api-1", "größer"] {
            let row = format!("| `{text}` | {:016x} |", hash(text.as_bytes()));
            assert!(FORMAT.contains(&row), "docs/format.md lacks {row}");
        }
        let members = ["api-1", "api-2", "api-3"];
        let candidates = members.map(|member| Candidate { hash: hash(member.as_bytes()), load: 0 });
        for key in ["order-1", "order-2", "order-3", "order-789"] {
            let chosen = heaviest(hash(key.as_bytes()), &candidates).unwrap();
            let row = format!("| `{key}` | `{}` |", members[chosen]);
            assert!(FORMAT.contains(&row), "docs/format.md lacks {row}");
        }
    }

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let names = ["a", "b", "c"].map(str::to_owned).into();
        let (pool, among) = (Pool::new(2), candidates(&names));
        let turns: Vec<_> = (0..6).map(|_| pool.pick(Routing::RoundRobin, &among, || 0).unwrap()).collect();
        assert_eq!(turns, [2, 0, 1, 2, 0, 1]);
        assert_eq!(pool.pick(Routing::RoundRobin, &[], || 0), None);
        // It goes on where it would be otherwise when there are fewer.
        assert!(pool.pick(Routing::RoundRobin, &among[..1], || 0) == Some(0));
    }

    #[test]
    fn the_least_loaded_is_chosen_and_those_alike_take_turns() {
        let pool = Pool::new(0);
        let among = |loads: [usize; 4]| loads.map(|load| Candidate { hash: load as u64, load });
        let pick = |loads| pool.pick(Routing::LeastLoaded, &among(loads), || 0).unwrap();
        assert!((0..8).all(|_| pick([3, 1, 2, 9]) == 1));
        let alike: BTreeSet<_> = (0..8).map(|_| pick([1, 0, 7, 0])).collect();
        assert_eq!(alike, BTreeSet::from([1, 3]));
    }

    #[test]
    fn keys_that_stick_are_remembered_up_to_a_limit() {
        let max = limits::STICKY_KEYS_MAX as u64;
        for (keys, first_is_known) in [(max - 1, true), (max, true), (max + 1, false)] {
            let pool = Pool::new(0);
            let names = ["a", "b"].map(str::to_owned).into();
            spread(&pool, Routing::Sticky, &candidates(&names), keys);
            let sticky = lock(&pool.sticky);
            assert_eq!(sticky.at.len() as u64, keys.min(max));
            assert_eq!(sticky.oldest_first.len(), sticky.at.len());
            assert_eq!(sticky.at.contains_key(&hash(&0_u64.to_le_bytes())), first_is_known, "{keys}");
        }
    }

    #[test]
    fn what_is_under_way_counts_until_it_is_dropped() {
        let of = Arc::default();
        let loads: Vec<_> = (0..3).map(|_| Load::begin(&of)).collect();
        assert_eq!(of.load(Ordering::SeqCst), 3);
        drop(loads);
        assert_eq!(of.load(Ordering::SeqCst), 0);
    }
}

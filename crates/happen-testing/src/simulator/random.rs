//! The generator behind the seed, and the hash behind the fingerprint. Knows nothing but numbers.

/// A small generator of 64-bit numbers: every seed gives a full period of 2^64, and neighbouring seeds unrelated
/// sequences.
///
/// # Source
///
/// SplitMix64, from Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, 2014.
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(u64);

/// A hash over a sequence of numbers, in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct Fingerprint(u64);

impl SplitMix64 {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix(self.0)
    }

    /// A number below the limit, which is not 0. Multiplying instead of dividing leaves a bias of at most
    /// limit / 2^64, far below what any number of seeds could show.
    pub(super) fn index_below(&mut self, len: usize) -> usize {
        assert!(len > 0, "there is nothing to choose from");
        let product = u128::from(self.next_u64()) * (len as u128);
        (product >> 64) as usize
    }
}

impl Fingerprint {
    pub(super) fn add(&mut self, number: u64) {
        self.0 = mix((self.0 ^ number).wrapping_add(GOLDEN_GAMMA));
    }

    pub(super) fn value(&self) -> u64 {
        self.0
    }
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// 2^64 divided by the golden ratio, made odd, so that adding it visits every number.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        let mut generator = SplitMix64::new(1_234_567);
        let sequence = [(); 5].map(|()| generator.next_u64());
        assert_eq!(
            sequence,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
    }

    #[test]
    fn an_index_stays_below_its_limit_and_reaches_all() {
        let mut generator = SplitMix64::new(1);
        let mut seen = [0; 3];
        for _ in 0..300 {
            seen[generator.index_below(3)] += 1;
        }
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
        assert_eq!(generator.index_below(1), 0);
    }

    #[test]
    fn a_fingerprint_depends_on_the_order() {
        let of = |numbers: [u64; 3]| {
            let mut fingerprint = Fingerprint::default();
            numbers.into_iter().for_each(|number| fingerprint.add(number));
            fingerprint.value()
        };
        assert_eq!(of([1, 2, 3]), of([1, 2, 3]));
        assert_ne!(of([1, 2, 3]), of([2, 1, 3]));
        assert_ne!(of([0, 0, 1]), of([0, 1, 0]));
    }
}

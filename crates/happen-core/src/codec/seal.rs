//! The wire form of a signature: a seal in front of a frame that stays as it is. Owns what a signature says and how one
//! covers many frames; does not know keys that are trusted, nor how a signature is computed.
//!
//! Each frame is a leaf of a tree of hashes, and what is signed is the tree's root. A frame that leaves alone is the whole
//! tree, so its path is empty; of several that leave together each carries the hashes beside its own way to the root.

use crate::codec::frame::{FORMAT_VERSION, FrameError, FrameProblem, read_version, undecodable};
use crate::codec::msgpack::{Head, Reader, put_bin};
use crate::error::Result;
use crate::key::{PublicKey, Signature};
use crate::limits::SEAL_GROUP_MAX;

/// Who signed a frame, when, as which of its frames, and the proof.
///
/// # Examples
///
/// ```
/// use happen_core::codec::{Addressee, WireSeal, seal_leaf};
/// use happen_core::key::{KeyKind, PublicKey, Signature};
///
/// let leaf = seal_leaf(Addressee::Node("orders"), "", b"a frame");
/// let mut seal = WireSeal::new(PublicKey::new(KeyKind::User, [7; 32]), 1, 2, 1_750_000_000_000);
/// let statement = seal.statement(&leaf);
/// seal.signature = Signature::from([0; 64]); // what a signer makes of the statement
///
/// let mut bytes = Vec::new();
/// seal.encode_into(b"a frame", &mut bytes);
/// let (read, frame) = WireSeal::open(&bytes)?;
/// let read = read.unwrap();
/// assert_eq!(read.root(&leaf).map(|root| read.statement(&root)), Some(statement));
/// assert_eq!((read, frame), (seal, &b"a frame"[..]));
/// # Ok::<(), happen_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireSeal {
    /// Whose signature it is.
    pub key: PublicKey,
    /// A random number that the signer took when it began, so that its frames are told from those of earlier runs.
    pub session: u64,
    /// The number of the first frame of the group in its session; those of a group follow one another.
    pub first: u64,
    /// When it was signed, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The frame's place in its group.
    pub index: u32,
    /// The frames of the group; 1 for a frame that left alone.
    pub count: u32,
    /// The signature of [`WireSeal::statement`] over the root.
    pub signature: Signature,
    /// The hashes beside the way from this frame to the root, the nearest first.
    pub path: Vec<SealHash>,
}

/// A hash of the tree: of one frame, or of two hashes.
pub type SealHash = [u8; 32];

/// Whom a frame is for. A signature covers it, so that a frame is of no use anywhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Addressee<'a> {
    /// The node of this id.
    Node(&'a str),
    /// The node of this id in the member of this name, of several that share their work: what one of them has taken is of
    /// no use at another.
    Instance {
        /// The id.
        node: &'a str,
        /// The name.
        member: &'a str,
    },
    /// Everybody who listens.
    Everyone,
    /// Who sent the frame with this leaf, and waits for the replies to it.
    Asker(&'a SealHash),
}

/// The bytes that are signed.
pub type Statement = [u8; STATEMENT_BYTES];

/// The leaf of a frame: a hash over whom it is for, the realm it is valid in, and all its bytes.
///
/// # Cost
///
/// No allocation. One pass over the frame.
#[must_use]
pub fn seal_leaf(addressee: Addressee<'_>, realm: &str, frame: &[u8]) -> SealHash {
    let mut hasher = blake3::Hasher::new_keyed(LEAF_KEY);
    let (mark, name, member) = match addressee {
        Addressee::Node(node) => (0, node.as_bytes(), None),
        Addressee::Everyone => (1, &[][..], None),
        Addressee::Asker(leaf) => (2, &leaf[..], None),
        Addressee::Instance { node, member } => (3, node.as_bytes(), Some(member.as_bytes())),
    };
    hasher.update(&[mark]);
    // Everything but the last part is preceded by its length, so that no two frames have the same bytes.
    for part in [realm.as_bytes(), name].into_iter().chain(member) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.update(frame).finalize().as_bytes()
}

/// The tree over the frames of a group.
#[derive(Debug, Clone)]
pub struct SealTree {
    /// The leaves, and above each level the next one; the last has the root alone.
    levels: Vec<Vec<SealHash>>,
}

impl SealTree {
    /// The tree over these leaves; `None` over none, and over more than [`SEAL_GROUP_MAX`].
    ///
    /// # Cost
    ///
    /// One short hash for each leaf.
    #[must_use]
    pub fn new(leaves: Vec<SealHash>) -> Option<Self> {
        if leaves.is_empty() || leaves.len() > SEAL_GROUP_MAX {
            return None;
        }
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let next = below.chunks(2).map(|pair| match pair {
                [left, right] => join(left, right),
                // One without a neighbour goes up as it is.
                rest => rest[0],
            });
            levels.push(next.collect());
        }
        Some(Self { levels })
    }

    /// What is signed for all of them.
    #[must_use]
    pub fn root(&self) -> SealHash {
        self.levels.last().map_or([0; 32], |top| top[0])
    }

    /// The hashes beside the way from this leaf to the root; `None` when there is no such leaf.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<Vec<SealHash>> {
        self.levels[0].get(index)?;
        let beside = |(height, level): (usize, &Vec<SealHash>)| level.get((index >> height) ^ 1).copied();
        Some(self.levels.iter().enumerate().filter_map(beside).collect())
    }
}

impl WireSeal {
    /// A seal of a frame that leaves alone, to be signed.
    #[must_use]
    pub fn new(key: PublicKey, session: u64, first: u64, at_unix_ms: u64) -> Self {
        let signature = Signature::from([0; 64]);
        Self { key, session, first, at_unix_ms, index: 0, count: 1, signature, path: Vec::new() }
    }

    /// The number of this frame in its session.
    #[must_use]
    pub const fn number(&self) -> u64 {
        // Numbers that come from outside may be as large as they like.
        self.first.saturating_add(self.index as u64)
    }

    /// The bytes that are signed: everything the seal says of the group, and the root of its tree.
    #[must_use]
    pub fn statement(&self, root: &SealHash) -> Statement {
        let mut statement = [0; STATEMENT_BYTES];
        let mut rest = &mut statement[..];
        for part in [
            STATEMENT_MARK.as_slice(),
            &self.key.to_wire(),
            &self.session.to_be_bytes(),
            &self.first.to_be_bytes(),
            &self.at_unix_ms.to_be_bytes(),
            &self.count.to_be_bytes(),
            root,
        ] {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
        statement
    }

    /// A hash of the statement over this root and its signature: the same for all frames of a group, so that whoever has
    /// verified one need not verify the others.
    #[must_use]
    pub fn proof(&self, root: &SealHash) -> SealHash {
        let mut hasher = blake3::Hasher::new_keyed(PROOF_KEY);
        *hasher.update(&self.statement(root)).update(self.signature.as_bytes()).finalize().as_bytes()
    }

    /// The root of the tree that has this leaf in this place; `None` when the path does not fit the place, so that there
    /// is no such tree.
    #[must_use]
    pub fn root(&self, leaf: &SealHash) -> Option<SealHash> {
        if self.index >= self.count || self.count as usize > SEAL_GROUP_MAX {
            return None;
        }
        let (mut hash, mut path) = (*leaf, self.path.iter());
        let (mut index, mut count) = (self.index, self.count);
        while count > 1 {
            if index ^ 1 < count {
                let beside = path.next()?;
                hash = if index & 1 == 0 { join(&hash, beside) } else { join(beside, &hash) };
            }
            index >>= 1;
            count = count.div_ceil(2);
        }
        path.next().is_none().then_some(hash)
    }

    /// Appends the seal, and behind it the frame as it is.
    pub fn encode_into(&self, frame: &[u8], out: &mut Vec<u8>) {
        let mut seal = Vec::with_capacity(FIXED_BYTES + 32 * self.path.len());
        seal.extend_from_slice(&self.key.to_wire());
        for number in [self.session, self.first, self.at_unix_ms] {
            seal.extend_from_slice(&number.to_be_bytes());
        }
        seal.extend_from_slice(&self.index.to_be_bytes());
        seal.extend_from_slice(&self.count.to_be_bytes());
        seal.extend_from_slice(self.signature.as_bytes());
        self.path.iter().for_each(|hash| seal.extend_from_slice(hash));
        out.reserve(seal.len() + frame.len() + 4);
        out.push(FORMAT_VERSION);
        put_bin(out, &seal);
        out.extend_from_slice(frame);
    }

    /// The seal of a frame, if it has one, and the frame inside. A frame without a seal is given back whole, whatever it
    /// is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when there is a seal that cannot be read.
    pub fn open(bytes: &[u8]) -> Result<(Option<Self>, &[u8])> {
        // An event has a map after the version, a batch an array; a seal is plain bytes.
        let mut reader = Reader::new(bytes);
        let head = read_version(&mut reader).and_then(|()| reader.peek());
        let Ok(Head::Bin(_)) = head else { return Ok((None, bytes)) };
        let at = reader.at();
        let seal = reader.bin().and_then(|seal| Self::read(seal, at));
        let seal = seal.map_err(|error| undecodable("seal", error))?;
        Ok((Some(seal), bytes.get(reader.at()..).unwrap_or_default()))
    }

    fn read(seal: &[u8], at: usize) -> std::result::Result<Self, FrameError> {
        let wrong = |wanted| FrameError::new(FrameProblem::Unexpected { wanted }, at);
        let mut parts = Parts(seal);
        let truncated = || FrameError::new(FrameProblem::Truncated, at);
        let key = PublicKey::from_wire(parts.take().ok_or_else(truncated)?);
        let key = key.ok_or_else(|| wrong("the key of a kind that signs"))?;
        let mut number = || parts.take().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(truncated);
        let (session, first, at_unix_ms) = (number()?, number()?, number()?);
        let mut short = || parts.take().map(|bytes| u32::from_be_bytes(*bytes)).ok_or_else(truncated);
        let (index, count) = (short()?, short()?);
        let signature = Signature::from(*parts.take::<64>().ok_or_else(truncated)?);
        if count as usize > SEAL_GROUP_MAX {
            let problem = FrameProblem::OverLimit { found: count as usize, max: SEAL_GROUP_MAX };
            return Err(FrameError::new(problem, at));
        }
        let mut path = Vec::new();
        while !parts.0.is_empty() {
            path.push(*parts.take().ok_or_else(truncated)?);
            // Two to the power of its length is the largest group that a path may belong to.
            if path.len() > SEAL_GROUP_MAX.ilog2() as usize {
                return Err(wrong("a path of a group that is not too large"));
            }
        }
        Ok(Self { key, session, first, at_unix_ms, index, count, signature, path })
    }
}

struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (part, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(part)
    }
}

fn join(left: &SealHash, right: &SealHash) -> SealHash {
    let mut hasher = blake3::Hasher::new_keyed(JOIN_KEY);
    *hasher.update(left).update(right).finalize().as_bytes()
}

/// Keep leaves, joints and all other hashes apart, so that none can be passed off as another.
const LEAF_KEY: &[u8; 32] = b"happen seal leaf, version 1     ";
const PROOF_KEY: &[u8; 32] = b"happen seal proof, version 1    ";
const JOIN_KEY: &[u8; 32] = b"happen seal joint, version 1    ";

/// Keeps what is signed here apart from whatever else the key signs, such as the challenge of a server.
const STATEMENT_MARK: &[u8; 22] = b"happen seal, version 1";

const STATEMENT_BYTES: usize = STATEMENT_MARK.len() + PublicKey::WIRE_BYTES + 3 * 8 + 4 + 32;

/// The bytes of a seal without a path.
const FIXED_BYTES: usize = PublicKey::WIRE_BYTES + 3 * 8 + 2 * 4 + 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyKind;
    use proptest::prelude::*;

    fn leaves(count: usize) -> Vec<SealHash> {
        let leaf = |number: usize| seal_leaf(Addressee::Node("n"), "", &number.to_le_bytes());
        (0..count).map(leaf).collect()
    }

    fn sealed(tree: &SealTree, index: usize, count: usize) -> WireSeal {
        let mut seal = WireSeal::new(PublicKey::new(KeyKind::User, [1; 32]), 2, 3, 4);
        (seal.index, seal.count) = (index as u32, count as u32);
        seal.path = tree.path(index).unwrap();
        seal
    }

    #[test]
    fn every_leaf_of_a_group_leads_to_its_root() {
        for count in 1..=70 {
            let leaves = leaves(count);
            let tree = SealTree::new(leaves.clone()).unwrap();
            for (index, leaf) in leaves.iter().enumerate() {
                assert_eq!(sealed(&tree, index, count).root(leaf), Some(tree.root()), "{index} of {count}");
            }
            assert_eq!(tree.path(count), None);
        }
        let alone = leaves(1);
        let tree = SealTree::new(alone.clone()).unwrap();
        assert_eq!((tree.root(), tree.path(0)), (alone[0], Some(vec![])));
    }

    #[test]
    fn a_group_has_a_limit() {
        assert!(SealTree::new(vec![]).is_none());
        for (count, fits) in [(SEAL_GROUP_MAX - 1, true), (SEAL_GROUP_MAX, true), (SEAL_GROUP_MAX + 1, false)]
        {
            let tree = SealTree::new(leaves(count));
            assert_eq!(tree.is_some(), fits);
            let mut seal = WireSeal::new(PublicKey::new(KeyKind::User, [1; 32]), 2, 3, 4);
            (seal.index, seal.count) = (count as u32 - 1, count as u32);
            if let Some(tree) = &tree {
                seal.path = tree.path(count - 1).unwrap();
                assert_eq!(seal.root(&leaves(count)[count - 1]), Some(tree.root()));
            } else {
                assert_eq!(seal.root(&[0; 32]), None);
            }
            let mut bytes = Vec::new();
            seal.encode_into(b"x", &mut bytes);
            assert_eq!(WireSeal::open(&bytes).is_ok(), fits);
        }
        let mut long = sealed(&SealTree::new(leaves(2)).unwrap(), 0, 2);
        for (hashes, fits) in [(9, true), (10, true), (11, false)] {
            long.path = vec![[0; 32]; hashes];
            let mut bytes = Vec::new();
            long.encode_into(b"x", &mut bytes);
            assert_eq!(WireSeal::open(&bytes).is_ok(), fits);
        }
    }

    #[test]
    fn a_leaf_covers_whom_it_is_for() {
        let leaf = seal_leaf(Addressee::Node("n"), "", b"f");
        let others = [
            seal_leaf(Addressee::Node("m"), "", b"f"),
            seal_leaf(Addressee::Node(""), "", b"nf"),
            seal_leaf(Addressee::Node(""), "n", b"f"),
            seal_leaf(Addressee::Node("nf"), "", b""),
            seal_leaf(Addressee::Everyone, "", b"f"),
            seal_leaf(Addressee::Instance { node: "n", member: "" }, "", b"f"),
            seal_leaf(Addressee::Instance { node: "n", member: "a" }, "", b"f"),
            seal_leaf(Addressee::Asker(&leaf), "", b"f"),
            join(&leaf, &leaf),
        ];
        assert!(others.iter().all(|other| *other != leaf));
    }

    #[test]
    fn a_frame_without_a_seal_is_left_alone() {
        for frame in [&b""[..], &[1], &[1, 0x80], &[1, 0x91, 0xc4, 0], &[2, 0xc4, 0], b"rubbish"] {
            assert_eq!(WireSeal::open(frame).unwrap(), (None, frame));
        }
        for frame in [&[1, 0xc4, 5, 0][..], &[1, 0xc4, 0], &[1, 0xc6, 255, 255, 255, 255]] {
            let error = WireSeal::open(frame).unwrap_err();
            assert_eq!(error.code(), "undecodable", "{frame:?}");
        }
    }

    proptest! {
        #[test]
        fn no_other_place_and_no_other_path_leads_to_the_root(
            count in 2..40_usize, at: u16, other: u16, bit in 0..256_usize, beyond in 0..50_u32,
        ) {
            let (at, other) = (usize::from(at) % count, usize::from(other) % count);
            let leaves = leaves(count);
            let tree = SealTree::new(leaves.clone()).unwrap();
            let seal = sealed(&tree, at, count);
            let root = Some(tree.root());
            let wrong = |change: &dyn Fn(&mut WireSeal)| {
                let mut seal = seal.clone();
                change(&mut seal);
                seal.root(&leaves[at])
            };
            for hash in 0..seal.path.len() {
                prop_assert_ne!(wrong(&|seal| seal.path[hash][bit / 8] ^= 1 << (bit % 8)), root);
            }
            prop_assert_ne!(wrong(&|seal| seal.path.push([0; 32])), root);
            prop_assert_ne!(wrong(&|seal| { seal.path.pop(); }), root);
            prop_assert_eq!(wrong(&|seal| seal.index = count as u32 + beyond), None);
            if other != at {
                prop_assert_ne!(seal.root(&leaves[other]), root);
                prop_assert_ne!(wrong(&|seal| seal.index = other as u32), root);
            }
        }

        #[test]
        fn seals_come_back(
            session: u64, first: u64, at_unix_ms: u64, index: u32, count in 0..=SEAL_GROUP_MAX as u32,
            path in proptest::collection::vec(any::<[u8; 32]>(), 0..=10), frame: Vec<u8>,
        ) {
            let key = PublicKey::new(KeyKind::Account, [5; 32]);
            let mut seal = WireSeal::new(key, session, first, at_unix_ms);
            (seal.index, seal.count, seal.path) = (index, count, path);
            let mut bytes = Vec::new();
            seal.encode_into(&frame, &mut bytes);
            prop_assert_eq!(WireSeal::open(&bytes).unwrap(), (Some(seal), &frame[..]));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, leaf: [u8; 32]) {
            for bytes in [bytes.clone(), [&[1, 0xc4, 200][..], &bytes].concat()] {
                if let Ok((Some(seal), _)) = WireSeal::open(&bytes) {
                    let _ = (seal.root(&leaf), seal.number());
                }
            }
        }
    }
}

//! Sealing what leaves and opening what comes. Owns the order of the checks; what a key may say is the trust store's.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use happen_core::codec::{Addressee, SealHash, SealTree, WireSeal, seal_leaf};
use happen_core::env::Env;
use happen_core::key::{PublicKey, Signature, Signer};
use happen_core::{Error, Result};

use super::replay::Heard;
use super::{Distrust, Identity, Trusted, Unsigned};
use crate::config::glob_matches;
use crate::limits;
use crate::link::Departure;
use crate::sync::{Mutex, isolated, lock};

/// The identity of a space at work.
pub(crate) struct Guard {
    identity: Identity,
    own: ArcSwap<Arc<dyn Signer>>,
    session: u64,
    next: AtomicU64,
    heard: Mutex<Heard>,
    /// The groups whose signature was verified last.
    verified: Mutex<VecDeque<SealHash>>,
    env: Arc<dyn Env>,
}

/// What came and is believed, with the rules of who signed it; nobody's, where unsigned frames are taken.
pub(crate) struct Opened<'f> {
    pub(crate) frame: &'f [u8],
    pub(crate) by: Option<Arc<Trusted>>,
}

/// A frame that was sealed and is asked about: its leaf, which replies are sealed for, and who is to answer.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) leaf: SealHash,
    pub(crate) node: String,
}

impl Guard {
    pub(crate) fn new(identity: Identity, env: &Arc<dyn Env>) -> Self {
        Self {
            own: ArcSwap::from_pointee(Arc::clone(&identity.own)),
            session: env.random_u64(),
            next: AtomicU64::new(1),
            heard: Mutex::new(Heard::new(identity.window_ms)),
            verified: Mutex::default(),
            env: Arc::clone(env),
            identity,
        }
    }

    pub(crate) fn sign_with(&self, key: Arc<dyn Signer>) {
        self.own.store(Arc::new(key));
    }

    /// The frame in the name of a node here, sealed, and its leaf.
    ///
    /// # Errors
    ///
    /// What the signer says.
    pub(crate) fn seal(
        &self,
        addressee: Addressee<'_>,
        by: &str,
        frame: &[u8],
    ) -> Result<(Vec<u8>, SealHash)> {
        let leaf = self.leaf(addressee, frame);
        let seal = self.signed(by, 1, &leaf)?;
        let mut sealed = Vec::new();
        seal.encode_into(frame, &mut sealed);
        Ok((sealed, leaf))
    }

    /// These frames, all in the name of one signer, sealed by one signature. At most
    /// [`SEAL_GROUP_MAX`](happen_core::limits::SEAL_GROUP_MAX).
    ///
    /// # Errors
    ///
    /// What the signer says.
    pub(crate) fn seal_all(&self, group: &[Departure]) -> Result<Vec<Vec<u8>>> {
        let leaves = group.iter().map(|departure| departure.leaf).collect();
        let tree = SealTree::new(leaves).zip(group.first());
        let (tree, first) = tree.ok_or_else(|| Error::misuse("a group of no frames, or of too many"))?;
        let mut seal = self.signed(&first.by, group.len() as u32, &tree.root())?;
        let sealed = group.iter().enumerate().map(|(place, departure)| {
            seal.index = place as u32;
            seal.path = tree.path(place).unwrap_or_default();
            let mut sealed = Vec::new();
            seal.encode_into(&departure.frame, &mut sealed);
            sealed
        });
        Ok(sealed.collect())
    }

    /// Whether the same key signs for both.
    pub(crate) fn signs_alike(&self, one: &str, other: &str) -> bool {
        one == other || self.place(one) == self.place(other)
    }

    /// A seal of so many frames, signed over this root. They take the next numbers.
    fn signed(&self, by: &str, count: u32, root: &SealHash) -> Result<WireSeal> {
        let signer = self.signer(by);
        let first = self.next.fetch_add(u64::from(count), Ordering::Relaxed);
        let mut seal = WireSeal::new(signer.public_key(), self.session, first, self.env.unix_ms());
        seal.count = count;
        seal.signature = isolated("a signer", || signer.sign(&seal.statement(root)))??;
        Ok(seal)
    }

    /// Opens a frame that begins something here.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Untrusted`](happen_core::ErrorKind::Untrusted), with the [`Distrust`] as its source.
    pub(crate) fn open<'f>(&self, addressee: Addressee<'_>, bytes: &'f [u8]) -> Result<Opened<'f>> {
        let (seal, opened) = self.verified(addressee, bytes)?;
        if let Some(seal) = seal {
            let place = (seal.session, seal.number());
            let now = self.env.unix_ms();
            let new = lock(&self.heard).note(&seal.key, place, seal.at_unix_ms, now);
            new.map_err(Distrust::into_error)?;
        }
        Ok(opened)
    }

    /// Opens a reply to what was asked. It cannot be one to anything else, so its number does not matter.
    ///
    /// # Errors
    ///
    /// As [`Guard::open`].
    pub(crate) fn open_reply<'f>(&self, asked: &Asked, bytes: &'f [u8]) -> Result<&'f [u8]> {
        let (_, opened) = self.verified(Addressee::Asker(&asked.leaf), bytes)?;
        if let Some(trusted) = opened.by {
            trusted.may_speak_for(&asked.node).map_err(Distrust::into_error)?;
        }
        Ok(opened.frame)
    }

    /// The leaf of a frame.
    pub(crate) fn leaf(&self, addressee: Addressee<'_>, frame: &[u8]) -> SealHash {
        seal_leaf(addressee, &self.identity.realm, frame)
    }

    fn verified<'f>(
        &self,
        addressee: Addressee<'_>,
        bytes: &'f [u8],
    ) -> Result<(Option<WireSeal>, Opened<'f>)> {
        let (seal, frame) = WireSeal::open(bytes)?;
        let Some(seal) = seal else {
            return match self.identity.unsigned {
                Unsigned::Taken => Ok((None, Opened { frame, by: None })),
                Unsigned::Refused => Err(Distrust::Unsigned.into_error()),
            };
        };
        // Who is not known is not worth a signature's time, so that strangers cannot use it up.
        let trusted = self.identity.trust.find(&seal.key, self.env.unix_ms());
        let trusted = trusted.map_err(Distrust::into_error)?;
        if !self.is_signed(&seal, &self.leaf(addressee, frame)) {
            return Err(Distrust::BadSignature { key: seal.key }.into_error());
        }
        Ok((Some(seal), Opened { frame, by: Some(trusted) }))
    }

    fn is_signed(&self, seal: &WireSeal, leaf: &SealHash) -> bool {
        let Some(root) = seal.root(leaf) else { return false };
        let proof = seal.proof(&root);
        if seal.count > 1 && lock(&self.verified).contains(&proof) {
            return true;
        }
        let (key, statement, signature): (&PublicKey, _, &Signature) =
            (&seal.key, seal.statement(&root), &seal.signature);
        let verifier = &self.identity.verifier;
        // A verifier that panics has verified nothing.
        let verifies = || verifier.verifies(key, &statement, signature);
        if !isolated("a verifier", verifies).unwrap_or(false) {
            return false;
        }
        if seal.count > 1 {
            let mut verified = lock(&self.verified);
            verified.truncate(limits::VERIFIED_GROUPS_MAX - 1);
            verified.push_front(proof);
        }
        true
    }

    fn signer(&self, node: &str) -> Arc<dyn Signer> {
        match self.place(node) {
            Some(place) => Arc::clone(&self.identity.others[place].1),
            None => Arc::clone(&**self.own.load()),
        }
    }

    /// Which of the other keys signs for this node; none of them when it is the space's own.
    fn place(&self, node: &str) -> Option<usize> {
        self.identity.others.iter().position(|(glob, _)| glob_matches(glob, node))
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

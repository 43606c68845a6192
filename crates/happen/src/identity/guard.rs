//! Sealing what leaves and opening what comes. Owns the order of the checks; what a key may say is the trust store's.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use happen_core::Result;
use happen_core::codec::{Addressee, SealHash, WireSeal, seal_leaf};
use happen_core::env::Env;
use happen_core::key::{PublicKey, Signature, Signer};

use super::replay::Heard;
use super::{Distrust, Identity, Trusted, Unsigned};
use crate::config::glob_matches;
use crate::limits;
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
        let signer = self.signer(by);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut seal = WireSeal::new(signer.public_key(), self.session, number, self.env.unix_ms());
        seal.signature = self.sign(&*signer, &seal, &leaf)?;
        let mut sealed = Vec::new();
        seal.encode_into(frame, &mut sealed);
        Ok((sealed, leaf))
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
        let other = self.identity.others.iter().find(|(glob, _)| glob_matches(glob, node));
        match other {
            Some((_, signer)) => Arc::clone(signer),
            None => Arc::clone(&**self.own.load()),
        }
    }

    fn sign(&self, signer: &dyn Signer, seal: &WireSeal, root: &SealHash) -> Result<Signature> {
        isolated("a signer", || signer.sign(&seal.statement(root)))?
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

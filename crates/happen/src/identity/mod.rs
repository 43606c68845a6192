//! Who a space is to others, and whom it believes: keys of nodes, trusted keys, and the policies of event types. Owns what
//! leaves signed and what is believed of what comes; does not know how a link carries it, nor how a signature is computed.

mod distrust;
mod guard;
mod policy;
mod replay;
mod trust;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use happen_core::{Error, Result};

use crate::limits;
use crate::space::Space;

pub use happen_core::key::{BadKey, KeyKind, PublicKey, Seed, Signature, Signer, Verifier};

pub use self::distrust::Distrust;
pub use self::policy::permission;
pub use self::trust::{TrustStore, Trusted};

pub(crate) use self::guard::{Asked, Guard, Opened};
pub(crate) use self::policy::{Policies, refused};

/// Who a space is to the others at its link, and whom of them it believes. Given to [`Space::identity`].
///
/// Everything that leaves is signed by the key of its sender, and nothing that comes is believed unless it is signed by a
/// key that is trusted to say it: fail closed. What may say what is in the [`TrustStore`].
///
/// # Examples
///
/// Two processes that trust each other's keys; here they are two spaces of one.
///
/// ```
/// use happen::identity::{Identity, Signer, TrustStore, Trusted};
/// use happen::{Context, Event, Hub, Space};
/// use happen_ed25519::KeyPair;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let (shop_key, bank_key) = (KeyPair::generate()?, KeyPair::generate()?);
/// let trust = TrustStore::new();
/// trust.trust(Trusted::new(shop_key.public_key()).nodes(["orders", ""]))?;
/// trust.trust(Trusted::new(bank_key.public_key()).nodes(["payments"]))?;
///
/// let hub = Hub::new();
/// let shop = Space::memory();
/// shop.join(hub.link("shop"))?;
/// shop.identity(Identity::new(shop_key).trust(&trust))?;
/// let bank = Space::memory();
/// bank.join(hub.link("bank"))?;
/// bank.identity(Identity::new(bank_key).trust(&trust))?;
/// bank.node("payments").on("u64", |amount: &Event<u64>, _: &Context| format!("paid {}", **amount));
/// shop.start().await?;
/// bank.start().await?;
///
/// let paid = shop.send("payments", 7u64).reply::<String>().await?;
/// assert_eq!(*paid, "paid 7");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Identity {
    own: Arc<dyn Signer>,
    others: Vec<(String, Arc<dyn Signer>)>,
    verifier: Arc<dyn Verifier>,
    trust: TrustStore,
    realm: String,
    window_ms: u64,
    unsigned: Unsigned,
}

/// What becomes of frames without a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsigned {
    Refused,
    Taken,
}

impl Identity {
    /// Signs with this key and believes nobody yet. The key also verifies, unless [`Identity::verifier`] is given.
    #[must_use]
    pub fn new(key: impl Signer + Verifier) -> Self {
        let key = Arc::new(key);
        Self {
            own: Arc::clone(&key) as Arc<dyn Signer>,
            others: Vec::new(),
            verifier: key,
            trust: TrustStore::new(),
            realm: String::new(),
            window_ms: limits::REPLAY_WINDOW_MS,
            unsigned: Unsigned::Refused,
        }
    }

    /// Believes these keys.
    #[must_use]
    pub fn trust(mut self, trust: &TrustStore) -> Self {
        self.trust = trust.clone();
        self
    }

    /// Signs with another key what nodes send and answer whose ids match this glob. The first glob that matches counts.
    #[must_use]
    pub fn sign_as(mut self, glob: impl Into<String>, key: impl Signer) -> Self {
        self.others.push((glob.into(), Arc::new(key)));
        self
    }

    /// Verifies by this instead of by the key itself.
    #[must_use]
    pub fn verifier(mut self, verifier: impl Verifier) -> Self {
        self.verifier = Arc::new(verifier);
        self
    }

    /// The name of what belongs together, such as `shop-production`: what was signed in one realm is of no use in another,
    /// also where keys are the same.
    #[must_use]
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = realm.into();
        self
    }

    /// How long a frame is believed after it was signed, and how far clocks may differ; five minutes unless it is set. The
    /// memory of what came is gone when the process ends, so this is also how long a frame could be sent once more to
    /// one that was started again.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Takes frames without a signature, too, as long as not every process signs. What is signed is verified all the
    /// same; what is not is nobody's word, and whoever reaches the link can send it.
    #[must_use]
    pub fn accept_unsigned(mut self) -> Self {
        self.unsigned = Unsigned::Taken;
        self
    }
}

impl Space {
    /// Gives this space an identity: what leaves by its link is signed, and what comes is verified. Called once, before
    /// [`Space::start`]. A space without one believes whatever reaches its link.
    ///
    /// # Delivery
    ///
    /// Refused is what is not signed, or by a key that is unknown, revoked or not valid now; what does not fit its
    /// signature, its hash, or the node it was sent to; what came before; and what names a sender, an origin or a user
    /// that the key may not speak for. No node sees any of it. Each is counted ([`Space::refused_frames`]), is told as the
    /// event `system.refused` with its [`Distrust::code`], and answers who asked with
    /// [`ErrorKind::Untrusted`](crate::ErrorKind::Untrusted). Replies are signed and verified in the same way.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when the space has an identity already, or has started, and for a
    /// window of no time.
    pub fn identity(&self, identity: Identity) -> Result<()> {
        let inner = self.inner();
        if inner.check_building().is_err() {
            return Err(Error::misuse("an identity is given before the space starts"));
        }
        if identity.window_ms == 0 {
            return Err(Error::misuse("a window of no time believes nothing; give it a few seconds"));
        }
        let guard = Arc::new(Guard::new(identity, &inner.env));
        inner.guard.set(guard).map_err(|_| Error::misuse("a space has one identity, and this one has it"))
    }

    /// Signs with this key from now on, in the place of the one that [`Identity::new`] was given. The others have to
    /// trust it before; once all frames of the old key have arrived, that one can be revoked.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when the space has no identity.
    pub fn sign_with(&self, key: impl Signer) -> Result<()> {
        let guard = self.inner().guard.get();
        let guard = guard.ok_or_else(|| Error::misuse("a space without an identity signs nothing"))?;
        guard.sign_with(Arc::new(key));
        Ok(())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<_> = self.others.iter().map(|(glob, key)| (glob, key.public_key())).collect();
        f.debug_struct("Identity")
            .field("key", &self.own.public_key())
            .field("others", &others)
            .field("trust", &self.trust)
            .field("realm", &self.realm)
            .field("window_ms", &self.window_ms)
            .field("unsigned", &self.unsigned)
            .finish()
    }
}

//! Why a frame is not believed: one variant for each reason, with a code that stays the same.

use happen_core::key::PublicKey;
use happen_core::{Error, ErrorKind};

/// Why what came over the link is not believed. The source of errors of kind
/// [`ErrorKind::Untrusted`](crate::ErrorKind::Untrusted), in the process that refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Distrust {
    /// It has no signature, and the identity of this space asks for one.
    #[error("it is not signed")]
    Unsigned,
    /// Nobody trusts the key here.
    #[error("key {key} is not known here")]
    UnknownKey {
        /// Who signed.
        key: PublicKey,
    },
    /// The key was taken back.
    #[error("key {key} was revoked")]
    RevokedKey {
        /// Who signed.
        key: PublicKey,
    },
    /// The key is not valid at this time.
    #[error("key {key} is not valid at this time")]
    ExpiredKey {
        /// Who signed.
        key: PublicKey,
    },
    /// The signature is not one of the key, or not one of these bytes for this addressee.
    #[error("the signature is not one of key {key} for this: it was changed, or is for somebody else")]
    BadSignature {
        /// Who is said to have signed.
        key: PublicKey,
    },
    /// It was signed too long ago, or by a clock that is ahead, so that it cannot be told from one that came before.
    #[error("key {key} signed it at {at_unix_ms}, which is too far from now ({now_unix_ms})")]
    Stale {
        /// Who signed.
        key: PublicKey,
        /// When, by its own clock.
        at_unix_ms: u64,
        /// The time here.
        now_unix_ms: u64,
    },
    /// It came before, or so many came after it that this cannot be told.
    #[error("key {key} signed it as its number {number}, which came before")]
    Replayed {
        /// Who signed.
        key: PublicKey,
        /// Its number among what the key's holder signed since it began.
        number: u64,
    },
    /// The key may not speak for the node that is named as the sender, as the origin of a root event, or as who answers.
    #[error("key {key} may not speak for node `{node}`")]
    ForeignSender {
        /// Who signed.
        key: PublicKey,
        /// The node; empty for a sender outside any node.
        node: String,
    },
    /// The key may not say that an event comes from this source.
    #[error("key {key} may not claim the source `{origin}`")]
    ForeignOrigin {
        /// Who signed.
        key: PublicKey,
        /// The source, as `type:id` when it has a type.
        origin: String,
    },
    /// The key may not act on the account of this user.
    #[error("key {key} may not claim the user `{user}`")]
    ForeignUser {
        /// Who signed.
        key: PublicKey,
        /// The user's id.
        user: String,
    },
    /// The key may not change anything of this node by hand.
    #[error("key {key} may not change anything of node `{node}` by hand")]
    NotOperator {
        /// Who signed.
        key: PublicKey,
        /// The node.
        node: String,
    },
}

impl Distrust {
    /// The stable code, in small letters with hyphens; the field `distrust` of `system.refused`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::UnknownKey { .. } => "unknown-key",
            Self::RevokedKey { .. } => "revoked-key",
            Self::ExpiredKey { .. } => "expired-key",
            Self::BadSignature { .. } => "bad-signature",
            Self::Stale { .. } => "stale",
            Self::Replayed { .. } => "replayed",
            Self::ForeignSender { .. } => "foreign-sender",
            Self::ForeignOrigin { .. } => "foreign-origin",
            Self::ForeignUser { .. } => "foreign-user",
            Self::NotOperator { .. } => "not-operator",
        }
    }

    /// The key that signed, or is said to have.
    #[must_use]
    pub const fn key(&self) -> Option<&PublicKey> {
        match self {
            Self::Unsigned => None,
            Self::UnknownKey { key }
            | Self::RevokedKey { key }
            | Self::ExpiredKey { key }
            | Self::BadSignature { key }
            | Self::Stale { key, .. }
            | Self::Replayed { key, .. }
            | Self::ForeignSender { key, .. }
            | Self::ForeignOrigin { key, .. }
            | Self::ForeignUser { key, .. }
            | Self::NotOperator { key, .. } => Some(key),
        }
    }

    #[cold]
    pub(crate) fn into_error(self) -> Error {
        Error::new(ErrorKind::Untrusted { reason: self.to_string() }).with_source(self)
    }
}

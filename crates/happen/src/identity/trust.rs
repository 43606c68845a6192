//! Who is trusted: keys, what each may say, and until when. Owns the rules and how they change while a space runs; does not
//! know signatures.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use happen_core::codec::WireEvent;
use happen_core::key::PublicKey;
use happen_core::{Error, ErrorKind, Result};
use serde::Deserialize;

use super::Distrust;
use crate::config::glob_matches;
use crate::limits;

/// A key that is trusted, and what it may say. A new one may say nothing; each method allows something.
///
/// All names are globs, in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trusted {
    key: PublicKey,
    #[serde(default)]
    nodes: Vec<String>,
    #[serde(default)]
    origins: Vec<String>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    operates: Vec<String>,
    #[serde(default)]
    from_unix_ms: u64,
    #[serde(default = "for_ever")]
    until_unix_ms: u64,
}

/// The keys that are trusted. A handle: clones share the keys, so what is changed through one holds for the space that
/// has another, from the next frame on.
///
/// A key may be revoked at any time, and stays so: neither [`TrustStore::trust`] nor [`TrustStore::reload`] brings it
/// back.
///
/// # Examples
///
/// As text it is JSON. Times are in milliseconds since 1970, and whatever is left out allows nothing, except that a key
/// without times is valid for ever. A field that is not known is an error: a mistyped rule must not be a rule less.
///
/// ```
/// use happen::identity::TrustStore;
///
/// let trust = TrustStore::from_json(r#"{
///     "keys": [{
///         "key": "UCFIRY65OQE7DFP5KLNS2PF2LVZMUZYJX4OZIEQ36N2IQANUB5XVZ45L",
///         "nodes": ["orders", "order-*"],
///         "origins": ["tenant:acme:*"],
///         "users": ["*"],
///         "until_unix_ms": 4102444800000
///     }],
///     "revoked": []
/// }"#)?;
/// assert_eq!(trust.keys().len(), 1);
/// # Ok::<(), happen::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct TrustStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    rules: ArcSwap<Rules>,
    file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default)]
struct Rules {
    keys: HashMap<PublicKey, Arc<Trusted>>,
    revoked: HashSet<PublicKey>,
}

/// The text form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    keys: Vec<Trusted>,
    #[serde(default)]
    revoked: Vec<PublicKey>,
}

const fn for_ever() -> u64 {
    u64::MAX
}

impl Trusted {
    /// This key, which may say nothing yet.
    #[must_use]
    pub const fn new(key: PublicKey) -> Self {
        Self {
            key,
            nodes: Vec::new(),
            origins: Vec::new(),
            users: Vec::new(),
            operates: Vec::new(),
            from_unix_ms: 0,
            until_unix_ms: for_ever(),
        }
    }

    /// The nodes it may speak for: as the sender of an event, as the node a root event began at, and as who answers.
    ///
    /// A sender outside any node has an empty name, which `""` and `*` match.
    #[must_use]
    pub fn nodes<G: Into<String>>(mut self, globs: impl IntoIterator<Item = G>) -> Self {
        self.nodes.extend(globs.into_iter().map(Into::into));
        self
    }

    /// The sources whose events it may send, as ids or as `type:id`. An event that has no source needs none of them.
    #[must_use]
    pub fn origins<G: Into<String>>(mut self, globs: impl IntoIterator<Item = G>) -> Self {
        self.origins.extend(globs.into_iter().map(Into::into));
        self
    }

    /// The users on whose account it may act, by id. Their permissions are what it says they are.
    #[must_use]
    pub fn users<G: Into<String>>(mut self, globs: impl IntoIterator<Item = G>) -> Self {
        self.users.extend(globs.into_iter().map(Into::into));
        self
    }

    /// The nodes whose flows, dead letters, schedules and states it may change by hand over the link, as
    /// [`control`](crate::control) has it, and of which it is told how they keep up
    /// ([`Space::balance_reports`](crate::Space::balance_reports)).
    #[must_use]
    pub fn operates<G: Into<String>>(mut self, globs: impl IntoIterator<Item = G>) -> Self {
        self.operates.extend(globs.into_iter().map(Into::into));
        self
    }

    /// When it is valid, in milliseconds since 1970: from the first moment on, and no more at the second.
    #[must_use]
    pub const fn between(mut self, from_unix_ms: u64, until_unix_ms: u64) -> Self {
        self.from_unix_ms = from_unix_ms;
        self.until_unix_ms = until_unix_ms;
        self
    }

    /// The key.
    #[must_use]
    pub const fn key(&self) -> PublicKey {
        self.key
    }

    pub(crate) fn may_speak_for(&self, node: &str) -> Result<(), Distrust> {
        if matches(&self.nodes, node) {
            return Ok(());
        }
        Err(Distrust::ForeignSender { key: self.key, node: node.to_owned() })
    }

    pub(crate) fn may_operate(&self, node: &str) -> Result<(), Distrust> {
        if matches(&self.operates, node) {
            return Ok(());
        }
        Err(Distrust::NotOperator { key: self.key, node: node.to_owned() })
    }

    /// Whether it may say everything that this event says of where it comes from.
    pub(crate) fn may_send(&self, event: &WireEvent<'_>) -> Result<(), Distrust> {
        self.may_speak_for(&event.sender)?;
        // What an effect says of its root was said by others; a root is its sender's own claim.
        if event.cause.is_none() {
            self.may_speak_for(&event.origin)?;
        }
        let source = match (&event.source_type, &event.source_id) {
            (None, None) => None,
            (None, Some(id)) => Some(id.clone().into_owned()),
            (Some(kind), id) => Some(format!("{kind}:{}", id.as_deref().unwrap_or_default())),
        };
        if let Some(origin) = source {
            let id = event.source_id.as_deref().filter(|id| !id.is_empty());
            if !matches(&self.origins, &origin) && !id.is_some_and(|id| matches(&self.origins, id)) {
                return Err(Distrust::ForeignOrigin { key: self.key, origin });
            }
        }
        match &event.user {
            Some(user) if !matches(&self.users, &user.id) => {
                Err(Distrust::ForeignUser { key: self.key, user: user.id.clone().into_owned() })
            }
            _ => Ok(()),
        }
    }
}

impl TrustStore {
    /// Trusts nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The keys of a text in JSON.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when it cannot be read, has a secret where a public key belongs, names a key twice, or has
    /// more than [`limits::TRUSTED_KEYS_MAX`].
    pub fn from_json(text: &str) -> Result<Self> {
        let rules = Rules::read(text)?;
        Ok(Self(Arc::new(Shared { rules: ArcSwap::from_pointee(rules), file: None })))
    }

    /// The keys of a file in JSON, which [`TrustStore::reload`] reads again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the file cannot be read; otherwise as [`TrustStore::from_json`].
    pub fn open(file: impl AsRef<Path>) -> Result<Self> {
        let file = file.as_ref();
        let rules = ArcSwap::from_pointee(Rules::read(&text_of(file)?)?);
        Ok(Self(Arc::new(Shared { rules, file: Some(file.to_owned()) })))
    }

    /// Reads the file again: its keys take the place of all there were, at once. Keys that were revoked stay so. After an
    /// error everything is as before.
    ///
    /// # Errors
    ///
    /// As [`TrustStore::open`]; [`ErrorKind::Misuse`] when the keys are from no file.
    pub fn reload(&self) -> Result<()> {
        let Some(file) = &self.0.file else {
            return Err(Error::misuse("these trusted keys are from no file; use `replace_json`"));
        };
        self.replace_json(&text_of(file)?)
    }

    /// As [`TrustStore::reload`], with the keys of this text.
    ///
    /// # Errors
    ///
    /// As [`TrustStore::from_json`].
    pub fn replace_json(&self, text: &str) -> Result<()> {
        let read = Rules::read(text)?;
        self.change(|now| {
            let mut next = read.clone();
            next.revoked.extend(&now.revoked);
            next
        })
    }

    /// Trusts one key more, or the same key with other rules. A new key beside an old one is how keys are exchanged
    /// without an outage: trust both, let the other side sign with the new one, and revoke the old one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when the key was revoked, or there are [`limits::TRUSTED_KEYS_MAX`] already.
    pub fn trust(&self, trusted: Trusted) -> Result<()> {
        let key = trusted.key;
        if self.is_revoked(&key) {
            return Err(Error::misuse(format!("key {key} was revoked, and a revoked key stays so")));
        }
        let trusted = Arc::new(trusted);
        self.change(|now| {
            let mut next = now.clone();
            next.keys.insert(key, Arc::clone(&trusted));
            next
        })
    }

    /// Takes a key back: nothing that it signed is believed from now on, also when it was signed before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when there are [`limits::TRUSTED_KEYS_MAX`] revoked keys already. Then the key is forgotten,
    /// so that it is not believed either.
    pub fn revoke(&self, key: &PublicKey) -> Result<()> {
        let forget = |now: &Rules| {
            let mut next = now.clone();
            next.keys.remove(key);
            next
        };
        let revoked = self.change(|now| {
            let mut next = forget(now);
            next.revoked.insert(*key);
            next
        });
        revoked.inspect_err(|_| drop(self.0.rules.rcu(|now| forget(now))))
    }

    /// The keys that are trusted, those included that are not valid now.
    #[must_use]
    pub fn keys(&self) -> Vec<Trusted> {
        let mut keys: Vec<_> =
            self.0.rules.load().keys.values().map(|trusted| Trusted::clone(trusted)).collect();
        keys.sort_by_key(|trusted| trusted.key);
        keys
    }

    /// Whether the key was revoked.
    #[must_use]
    pub fn is_revoked(&self, key: &PublicKey) -> bool {
        self.0.rules.load().revoked.contains(key)
    }

    /// The rules of a key that is trusted at this time.
    pub(crate) fn find(&self, key: &PublicKey, now_unix_ms: u64) -> Result<Arc<Trusted>, Distrust> {
        let rules = self.0.rules.load();
        if rules.revoked.contains(key) {
            return Err(Distrust::RevokedKey { key: *key });
        }
        let trusted = rules.keys.get(key).ok_or(Distrust::UnknownKey { key: *key })?;
        if now_unix_ms < trusted.from_unix_ms || now_unix_ms >= trusted.until_unix_ms {
            return Err(Distrust::ExpiredKey { key: *key });
        }
        Ok(Arc::clone(trusted))
    }

    fn change(&self, change: impl Fn(&Rules) -> Rules) -> Result<()> {
        loop {
            let now = self.0.rules.load();
            let next = change(&now);
            next.check()?;
            let before = self.0.rules.compare_and_swap(&*now, Arc::new(next));
            if Arc::ptr_eq(&before, &now) {
                return Ok(());
            }
        }
    }
}

impl Rules {
    fn read(text: &str) -> Result<Self> {
        // The reader's own words may repeat what it read, which may be a secret in the wrong place.
        let written: Written = serde_json::from_str(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let why = match error.classify() {
                serde_json::error::Category::Data => "is no list of trusted keys",
                _ => "is no JSON",
            };
            Error::misuse(format!("the text of trusted keys {why} at line {line}, column {column}"))
        })?;
        let count = written.keys.len();
        let revoked: HashSet<_> = written.revoked.into_iter().collect();
        let keys: HashMap<_, _> =
            written.keys.into_iter().map(|trusted| (trusted.key, Arc::new(trusted))).collect();
        if keys.len() < count {
            return Err(Error::misuse("a key is trusted twice in one text, so its rules are in doubt"));
        }
        let rules = Self { keys, revoked };
        rules.check()?;
        Ok(rules)
    }

    fn check(&self) -> Result<()> {
        if self.keys.len() <= limits::TRUSTED_KEYS_MAX && self.revoked.len() <= limits::TRUSTED_KEYS_MAX {
            return Ok(());
        }
        Err(Error::misuse(format!(
            "more than {} keys are trusted or revoked; keys that expired need not be kept",
            limits::TRUSTED_KEYS_MAX
        )))
    }
}

impl fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.0.rules.load();
        write!(f, "{} trusted keys, {} revoked", rules.keys.len(), rules.revoked.len())
    }
}

fn text_of(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|error| {
        Error::new(ErrorKind::Io { what: format!("reading the trusted keys in {}", file.display()) })
            .with_source(error)
    })
}

fn matches(globs: &[String], name: &str) -> bool {
    globs.iter().any(|glob| glob_matches(glob, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use happen_core::key::KeyKind;

    fn key(number: u32) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::new(KeyKind::User, bytes)
    }

    #[test]
    fn trusted_and_revoked_keys_have_a_limit() {
        let max = limits::TRUSTED_KEYS_MAX as u32;
        let list = |count| (0..count).map(|number| format!(r#"{{"key":"{}"}}"#, key(number)));
        let text = |count| format!(r#"{{"keys":[{}]}}"#, list(count).collect::<Vec<_>>().join(","));
        assert!(TrustStore::from_json(&text(max + 1)).is_err());
        let trust = TrustStore::from_json(&text(max - 1)).unwrap();
        trust.trust(Trusted::new(key(max))).unwrap();
        let error = trust.trust(Trusted::new(key(max + 1))).unwrap_err();
        assert_eq!(error.code(), "misuse");
        // The same key with other rules takes no more room.
        trust.trust(Trusted::new(key(max)).nodes(["n"])).unwrap();

        let list = (0..max).map(|number| format!(r#""{}""#, key(number))).collect::<Vec<_>>().join(",");
        let full = TrustStore::from_json(&format!(r#"{{"keys":[],"revoked":[{list}]}}"#)).unwrap();
        full.trust(Trusted::new(key(max))).unwrap();
        full.revoke(&key(0)).unwrap();
        assert!(full.revoke(&key(max)).is_err());
        // What cannot be noted as revoked is not believed either.
        assert_eq!(full.find(&key(max), 0), Err(Distrust::UnknownKey { key: key(max) }));
    }

    #[test]
    fn a_key_is_valid_from_its_first_moment_until_before_its_last() {
        let trust = TrustStore::new();
        trust.trust(Trusted::new(key(1)).between(10, 20)).unwrap();
        let valid = |at| trust.find(&key(1), at).is_ok();
        assert_eq!([9, 10, 19, 20].map(valid), [false, true, true, false]);
    }
}

//! How a space on NATS is reached: how this program signs in at its servers, what its subjects begin with, and who this
//! program is to the processes there. Owns the options and variables that say so; secrets come from files and from the
//! environment, and are shown nowhere.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use happen::identity::{Identity, TrustStore};
use happen::{Config, Space};
use happen_ed25519::KeyPair;
use happen_nats::{Access, Address, Connector, LinkOptions, Nats, NatsStoreOptions};

use crate::failure::Failure;
use crate::store::opened::check_folder;
use crate::store::{env as real_env, of_store};

/// How a space on NATS is reached.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Over NATS")]
pub(crate) struct Reach {
    /// Sign in with this file of credentials (.creds) [default: $HAPPEN_NATS_CREDS]
    #[arg(long = "creds", value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "nats_nkey")]
    nats_creds: Option<PathBuf>,
    /// Sign in with the nkey whose seed is in this file [default: $HAPPEN_NATS_NKEY]
    #[arg(long = "nkey", value_name = "FILE", value_hint = ValueHint::FilePath)]
    nats_nkey: Option<PathBuf>,
    /// Believe servers whose certificates this file vouches for, in PEM [default: $HAPPEN_NATS_CA]
    #[arg(long = "ca", value_name = "FILE", value_hint = ValueHint::FilePath)]
    nats_ca: Option<PathBuf>,
    /// Show servers this certificate, in PEM [default: $HAPPEN_NATS_CERT]
    #[arg(long = "cert", value_name = "FILE", value_hint = ValueHint::FilePath, requires = "nats_cert_key")]
    nats_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM [default: $HAPPEN_NATS_KEY]
    #[arg(long = "cert-key", value_name = "FILE", value_hint = ValueHint::FilePath, requires = "nats_cert")]
    nats_cert_key: Option<PathBuf>,
    /// What subjects and streams begin with [default: $HAPPEN_NATS_PREFIX, or else happen]
    #[arg(long = "prefix", value_name = "PREFIX")]
    nats_prefix: Option<String>,
    /// Sign what is said to the processes of the space with the key whose seed is in this file [default: $HAPPEN_KEY]
    #[arg(long = "sign-with", value_name = "FILE", value_hint = ValueHint::FilePath)]
    own_key: Option<PathBuf>,
    /// Believe the keys in this file of trusted keys, in JSON [default: $HAPPEN_TRUST]
    #[arg(long = "trust", value_name = "FILE", value_hint = ValueHint::FilePath)]
    trusted_keys: Option<PathBuf>,
    /// The realm in which keys sign [default: $HAPPEN_REALM, or else none]
    #[arg(long = "realm", value_name = "NAME")]
    realm: Option<String>,
}

impl Reach {
    /// How this program signs in.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when the environment contradicts itself.
    fn access(&self) -> Result<Access, Failure> {
        let mut access = Access::new();
        if let Some(file) = &self.nats_creds {
            access = access.credentials_file(file);
        }
        if let Some(file) = &self.nats_nkey {
            access = access.nkey_file(file);
        }
        if let Some(file) = &self.nats_ca {
            access = access.ca_file(file);
        }
        if let (Some(certificate), Some(key)) = (&self.nats_cert, &self.nats_cert_key) {
            access = access.certificate(certificate, key);
        }
        let named = Access::from_env().map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(access.or(named))
    }

    /// The way to the servers.
    ///
    /// # Errors
    ///
    /// As [`Reach::access`].
    pub(crate) fn connector(&self, servers: &str) -> Result<Connector, Failure> {
        Ok(Connector::new(servers).access(self.access()?))
    }

    /// The log of a space.
    ///
    /// # Errors
    ///
    /// As [`Reach::prefix`].
    pub(crate) fn log(&self, space: &str) -> Result<NatsStoreOptions, Failure> {
        let options = NatsStoreOptions::new(space, real_env());
        Ok(match self.prefix()? {
            Some(prefix) => options.prefix(prefix),
            None => options,
        })
    }

    /// A place at the link of a space.
    ///
    /// # Errors
    ///
    /// As [`Reach::prefix`].
    pub(crate) fn link(&self, space: &str, member: String) -> Result<LinkOptions, Failure> {
        let options = LinkOptions::new(space, member);
        Ok(match self.prefix()? {
            Some(prefix) => options.prefix(prefix),
            None => options,
        })
    }

    /// # Errors
    ///
    /// [`Failure::Usage`] when the environment says what is no text.
    fn prefix(&self) -> Result<Option<String>, Failure> {
        match &self.nats_prefix {
            Some(prefix) => Ok(Some(prefix.clone())),
            None => variable(PREFIX),
        }
    }

    /// Who this program is to the processes; nobody unless a key is named.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when one of key and trusted keys is named without the other, [`Failure::Store`] when a file
    /// cannot be read. Nothing of a key's file is told.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, Failure> {
        let file = |named: &Option<PathBuf>, name| match named {
            Some(file) => Ok(Some(file.clone())),
            None => variable(name).map(|named| named.map(PathBuf::from)),
        };
        let (key, trust) = (file(&self.own_key, KEY)?, file(&self.trusted_keys, TRUST)?);
        let (key, trust) = match (key, trust) {
            (None, None) => return Ok(None),
            (Some(key), Some(trust)) => (key, trust),
            (Some(_), None) => return Err(alone("a key to sign with", "trusted keys: --trust", TRUST)),
            (None, Some(_)) => return Err(alone("trusted keys", "a key to sign with: --sign-with", KEY)),
        };
        let trusted = TrustStore::open(&trust).map_err(|error| unread(&trust, &error.chain().join(": ")))?;
        let identity = Identity::new(key_in(&key)?).trust(&trusted);
        let realm = match &self.realm {
            Some(realm) => Some(realm.clone()),
            None => variable(REALM)?,
        };
        Ok(Some(match realm {
            Some(realm) => identity.realm(realm),
            None => identity,
        }))
    }

    /// Opens a space of this program's own at an address. It is not started yet.
    ///
    /// # Errors
    ///
    /// As [`Reach::identity`], and what opening says.
    pub(crate) async fn space(&self, address: &Address, config: Config) -> Result<Space, Failure> {
        Ok(match address {
            Address::Folder(folder) => {
                // What is not there yet is made.
                if folder.exists() {
                    check_folder(folder)?;
                }
                let opened = Space::open_with(folder, config).await;
                opened.map_err(|error| of_store(address, &error))?
            }
            Address::Nats { servers, space } => {
                let mut nats = Nats::at(format!("{servers}/{space}")).config(config).access(self.access()?);
                if let Some(prefix) = self.prefix()? {
                    nats = nats.prefix(prefix);
                }
                if let Some(identity) = self.identity()? {
                    nats = nats.identity(identity);
                }
                nats.open().await?
            }
            _ => Space::with(config)?,
        })
    }
}

/// What an environment variable says; one that is empty counts as not set.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => {
            Err(Failure::Usage(format!("the environment variable {name} is no text")))
        }
    }
}

fn key_in(file: &Path) -> Result<KeyPair, Failure> {
    let text = fs::read_to_string(file).map_err(|error| unread(file, &error.to_string()))?;
    KeyPair::from_text(&text).map_err(|error| unread(file, &error.to_string()))
}

fn unread(file: &Path, why: &str) -> Failure {
    Failure::Store(format!("{} cannot be used ({why})", file.display()))
}

fn alone(what: &str, other: &str, variable: &str) -> Failure {
    Failure::Usage(format!("{what} alone is of no use; name {other} FILE or {variable}"))
}

const PREFIX: &str = "HAPPEN_NATS_PREFIX";
const KEY: &str = "HAPPEN_KEY";
const TRUST: &str = "HAPPEN_TRUST";
const REALM: &str = "HAPPEN_REALM";

//! What lets a process in at servers of NATS: how it signs in, and which certificates it shows and believes. Owns the files
//! that say so, and that nothing secret of them is shown; connects to nothing.

use std::env::VarError;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::rustls::pki_types::pem::{self, PemObject as _};
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{Auth, AuthError, ConnectOptions};
use happen_core::key::{KeyKind, Signer as _};
use happen_core::{Error, ErrorKind, Result};
use happen_ed25519::KeyPair;

/// How a process signs in at servers of NATS, and which certificates it shows them and believes.
///
/// Files are read when it is used, so that a wrong one is told by its name, and again for each connection that is made:
/// what is replaced there is used from the next one on, without a restart.
///
/// | in the environment | means |
/// |---|---|
/// | `HAPPEN_NATS_USER`, `HAPPEN_NATS_PASSWORD` | [`Access::password`] |
/// | `HAPPEN_NATS_TOKEN` | [`Access::token`] |
/// | `HAPPEN_NATS_NKEY` | [`Access::nkey_file`] |
/// | `HAPPEN_NATS_CREDS` | [`Access::credentials_file`] |
/// | `HAPPEN_NATS_CA` | [`Access::ca_file`] |
/// | `HAPPEN_NATS_CERT`, `HAPPEN_NATS_KEY` | [`Access::certificate`] |
///
/// # Examples
///
/// ```
/// use happen_nats::Access;
///
/// let access = Access::new().password("ada", "secret").ca_file("/etc/nats/ca.pem");
/// assert!(!format!("{access:?}").contains("secret"));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Access {
    sign_in: Option<SignIn>,
    ca: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
}

/// How a process signs in.
#[derive(Clone, PartialEq, Eq)]
enum SignIn {
    Password {
        user: String,
        password: String,
    },
    Token(String),
    /// A file with the seed of an nkey.
    Nkey(PathBuf),
    /// A file with a JWT and the seed of its nkey.
    Credentials(PathBuf),
}

/// What a file of credentials says.
struct Credentials {
    jwt: Option<String>,
    key: KeyPair,
}

impl Access {
    /// Nothing: servers that ask for something let nobody in with it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the environment says; nothing where it says nothing. Variables that are empty count as not set.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when it names several ways to sign in, half of a pair, or what is no text.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var(name))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Result<String, VarError>) -> Result<Self> {
        let read = |name: &str| match lookup(name) {
            Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => {
                Err(Error::misuse(format!("the environment variable `{name}` is no text")))
            }
        };
        let pair = |one: &str, other: &str| match (read(one)?, read(other)?) {
            (Some(first), Some(second)) => Ok(Some((first, second))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(Error::misuse(format!("`{one}` is set and `{other}` is not"))),
            (None, Some(_)) => Err(Error::misuse(format!("`{other}` is set and `{one}` is not"))),
        };
        let mut ways = Vec::new();
        if let Some((user, password)) = pair("HAPPEN_NATS_USER", "HAPPEN_NATS_PASSWORD")? {
            ways.push(("HAPPEN_NATS_USER", SignIn::Password { user, password }));
        }
        if let Some(token) = read("HAPPEN_NATS_TOKEN")? {
            ways.push(("HAPPEN_NATS_TOKEN", SignIn::Token(token)));
        }
        if let Some(file) = read("HAPPEN_NATS_NKEY")? {
            ways.push(("HAPPEN_NATS_NKEY", SignIn::Nkey(file.into())));
        }
        if let Some(file) = read("HAPPEN_NATS_CREDS")? {
            ways.push(("HAPPEN_NATS_CREDS", SignIn::Credentials(file.into())));
        }
        if let [(one, _), (other, _), ..] = &ways[..] {
            return Err(Error::misuse(format!(
                "`{one}` and `{other}` are set, and a process signs in in one way"
            )));
        }
        let certificate = pair("HAPPEN_NATS_CERT", "HAPPEN_NATS_KEY")?;
        Ok(Self {
            sign_in: ways.pop().map(|(_, sign_in)| sign_in),
            ca: read("HAPPEN_NATS_CA")?.map(PathBuf::from),
            certificate: certificate.map(|(certificate, key)| (certificate.into(), key.into())),
        })
    }

    /// Signs in with a name and a password. The last way to sign in that is said counts.
    #[must_use]
    pub fn password(self, user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { sign_in: Some(SignIn::Password { user: user.into(), password: password.into() }), ..self }
    }

    /// Signs in with a token.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { sign_in: Some(SignIn::Token(token.into())), ..self }
    }

    /// Signs in with an nkey, whose seed (`SU…`) is in this file.
    #[must_use]
    pub fn nkey_file(self, file: impl Into<PathBuf>) -> Self {
        Self { sign_in: Some(SignIn::Nkey(file.into())), ..self }
    }

    /// Signs in with the JWT and the key of a file of credentials (`.creds`).
    #[must_use]
    pub fn credentials_file(self, file: impl Into<PathBuf>) -> Self {
        Self { sign_in: Some(SignIn::Credentials(file.into())), ..self }
    }

    /// Believes servers whose certificates are signed by one of those in this file (PEM), in place of those that the system
    /// believes.
    #[must_use]
    pub fn ca_file(self, file: impl Into<PathBuf>) -> Self {
        Self { ca: Some(file.into()), ..self }
    }

    /// Shows servers a certificate of its own, from two files (PEM): the certificate, and its key.
    #[must_use]
    pub fn certificate(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { certificate: Some((certificate.into(), key.into())), ..self }
    }

    /// What is said here, and where nothing is said what the other one says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            sign_in: self.sign_in.or(other.sign_in),
            ca: self.ca.or(other.ca),
            certificate: self.certificate.or(other.certificate),
        }
    }

    /// The options of a client with all of this, after each file was read once.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Io`] when a file cannot be read.
    /// - [`ErrorKind::Misuse`] when it is not what it should be. Both name it, and nothing that is in it.
    pub fn options(&self) -> Result<ConnectOptions> {
        self.options_unless(false)
    }

    /// The same without a way to sign in, where an address has one.
    pub(crate) fn options_unless(&self, is_signed_in: bool) -> Result<ConnectOptions> {
        let mut options = match &self.sign_in {
            Some(sign_in) if !is_signed_in => {
                let sign_in = Arc::new(sign_in.clone());
                sign_in.check()?;
                ConnectOptions::with_auth_callback(move |nonce| {
                    let auth = sign_in.auth(&nonce);
                    std::future::ready(auth.map_err(|error| AuthError::new(error.chain().join(": "))))
                })
            }
            _ => ConnectOptions::new(),
        };
        if let Some(file) = &self.ca {
            certificates_in(file)?;
            options = options.add_root_certificates(file.clone()).require_tls(true);
        }
        if let Some((certificate, key)) = &self.certificate {
            certificates_in(certificate)?;
            key_in(key)?;
            options = options.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
        }
        Ok(options)
    }
}

impl SignIn {
    /// # Errors
    ///
    /// As [`Access::options`].
    fn check(&self) -> Result<()> {
        match self {
            Self::Password { .. } | Self::Token(_) => Ok(()),
            Self::Nkey(file) => nkey_in(file).map(drop),
            Self::Credentials(file) => credentials_in(file).map(drop),
        }
    }

    /// What the server is told that gave this nonce.
    fn auth(&self, nonce: &[u8]) -> Result<Auth> {
        let mut auth = Auth::new();
        let Credentials { jwt, key } = match self {
            Self::Password { user, password } => {
                (auth.username, auth.password) = (Some(user.clone()), Some(password.clone()));
                return Ok(auth);
            }
            Self::Token(token) => {
                auth.token = Some(token.clone());
                return Ok(auth);
            }
            Self::Nkey(file) => nkey_in(file)?,
            Self::Credentials(file) => credentials_in(file)?,
        };
        auth.signature = Some(key.sign(nonce)?.as_bytes().to_vec());
        // The JWT names the key.
        auth.nkey = jwt.is_none().then(|| key.public_key().to_string());
        auth.jwt = jwt;
        Ok(auth)
    }
}

fn text_of(file: &Path, what: &str) -> Result<String> {
    fs::read_to_string(file).map_err(|error| {
        Error::new(ErrorKind::Io { what: format!("reading {what} in {}", file.display()) }).with_source(error)
    })
}

/// The key of a user in a file with its seed, in which lines may stand that begin with `#` or `-`.
fn nkey_in(file: &Path) -> Result<Credentials> {
    let text = text_of(file, "the seed of an nkey")?;
    let mut lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '-']));
    let seed = lines.next().unwrap_or_default();
    Ok(Credentials { jwt: None, key: user_key(file, seed)? })
}

/// The JWT and the key in a file of credentials: the first lines behind the headings that name them.
fn credentials_in(file: &Path) -> Result<Credentials> {
    let text = text_of(file, "credentials")?;
    let behind = |heading: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find(|line| line.starts_with("---") && line.contains(heading))?;
        lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
    };
    let missing = |what: &str| Error::misuse(format!("the credentials in {} have no {what}", file.display()));
    let jwt = behind(JWT_HEADING).ok_or_else(|| missing("JWT of a user"))?;
    let seed = behind(SEED_HEADING).ok_or_else(|| missing("seed of an nkey"))?;
    Ok(Credentials { jwt: Some(jwt.to_owned()), key: user_key(file, seed)? })
}

fn user_key(file: &Path, seed: &str) -> Result<KeyPair> {
    let key = KeyPair::from_text(seed).map_err(|error| error.context(format!("in {}", file.display())))?;
    match key.public_key().kind() {
        KeyKind::User => Ok(key),
        _ => Err(Error::misuse(format!(
            "the seed in {} is not one of a user, which begins with `SU`",
            file.display()
        ))),
    }
}

/// # Errors
///
/// When there are none in the file.
fn certificates_in(file: &Path) -> Result<()> {
    let text = text_of(file, "a certificate")?;
    let mut count = 0;
    for found in CertificateDer::pem_slice_iter(text.as_bytes()) {
        found.map_err(|error| no_pem(file, "certificate", &error))?;
        count += 1;
    }
    match count {
        0 => Err(no_pem(file, "certificate", &pem::Error::NoItemsFound)),
        _ => Ok(()),
    }
}

/// # Errors
///
/// When there is none in the file.
fn key_in(file: &Path) -> Result<()> {
    let text = text_of(file, "the key of a certificate")?;
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map(drop)
        .map_err(|error| no_pem(file, "key of a certificate", &error))
}

fn no_pem(file: &Path, what: &str, error: &pem::Error) -> Error {
    // The reader's own words may repeat what it read.
    let why = match error {
        pem::Error::NoItemsFound => "there is none",
        pem::Error::MissingSectionEnd { .. } => "it has no end",
        _ => "it cannot be read",
    };
    Error::misuse(format!("{} should have a {what} in PEM: {why}", file.display()))
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign_in = self.sign_in.as_ref().map(|sign_in| match sign_in {
            SignIn::Password { user, .. } => format!("password of `{user}`"),
            SignIn::Token(_) => "token".to_owned(),
            SignIn::Nkey(file) => format!("nkey in {}", file.display()),
            SignIn::Credentials(file) => format!("credentials in {}", file.display()),
        });
        f.debug_struct("Access")
            .field("sign_in", &sign_in)
            .field("ca", &self.ca)
            .field("certificate", &self.certificate)
            .finish()
    }
}

const JWT_HEADING: &str = "BEGIN NATS USER JWT";
const SEED_HEADING: &str = "BEGIN USER NKEY SEED";

#[cfg(test)]
mod tests {
    use happen_core::key::Seed;

    use super::*;

    fn lookup(set: &[(&str, &str)]) -> Result<Access> {
        Access::from_lookup(|name| {
            let found = set.iter().find(|(set, _)| *set == name);
            found.map(|(_, text)| (*text).to_owned()).ok_or(VarError::NotPresent)
        })
    }

    #[test]
    fn the_environment_says_one_way_to_sign_in_or_none() {
        assert_eq!(lookup(&[]).unwrap(), Access::new());
        assert_eq!(lookup(&[("HAPPEN_NATS_TOKEN", "")]).unwrap(), Access::new());
        let pair =
            [("HAPPEN_NATS_USER", "ada"), ("HAPPEN_NATS_PASSWORD", "s3"), ("HAPPEN_NATS_CA", "ca.pem")];
        assert_eq!(lookup(&pair).unwrap(), Access::new().password("ada", "s3").ca_file("ca.pem"));
        let files = [("HAPPEN_NATS_CREDS", "a.creds"), ("HAPPEN_NATS_CERT", "c"), ("HAPPEN_NATS_KEY", "k")];
        let expected = Access::new().credentials_file("a.creds").certificate("c", "k");
        assert_eq!(lookup(&files).unwrap(), expected);
        for wrong in [
            &[("HAPPEN_NATS_USER", "ada")][..],
            &[("HAPPEN_NATS_PASSWORD", "s3cret")],
            &[("HAPPEN_NATS_KEY", "k")],
            &[("HAPPEN_NATS_TOKEN", "s3cret"), ("HAPPEN_NATS_NKEY", "n")],
        ] {
            let error = lookup(wrong).unwrap_err();
            assert_eq!(error.code(), "misuse");
            assert!(
                error.to_string().contains(wrong[0].0) && !error.to_string().contains("s3cret"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_said_first_counts_and_the_rest_is_added() {
        let own = Access::new().token("t");
        let other = Access::new().password("ada", "s3").ca_file("ca.pem");
        assert_eq!(own.clone().or(other), own.ca_file("ca.pem"));
    }

    #[test]
    fn a_file_that_is_not_what_it_should_be_is_told_by_its_name_and_shown_to_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a-file");
        let seed = Seed::new(KeyKind::User, [7; 32]).reveal();
        let account = Seed::new(KeyKind::Account, [7; 32]).reveal();
        let whole = format!(
            "-----{JWT_HEADING}-----\neyJ.secret.x\n------END-----\n-----{SEED_HEADING}-----\n{seed}\n"
        );
        let nkey = |text: &str| (text.to_owned(), Access::new().nkey_file(&file));
        let creds = |text: &str| (text.to_owned(), Access::new().credentials_file(&file));
        let ca = |text: &str| (text.to_owned(), Access::new().ca_file(&file));
        for ((text, access), reads) in [
            (nkey(&seed), true),
            (nkey(&format!("# mine\n\n  {seed}  \n")), true),
            (nkey(""), false),
            (nkey("secret"), false),
            (nkey(&seed[1..]), false),
            (nkey(&account), false),
            (creds(&whole), true),
            (creds(&whole.replace('\n', "\r\n")), true),
            (creds(&seed), false),
            (creds(&whole.replace(&seed, "")), false),
            (creds(&whole.replace("eyJ.secret.x\n", "")), false),
            (creds(&whole.replace(&seed, &account)), false),
            (ca(""), false),
            (ca("secret"), false),
            (ca("-----BEGIN CERTIFICATE-----\nsecret"), false),
            (ca("-----BEGIN CERTIFICATE-----\n*secret*\n-----END CERTIFICATE-----\n"), false),
        ] {
            fs::write(&file, &text).unwrap();
            let result = access.options();
            assert_eq!(result.is_ok(), reads, "{text}");
            if let Err(error) = result {
                let told = error.chain().join(": ");
                assert_eq!(error.code(), "misuse", "{told}");
                assert!(told.contains("a-file") && !told.contains("secret"), "{told}");
                assert!(!told.contains(&seed[2..]) && !told.contains(&account[2..]), "{told}");
            }
        }
        fs::remove_file(&file).unwrap();
        for access in [nkey("").1, creds("").1, ca("").1, Access::new().certificate(&file, &file)] {
            let error = access.options().map(drop).unwrap_err();
            assert_eq!(error.code(), "io");
            assert!(error.to_string().contains("a-file"), "{error}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        for access in [Access::new().password("ada", "s3cret"), Access::new().token("s3cret")] {
            assert!(!format!("{access:?}").contains("s3cret"));
        }
    }
}

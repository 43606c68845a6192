//! What the address of a space says. Owns its forms, and that nothing secret in one is shown; opens nothing.

use std::fmt;
use std::path::PathBuf;

use happen_core::{Error, Result};

/// Where a space is. Shown without anything secret.
///
/// # Examples
///
/// ```
/// use happen_nats::Address;
///
/// # fn main() -> happen::Result<()> {
/// let address = Address::parse("nats://ada:secret@one:4222,nats://two:4222/shop")?;
/// assert_eq!(address.to_string(), "nats://one:4222,nats://two:4222/shop");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// In this process alone.
    Memory,
    /// In a folder.
    Folder(PathBuf),
    /// On NATS.
    Nats {
        /// The addresses of servers with commas between them, with what is needed to sign in.
        servers: String,
        /// The name of the space.
        space: String,
    },
}

impl Address {
    /// Reads an address as [`Connect`](crate::Connect) describes it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](happen_core::ErrorKind::Misuse) when it means nothing.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::misuse(
                "an address is empty; say `memory:`, a folder, or `nats://host:port/space`",
            ));
        }
        if text == "memory:" {
            return Ok(Self::Memory);
        }
        if let Some(folder) = text.strip_prefix("file:") {
            return Ok(Self::Folder(folder.strip_prefix("//").unwrap_or(folder).into()));
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Folder(text.into())) };
        if !NATS_SCHEMES.contains(&scheme) {
            return Err(Error::misuse(format!(
                "`{scheme}://` is no address of a space; say `memory:`, a folder, or `nats://host:port/space`"
            )));
        }
        // The name of the space stands behind the last address.
        let last = rest.rfind("://").map_or(0, |at| at + 3);
        let slash = rest.get(last..).and_then(|last_address| last_address.find('/'));
        let (servers, space) = match slash.map(|at| last + at).and_then(|at| rest.split_at_checked(at)) {
            Some((before, space)) => {
                (text.get(..scheme.len() + 3 + before.len()).unwrap_or(text), space.trim_matches('/'))
            }
            None => (text, ""),
        };
        let space = if space.is_empty() { SPACE } else { space };
        Ok(Self::Nats { servers: servers.to_owned(), space: space.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Nats { servers, space } => {
                for (index, server) in servers.split(',').enumerate() {
                    let (scheme, rest) = server.trim().split_once("://").unwrap_or(("nats", server.trim()));
                    // A password may have an `@` that is not encoded.
                    let host = rest.rsplit('@').next().unwrap_or_default();
                    write!(f, "{}{scheme}://{host}", if index == 0 { "" } else { "," })?;
                }
                write!(f, "/{space}")
            }
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

/// The space of an address that names none.
const SPACE: &str = "main";

/// Those that the client speaks as it is built here.
const NATS_SCHEMES: [&str; 2] = ["nats", "tls"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_where() {
        let nats =
            |servers: &str, space: &str| Address::Nats { servers: servers.into(), space: space.into() };
        let folder = |folder: &str| Address::Folder(folder.into());
        for (text, expected) in [
            ("memory:", Address::Memory),
            ("./data", folder("./data")),
            ("/var/lib/shop", folder("/var/lib/shop")),
            ("file:/var/lib/shop", folder("/var/lib/shop")),
            ("file:///var/lib/shop", folder("/var/lib/shop")),
            ("nats://localhost", nats("nats://localhost", "main")),
            ("nats://localhost:4222/", nats("nats://localhost:4222", "main")),
            ("nats://localhost:4222/shop", nats("nats://localhost:4222", "shop")),
            ("tls://ada:s3@host/shop", nats("tls://ada:s3@host", "shop")),
            ("nats://a:1,nats://b:2/shop", nats("nats://a:1,nats://b:2", "shop")),
            ("nats://a:1,b:2", nats("nats://a:1,b:2", "main")),
        ] {
            assert_eq!(Address::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "http://localhost", "ws://localhost/shop", "postgres://localhost/shop"] {
            assert_eq!(Address::parse(text).unwrap_err().code(), "misuse", "{text}");
        }
    }

    #[test]
    fn nothing_secret_is_shown_of_an_address() {
        for (text, shown) in [
            ("nats://ada:secret@a:1,tls://secret@b:2/shop", "nats://a:1,tls://b:2/shop"),
            ("nats://ada:sec@ret@a:1", "nats://a:1/main"),
            ("nats://a:1,ada:secret@b:2/shop", "nats://a:1,nats://b:2/shop"),
            ("./data", "./data"),
            ("memory:", "memory:"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(format!("{address:?}"), format!("`{shown}`"), "{text}");
        }
    }
}

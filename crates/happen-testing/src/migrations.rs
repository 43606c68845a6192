//! Checks that documents of every version of a state can still be read. Owns what has to be shown of each version; knows
//! a state by its trait alone.

use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};

use happen_core::state::{self, State};
use happen_core::{Error, ErrorKind};

/// Documents of the versions of a state, with what is to be read from each. For tests.
///
/// Every version up to the current one needs at least one document, or has to be said to have no way. The current
/// version needs one that was written down in hexadecimal: when the shape of the type changes and its version does not,
/// documents that are stored can no longer be read, and that document is the first of them.
///
/// # Examples
///
/// ```
/// use happen_core::{OldState, Result, State};
/// use happen_testing::Migrations;
/// # use serde::{Deserialize, Serialize};
///
/// #[derive(Default, Clone, Serialize, Deserialize)]
/// struct StockV1 { apples: u32 }
/// # impl State for StockV1 {
/// #     const NAME: &'static str = "stock";
/// #     const VERSION: u32 = 1;
/// # }
///
/// #[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
/// struct Stock { fruit: u32 }
///
/// impl State for Stock {
///     const NAME: &'static str = "stock";
///     const VERSION: u32 = 2;
///
///     fn migrate(old: &OldState<'_>) -> Result<Self> {
///         Ok(Self { fruit: old.state::<StockV1>()?.apples })
///     }
/// }
///
/// Migrations::new()
///     .written_by(&StockV1 { apples: 7 }, Stock { fruit: 7 })
///     .written_as(2, "81 a5 6672756974 07", Stock { fruit: 7 })
///     .check();
/// ```
#[derive(Debug)]
#[must_use = "`check` checks them"]
pub struct Migrations<S> {
    documents: Vec<Document<S>>,
    no_way: BTreeSet<u32>,
    mistakes: Vec<String>,
}

#[derive(Debug)]
struct Document<S> {
    version: u32,
    bytes: Vec<u8>,
    written_down: bool,
    expected: S,
}

impl<S: State + PartialEq + Debug> Migrations<S> {
    /// No documents yet.
    pub fn new() -> Self {
        Self { documents: Vec::new(), no_way: BTreeSet::new(), mistakes: Vec::new() }
    }

    /// A document that an older version of the type writes, which is still there as a state of that version, and what
    /// is to be read from it.
    pub fn written_by<O: State>(mut self, old: &O, expected: S) -> Self {
        if O::NAME != S::NAME {
            self.mistakes.push(format!("`{}` is another state than `{}`", O::NAME, S::NAME));
        }
        match state::encode(old) {
            Ok(bytes) => self.add(O::VERSION, bytes, false, expected),
            Err(error) => self.mistakes.push(format!("version {}: {}", O::VERSION, told(&error))),
        }
        self
    }

    /// A document of a version in hexadecimal, with spaces wherever they help, and what is to be read from it.
    pub fn written_as(mut self, version: u32, hexadecimal: &str, expected: S) -> Self {
        match bytes_of(hexadecimal) {
            Some(bytes) => self.add(version, bytes, true, expected),
            None => self.mistakes.push(format!("version {version}: `{hexadecimal}` is not in hexadecimal")),
        }
        self
    }

    /// Says that documents of this version cannot be read any more, and that who tries is to be told so.
    pub fn no_way(mut self, version: u32) -> Self {
        self.no_way.insert(version);
        self
    }

    fn add(&mut self, version: u32, bytes: Vec<u8>, written_down: bool, expected: S) {
        self.documents.push(Document { version, bytes, written_down, expected });
    }

    /// Reads all of them.
    ///
    /// # Panics
    ///
    /// When a document is not read as expected, a version has no document, one that is said to have no way has one, or
    /// a newer version than the current one is not refused. The message has all of what is wrong.
    #[track_caller]
    pub fn check(self) {
        let mut mistakes = self.mistakes;
        mistakes.extend(self.documents.iter().filter_map(Document::mistake));
        for version in 1..=S::VERSION {
            let mut of_version = self.documents.iter().filter(|document| document.version == version);
            let is_current = version == S::VERSION;
            match (of_version.next().is_some(), self.no_way.contains(&version)) {
                (true, true) => mistakes.push(format!("version {version} has a document and is said to have no way")),
                (true, false) => {}
                (false, true) if is_current => {
                    mistakes.push(format!("version {version} is the current one and always has a way"));
                }
                (false, true) => mistakes.extend(wrong_refusal::<S>(version)),
                (false, false) if is_current => {}
                (false, false) => mistakes.push(format!(
                    "version {version} has no document: add `.written_by(..)` or `.written_as({version}, ..)`, or say \
                     `.no_way({version})`"
                )),
            }
        }
        if !self.documents.iter().any(|document| document.version == S::VERSION && document.written_down) {
            mistakes.push(unwritten::<S>());
        }
        let beyond = self.documents.iter().map(|document| document.version).chain(self.no_way);
        for version in beyond.filter(|version| !(1..=S::VERSION).contains(version)).collect::<BTreeSet<_>>() {
            mistakes.push(format!("there is no version {version}: the current one is {}", S::VERSION));
        }
        mistakes.extend(S::VERSION.checked_add(1).and_then(wrong_refusal::<S>));
        assert!(mistakes.is_empty(), "documents of state `{}`:\n- {}", S::NAME, mistakes.join("\n- "));
    }
}

impl<S: State + PartialEq + Debug> Default for Migrations<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: State + PartialEq + Debug> Document<S> {
    fn mistake(&self) -> Option<String> {
        let Self { version, bytes, expected, .. } = self;
        match state::decode_document::<S>(*version, bytes) {
            Ok(read) if read == *expected => None,
            Ok(read) => Some(format!("version {version} is read as {read:?} and not as {expected:?}")),
            Err(error) => Some(format!("version {version} is not read: {}", told(&error))),
        }
    }
}

/// What is wrong with how a version is refused that cannot be read.
fn wrong_refusal<S: State + Debug>(version: u32) -> Option<String> {
    let bytes = match state::encode(&S::default()) {
        Ok(bytes) => bytes,
        Err(error) => return Some(format!("the default cannot be encoded: {}", told(&error))),
    };
    match state::decode_document::<S>(version, &bytes) {
        Err(error) if matches!(error.kind(), ErrorKind::WrongVersion { stored, .. } if *stored == version) => {
            None
        }
        Err(error) => {
            Some(format!("version {version} has no way, and the error does not say so: {}", told(&error)))
        }
        Ok(read) => Some(format!("version {version} is to be refused, and is read as {read:?}")),
    }
}

/// The line that is missing, for the default.
fn unwritten<S: State>() -> String {
    let version = S::VERSION;
    let line = match state::encode(&S::default()) {
        Ok(bytes) => format!("`.written_as({version}, \"{}\", <the default>)`", hexadecimal(&bytes)),
        Err(error) => {
            format!("`.written_as({version}, ..)`, but the default cannot be encoded: {}", told(&error))
        }
    };
    format!(
        "the current version {version} has no document that was written down: add {line}, or one with more in it"
    )
}

/// The error with its causes, on one line.
fn told(error: &Error) -> String {
    error.chain().join(": ")
}

fn bytes_of(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = hexadecimal
        .chars()
        .filter(|letter| !letter.is_whitespace())
        .map(|letter| letter.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! Two changed copies of one value made into one again. Owns what counts as a conflict and who wins it; does not know how
//! copies come apart.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use happen_core::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::path::{Path, from_json, to_json};

/// Who wins where both copies changed the same place in different ways.
///
/// # Examples
///
/// ```
/// use happen::model::{Policy, Prefer, merge};
/// use serde_json::json;
///
/// # fn main() -> happen::Result<()> {
/// let base = json!({ "name": "lamp", "price": 10, "stock": 5 });
/// let mine = json!({ "name": "lamp", "price": 12, "stock": 3 });
/// let theirs = json!({ "name": "desk lamp", "price": 11, "stock": 4 });
///
/// // What only one of them changed is never in question.
/// let policy = Policy::new(Prefer::Mine).custom("stock", |conflict| {
///     let count = |side: Option<&serde_json::Value>| side.and_then(|count| count.as_i64()).unwrap_or(0);
///     let (base, mine, theirs) = (count(conflict.base()), count(conflict.mine()), count(conflict.theirs()));
///     Ok(Some(json!(mine + theirs - base)))
/// });
/// let merged = merge(&base, &mine, &theirs, &policy)?;
/// assert_eq!(merged, json!({ "name": "desk lamp", "price": 12, "stock": 2 }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Policy {
    prefer: Prefer,
    rules: Vec<(Path, Rule)>,
}

/// Which of two copies wins a conflict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two sides, or neither")]
pub enum Prefer {
    /// The one given as `mine`.
    Mine,
    /// The one given as `theirs`.
    Theirs,
    /// Neither: conflicts are told.
    #[default]
    Neither,
}

#[derive(Clone)]
enum Rule {
    Prefer(Prefer),
    Custom(Decide),
}

type Decide = Arc<dyn Fn(&Conflict) -> Result<Option<Json>> + Send + Sync>;

/// A place that both copies changed in different ways. `None` stands for a place that is not there.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    path: Path,
    base: Option<Json>,
    mine: Option<Json>,
    theirs: Option<Json>,
}

/// The places that nobody wins: the cause of the error that [`merge`] fails with, found by [`Error::find_cause`].
#[derive(Debug, Clone, PartialEq)]
pub struct Conflicts {
    all: Vec<Conflict>,
}

impl Policy {
    /// The same side wins everywhere, as far as nothing else is said of a place.
    #[must_use]
    pub fn new(prefer: Prefer) -> Self {
        Self { prefer, rules: Vec::new() }
    }

    /// The side with the greater rank wins: by the ids of the nodes that made the changes, by the times at which they
    /// did, by revisions. Both sides come to the same result when each gives its own rank first. Neither wins when the
    /// ranks are equal.
    ///
    /// By time the change that was made last wins and the other one is lost.
    #[must_use]
    pub fn greater<R: Ord>(mine: &R, theirs: &R) -> Self {
        Self::new(match mine.cmp(theirs) {
            std::cmp::Ordering::Greater => Prefer::Mine,
            std::cmp::Ordering::Less => Prefer::Theirs,
            std::cmp::Ordering::Equal => Prefer::Neither,
        })
    }

    /// This side wins at this place and inside it, as far as nothing else is said of a place inside. Parts of the path
    /// may be `*`, for any.
    #[must_use]
    pub fn at(self, path: impl Into<Path>, prefer: Prefer) -> Self {
        self.with(path.into(), Rule::Prefer(prefer))
    }

    /// The function decides about this place as a whole when both sides changed it, also when the changes are apart
    /// inside it. `None` takes the place away. Parts of the path may be `*`, for any.
    #[must_use]
    pub fn custom(
        self,
        path: impl Into<Path>,
        decide: impl Fn(&Conflict) -> Result<Option<Json>> + Send + Sync + 'static,
    ) -> Self {
        self.with(path.into(), Rule::Custom(Arc::new(decide)))
    }

    fn with(mut self, path: Path, rule: Rule) -> Self {
        self.rules.push((path, rule));
        self
    }

    /// What is said of this very place: the last word counts.
    fn rule(&self, path: &Path) -> Option<&Rule> {
        let fits = |pattern: &Path| {
            let (pattern, parts) = (pattern.parts(), path.parts());
            pattern.len() == parts.len()
                && pattern.iter().zip(parts).all(|(wanted, part)| wanted == "*" || wanted == part)
        };
        self.rules.iter().rev().find(|(pattern, _)| fits(pattern)).map(|(_, rule)| rule)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Prefer::default())
    }
}

/// Makes one value of two copies that were changed apart, by what they have in common: the value they come from.
///
/// Maps are merged entry by entry, and arrays item by item as long as nobody changed their length; a place that only
/// one side changed is as that side has it. Where both changed it in different ways the policy decides. A map whose only
/// entry has another key on each side is taken as one place, because enums are written that way.
///
/// # Errors
///
/// - [`ErrorKind::Conflict`] when there are places that nobody wins; the cause is a [`Conflicts`] with all of them.
/// - [`ErrorKind::Undecodable`] when what comes of it is no `T`, [`ErrorKind::Unencodable`] when a value has no form in
///   JSON.
/// - What a function of the policy returns.
pub fn merge<T: Serialize + DeserializeOwned>(base: &T, mine: &T, theirs: &T, policy: &Policy) -> Result<T> {
    let (base, mine, theirs) = (to_json(base)?, to_json(mine)?, to_json(theirs)?);
    let mut merging = Merging { policy, conflicts: Vec::new() };
    let sides = Sides { base: Some(&base), mine: Some(&mine), theirs: Some(&theirs) };
    let merged = merging.merge(&Path::default(), sides, policy.prefer)?;
    if !merging.conflicts.is_empty() {
        let conflicts = Conflicts { all: merging.conflicts };
        return Err(Error::new(ErrorKind::Conflict { what: conflicts.to_string() }).with_source(conflicts));
    }
    from_json(merged.unwrap_or_default())
}

struct Merging<'p> {
    policy: &'p Policy,
    conflicts: Vec<Conflict>,
}

#[derive(Clone, Copy)]
struct Sides<'j> {
    base: Option<&'j Json>,
    mine: Option<&'j Json>,
    theirs: Option<&'j Json>,
}

impl<'j> Sides<'j> {
    fn map(self, at: impl Fn(&'j Json) -> Option<&'j Json>) -> Self {
        let Self { base, mine, theirs } = self;
        Self { base: base.and_then(&at), mine: mine.and_then(&at), theirs: theirs.and_then(&at) }
    }
}

impl Merging<'_> {
    fn merge(&mut self, path: &Path, sides: Sides<'_>, prefer: Prefer) -> Result<Option<Json>> {
        let Sides { base, mine, theirs } = sides;
        if mine == theirs || theirs == base {
            return Ok(mine.cloned());
        }
        if mine == base {
            return Ok(theirs.cloned());
        }
        let conflict = || Conflict {
            path: path.clone(),
            base: base.cloned(),
            mine: mine.cloned(),
            theirs: theirs.cloned(),
        };
        let prefer = match self.policy.rule(path) {
            Some(Rule::Custom(decide)) => {
                let decided = decide(&conflict());
                return decided.map_err(|error| error.context(format!("merging `{path}`")));
            }
            Some(Rule::Prefer(prefer)) => *prefer,
            None => prefer,
        };
        match (mine, theirs) {
            (Some(Json::Object(mine)), Some(Json::Object(theirs))) if !is_choice(base, mine, theirs) => {
                let mut merged = Map::new();
                for key in mine.keys().chain(theirs.keys().filter(|key| !mine.contains_key(*key))) {
                    let inside = sides.map(|json| json.get(key));
                    if let Some(value) = self.merge(&path.join(key), inside, prefer)? {
                        merged.insert(key.clone(), value);
                    }
                }
                Ok(Some(Json::Object(merged)))
            }
            (Some(Json::Array(mine)), Some(Json::Array(theirs))) if same_length(base, mine, theirs) => {
                let mut merged = Vec::with_capacity(mine.len());
                for index in 0..mine.len() {
                    let inside = sides.map(|json| json.get(index));
                    merged
                        .push(self.merge(&path.join(index.to_string()), inside, prefer)?.unwrap_or_default());
                }
                Ok(Some(Json::Array(merged)))
            }
            _ => Ok(match prefer {
                Prefer::Mine => mine.cloned(),
                Prefer::Theirs => theirs.cloned(),
                Prefer::Neither => {
                    self.conflicts.push(conflict());
                    mine.cloned()
                }
            }),
        }
    }
}

/// Whether this may be an enum of which each side chose another variant: both entries together would be no value of it.
fn is_choice(base: Option<&Json>, mine: &Map<String, Json>, theirs: &Map<String, Json>) -> bool {
    let one_each = mine.len() == 1 && theirs.len() == 1;
    // From nothing two maps may have grown.
    let was_one = base.is_some_and(|base| base.as_object().is_none_or(|base| base.len() == 1));
    one_each && was_one && !mine.keys().eq(theirs.keys())
}

fn same_length(base: Option<&Json>, mine: &[Json], theirs: &[Json]) -> bool {
    let base = base.and_then(Json::as_array);
    mine.len() == theirs.len() && base.is_some_and(|base| base.len() == mine.len())
}

impl Conflict {
    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was there before either side changed it.
    #[must_use]
    pub fn base(&self) -> Option<&Json> {
        self.base.as_ref()
    }

    /// What is there on the side given as `mine`.
    #[must_use]
    pub fn mine(&self) -> Option<&Json> {
        self.mine.as_ref()
    }

    /// What is there on the side given as `theirs`.
    #[must_use]
    pub fn theirs(&self) -> Option<&Json> {
        self.theirs.as_ref()
    }
}

impl Conflicts {
    /// All of them, in the order of the places.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Conflict> {
        self.all.iter()
    }
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |conflict: &Conflict| match conflict.path.parts() {
            [] => "the whole value".to_owned(),
            _ => format!("`{}`", conflict.path),
        };
        let paths: Vec<_> = self.all.iter().map(place).collect();
        write!(f, "both sides changed {}", paths.join(", "))
    }
}

impl StdError for Conflicts {}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.rules.iter().map(|(path, rule)| match rule {
            Rule::Prefer(prefer) => format!("{path}: {prefer:?}"),
            Rule::Custom(_) => format!("{path}: a function"),
        });
        f.debug_struct("Policy")
            .field("prefer", &self.prefer)
            .field("rules", &rules.collect::<Vec<_>>())
            .finish()
    }
}

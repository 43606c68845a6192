//! The store of `happen git --store`: whose history it holds, and which nodes it knows. Owns what is asked of the store
//! before the history is read; what a commit becomes is in `git.rs`.

use happen::config::Retention;
use happen::store::List;
use happen::{Config, Space};
use happen_nats::Address;
use serde::{Deserialize, Serialize};

use crate::demo::kind;
use crate::failure::Failure;
use crate::git_log::History;
use crate::store::key::{STATE, plain};
use crate::store::reach::Reach;

/// Whose history a store holds, at least in part: the state of a node of its own.
#[derive(happen::State, Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[state("git.history", version = 1)]
struct Begun {
    head: String,
}

/// Opens the store at an address, which an earlier run may have left in the middle of its work, for this history.
///
/// # Errors
///
/// [`Failure::Usage`] when the store holds commits that this history does not have, and what the store says.
pub(crate) async fn open(
    address: &Address,
    reach: &Reach,
    config: Config,
    history: &History,
) -> Result<Space, Failure> {
    // A history is asked about however old the records of it are.
    let retention = Retention { age_ms: 0, ..Retention::default() };
    let space = reach.space(address, Config { retention, ..config }).await?;
    let keeper = space.node("history");
    let begun = keeper.state::<Begun>();
    begun.load().await?;
    let known = begun.try_get(|begun| begun.head.clone())?;
    let head = history.head();
    if !known.is_empty() && !history.has(&known)? {
        return Err(Failure::Usage(format!(
            "{address} has the history of commit {known}, which is no part of that of commit {head}; choose another {}",
            kind(address),
        )));
    }
    // Before the first commit is taken, so that a run that is killed has said whose they are.
    if known != head {
        let head = head.to_owned();
        begun.commit(move |_| Begun { head: head.clone() }).await?;
    }
    Ok(space)
}

/// The nodes with a state whose names begin so.
///
/// # Errors
///
/// What the store says.
pub(crate) async fn nodes(space: &Space, kind: &str) -> Result<Vec<String>, Failure> {
    let store = space.store();
    let prefix = format!("{STATE}{kind}");
    let (mut nodes, mut after) = (Vec::new(), None);
    loop {
        let list = List { prefix: prefix.as_str().into(), after, documents_max: usize::MAX };
        let page = store.list(list).await?;
        let Some(last) = page.last() else { return Ok(nodes) };
        after = Some(last.key.clone());
        let names = page.iter().filter_map(|document| document.key[STATE.len()..].split('/').next());
        nodes.extend(names.map(plain));
    }
}

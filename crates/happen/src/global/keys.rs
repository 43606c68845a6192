//! The keys of global state, read page by page. Owns where a reading stands; does not know what the values say.

use std::fmt;

use happen_core::Result;
use happen_core::limits::PAGE_RECORDS_MAX;
use happen_core::store::{Key, List};

use super::Global;
use super::format::{self, Kept};
use super::sweep;
use crate::pure;

/// Keys of entries, in the order of their bytes with `/` as `%2F` and `%` as `%25`. Made by [`Global::keys`].
#[must_use = "nothing is read before `next_page`"]
pub struct Keys {
    global: Global,
    prefix: String,
    after: Option<Key>,
}

impl Keys {
    pub(super) fn new(global: &Global, prefix: &str) -> Self {
        Self { global: global.clone(), prefix: format!("{}{prefix}", global.prefix), after: None }
    }

    /// The next keys, at least one and at most [`PAGE_RECORDS_MAX`]; `None` after the last ones.
    ///
    /// A key that is written or deleted meanwhile may be among them or not; every other one is, once.
    ///
    /// # Errors
    ///
    /// As said at [`Global`]. A further call goes on where this one failed.
    pub async fn next_page(&mut self) -> Result<Option<Vec<String>>> {
        pure::check("read global state")?;
        let store = self.global.space.store();
        // Each turn is a page of the store, none of whose entries is there any more.
        loop {
            let prefix = format::document_key(&self.prefix);
            let list = List { prefix, after: self.after.clone(), documents_max: PAGE_RECORDS_MAX };
            let documents = store.list(list).await?;
            let Some(last) = documents.last() else { return Ok(None) };
            let now = self.global.space.env.unix_ms();
            let mut page = Vec::with_capacity(documents.len());
            let mut expired = false;
            for document in &documents {
                let Some(content) = &document.content else { continue };
                let Some(name) = format::entry_name(&document.key) else { continue };
                let kept = Kept::of_content(content)
                    .map_err(|error| error.context(format!("reading global `{name}`")))?;
                if kept.has_expired(now) {
                    expired = true;
                } else if let Some(key) = name.strip_prefix(&*self.global.prefix) {
                    page.push(key.to_owned());
                }
            }
            self.after = Some(Key::clone(&last.key));
            if expired {
                sweep::begin(&self.global.space);
            }
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}..)", self.prefix)
    }
}

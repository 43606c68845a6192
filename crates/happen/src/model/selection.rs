//! Values made of states: computed when what they are made of has changed, and not again before. Owns what is kept of
//! them; does not know what changes a state.

use std::fmt;
use std::sync::Arc;

use happen_core::State;

use super::watch::{Bell, Document, Listening};
use crate::node::Node;
use crate::sync::{Mutex, lock};

/// A value that a function makes of a state, or of other selections. Clones are the same one.
///
/// It is computed when it is asked for and what it is made of has changed since; everybody who asks in between shares
/// the same value. Made by [`Node::select`] and [`Node::select_entity`]; [`Selection::map`], [`Selection::zip`] and
/// [`Selection::all`] make selections of selections, also over several nodes.
///
/// Each keeps the one value it gave last. The parts of one that is made of several are each whole, and not of one
/// moment: between reading one and the other both may change. Whoever follows it ends with what all of them ended with.
///
/// The functions are to compute and nothing else. Meanwhile others who ask wait, so one that asks for the selection it
/// is computing waits for ever.
///
/// # Examples
///
/// ```
/// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// # struct Stock { pieces: Vec<u64> }
/// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// # struct Price { cents: u64 }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> happen::Result<()> {
/// let space = happen::Space::memory();
/// let (shop, prices) = (space.node("shop"), space.node("prices"));
/// let pieces = shop.select(|stock: &Stock| stock.pieces.iter().sum::<u64>());
/// let worth = pieces.zip(&prices.select(|price: &Price| price.cents)).map(|(pieces, cents)| **pieces * **cents);
/// assert_eq!(*worth.get(), 0);
///
/// let mut worths = worth.changes();
/// shop.state::<Stock>().set(|_| Stock { pieces: vec![3, 4] })?;
/// prices.state::<Price>().set(|_| Price { cents: 10 })?;
/// assert_eq!(worths.next().await.as_deref(), Some(&70));
/// # Ok(())
/// # }
/// ```
pub struct Selection<T> {
    source: Arc<dyn Source<T>>,
}

/// The values that a selection had one after the other. Made by [`Selection::changes`].
pub struct SelectionChanges<T> {
    selection: Selection<T>,
    bell: Bell,
    /// Takes the bell off the documents at the end.
    _listening: Vec<Listening>,
    last: Arc<T>,
}

/// Where values come from.
trait Source<T>: Send + Sync {
    /// The value with a number that is another one when the value was computed anew.
    fn read(&self) -> (u64, Arc<T>);

    /// Puts a bell at every document it is made of.
    fn listen(&self, bell: &Bell, into: &mut Vec<Listening>);

    /// Whether no document it is made of will change any more.
    fn is_closed(&self) -> bool;
}

/// What was computed, for what it was made of.
struct Memo<K, T>(Mutex<Option<Kept<K, T>>>);

struct Kept<K, T> {
    made_of: K,
    number: u64,
    value: Arc<T>,
}

impl<K: PartialEq, T> Memo<K, T> {
    fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The value that was made of this, or a new one. The look at what it is made of is inside the lock, so that nobody
    /// puts an older value in the place of a newer one.
    fn get(&self, look: impl FnOnce() -> K, make: impl FnOnce(&K) -> T) -> (u64, Arc<T>) {
        let mut kept = lock(&self.0);
        let made_of = look();
        if let Some(kept) = &*kept
            && kept.made_of == made_of
        {
            return (kept.number, Arc::clone(&kept.value));
        }
        let value = Arc::new(make(&made_of));
        let number = kept.as_ref().map_or(0, |kept| kept.number + 1);
        let replaced = kept.replace(Kept { made_of, number, value: Arc::clone(&value) });
        drop(kept);
        // The user's value: what its drop does is done when no lock is held.
        drop(replaced);
        (number, value)
    }
}

struct OfState<S, T, F> {
    document: Document<S>,
    select: F,
    memo: Memo<u64, T>,
}

impl<S, T, F> Source<T> for OfState<S, T, F>
where
    S: State,
    T: Send + Sync,
    F: Fn(&S) -> T + Send + Sync,
{
    fn read(&self) -> (u64, Arc<T>) {
        // The revision is looked at first: a change in between makes the value newer than it is said to be, and then it
        // is made once more and not too seldom.
        let state = self.document.state();
        self.memo.get(|| state.revision(), |_| state.get(&self.select))
    }

    fn listen(&self, bell: &Bell, into: &mut Vec<Listening>) {
        into.push(self.document.listen(bell));
    }

    fn is_closed(&self) -> bool {
        self.document.is_closed()
    }
}

struct Mapped<A, T, F> {
    of: Selection<A>,
    map: F,
    memo: Memo<Numbered<A>, T>,
}

/// A value that is the same when its number is.
struct Numbered<A>(u64, Arc<A>);

impl<A> PartialEq for Numbered<A> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<A> Numbered<A> {
    fn of(selection: &Selection<A>) -> Self {
        let (number, value) = selection.source.read();
        Self(number, value)
    }
}

impl<A, T, F> Source<T> for Mapped<A, T, F>
where
    A: Send + Sync,
    T: Send + Sync,
    F: Fn(&A) -> T + Send + Sync,
{
    fn read(&self) -> (u64, Arc<T>) {
        self.memo.get(|| Numbered::of(&self.of), |of| (self.map)(&of.1))
    }

    fn listen(&self, bell: &Bell, into: &mut Vec<Listening>) {
        self.of.source.listen(bell, into);
    }

    fn is_closed(&self) -> bool {
        self.of.source.is_closed()
    }
}

type Pair<A, B> = (Arc<A>, Arc<B>);

struct Zipped<A, B> {
    of: (Selection<A>, Selection<B>),
    memo: Memo<(Numbered<A>, Numbered<B>), Pair<A, B>>,
}

impl<A: Send + Sync, B: Send + Sync> Source<Pair<A, B>> for Zipped<A, B> {
    fn read(&self) -> (u64, Arc<Pair<A, B>>) {
        let look = || (Numbered::of(&self.of.0), Numbered::of(&self.of.1));
        self.memo.get(look, |(a, b)| (Arc::clone(&a.1), Arc::clone(&b.1)))
    }

    fn listen(&self, bell: &Bell, into: &mut Vec<Listening>) {
        self.of.0.source.listen(bell, into);
        self.of.1.source.listen(bell, into);
    }

    fn is_closed(&self) -> bool {
        self.of.0.source.is_closed() && self.of.1.source.is_closed()
    }
}

struct All<A> {
    of: Vec<Selection<A>>,
    memo: Memo<Vec<Numbered<A>>, Vec<Arc<A>>>,
}

impl<A: Send + Sync> Source<Vec<Arc<A>>> for All<A> {
    fn read(&self) -> (u64, Arc<Vec<Arc<A>>>) {
        let look = || self.of.iter().map(Numbered::of).collect();
        self.memo.get(look, |all: &Vec<_>| all.iter().map(|one| Arc::clone(&one.1)).collect())
    }

    fn listen(&self, bell: &Bell, into: &mut Vec<Listening>) {
        self.of.iter().for_each(|one| one.source.listen(bell, into));
    }

    fn is_closed(&self) -> bool {
        self.of.iter().all(|one| one.source.is_closed())
    }
}

impl Node {
    /// A value made of the node's state of this type, computed once for each revision that is asked for.
    ///
    /// A [`Selection`] has more, and an example.
    #[must_use]
    pub fn select<S: State, T: Send + Sync + 'static>(
        &self,
        select: impl Fn(&S) -> T + Send + Sync + 'static,
    ) -> Selection<T> {
        Selection::of(OfState { document: Document::new(self.inner(), None), select, memo: Memo::new() })
    }

    /// A value made of one of the node's entities of this type, as [`Node::select`] makes one of its state.
    #[must_use]
    pub fn select_entity<S: State, T: Send + Sync + 'static>(
        &self,
        key: &str,
        select: impl Fn(&S) -> T + Send + Sync + 'static,
    ) -> Selection<T> {
        Selection::of(OfState { document: Document::new(self.inner(), Some(key)), select, memo: Memo::new() })
    }
}

impl<T: Send + Sync + 'static> Selection<T> {
    fn of(source: impl Source<T> + 'static) -> Self {
        Self { source: Arc::new(source) }
    }

    /// The value, computed if what it is made of has changed.
    ///
    /// # Cost
    ///
    /// When nothing has changed: a lock and a look at the revision for each state it is made of.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        self.source.read().1
    }

    /// What a function makes of the value.
    #[must_use]
    pub fn map<U: Send + Sync + 'static>(
        &self,
        map: impl Fn(&T) -> U + Send + Sync + 'static,
    ) -> Selection<U> {
        Selection::of(Mapped { of: self.clone(), map, memo: Memo::new() })
    }

    /// This value and another one.
    #[must_use]
    pub fn zip<U: Send + Sync + 'static>(&self, other: &Selection<U>) -> Selection<(Arc<T>, Arc<U>)> {
        Selection::of(Zipped { of: (self.clone(), other.clone()), memo: Memo::new() })
    }

    /// The values of any number of selections, in this order: the same of many nodes, to be added up by
    /// [`Selection::map`].
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::model::Selection;
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    ///
    /// # fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let shops = ["north", "south"].map(|id| space.node(id));
    /// let apples = Selection::all(shops.iter().map(|shop| shop.select(|stock: &Stock| stock.apples)));
    /// let total = apples.map(|apples| apples.iter().map(|apples| **apples).sum::<u32>());
    ///
    /// shops[0].state::<Stock>().set(|_| Stock { apples: 3 })?;
    /// shops[1].state::<Stock>().set(|_| Stock { apples: 4 })?;
    /// assert_eq!(*total.get(), 7);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn all(selections: impl IntoIterator<Item = Self>) -> Selection<Vec<Arc<T>>> {
        Selection::of(All { of: selections.into_iter().collect(), memo: Memo::new() })
    }

    /// Follows the value: every other value it has from now on, or the newest of those that came while the reader was
    /// busy.
    #[must_use]
    pub fn changes(&self) -> SelectionChanges<T>
    where
        T: PartialEq,
    {
        let (bell, mut listening) = (Bell::default(), Vec::new());
        // The bell before the look, so that a change in between is heard.
        self.source.listen(&bell, &mut listening);
        SelectionChanges { selection: self.clone(), bell, _listening: listening, last: self.get() }
    }
}

impl<T: PartialEq + Send + Sync + 'static> SelectionChanges<T> {
    /// The next value that differs from the one given last; `None` when all nodes it is made of were destroyed.
    ///
    /// A change of a state that leaves the value equal is not told.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next one gives the newest value.
    pub async fn next(&mut self) -> Option<Arc<T>> {
        loop {
            // Before the look, as a change may be the last thing a node does.
            let closed = self.selection.source.is_closed();
            let value = self.selection.get();
            if *value != *self.last {
                self.last = Arc::clone(&value);
                return Some(value);
            }
            if closed {
                return None;
            }
            self.bell.notified().await;
        }
    }
}

impl<T> Clone for Selection<T> {
    fn clone(&self) -> Self {
        Self { source: Arc::clone(&self.source) }
    }
}

impl<T> fmt::Debug for Selection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "selection of a {}", std::any::type_name::<T>())
    }
}

impl<T> fmt::Debug for SelectionChanges<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "changes of a {}", std::any::type_name::<T>())
    }
}

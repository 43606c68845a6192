//! Windows into the states of other nodes, declared first and read together. Owns the public types [`View`],
//! [`Viewing`] and [`Collected`]; changes nothing but through [`StateOf`].

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use happen_core::store::{Document, Key, Position};
use happen_core::{Error, ErrorKind, Result, State, state};

use super::StateOf;
use super::home::{Kind, Name};
use crate::limits;
use crate::node::Node;
use crate::space::{Space, SpaceInner};

/// A window into one document of a node: its state of type `S`, or one of its entities. Names it and reads nothing.
pub struct View<S> {
    node: Node,
    key: Key,
    shape: PhantomData<fn() -> S>,
}

impl<S> Clone for View<S> {
    fn clone(&self) -> Self {
        Self { node: self.node.clone(), key: Arc::clone(&self.key), shape: PhantomData }
    }
}

/// Several windows, read together: a [`View`] or a tuple of up to six.
pub trait Views: Send {
    /// What is seen through them: the states, in the same order.
    type Values: Send + Sync + 'static;

    #[doc(hidden)]
    fn documents(&self, each: &mut dyn FnMut(&Node, &Key));

    #[doc(hidden)]
    fn values(&self, found: &mut dyn Iterator<Item = Option<Document>>) -> Result<Self::Values>;
}

/// What was seen through windows at one moment. Reads like the values.
#[derive(Debug, Clone)]
pub struct Collected<V> {
    values: V,
    fresh: Freshness,
}

/// How fresh what was collected is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Freshness {
    /// When it was read, in milliseconds since 1970. What was committed in this process before is in it.
    pub read_at_unix_ms: u64,
    /// The position of the youngest commit that is in it; [`Position::START`] where states have no place in a log.
    pub newest: Position,
    /// Whether all of it was there at one point of the log. It is not when ephemeral and durable nodes are looked at
    /// together, as they have no log in common.
    pub one_cut: bool,
}

/// A state that is to be changed on the ground of what is seen through windows.
#[must_use = "nothing is changed before `set`"]
pub struct Viewing<'n, S, V> {
    state: StateOf<'n, S>,
    seen: Arc<V>,
    fresh: Freshness,
}

impl Node {
    /// A window into the node's state of this type, for others to look through.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Stock { apples: u32 }
    /// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
    /// # struct Basket { apples: u32 }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = happen::Space::memory();
    /// let [shop, basket] = ["shop", "basket"].map(|id| space.node(id));
    /// shop.state::<Stock>().set(|_| Stock { apples: 4 })?;
    ///
    /// let viewing = basket.state::<Basket>().with_views(shop.view::<Stock>()).await?;
    /// viewing.set(|basket, stock| Basket { apples: (basket.apples + 9).min(stock.apples) })?;
    /// assert_eq!(basket.state::<Basket>().get(|basket| basket.apples), 4);
    ///
    /// let both = space.collect((shop.view::<Stock>(), basket.view::<Basket>())).await?;
    /// assert_eq!(both.0.apples, both.1.apples);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn view<S: State>(&self) -> View<S> {
        self.window(Kind::State, "")
    }

    /// A window into one of the node's entities of this type.
    #[must_use]
    pub fn entity_view<S: State>(&self, key: &str) -> View<S> {
        self.window(Kind::Entity, key)
    }

    fn window<S: State>(&self, kind: Kind, key: &str) -> View<S> {
        let name = Name { kind, node: self.id().into(), state: S::NAME.into(), key: key.into() };
        View { node: self.clone(), key: name.to_key(), shape: PhantomData }
    }
}

impl Space {
    /// What is seen through these windows: one consistent cut, in which no change is there without those it was committed
    /// with or those before it.
    ///
    /// # Errors
    ///
    /// What the store says; [`ErrorKind::WrongVersion`] or [`ErrorKind::Undecodable`] for a document of another shape.
    ///
    /// # Cost
    ///
    /// Reads and decodes each document once.
    pub async fn collect<V: Views>(&self, views: V) -> Result<Collected<V::Values>> {
        collect(self.inner(), &views).await
    }

    /// What is seen through these windows and through those that `follow` finds in it, and so on: an order, its customer,
    /// the customer's address. All of it is one cut: when something changed meanwhile, it is read once more.
    ///
    /// Gives the values by the keys of their documents.
    ///
    /// # Errors
    ///
    /// As [`Space::collect`]; [`ErrorKind::Runaway`] for more than
    /// [`VIEWS_FOLLOWED_MAX`](crate::limits::VIEWS_FOLLOWED_MAX) documents; [`ErrorKind::Conflict`] when they never stand
    /// still.
    pub async fn collect_following<S: State>(
        &self,
        views: Vec<View<S>>,
        follow: impl Fn(&S) -> Vec<View<S>>,
    ) -> Result<Collected<BTreeMap<String, S>>> {
        for _ in 0..=limits::VIEWS_TRIES_MAX {
            let mut all = views.clone();
            let mut seen = self.collect(all.clone()).await?;
            let mut from = 0;
            loop {
                let found: Vec<_> = seen.values[from..].iter().flat_map(&follow).collect();
                from = all.len();
                for view in found {
                    if !all.iter().any(|known| known.key == view.key) {
                        all.push(view);
                    }
                }
                if all.len() == from {
                    break;
                }
                if all.len() > limits::VIEWS_FOLLOWED_MAX {
                    let path = all.iter().rev().take(8).map(|view| view.key.to_string()).collect();
                    let (limit, max) = ("views_followed_max", limits::VIEWS_FOLLOWED_MAX as u64);
                    return Err(Error::new(ErrorKind::Runaway { limit, max, path }));
                }
                seen = self.collect(all.clone()).await?;
            }
            // Of one cut, the same references lead to the same documents.
            let keys: Vec<_> = all.iter().map(|view| Arc::clone(&view.key)).collect();
            let leads = seen.values.iter().flat_map(&follow).all(|view| keys.contains(&view.key));
            if leads {
                let values = keys.iter().map(ToString::to_string).zip(seen.values).collect();
                return Ok(Collected { values, fresh: seen.fresh });
            }
        }
        let what = "references between documents changed each time they were followed".to_owned();
        Err(Error::new(ErrorKind::Conflict { what }))
    }
}

async fn collect<V: Views>(space: &Arc<SpaceInner>, views: &V) -> Result<Collected<V::Values>> {
    let mut places = Vec::new();
    let mut foreign = false;
    views.documents(&mut |node, key| {
        foreign |= node.inner().space.id != space.id;
        places.push((Arc::clone(key), space.durable.is_none() || node.inner().is_durable()));
    });
    if foreign {
        return Err(Error::misuse("a view of another space was collected; ask that space"));
    }
    let keys = |in_store: bool| {
        places.iter().filter(|(_, is)| *is == in_store).map(|(key, _)| Arc::clone(key)).collect::<Vec<_>>()
    };
    let (kept, live) = (keys(true), keys(false));
    let one_cut = kept.is_empty() || live.is_empty();
    let mut kept = space.documents(kept).await?.into_iter();
    let mut live = space.live_documents(live).await?.into_iter();
    let found: Vec<Option<Document>> = places
        .iter()
        .map(|(_, in_store)| if *in_store { kept.next() } else { live.next() }.flatten())
        .collect();
    let newest = found.iter().flatten().map(|document| document.position).max().unwrap_or_default();
    let values = views.values(&mut found.into_iter())?;
    Ok(Collected { values, fresh: Freshness { read_at_unix_ms: space.now_unix_ms(), newest, one_cut } })
}

impl<'n, S: State> StateOf<'n, S> {
    /// Reads the windows, so that the next state can be made of what is seen there.
    ///
    /// What is seen may be outdated when the change happens. A step of a durable node that must not decide on something
    /// outdated asks the other node instead.
    ///
    /// # Errors
    ///
    /// As [`Space::collect`].
    pub async fn with_views<V: Views>(self, views: V) -> Result<Viewing<'n, S, V::Values>> {
        let Collected { values, fresh } = collect(&self.node.space, &views).await?;
        Ok(Viewing { state: self, seen: Arc::new(values), fresh })
    }
}

impl<S: State, V: Send + Sync + 'static> Viewing<'_, S, V> {
    /// What is seen.
    #[must_use]
    pub fn seen(&self) -> &V {
        &self.seen
    }

    /// How fresh it is.
    #[must_use]
    pub const fn freshness(&self) -> Freshness {
        self.fresh
    }

    /// As [`StateOf::set`], with what is seen.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set(&self, change: impl Fn(S, &V) -> S + Send + Sync + 'static) -> Result<()> {
        let seen = Arc::clone(&self.seen);
        self.state.set(move |state| change(state, &seen))
    }

    /// As [`StateOf::try_set`], with what is seen.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_set<E: Into<Error>>(
        &self,
        change: impl Fn(S, &V) -> Result<S, E> + Send + Sync + 'static,
    ) -> Result<()> {
        let seen = Arc::clone(&self.seen);
        self.state.try_set(move |state| change(state, &seen))
    }
}

impl<V> Collected<V> {
    /// How fresh it is.
    #[must_use]
    pub const fn freshness(&self) -> Freshness {
        self.fresh
    }

    /// The values.
    #[must_use]
    pub fn into_inner(self) -> V {
        self.values
    }
}

impl<V> std::ops::Deref for Collected<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.values
    }
}

impl<S: State> Views for View<S> {
    type Values = S;

    fn documents(&self, each: &mut dyn FnMut(&Node, &Key)) {
        each(&self.node, &self.key);
    }

    fn values(&self, found: &mut dyn Iterator<Item = Option<Document>>) -> Result<S> {
        let content = found.next().flatten().and_then(|document| document.content);
        let Some(content) = content else { return Ok(S::default()) };
        state::decode_document(content.version, &content.bytes)
            .map_err(|error| error.context(format!("document `{}`", self.key)))
    }
}

impl<V: Views> Views for Vec<V> {
    type Values = Vec<V::Values>;

    fn documents(&self, each: &mut dyn FnMut(&Node, &Key)) {
        self.iter().for_each(|view| view.documents(each));
    }

    fn values(&self, found: &mut dyn Iterator<Item = Option<Document>>) -> Result<Self::Values> {
        self.iter().map(|view| view.values(found)).collect()
    }
}

macro_rules! tuples {
    ($($name:ident $index:tt),+) => {
        impl<$($name: Views),+> Views for ($($name,)+) {
            type Values = ($($name::Values,)+);

            fn documents(&self, each: &mut dyn FnMut(&Node, &Key)) {
                $(self.$index.documents(each);)+
            }

            fn values(&self, found: &mut dyn Iterator<Item = Option<Document>>) -> Result<Self::Values> {
                Ok(($(self.$index.values(found)?,)+))
            }
        }
    };
}

tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);
tuples!(A 0, B 1, C 2, D 3, E 4);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5);

impl<S> fmt::Debug for View<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a view of `{}`", self.key)
    }
}

impl<S: State, V: fmt::Debug> fmt::Debug for Viewing<'_, S, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {:?}", self.state, self.seen)
    }
}

//! Where an event goes: a node, the id of one, or several of either.

use std::sync::Arc;

use happen_core::{Error, Result};

use crate::node::Node;
use crate::space::SpaceInner;

/// Where an event goes: a node, the id of one, or several of either.
#[diagnostic::on_unimplemented(
    message = "an event cannot be sent to `{Self}`",
    label = "not a destination",
    note = "a destination is `&Node`, the id of a node as text, or an array, slice or vector of these"
)]
pub trait Target<'t> {
    #[doc(hidden)]
    fn into_destination(self) -> Destination<'t>;
}

/// Where an event goes; made by [`Target`].
#[derive(Debug)]
#[doc(hidden)]
#[expect(unnameable_types, reason = "what a target becomes concerns only the runtime")]
pub struct Destination<'t>(pub(super) To<'t>);

#[derive(Debug, Clone)]
pub(super) enum To<'t> {
    Node(&'t Node),
    Name(&'t str),
    /// What owns something; kept aside, because a destination is handed on at every turn.
    Rare(Box<Rare<'t>>),
}

#[derive(Debug, Clone)]
pub(super) enum Rare<'t> {
    Name(String),
    Many(Vec<To<'t>>),
}

impl<'t> Destination<'t> {
    /// The id of the one node that is meant.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`](crate::ErrorKind::Misuse) when it is several, or one of another space.
    pub(crate) fn one_name(&self, space: &SpaceInner) -> Result<String> {
        match &self.0 {
            To::Node(node) if node.inner().space.id != space.id => {
                Err(Error::misuse(format!("node `{}` belongs to another space", node.id())))
            }
            many if many.is_many() => Err(one_destination()),
            one => Ok(one.name().to_owned()),
        }
    }

    pub(crate) fn many(all: impl Iterator<Item = Self>) -> Self {
        Self(To::many(all.map(|one| one.0).collect()))
    }
}

impl<'t> To<'t> {
    fn many(all: Vec<Self>) -> Self {
        Self::Rare(Box::new(Rare::Many(all)))
    }

    pub(super) fn is_many(&self) -> bool {
        matches!(self, Self::Rare(rare) if matches!(**rare, Rare::Many(_)))
    }

    pub(super) fn names(self, out: &mut Vec<Self>) {
        match self {
            Self::Rare(rare) => match *rare {
                Rare::Many(all) => all.into_iter().for_each(|to| to.names(out)),
                one @ Rare::Name(_) => out.push(Self::Rare(Box::new(one))),
            },
            one => out.push(one),
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Node(node) => node.id(),
            Self::Name(name) => name,
            Self::Rare(rare) => match &**rare {
                Rare::Name(name) => name,
                Rare::Many(_) => "several nodes",
            },
        }
    }
}

impl<'t> Target<'t> for &'t Node {
    #[inline]
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Node(self))
    }
}

impl<'t> Target<'t> for &'t str {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Name(self))
    }
}

impl<'t> Target<'t> for &'t String {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Name(self))
    }
}

impl<'t> Target<'t> for String {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::Rare(Box::new(Rare::Name(self))))
    }
}

impl<'t> Target<'t> for &Arc<str> {
    fn into_destination(self) -> Destination<'t> {
        self.to_string().into_destination()
    }
}

impl<'t, X: Target<'t>, const N: usize> Target<'t> for [X; N] {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::many(self.into_iter().map(|to| to.into_destination().0).collect()))
    }
}

impl<'t, X: Target<'t>> Target<'t> for Vec<X> {
    fn into_destination(self) -> Destination<'t> {
        Destination(To::many(self.into_iter().map(|to| to.into_destination().0).collect()))
    }
}

impl<'t, X> Target<'t> for &'t [X]
where
    &'t X: Target<'t>,
{
    fn into_destination(self) -> Destination<'t> {
        Destination(To::many(self.iter().map(|to| to.into_destination().0).collect()))
    }
}

#[cold]
pub(crate) fn no_destination() -> Error {
    Error::misuse("an event was sent to a list of nodes that is empty")
}

#[cold]
pub(super) fn one_destination() -> Error {
    Error::misuse("several nodes were asked for one reply; use `.replies()`, which gives one for each")
}

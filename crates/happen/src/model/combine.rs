//! Changes made of changes: one revision for several of them. Owns how functions that may refuse and those that may not
//! stand beside each other.

use happen_core::{Error, Result};

/// A function that makes a state of a state, as [`StateOf::set`](crate::StateOf::set) and
/// [`StateOf::try_set`](crate::StateOf::try_set) take them; an array, a `Vec` or a tuple of such functions, to be made
/// one after the other.
///
/// Implemented for `Fn(S) -> S` and `Fn(S) -> Result<S, E>`. `M` tells which of them and is found by the compiler.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not make a `{S}` of a `{S}`",
    label = "not a change",
    note = "a change is an `fn(S) -> S` or an `fn(S) -> Result<S>`; several are an array or a tuple of up to eight"
)]
pub trait Transform<S, M> {
    /// The state that comes of this one.
    ///
    /// # Errors
    ///
    /// What the first function that refuses does so with.
    fn make(&self, state: S) -> Result<S>;
}

/// Marks functions that never refuse.
#[derive(Debug)]
pub struct Total(());

/// Marks functions that may refuse with an `E`.
#[derive(Debug)]
pub struct Partial<E>(std::marker::PhantomData<fn() -> E>);

/// Marks several in a row.
#[derive(Debug)]
pub struct InOrder<M>(std::marker::PhantomData<fn() -> M>);

impl<S, F: Fn(S) -> S> Transform<S, Total> for F {
    fn make(&self, state: S) -> Result<S> {
        Ok(self(state))
    }
}

impl<S, E: Into<Error>, F: Fn(S) -> Result<S, E>> Transform<S, Partial<E>> for F {
    fn make(&self, state: S) -> Result<S> {
        self(state).map_err(Into::into)
    }
}

impl<S, M, T: Transform<S, M>> Transform<S, InOrder<M>> for Vec<T> {
    fn make(&self, state: S) -> Result<S> {
        self.iter().try_fold(state, |state, change| change.make(state))
    }
}

impl<S, M, T: Transform<S, M>, const N: usize> Transform<S, InOrder<M>> for [T; N] {
    fn make(&self, state: S) -> Result<S> {
        self.iter().try_fold(state, |state, change| change.make(state))
    }
}

macro_rules! in_order {
    ($($change:ident $mark:ident),+) => {
        impl<S, $($change, $mark),+> Transform<S, InOrder<($($mark,)+)>> for ($($change,)+)
        where
            $($change: Transform<S, $mark>),+
        {
            fn make(&self, state: S) -> Result<S> {
                #[expect(non_snake_case, reason = "a value is named like its type")]
                let ($($change,)+) = self;
                $(let state = $change.make(state)?;)+
                Ok(state)
            }
        }
    };
}

in_order!(A MA);
in_order!(A MA, B MB);
in_order!(A MA, B MB, C MC);
in_order!(A MA, B MB, C MC, D MD);
in_order!(A MA, B MB, C MC, D MD, E ME);
in_order!(A MA, B MB, C MC, D MD, E ME, F MF);
in_order!(A MA, B MB, C MC, D MD, E ME, F MF, G MG);
in_order!(A MA, B MB, C MC, D MD, E ME, F MF, G MG, H MH);

/// Several changes as one, for [`StateOf::try_set`](crate::StateOf::try_set): all of them are made, one on top of the
/// other, in one revision; or none, when one refuses.
///
/// # Examples
///
/// ```
/// use happen::{Error, model::all};
/// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// # struct Stock { apples: u32, pears: u32 }
///
/// fn deliver(apples: u32) -> impl Fn(Stock) -> Stock {
///     move |stock| Stock { apples: stock.apples + apples, ..stock }
/// }
///
/// fn sell_a_pear(stock: Stock) -> happen::Result<Stock> {
///     let pears = stock.pears.checked_sub(1).ok_or_else(|| Error::msg("no pear left"))?;
///     Ok(Stock { pears, ..stock })
/// }
///
/// # fn main() -> happen::Result<()> {
/// let space = happen::Space::memory();
/// let shop = space.node("shop");
/// assert!(shop.state::<Stock>().try_set(all((deliver(5), sell_a_pear))).is_err());
/// assert_eq!(shop.state::<Stock>().get(|stock| stock.apples), 0);
///
/// shop.state::<Stock>().try_set(all([deliver(5), deliver(2)]))?;
/// assert_eq!(shop.state::<Stock>().get(|stock| stock.apples), 7);
/// assert_eq!(shop.state::<Stock>().revision(), 1);
/// # Ok(())
/// # }
/// ```
pub fn all<S, M, T: Transform<S, M>>(changes: T) -> impl Fn(S) -> Result<S> {
    move |state| changes.make(state)
}

/// A change that is made when the state fulfils the condition, and leaves it as it is otherwise.
///
/// # Examples
///
/// ```
/// use happen::model::{all, when};
/// # #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// # struct Stock { apples: u32, ordered: bool }
///
/// # fn main() -> happen::Result<()> {
/// let space = happen::Space::memory();
/// let shop = space.node("shop");
/// let sell = |stock: Stock| Stock { apples: stock.apples.saturating_sub(1), ..stock };
/// let order = when(|stock: &Stock| stock.apples < 10, |stock: Stock| Stock { ordered: true, ..stock });
/// shop.state::<Stock>().try_set(all((sell, order)))?;
/// assert!(shop.state::<Stock>().get(|stock| stock.ordered));
/// # Ok(())
/// # }
/// ```
pub fn when<S, M, T: Transform<S, M>>(condition: impl Fn(&S) -> bool, change: T) -> impl Fn(S) -> Result<S> {
    move |state| if condition(&state) { change.make(state) } else { Ok(state) }
}

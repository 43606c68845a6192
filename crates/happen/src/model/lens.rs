//! Lenses: one place of a state, read and changed without the code that does it knowing the rest. Owns both kinds, by
//! functions and by a path; does not know nodes.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use happen_core::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::path::{Path, from_json, index, invalid, to_json};

type Get<S, T> = Arc<dyn for<'s> Fn(&'s S) -> &'s T + Send + Sync>;
type GetMut<S, T> = Arc<dyn for<'s> Fn(&'s mut S) -> &'s mut T + Send + Sync>;

/// A place of type `T` in an `S` that is always there, given by two functions.
///
/// [`lens`] gives one by a path, for places that are only known at run time or may be missing.
///
/// # Examples
///
/// ```
/// use happen::model::Lens;
///
/// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// struct Shop { stock: Stock }
/// #[derive(Default, Clone, serde::Serialize, serde::Deserialize)]
/// struct Stock { apples: u32 }
///
/// # fn main() -> happen::Result<()> {
/// let stock = Lens::new(|shop: &Shop| &shop.stock, |shop: &mut Shop| &mut shop.stock);
/// let apples = stock.then(&Lens::new(|stock: &Stock| &stock.apples, |stock: &mut Stock| &mut stock.apples));
///
/// let space = happen::Space::memory();
/// let shop = space.node("shop");
/// shop.state::<Shop>().set(apples.setter(5))?;
/// shop.state::<Shop>().set(apples.updater(|apples| apples + 1))?;
/// assert_eq!(shop.state::<Shop>().get(|shop| *apples.get(shop)), 6);
/// # Ok(())
/// # }
/// ```
pub struct Lens<S, T> {
    get: Get<S, T>,
    get_mut: GetMut<S, T>,
}

impl<S: 'static, T: 'static> Lens<S, T> {
    /// The place that both functions lead to.
    #[must_use]
    pub fn new(
        get: impl for<'s> Fn(&'s S) -> &'s T + Send + Sync + 'static,
        get_mut: impl for<'s> Fn(&'s mut S) -> &'s mut T + Send + Sync + 'static,
    ) -> Self {
        Self { get: Arc::new(get), get_mut: Arc::new(get_mut) }
    }

    /// What is there.
    #[must_use]
    pub fn get<'s>(&self, state: &'s S) -> &'s T {
        (self.get)(state)
    }

    /// What is there, to be changed.
    #[must_use]
    pub fn get_mut<'s>(&self, state: &'s mut S) -> &'s mut T {
        (self.get_mut)(state)
    }

    /// The change that puts a value there, for [`StateOf::set`](crate::StateOf::set).
    pub fn setter(&self, value: T) -> impl Fn(S) -> S + Send + Sync + use<S, T>
    where
        T: Clone + Send + Sync,
    {
        let get_mut = Arc::clone(&self.get_mut);
        move |mut state| {
            *get_mut(&mut state) = value.clone();
            state
        }
    }

    /// The change that makes what is there into something else, for [`StateOf::set`](crate::StateOf::set).
    pub fn updater<F>(&self, update: F) -> impl Fn(S) -> S + Send + Sync + use<S, T, F>
    where
        T: Clone,
        F: Fn(T) -> T + Send + Sync + 'static,
    {
        let get_mut = Arc::clone(&self.get_mut);
        move |mut state| {
            let place = get_mut(&mut state);
            *place = update(place.clone());
            state
        }
    }

    /// The place that another lens finds inside this one.
    #[must_use]
    pub fn then<U: 'static>(&self, inner: &Lens<T, U>) -> Lens<S, U> {
        let (get, inner_get) = (Arc::clone(&self.get), Arc::clone(&inner.get));
        let (get_mut, inner_get_mut) = (Arc::clone(&self.get_mut), Arc::clone(&inner.get_mut));
        Lens::new(move |state| inner_get(get(state)), move |state| inner_get_mut(get_mut(state)))
    }
}

impl<S: 'static> Lens<S, S> {
    /// The whole value.
    #[must_use]
    pub fn whole() -> Self {
        Self::new(|state| state, |state| state)
    }
}

impl<S, T> Clone for Lens<S, T> {
    fn clone(&self) -> Self {
        Self { get: Arc::clone(&self.get), get_mut: Arc::clone(&self.get_mut) }
    }
}

impl<S, T> fmt::Debug for Lens<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lens to a {} in a {}", type_name::<T>(), type_name::<S>())
    }
}

/// A place of type `T` in the serialised form of an `S`, which may be missing. Made by [`lens`].
pub struct PathLens<S, T> {
    path: Path,
    types: PhantomData<fn(S) -> T>,
}

/// The place of this path in the serialised form of a state: fields, keys of maps and indexes, as in `lines.0.price`.
///
/// Paths are those of [`Path`], names those that `serde` gives.
///
/// # Cost
///
/// Reading serialises the state; changing it serialises it twice and reads it once. [`Lens::new`] does neither.
///
/// # Examples
///
/// ```
/// use happen::model::lens;
///
/// #[derive(happen::State, Default, Clone, serde::Serialize, serde::Deserialize)]
/// struct Settings { mail: Mail }
/// #[derive(Default, Clone, serde::Serialize, serde::Deserialize)]
/// struct Mail { retries: u32 }
///
/// # fn main() -> happen::Result<()> {
/// let space = happen::Space::memory();
/// let node = space.node("settings");
/// let retries = lens::<Settings, u32>("mail.retries");
/// node.state::<Settings>().try_set(retries.setter(5))?;
/// node.state::<Settings>().try_set(retries.updater(|retries| retries + 1))?;
/// assert_eq!(node.state::<Settings>().get(|settings| retries.get(settings))?, 6);
///
/// let wrong = lens::<Settings, u32>("mail.retires");
/// assert_eq!(node.state::<Settings>().try_set(wrong.setter(5)).unwrap_err().code(), "invalid");
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn lens<S, T>(path: impl Into<Path>) -> PathLens<S, T> {
    PathLens { path: path.into(), types: PhantomData }
}

impl<S, T> PathLens<S, T>
where
    S: Serialize + DeserializeOwned + 'static,
    T: Serialize + DeserializeOwned + 'static,
{
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when the path leads nowhere.
    /// - [`ErrorKind::Undecodable`](crate::ErrorKind::Undecodable) when there is something else than a `T`.
    /// - [`ErrorKind::Unencodable`](crate::ErrorKind::Unencodable) when the state has no form in JSON.
    pub fn get(&self, state: &S) -> Result<T> {
        let json = to_json(state)?;
        let found = self.path.find(&json).ok_or_else(|| self.leads_nowhere())?;
        from_json(found.clone()).map_err(|error| self.at(error))
    }

    /// The state with this value there. An entry of a map may be new; everything around it has to exist.
    ///
    /// # Errors
    ///
    /// As [`PathLens::get`]; and [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when the state does not keep the
    /// value, as with a field that it does not have.
    pub fn set(&self, state: &S, value: &T) -> Result<S> {
        let value = to_json(value)?;
        let mut json = to_json(state)?;
        let place = match self.path.split_last() {
            None => Some(&mut json),
            Some((around, last)) => match around.find_mut(&mut json) {
                Some(serde_json::Value::Object(map)) => {
                    Some(map.entry(last).or_insert_with(|| value.clone()))
                }
                Some(serde_json::Value::Array(items)) => index(last).and_then(|index| items.get_mut(index)),
                _ => None,
            },
        };
        *place.ok_or_else(|| self.leads_nowhere())? = value.clone();
        let changed: S = from_json(json).map_err(|error| self.at(error))?;
        // Types pass over fields they do not know, and a value that was set nowhere would be lost without a word.
        match self.path.find(&to_json(&changed)?) {
            Some(kept) if *kept == value => Ok(changed),
            Some(_) => {
                Err(invalid(format!("a {} does not keep what is set at `{}`", type_name::<S>(), self.path)))
            }
            None => Err(self.leads_nowhere()),
        }
    }

    /// The change that puts a value there, for [`StateOf::try_set`](crate::StateOf::try_set). It refuses with the
    /// errors of [`PathLens::set`].
    pub fn setter(&self, value: T) -> impl Fn(S) -> Result<S> + Send + Sync + use<S, T>
    where
        T: Send + Sync,
    {
        let lens = self.clone();
        move |state| lens.set(&state, &value)
    }

    /// The change that makes what is there into something else, for [`StateOf::try_set`](crate::StateOf::try_set). It
    /// refuses with the errors of [`PathLens::get`] and [`PathLens::set`].
    pub fn updater<F>(&self, update: F) -> impl Fn(S) -> Result<S> + Send + Sync + use<S, T, F>
    where
        F: Fn(T) -> T + Send + Sync + 'static,
    {
        let lens = self.clone();
        move |state| lens.set(&state, &update(lens.get(&state)?))
    }

    /// The place that another lens finds inside this one.
    #[must_use]
    pub fn then<U>(&self, inner: &PathLens<T, U>) -> PathLens<S, U> {
        lens(self.path.followed_by(&inner.path))
    }

    fn leads_nowhere(&self) -> happen_core::Error {
        invalid(format!("`{}` leads nowhere in a {}", self.path, type_name::<S>()))
    }

    fn at(&self, error: happen_core::Error) -> happen_core::Error {
        error.context(format!("at `{}`", self.path))
    }
}

impl<S, T> Clone for PathLens<S, T> {
    fn clone(&self) -> Self {
        Self { path: self.path.clone(), types: PhantomData }
    }
}

impl<S, T> fmt::Debug for PathLens<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lens to `{}` in a {}", self.path, type_name::<S>())
    }
}

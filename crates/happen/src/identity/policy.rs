//! Policies: conditions on the events of a type, wherever they come from and whoever listens. Owns the list; the way of an
//! event asks it before any registration is looked at.

use std::fmt;
use std::sync::Arc;

use happen_core::pattern::is_runtime;
use happen_core::{ErasedEvent, Error, ErrorKind, Event, IntoPattern, Pattern, Result};

use crate::dispatch::as_dynamic;
use crate::node::NodeInner;
use crate::space::{Space, SpaceInner};
use crate::sync::isolated;

/// The policies of a space.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies(Vec<Policy>);

#[derive(Clone)]
struct Policy {
    pattern: Pattern,
    gate: Arc<Gate>,
}

type Gate = dyn Fn(&Event) -> Result<()> + Send + Sync;

/// A gate for [`Space::policy`]: the user on whose account the event happens has this permission.
///
/// # Examples
///
/// ```
/// use happen::identity::permission;
///
/// let space = happen::Space::memory();
/// space.policy("order.*", permission("orders:write"))?;
/// # Ok::<(), happen::Error>(())
/// ```
pub fn permission(name: impl Into<String>) -> impl Fn(&Event) -> Result<()> + Send + Sync + 'static {
    let name = name.into();
    move |event| {
        let inherited = event.envelope().inherited();
        let Some(user) = inherited.and_then(|inherited| inherited.user.as_ref()) else {
            return Err(Error::msg(format!(
                "it needs the permission `{name}`, and happens on no user's account"
            )));
        };
        if user.permissions.contains(&name) {
            return Ok(());
        }
        Err(Error::msg(format!("it needs the permission `{name}`, which user `{}` does not have", user.id)))
    }
}

impl Space {
    /// Puts a condition on all events whose type the pattern matches. A node takes such an event only when the gate, which
    /// sees it whole, does not object; whatever the node's own patterns are, and whether the event was sent here, came over
    /// the link, or is due again. All policies of a type have to agree.
    ///
    /// As with handlers, the runtime's own events (`system.*`, `node.*` of the runtime, `*.error`) are matched only by
    /// patterns that name them. Set before the space starts.
    ///
    /// # Delivery
    ///
    /// The sender of a refused event gets [`ErrorKind::Refused`], each listener that a broadcast does not
    /// reach has a dead letter, and the refusal is told as the event `system.refused` with the code `refused`. A gate
    /// that panics refuses. A gate may be asked more than once about one event, and should only look at it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadPattern`], and [`ErrorKind::Misuse`] once the space has started.
    ///
    /// # Cost
    ///
    /// Without policies none. With one, every event of the space is compared with its pattern, and one that it matches is
    /// made readable by name.
    ///
    /// # Examples
    ///
    /// ```
    /// use happen::{Context, Event, Space};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> happen::Result<()> {
    /// let space = Space::memory();
    /// space.policy("payment.*", |event: &Event| match event.get("amount").and_then(|amount| amount.as_u64()) {
    ///     Some(0..=1000) => Ok(()),
    ///     _ => Err(happen::Error::msg("more than 1000 needs a person")),
    /// })?;
    /// // Not even a handler for everything sees what the policy does not let through.
    /// let bank = space.node("bank");
    /// bank.on("**", |_: &Event, _: &Context| true);
    /// space.start().await?;
    ///
    /// let pay = |amount: u64| space.send(&bank, Event::new("payment.make", serde_json::json!({ "amount": amount })));
    /// assert!(*pay(1000).reply::<bool>().await?);
    /// assert_eq!(pay(1001).reply::<bool>().await.unwrap_err().code(), "refused");
    /// # Ok(())
    /// # }
    /// ```
    pub fn policy<P, PM>(
        &self,
        pattern: P,
        gate: impl Fn(&Event) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()>
    where
        P: IntoPattern<PM>,
    {
        let pattern = pattern.into_pattern()?;
        let inner = self.inner();
        if inner.check_building().is_err() {
            return Err(Error::misuse(
                "a policy is set before the space starts, or events would have passed it",
            ));
        }
        let policy = Policy { pattern, gate: Arc::new(gate) };
        inner.set_policy(|policies| policies.0.push(policy.clone()));
        Ok(())
    }
}

impl Policies {
    /// Whether all policies agree, to each of the events.
    ///
    /// # Errors
    ///
    /// What the first that does not agree says.
    pub(crate) fn check(&self, event: &dyn ErasedEvent) -> Result<()> {
        for single in (0..event.len()).filter_map(|index| event.single(index)) {
            let event_type = single.envelope().event_type.as_str();
            let runtime = is_runtime(event_type);
            let mut readable = None;
            for policy in self.0.iter().filter(|policy| policy.concerns(event_type, runtime)) {
                let event = readable.get_or_insert_with(|| as_dynamic(single));
                let judged = isolated("a policy", || (policy.gate)(event)).and_then(|judged| judged);
                judged.map_err(|error| error.context(format!("policy `{}`", policy.pattern)))?;
            }
        }
        Ok(())
    }
}

impl Policy {
    /// A pattern that panics concerns everything: what it would have kept away must not come through.
    fn concerns(&self, event_type: &str, runtime: bool) -> bool {
        let matches = || match runtime {
            true => self.pattern.matches_runtime(event_type),
            false => self.pattern.matches(event_type),
        };
        isolated("the pattern of a policy", matches).unwrap_or(true)
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy `{}`", self.pattern)
    }
}

impl SpaceInner {
    /// Whether the policies let somebody who waits for an event see it.
    pub(crate) fn policies_allow(&self, event: &dyn ErasedEvent) -> bool {
        self.policies().is_none_or(|policies| policies.check(event).is_ok())
    }
}

/// A refusal by a policy, for the sender and for who listens to refusals.
#[cold]
pub(crate) fn refused(node: &NodeInner, event: &dyn ErasedEvent, objection: Error) -> Error {
    let error = Error::new(ErrorKind::Refused { node: node.name.to_string(), reason: objection.to_string() })
        .with_source(objection.into_std());
    node.space.tell_refused(node, event.envelope(), &error);
    error
}

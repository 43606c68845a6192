//! State machines: which events lead from which phase to which, declared once. Owns the rules, what is done on the way
//! and the passages that are remembered; does not know where the document is kept.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt::{self, Debug, Write as _};
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;

use happen_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::lens::Lens;
use crate::limits;

/// The rules by which one place of a document, its phase, goes from one value to another.
///
/// Phases `S` and events `E` are enums, and rules tell them apart by their variants: what a variant carries is for
/// guards and for what is done on the way. Clones are the same machine.
///
/// # Examples
///
/// ```
/// use happen::model::{Lens, Machine, NotAllowed, Passages};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
/// enum Phase { #[default] New, Paid, Shipped, Cancelled }
///
/// #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// enum Action { Pay { cents: u64 }, Ship, Cancel }
///
/// #[derive(happen::State, Debug, Default, Clone, Serialize, Deserialize)]
/// struct Order { phase: Phase, price: u64, paid: u64, passages: Passages<Phase, Action> }
///
/// fn order() -> happen::Result<Machine<Order, Phase, Action>> {
///     let pay = Action::Pay { cents: 0 };
///     Machine::builder(Lens::new(|order: &Order| &order.phase, |order: &mut Order| &mut order.phase))
///         .allow(Phase::New, pay, Phase::Paid)
///         .when("enough", |order, action| matches!(action, Action::Pay { cents } if *cents >= order.price))
///         .allow(Phase::Paid, Action::Ship, Phase::Shipped)
///         .allow_from([Phase::New, Phase::Paid], Action::Cancel, Phase::Cancelled)
///         .enter(Phase::Paid, |order, action| if let Action::Pay { cents } = action { order.paid = *cents })
///         .record(Lens::new(|order: &Order| &order.passages, |order: &mut Order| &mut order.passages))
///         .build()
/// }
///
/// # fn main() -> happen::Result<()> {
/// let (machine, space) = (order()?, happen::Space::memory());
/// let orders = space.node("orders");
/// let one = orders.entity::<Order>("1");
/// one.try_set(machine.transition(Action::Pay { cents: 700 }))?;
/// assert_eq!(one.get(|order| (order.phase.clone(), order.paid)), (Phase::Paid, 700));
///
/// let refused = one.try_set(machine.transition(Action::Pay { cents: 700 })).unwrap_err();
/// let why = refused.find_cause::<NotAllowed<Phase, Action>>().unwrap();
/// assert_eq!(why.legal, [Action::Ship, Action::Cancel]);
/// assert_eq!(why.to_string(), "`Pay` is not allowed in `Paid`, which allows `Ship`, `Cancel`");
/// # Ok(())
/// # }
/// ```
pub struct Machine<D, S, E> {
    rules: Arc<Rules<D, S, E>>,
}

/// A machine that is being declared. Made by [`Machine::builder`].
#[must_use = "it is a machine after `build`"]
pub struct MachineBuilder<D, S, E> {
    rules: Rules<D, S, E>,
    mistake: Option<String>,
}

struct Rules<D, S, E> {
    phase: Lens<D, S>,
    all: Vec<Rule<D, S, E>>,
    enter: Vec<(S, OnTheWay<D, E>)>,
    leave: Vec<(S, OnTheWay<D, E>)>,
    passages: Option<Lens<D, Passages<S, E>>>,
}

struct Rule<D, S, E> {
    from: S,
    event: E,
    to: S,
    guard: Option<(String, Guard<D, E>)>,
}

type Guard<D, E> = Box<dyn Fn(&D, &E) -> bool + Send + Sync>;
type OnTheWay<D, E> = Box<dyn Fn(&mut D, &E) + Send + Sync>;

/// An event that a machine does not allow in the phase in which it came: the cause of the error that
/// [`Machine::transition`] refuses with.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NotAllowed<S, E> {
    /// The phase.
    pub from: S,
    /// The event.
    pub event: E,
    /// The events that the phase allows, as they stand in the rules, whatever their guards say.
    pub legal: Vec<E>,
    /// The names of the guards that refused; empty when there is no rule for the event.
    pub guards: Vec<String>,
}

/// What a machine remembers of the way: the last [`limits::PASSAGES_MAX`] passages, the newest last. A part of the
/// document, and so as durable as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passages<S, E> {
    kept: VecDeque<Passage<S, E>>,
    forgotten: u64,
}

/// One passage from a phase to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Passage<S, E> {
    /// The phase that was left.
    pub from: S,
    /// What led on.
    pub event: E,
    /// The phase that was entered.
    pub to: S,
}

impl<D, S, E> Machine<D, S, E>
where
    D: 'static,
    S: Clone + Debug + Send + Sync + 'static,
    E: Clone + Debug + Send + Sync + 'static,
{
    /// Begins to declare a machine whose phase is at this place of the document; [`Lens::whole`] when the phase is
    /// the whole document.
    pub fn builder(phase: Lens<D, S>) -> MachineBuilder<D, S, E> {
        let rules = Rules { phase, all: Vec::new(), enter: Vec::new(), leave: Vec::new(), passages: None };
        MachineBuilder { rules, mistake: None }
    }

    /// The change that an event makes, for [`StateOf::try_set`](crate::StateOf::try_set).
    ///
    /// The first rule for the phase and the event whose guard agrees is followed: what is done when the phase is
    /// left, the new phase, what is done when it is entered, the passage is noted. A rule that leads to the phase it comes
    /// from leaves and enters it.
    ///
    /// It refuses with [`ErrorKind::Invalid`] when no rule allows the event; the cause is a [`NotAllowed`], found by
    /// [`Error::find_cause`]. It refuses with [`ErrorKind::Misuse`] when something that is done on the way changes the
    /// phase, which would be a way around the rules.
    pub fn transition(&self, event: E) -> impl Fn(D) -> Result<D> + Send + Sync + use<D, S, E> {
        let rules = Arc::clone(&self.rules);
        move |document| rules.follow(document, &event)
    }

    /// The events that the document's phase allows, as they stand in the rules, whatever their guards say.
    #[must_use]
    pub fn legal(&self, document: &D) -> Vec<E> {
        self.rules.legal(self.rules.phase.get(document))
    }

    /// The machine as a state diagram in the language of Mermaid. It begins where `D::default()` is.
    #[must_use]
    pub fn mermaid(&self) -> String
    where
        D: Default,
    {
        self.rules.mermaid(self.rules.phase.get(&D::default()))
    }
}

impl<D, S, E> MachineBuilder<D, S, E>
where
    D: 'static,
    S: Clone + Debug + Send + Sync + 'static,
    E: Clone + Debug + Send + Sync + 'static,
{
    /// Allows an event to lead from one phase to another. Of several rules for the same phase and event the first one
    /// whose guard agrees is followed.
    pub fn allow(mut self, from: S, event: E, to: S) -> Self {
        let unreachable =
            self.rules.all.iter().any(|rule| rule.is_for(&from, &event) && rule.guard.is_none());
        if unreachable {
            let (event, from) = (variant(&event), variant(&from));
            let what = format!(
                "the rule for `{event}` in `{from}` is never followed: one without a guard is before it"
            );
            self.mistake.get_or_insert(what);
        }
        self.rules.all.push(Rule { from, event, to, guard: None });
        self
    }

    /// Allows an event to lead from each of several phases to the same one.
    pub fn allow_from(self, from: impl IntoIterator<Item = S>, event: E, to: S) -> Self {
        from.into_iter().fold(self, |machine, from| machine.allow(from, event.clone(), to.clone()))
    }

    /// Follows the rule that was declared last only when the guard agrees. The name is for people.
    pub fn when(mut self, name: &str, guard: impl Fn(&D, &E) -> bool + Send + Sync + 'static) -> Self {
        match self.rules.all.last_mut() {
            Some(rule) => rule.guard = Some((name.to_owned(), Box::new(guard))),
            None => {
                self.mistake.get_or_insert_with(|| format!("the guard `{name}` stands before every rule"));
            }
        }
        self
    }

    /// Does something with the document whenever the phase is entered, on the ground of the event that led there. The
    /// document has its new phase already.
    pub fn enter(mut self, phase: S, work: impl Fn(&mut D, &E) + Send + Sync + 'static) -> Self {
        self.rules.enter.push((phase, Box::new(work)));
        self
    }

    /// Does something with the document whenever the phase is left. The document still has it.
    pub fn leave(mut self, phase: S, work: impl Fn(&mut D, &E) + Send + Sync + 'static) -> Self {
        self.rules.leave.push((phase, Box::new(work)));
        self
    }

    /// Notes each passage at this place of the document.
    pub fn record(mut self, passages: Lens<D, Passages<S, E>>) -> Self {
        self.rules.passages = Some(passages);
        self
    }

    /// The machine.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] when a rule is never followed because of one before it, a guard belongs to no rule, or
    /// something is done at a phase that no rule names.
    pub fn build(self) -> Result<Machine<D, S, E>> {
        if let Some(mistake) = self.mistake {
            return Err(Error::misuse(mistake));
        }
        let rules = self.rules;
        let entered =
            rules.enter.iter().find(|(phase, _)| !rules.all.iter().any(|rule| same(&rule.to, phase)));
        let left =
            rules.leave.iter().find(|(phase, _)| !rules.all.iter().any(|rule| same(&rule.from, phase)));
        if let Some(((phase, _), verb)) = entered.map(|at| (at, "enters")).or(left.map(|at| (at, "leaves"))) {
            return Err(Error::misuse(format!(
                "no rule {verb} `{}`, where something is done",
                variant(phase)
            )));
        }
        Ok(Machine { rules: Arc::new(rules) })
    }
}

impl<D, S, E> Rules<D, S, E>
where
    D: 'static,
    S: Clone + Debug + Send + Sync + 'static,
    E: Clone + Debug + Send + Sync + 'static,
{
    fn follow(&self, mut document: D, event: &E) -> Result<D> {
        let from = self.phase.get(&document).clone();
        let mut guards = Vec::new();
        let rule = self.all.iter().filter(|rule| rule.is_for(&from, event)).find(|rule| match &rule.guard {
            Some((name, guard)) if !guard(&document, event) => {
                guards.push(name.clone());
                false
            }
            _ => true,
        });
        let Some(rule) = rule else {
            let refused = NotAllowed { legal: self.legal(&from), from, event: event.clone(), guards };
            return Err(Error::new(ErrorKind::Invalid { reason: refused.to_string() }).with_source(refused));
        };
        on_the_way(&self.leave, &from, &mut document, event);
        self.check_phase(&document, &from)?;
        self.phase.get_mut(&mut document).clone_from(&rule.to);
        on_the_way(&self.enter, &rule.to, &mut document, event);
        self.check_phase(&document, &rule.to)?;
        if let Some(passages) = &self.passages {
            let to = self.phase.get(&document).clone();
            passages.get_mut(&mut document).push(Passage { from, event: event.clone(), to });
        }
        Ok(document)
    }

    fn check_phase(&self, document: &D, expected: &S) -> Result<()> {
        let found = self.phase.get(document);
        if same(found, expected) {
            return Ok(());
        }
        let (expected, found) = (variant(expected), variant(found));
        Err(Error::misuse(format!(
            "what is done at `{expected}` made the phase `{found}`: only a rule may do that"
        )))
    }

    fn legal(&self, from: &S) -> Vec<E> {
        let mut legal: Vec<E> = Vec::new();
        for rule in self.all.iter().filter(|rule| same(&rule.from, from)) {
            if !legal.iter().any(|event| same(event, &rule.event)) {
                legal.push(rule.event.clone());
            }
        }
        legal
    }

    fn mermaid(&self, start: &S) -> String {
        let mut text = format!("stateDiagram-v2\n    [*] --> {}\n", variant(start));
        for Rule { from, event, to, guard } in &self.all {
            let guard = guard.as_ref().map(|(name, _)| format!(" [{}]", label(name))).unwrap_or_default();
            // Writing to a text never fails.
            let _ = writeln!(text, "    {} --> {}: {}{guard}", variant(from), variant(to), variant(event));
        }
        let mut ends: Vec<&S> = Vec::new();
        for end in self.all.iter().map(|rule| &rule.to) {
            let goes_on = self.all.iter().any(|rule| same(&rule.from, end));
            if !goes_on && !ends.iter().any(|known| same(*known, end)) {
                ends.push(end);
            }
        }
        for end in ends {
            let _ = writeln!(text, "    {} --> [*]", variant(end));
        }
        text
    }
}

impl<D, S, E> Rule<D, S, E> {
    fn is_for(&self, phase: &S, event: &E) -> bool {
        same(&self.from, phase) && same(&self.event, event)
    }
}

fn on_the_way<D, S, E>(work: &[(S, OnTheWay<D, E>)], at: &S, document: &mut D, event: &E) {
    work.iter().filter(|(phase, _)| same(phase, at)).for_each(|(_, work)| work(document, event));
}

fn same<T>(one: &T, other: &T) -> bool {
    let variants: (Discriminant<T>, Discriminant<T>) = (discriminant(one), discriminant(other));
    variants.0 == variants.1
}

/// The name of a value's variant: the first word of its debug form.
fn variant(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let name: String = text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    // A debug form of somebody's own may begin with anything, and a diagram needs a word.
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// The text without what ends a label in a diagram.
fn label(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() || ":;#".contains(letter) { ' ' } else { letter })
        .collect()
}

impl<S, E> Passages<S, E> {
    /// The passages that are remembered, the oldest first.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Passage<S, E>> + ExactSizeIterator {
        self.kept.iter()
    }

    /// How many older ones are no longer remembered.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn push(&mut self, passage: Passage<S, E>) {
        self.kept.push_back(passage);
        // More than one when an earlier version of the program kept more.
        while self.kept.len() > limits::PASSAGES_MAX {
            self.kept.pop_front();
            self.forgotten += 1;
        }
    }
}

impl<S, E> Default for Passages<S, E> {
    fn default() -> Self {
        Self { kept: VecDeque::new(), forgotten: 0 }
    }
}

impl<S: Debug, E: Debug> fmt::Display for NotAllowed<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not allowed in `{}`", variant(&self.event), variant(&self.from))?;
        if !self.guards.is_empty() {
            return write!(f, " unless {}", self.guards.join(", or "));
        }
        let legal: Vec<_> = self.legal.iter().map(|event| format!("`{}`", variant(event))).collect();
        write!(f, ", which allows {}", if legal.is_empty() { "nothing".to_owned() } else { legal.join(", ") })
    }
}

impl<S: Debug, E: Debug> StdError for NotAllowed<S, E> {}

impl<D, S, E> Clone for Machine<D, S, E> {
    fn clone(&self) -> Self {
        Self { rules: Arc::clone(&self.rules) }
    }
}

impl<D, S: Debug, E: Debug> Debug for Rule<D, S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} --{}--> {}", variant(&self.from), variant(&self.event), variant(&self.to))
    }
}

impl<D, S: Debug, E: Debug> Debug for Machine<D, S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rules.all).finish()
    }
}

impl<D, S: Debug, E: Debug> Debug for MachineBuilder<D, S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rules.all).finish()
    }
}

//! What is done by hand: `happen send`, `flows cancel` and `retry`, `dead redrive` and `drop`. Owns the way to whoever does
//! it, the space that runs or the store of one that does not, and how it is told; what is done is the library's.

use std::sync::Arc;

use clap::Args;
use happen::control::{
    self, Answer, Became, Client, FlowBecame, FlowByHand, FlowsOf, LetterByHand, Letters, Mode, Redrive,
    Request, SendEvent, Wait,
};
use happen::store::{SqliteStore, Store};
use happen::{Error, EventId};
use happen_nats::Address;
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, Reader, count_of};
use crate::store::ids::{each, event};
use crate::store::opened::{Opened, channel, open_to_write};
use crate::store::presence::Presence;
use crate::store::state::content;
use crate::store::table::Listing;
use crate::store::{Place, env, journal, of_store};

/// `happen send`.
#[derive(Debug, Args)]
pub(crate) struct SendArguments {
    /// The id of the node
    node: String,
    /// The type of the event
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// What it says, in JSON; `-` reads it from standard input
    #[arg(default_value = "null", value_name = "JSON")]
    payload: String,
    /// Wait until it is handled and print the answer; the space has to run
    #[arg(long)]
    reply: bool,
    /// The correlation of what begins with it [default: the id of the event]
    #[arg(long, value_name = "C")]
    correlation: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// `happen flows cancel` and `happen flows retry`.
#[derive(Debug, Args)]
pub(crate) struct FlowArguments {
    /// The id of an event or its beginning; `-` reads them from standard input
    #[arg(required = true, value_name = "ID")]
    names: Vec<String>,
    /// Only the flows of this node
    #[arg(long, value_name = "N")]
    node: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// `happen dead drop`.
#[derive(Debug, Args)]
pub(crate) struct LetterArguments {
    /// The id of an event or its beginning; `-` reads them from standard input
    #[arg(required_unless_present_any = ["node", "event_type", "all"], value_name = "ID")]
    names: Vec<String>,
    /// Only those of this node
    #[arg(long, value_name = "N")]
    node: Option<String>,
    /// Only those of events of this type
    #[arg(long = "type", value_name = "T")]
    event_type: Option<String>,
    /// All there are
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Only print which it would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

/// `happen dead redrive`.
#[derive(Debug, Args)]
pub(crate) struct RedriveArguments {
    /// Another payload for the event, in JSON, which is then handled anew under an id of its own; `-` reads it from
    /// standard input
    #[arg(long, value_name = "JSON", requires = "names", conflicts_with = "all")]
    payload: Option<String>,
    #[command(flatten)]
    letters: LetterArguments,
}

/// Whoever does what is asked for.
pub(crate) struct Hand {
    address: Address,
    way: Way,
}

enum Way {
    /// By way of the space that runs.
    Live(Client),
    /// On the store of one that does not, which belongs to this process meanwhile.
    Stopped(Arc<SqliteStore>),
    /// On a log, by the processes that have its nodes as far as they are there.
    Beside(Box<Opened>),
}

impl Hand {
    /// Finds the space that runs in the folder, or opens the store there.
    ///
    /// # Errors
    ///
    /// [`Failure::Store`] when there is no store, or a running space has it that cannot be reached.
    pub(crate) async fn at(place: &Place) -> Result<Self, Failure> {
        let address = place.address()?;
        let Address::Folder(folder) = &address else {
            let way = Way::Beside(Box::new(Opened::at(&address, &place.reach).await?));
            return Ok(Self { address, way });
        };
        let way = match channel(folder)? {
            Some(client) => Way::Live(client),
            None => Way::Stopped(Arc::new(open_to_write(folder).await?)),
        };
        Ok(Self { address, way })
    }

    /// Has it done.
    ///
    /// # Errors
    ///
    /// [`Failure::NotFound`] when there is nothing of that name, [`Failure::Store`] for the rest.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Answer, Failure> {
        let answer = self.try_ask(request).await?;
        answer.map_err(|error| of_store(&self.address, &error))
    }

    /// Has it done, for a caller that knows better what an error means.
    ///
    /// # Errors
    ///
    /// As [`happen::control`] says, inside; [`Failure::Store`] when it could not be asked for.
    pub(crate) async fn try_ask(&mut self, request: &Request) -> Result<Result<Answer, Error>, Failure> {
        Ok(match &mut self.way {
            Way::Live(client) => client.ask(request).await,
            Way::Stopped(store) => {
                let store = Arc::clone(store) as Arc<dyn Store>;
                control::carry_out(&store, &env(), request.clone()).await
            }
            Way::Beside(store) => return beside(store, request).await,
        })
    }

    /// Gives the store back.
    pub(crate) async fn close(self) {
        match self.way {
            Way::Live(_) => {}
            Way::Stopped(store) => store.close().await,
            Way::Beside(store) => store.close().await,
        }
    }
}

/// Does something to a log whose nodes may belong to processes that run.
async fn beside(store: &Opened, request: &Request) -> Result<Result<Answer, Error>, Failure> {
    let log = store.shared();
    let owners = control::owners(&log).await.map_err(|error| of_store(store.address(), &error))?;
    // What a process need not be there for: it finds an event that is kept for it, also later.
    let needs_nobody = match request {
        Request::Send(send) => send.wait == Wait::Taken && owners.iter().any(|owner| owner.node == send.node),
        Request::Drop(_) | Request::Prune(_) => true,
        _ => false,
    };
    if needs_nobody {
        return Ok(control::carry_out_beside(&log, &env(), &|_| None, request.clone()).await);
    }
    let is_enough = |presence: &Presence| match request {
        Request::Send(send) => presence.of_node(&send.node).is_some(),
        _ => presence.has_all(&owners),
    };
    let Some(presence) = Presence::join(store, is_enough).await? else { return Err(other_answer()) };
    let answer = match request {
        Request::Send(send) if presence.of_node(&send.node).is_some() => presence.send(send.clone()).await,
        Request::Send(send) if send.wait == Wait::Reply => Err(Error::misuse(format!(
            "no process that has node `{}` is there, so nobody answers; send without waiting for a reply",
            send.node
        ))),
        request => presence.carry_out(&log, request.clone()).await,
    };
    presence.leave().await.map_err(|error| of_store(store.address(), &error))?;
    Ok(answer)
}

/// The failure of an answer to something else.
#[cold]
pub(crate) fn other_answer() -> Failure {
    Failure::Store(
        "the space answered something else than was asked; it may be of another version".to_owned(),
    )
}

/// Sends an event.
///
/// # Errors
///
/// [`Failure::Usage`] when the payload is no JSON, and as [`Hand::ask`].
pub(crate) async fn send(arguments: &SendArguments, output: &Output) -> Result<(), Failure> {
    let SendArguments { node, event_type, payload, reply, correlation, place } = arguments;
    let send = SendEvent {
        node: node.clone(),
        event_type: event_type.clone(),
        payload: content(payload)?,
        correlation: correlation.clone(),
        wait: if *reply { Wait::Reply } else { Wait::Taken },
    };
    let mut hand = Hand::at(place).await?;
    let answer = hand.ask(&Request::Send(send)).await;
    let is_beside = matches!(hand.way, Way::Beside(_));
    hand.close().await;
    let Answer::Sent(sent) = answer? else { return Err(other_answer()) };
    let event = sent.event.to_string();
    let (word, told, reply) = match sent.became {
        Became::Taken => ("taken", "taken", None),
        Became::Kept if is_beside => ("kept", "kept for its process", None),
        Became::Kept => ("kept", "kept for the next start", None),
        Became::Replied { event_type, payload } => ("replied", "replied", Some((event_type, payload))),
        _ => return Err(other_answer()),
    };
    if place.json {
        let (event_type, payload) = reply.unwrap_or_default();
        let told = json!({ "event": event, "became": word, "reply_type": event_type, "reply": payload });
        return output.write_json(&told);
    }
    match reply {
        Some((_, payload)) => output.write_json(&payload),
        None => output.write(&format!("{event}  {told}\n")),
    }
}

/// Cancels flows.
///
/// # Errors
///
/// [`Failure::NotFound`] when none under way handles the event, and as [`Hand::ask`].
pub(crate) async fn cancel(arguments: &FlowArguments, output: &Output) -> Result<(), Failure> {
    of_each(arguments, Request::Cancel, output).await
}

/// Tries flows now.
///
/// # Errors
///
/// [`Failure::NotFound`] when none that handles the event waits for its next attempt, and as [`Hand::ask`].
pub(crate) async fn retry(arguments: &FlowArguments, output: &Output) -> Result<(), Failure> {
    of_each(arguments, Request::Retry, output).await
}

async fn of_each(
    arguments: &FlowArguments,
    request: fn(FlowsOf) -> Request,
    output: &Output,
) -> Result<(), Failure> {
    let events = events(&arguments.place, &arguments.names).await?;
    let mut hand = Hand::at(&arguments.place).await?;
    let done = async || -> Result<(), Failure> {
        for event in events {
            let request = request(FlowsOf { event, node: arguments.node.clone() });
            let Answer::Flows(flows) = hand.ask(&request).await? else { return Err(other_answer()) };
            let mut page = Listing::new(&arguments.place, &["EVENT", "NODE", "REGISTRATION", "BECAME"]);
            for flow in &flows {
                page.push(|| flow_row(flow), || flow_json(flow));
            }
            if page.write(output)? == Reader::Gone {
                break;
            }
        }
        Ok(())
    };
    let result = done().await;
    hand.close().await;
    result
}

fn flow_row(flow: &FlowByHand) -> [String; 4] {
    let became = flow_word(flow.became).to_owned();
    [flow.event.to_string(), flow.node.clone(), flow.registration.clone(), became]
}

fn flow_json(flow: &FlowByHand) -> Json {
    json!({
        "event": flow.event.to_string(),
        "node": flow.node,
        "registration": flow.registration,
        "became": flow_word(flow.became),
    })
}

fn flow_word(became: FlowBecame) -> &'static str {
    match became {
        FlowBecame::Cancelled => "cancelled",
        FlowBecame::Ended => "ended",
        FlowBecame::Asked => "asked",
        FlowBecame::Due => "due",
        _ => "other",
    }
}

/// Begins dead letters anew.
///
/// # Errors
///
/// [`Failure::Store`] when one or more could not begin, [`Failure::NotFound`] when an event has none, and as [`Hand::ask`].
pub(crate) async fn redrive(arguments: &RedriveArguments, output: &Output) -> Result<(), Failure> {
    let payload = arguments.payload.as_deref().map(content).transpose()?;
    let request = |letters| Request::Redrive(Redrive { letters, payload: payload.clone() });
    of_letters(&arguments.letters, request, ["begun", "would begin"], output).await
}

/// Gives dead letters up.
///
/// # Errors
///
/// As [`redrive`].
pub(crate) async fn drop_letters(arguments: &LetterArguments, output: &Output) -> Result<(), Failure> {
    of_letters(arguments, Request::Drop, ["dropped", "would be dropped"], output).await
}

async fn of_letters(
    arguments: &LetterArguments,
    request: impl Fn(Letters) -> Request,
    [done, would]: [&str; 2],
    output: &Output,
) -> Result<(), Failure> {
    let LetterArguments { names, node, event_type, dry_run, place, .. } = arguments;
    let events: Vec<_> = match &names[..] {
        [] => vec![None],
        names => events(place, names).await?.into_iter().map(Some).collect(),
    };
    let letters = Letters {
        event: None,
        node: node.clone(),
        event_type: event_type.clone(),
        after: None,
        mode: if *dry_run { Mode::DryRun } else { Mode::CarryOut },
    };
    let word = if *dry_run { would } else { done };
    let mut hand = Hand::at(place).await?;
    let each = async || -> Result<(u64, u64), Failure> {
        let (mut all, mut refused) = (0, 0);
        for event in events {
            let mut letters = Letters { event, ..letters.clone() };
            loop {
                let answer = hand.ask(&request(letters.clone())).await?;
                let Answer::Letters(told) = answer else { return Err(other_answer()) };
                let mut page = Listing::new(place, &["EVENT", "NODE", "REGISTRATION", "BECAME"]);
                for letter in &told.letters {
                    all += 1;
                    refused += u64::from(letter.refused.is_some());
                    page.push(|| letter_row(letter, word), || letter_json(letter, *dry_run));
                }
                if page.write(output)? == Reader::Gone {
                    return Ok((all, refused));
                }
                match told.next {
                    Some(next) => letters.after = Some(next),
                    None => break,
                }
            }
        }
        Ok((all, refused))
    };
    let result = each().await;
    hand.close().await;
    let (all, refused) = result?;
    if refused > 0 {
        let of = count_of(all, "dead letter");
        return Err(Failure::Store(format!(
            "{refused} of {of} could not begin or be dropped; they are as they were"
        )));
    }
    Ok(())
}

fn letter_row(letter: &LetterByHand, word: &str) -> [String; 4] {
    let became = match (&letter.refused, letter.instead) {
        (Some(refused), _) => format!("refused: {}", refused.text),
        (None, Some(instead)) => format!("{word} as {instead}"),
        (None, None) => word.to_owned(),
    };
    [letter.event.to_string(), letter.node.clone(), letter.registration.clone(), became]
}

fn letter_json(letter: &LetterByHand, dry_run: bool) -> Json {
    let refused =
        letter.refused.as_ref().map(|refused| json!({ "code": refused.code, "text": refused.text }));
    json!({
        "event": letter.event.to_string(),
        "node": letter.node,
        "registration": letter.registration,
        "dry_run": dry_run,
        "instead": letter.instead.map(|event| event.to_string()),
        "error": refused,
    })
}

/// The events that are meant.
async fn events(place: &Place, names: &[String]) -> Result<Vec<EventId>, Failure> {
    let (store, journal) = journal(place).await?;
    let mut events = Vec::new();
    each(names, async |name| {
        events.push(event(&store, &journal, name).await?);
        Ok(())
    })
    .await?;
    Ok(events)
}

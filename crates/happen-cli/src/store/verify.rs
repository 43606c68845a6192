//! `happen verify`: whether a store has what was written, and whether what was written fits together. Owns nothing but
//! how the two answers look.

use clap::Args;
use happen::journal::{Misfit, Verification};
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, count_of, plain};
use crate::store::upkeep::{position_json, verified_json, verified_text, whole};
use crate::store::{Place, journal, of_store};

/// `happen verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    place: Place,
}

/// Reads everything and checks the bytes against their checksums, and the events against their hashes and causes.
///
/// # Errors
///
/// [`Failure::NotWhole`] when something does not fit, [`Failure::Store`] when the store cannot be looked at.
pub(crate) async fn run(arguments: &VerifyArguments, output: &Output) -> Result<(), Failure> {
    let (store, journal) = journal(&arguments.place).await?;
    let failed = |error| of_store(store.address(), &error);
    let verified = store.verify().await?;
    let web = journal.verify().await.map_err(failed)?;
    if arguments.place.json {
        output.write_json(&json!({ "store": verified_json(&verified), "web": web_json(&web) }))?;
    } else {
        let mut text = verified_text(&verified);
        if let Some(first) = &web.first {
            text.push_str(&format!("does not fit: {}\n", plain(&first.to_string(), TEXT_CHARS_MAX)));
        }
        text.push_str(&counted(&web));
        output.write(&text)?;
    }
    whole(&verified)?;
    if web.is_whole() {
        return Ok(());
    }
    Err(Failure::NotWhole(format!(
        "the log does not fit together at {}; keep a copy of the folder and restore a backup",
        count_of(web.misfits, "place")
    )))
}

fn counted(web: &Verification) -> String {
    let [events, causes, steps] = [(web.events, "event"), (web.causes, "cause"), (web.steps, "step")]
        .map(|(count, one)| count_of(count, one));
    let mut text = format!("{events}, {causes} and {steps} were checked, the events against their hashes\n");
    for (count, one, what) in [
        (web.edge, "cause", "not in this store, where the web that can be verified ends"),
        (web.forgotten, "step", "of events that were pruned"),
        (web.others, "record", "of no event and no node, and not checked further"),
    ] {
        if count > 0 {
            text.push_str(&format!("{} {what}\n", count_of(count, one)));
        }
    }
    if !web.is_complete {
        text.push_str("the log could not be read to its end\n");
    }
    text
}

fn web_json(web: &Verification) -> Json {
    let first = |first: &Misfit| {
        json!({
            "position": position_json(first.position),
            "event": first.event.map(|event| event.to_string()),
            "what": first.what,
        })
    };
    json!({
        "whole": web.is_whole(),
        "complete": web.is_complete,
        "records": web.records,
        "events": web.events,
        "steps": web.steps,
        "causes": web.causes,
        "edge": web.edge,
        "forgotten": web.forgotten,
        "others": web.others,
        "misfits": web.misfits,
        "first": web.first.as_ref().map(first),
    })
}

/// Characters of what is told of one misfit.
const TEXT_CHARS_MAX: usize = 300;

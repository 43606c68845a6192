//! `happen balance`: whether the nodes of a space keep up, and what they would need. Owns how the figures are shown, and
//! how those of several processes are put together; who has them is the space that runs in a folder, the processes of a
//! space on NATS, or else the store.

use std::collections::BTreeMap;

use clap::Args;
use happen::Error;
use happen::balance::{BalanceReport, Finding, NodeBalance, NodePlace, NodeStanding};
use happen::control::{self, Answer, Request};
use happen_nats::Address;
use serde_json::{Value as Json, json};

use crate::failure::Failure;
use crate::output::{Output, number, plain};
use crate::store::hand::other_answer;
use crate::store::moment::span;
use crate::store::opened::{Opened, channel};
use crate::store::presence::Presence;
use crate::store::table::Listing;
use crate::store::{Place, env, of_store};

/// `happen balance`.
#[derive(Debug, Args)]
pub(crate) struct BalanceArguments {
    /// Only this node
    #[arg(long, value_name = "N")]
    node: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// Prints how the nodes keep up.
///
/// # Errors
///
/// [`Failure::NotFound`] when the node that was named is not there, [`Failure::Store`] for the rest, among it that a
/// process did not tell.
pub(crate) async fn run(arguments: &BalanceArguments, output: &Output) -> Result<(), Failure> {
    let address = arguments.place.address()?;
    if matches!(address, Address::Nats { .. }) {
        return run_over_processes(arguments, output).await;
    }
    let mut report = ask(&arguments.place, &address).await?;
    if let Some(node) = &arguments.node {
        report.nodes.retain(|figures| figures.node == *node);
        if report.nodes.is_empty() {
            return Err(not_known(node));
        }
    }
    if arguments.place.json {
        return output.write_json(&json!(report));
    }
    for finding in &report.findings {
        output.write(&line(finding, None))?;
    }
    let mut page = Listing::new(&arguments.place, &HEADS[..HEADS.len() - 1]);
    for node in &report.nodes {
        page.push(|| row(node), || json!(node));
    }
    page.write(output)?;
    let shown = report.nodes.len() as u64;
    if arguments.node.is_none() && report.nodes_len > shown {
        Err(more(report.nodes_len, shown))
    } else {
        Ok(())
    }
}

async fn run_over_processes(arguments: &BalanceArguments, output: &Output) -> Result<(), Failure> {
    let mut all = over_processes(&arguments.place).await?;
    let silent = all.processes.iter().filter(|process| process.why.is_some()).count() as u64;
    let silent = (silent > 0).then(|| {
        Failure::Store(format!(
            "{} of {} processes did not tell; nodes of those are shown as the log has them",
            number(silent),
            number(all.processes.len() as u64)
        ))
    });
    if let Some(node) = &arguments.node {
        all.rows.retain(|(_, figures)| figures.node == *node);
        if all.rows.is_empty() {
            return Err(silent.unwrap_or_else(|| not_known(node)));
        }
    }
    if arguments.place.json {
        output.write_json(&all.json())?;
    } else {
        for process in &all.processes {
            if let Some((_, why)) = &process.why {
                output.write(&format!(
                    "{}\n",
                    plain(&format!("{}  did not tell: {why}", process.name), TEXT_CHARS_MAX)
                ))?;
            }
        }
        for (process, finding) in &all.findings {
            output.write(&line(finding, Some(process)))?;
        }
        let mut page = Listing::new(&arguments.place, &HEADS);
        for (process, node) in &all.rows {
            let row = || {
                let process = process.as_deref().unwrap_or("-").to_owned();
                let [a, b, c, d, e, f, g, h, i, j] = row(node);
                [a, b, c, d, e, f, g, h, i, j, process]
            };
            page.push(row, || json!(node));
        }
        page.write(output)?;
    }
    match silent {
        Some(failure) => Err(failure),
        None if arguments.node.is_none() && all.nodes_len > all.rows.len() as u64 => {
            Err(more(all.nodes_len, all.rows.len() as u64))
        }
        None => Ok(()),
    }
}

/// A process, and what it told.
type Told = (String, Result<BalanceReport, Error>);

/// What all processes tell, and what the log has for nodes of which none tells.
#[derive(Debug, Default)]
struct All {
    at_unix_ms: u64,
    processes: Vec<Asked>,
    /// Each with the process that found it.
    findings: Vec<(String, Finding)>,
    /// The nodes by name, with the processes that have them; none for what is told by the log, or by one that has it not.
    rows: Vec<(Option<String>, NodeBalance)>,
    /// With those that are left out of a report.
    nodes_len: u64,
}

/// A process that was asked.
#[derive(Debug, Default)]
struct Asked {
    name: String,
    at_unix_ms: Option<u64>,
    is_watched: Option<bool>,
    nodes_len: Option<u64>,
    /// The code of why it did not tell, and that in words.
    why: Option<(String, String)>,
}

impl All {
    /// Puts together what the processes told with what the log has. `silent` are the processes that the log knows and that
    /// nobody hears, with their nodes.
    fn of(told: Vec<Told>, log: BalanceReport, silent: &BTreeMap<&str, Vec<&str>>) -> Self {
        let mut all = Self { at_unix_ms: log.at_unix_ms, ..Self::default() };
        let mut others: BTreeMap<String, NodeBalance> = BTreeMap::new();
        for mut figures in log.nodes {
            // What waits for a process that may have died is taken by nobody.
            figures.is_taken &=
                !figures.processes.iter().any(|process| silent.contains_key(process.as_str()));
            others.insert(figures.node.clone(), figures);
        }
        for (process, report) in told {
            match report {
                Ok(report) => all.add(process, report, &mut others),
                Err(error) => {
                    let why = Some((error.code().to_owned(), error.chain().join(": ")));
                    all.processes.push(Asked { name: process, why, ..Asked::default() });
                }
            }
        }
        for (process, nodes) in silent {
            let nodes: Vec<_> = nodes.iter().take(NODES_SHOWN).map(|node| format!("`{node}`")).collect();
            let why =
                format!("it has {}, has not said that it goes, and nothing is heard of it", nodes.join(", "));
            let why = Some((UNHEARD.to_owned(), why));
            all.processes.push(Asked { name: (*process).to_owned(), why, ..Asked::default() });
        }
        for (_, figures) in &all.rows {
            others.remove(&figures.node);
        }
        all.rows.extend(others.into_values().map(|figures| (None, figures)));
        all.rows.sort_by(|(a, one), (b, other)| one.node.cmp(&other.node).then_with(|| a.cmp(b)));
        all.processes.sort_by(|a, b| a.name.cmp(&b.name));
        all.nodes_len += all.rows.len() as u64;
        all
    }

    fn add(&mut self, process: String, report: BalanceReport, others: &mut BTreeMap<String, NodeBalance>) {
        let (shown, nodes_len) = (report.nodes.len() as u64, report.nodes_len);
        // Those that it has come first, so none of these is left out where one of others is there.
        if report.nodes.last().is_none_or(|last| last.place == NodePlace::Here) {
            self.nodes_len += nodes_len.saturating_sub(shown);
        }
        self.findings.extend(report.findings.into_iter().map(|finding| (process.clone(), finding)));
        for figures in report.nodes {
            if figures.place == NodePlace::Here {
                self.rows.push((Some(process.clone()), figures));
            } else if figures.standing != NodeStanding::Well || !others.contains_key(&figures.node) {
                // Others see of a node whether its process is there, and the log does not.
                others.insert(figures.node.clone(), figures);
            }
        }
        let (at_unix_ms, is_watched) = (Some(report.at_unix_ms), Some(report.is_watched));
        self.processes.push(Asked {
            name: process,
            at_unix_ms,
            is_watched,
            nodes_len: Some(nodes_len),
            why: None,
        });
    }

    fn json(&self) -> Json {
        let with = |process: Option<&str>, mut told: Json| {
            told["process"] = process.into();
            told
        };
        let findings: Vec<_> =
            self.findings.iter().map(|(process, finding)| with(Some(process), json!(finding))).collect();
        let nodes: Vec<_> =
            self.rows.iter().map(|(process, node)| with(process.as_deref(), json!(node))).collect();
        let processes: Vec<_> = self
            .processes
            .iter()
            .map(|process| {
                json!({
                    "process": process.name,
                    "at_unix_ms": process.at_unix_ms,
                    "is_watched": process.is_watched,
                    "nodes_len": process.nodes_len,
                    "error": process.why.as_ref().map(|(code, text)| json!({ "code": code, "text": text })),
                })
            })
            .collect();
        json!({
            "at_unix_ms": self.at_unix_ms,
            "is_watched": self.processes.iter().any(|process| process.is_watched == Some(true)),
            "processes": processes,
            "findings": findings,
            "nodes": nodes,
            "nodes_len": self.nodes_len,
        })
    }
}

async fn over_processes(place: &Place) -> Result<All, Failure> {
    let store = place.open_to_read().await?;
    let all = all(&store).await;
    store.close().await;
    all
}

async fn all(store: &Opened) -> Result<All, Failure> {
    let failed = |error| of_store(store.address(), &error);
    let log = store.shared();
    let owners = control::owners(&log).await.map_err(failed)?;
    // There may be processes of which the log knows nothing.
    let Some(presence) = Presence::join(store, |_| false).await? else { return Err(other_answer()) };
    let told = presence.balance().await.into_iter().map(|told| (told.process, told.report)).collect();
    let mut silent: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for owner in owners.iter().filter(|owner| !owner.has_gone && presence.of(&owners, owner).is_none()) {
        silent.entry(&owner.process).or_default().push(&owner.node);
    }
    presence.leave().await.map_err(failed)?;
    let kept = report_in(control::carry_out(&log, &env(), Request::Balance).await.map_err(failed)?)?;
    Ok(All::of(told, kept, &silent))
}

async fn ask(place: &Place, address: &Address) -> Result<BalanceReport, Failure> {
    if let Address::Folder(folder) = address
        && let Some(mut client) = channel(folder)?
    {
        let answer = client.ask(&Request::Balance).await;
        return report_in(answer.map_err(|error| of_store(address, &error))?);
    }
    let store = place.open_to_read().await?;
    let answer = control::carry_out(&store.shared(), &env(), Request::Balance).await;
    let answer = answer.map_err(|error| of_store(store.address(), &error));
    store.close().await;
    report_in(answer?)
}

fn report_in(answer: Answer) -> Result<BalanceReport, Failure> {
    match answer {
        Answer::Balance(report) => Ok(report),
        _ => Err(other_answer()),
    }
}

fn not_known(node: &str) -> Failure {
    Failure::NotFound(format!(
        "no node `{node}` is among those whose figures are known; `happen balance` lists them"
    ))
}

fn more(nodes_len: u64, shown: u64) -> Failure {
    Failure::Store(format!(
        "there are {} nodes, and {} of them are not shown; name one with --node",
        number(nodes_len),
        number(nodes_len - shown)
    ))
}

/// What was found, and by which process where there are several.
fn line(finding: &Finding, process: Option<&str>) -> String {
    let (event, nodes) = (&finding.event, finding.nodes.join(" "));
    let by = process.map_or_else(String::new, |process| format!("by {process}  "));
    let told = format!("{event}  {}  for {}  {by}{nodes}", finding.pattern, span(finding.for_ms));
    format!("{}\n", plain(told.trim_end(), TEXT_CHARS_MAX))
}

fn row(node: &NodeBalance) -> [String; 10] {
    let stands = match (node.standing, node.is_taken) {
        (NodeStanding::Well, true) => "well",
        (NodeStanding::Slow, _) => "slow",
        (NodeStanding::Down, _) => "down",
        (NodeStanding::Cut, _) => "cut",
        // Nobody takes what comes, and nobody has had to wait for it so far.
        _ => "rests",
    };
    let rates = node.rates.as_ref();
    let rate = |of: Option<f64>| of.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let places =
        node.places.map_or_else(|| node.active.to_string(), |places| format!("{}/{places}", node.active));
    [
        node.node.clone(),
        stands.to_owned(),
        number(node.lag()),
        node.oldest_ms.map_or_else(|| "-".to_owned(), span),
        places,
        rate(rates.map(|rates| rates.arrived_per_s)),
        rate(rates.map(|rates| rates.handled_per_s)),
        rates.and_then(|rates| rates.places_needed).map_or_else(|| "-".to_owned(), number),
        number(node.refused),
        number(node.failed),
    ]
}

const HEADS: [&str; 11] = [
    "NODE", "STANDS", "LAG", "OLDEST", "PLACES", "COME/S", "DONE/S", "NEEDS", "REFUSED", "FAILED", "PROCESS",
];
/// The code of a process that nobody hears.
const UNHEARD: &str = "closed";
/// Nodes that are named of such a process.
const NODES_SHOWN: usize = 3;
/// Characters of what was found, or of why a process did not tell.
const TEXT_CHARS_MAX: usize = 600;

#[cfg(test)]
mod tests {
    use happen::ErrorKind;

    use super::*;

    fn report(nodes_len: u64, nodes: &[(&str, &str, &str)]) -> BalanceReport {
        let node = |(id, place, standing): &(&str, &str, &str)| {
            let mut figures = json!(NodeBalance::default());
            (figures["node"], figures["place"]) = (json!(id), json!(place));
            (figures["standing"], figures["is_taken"]) = (json!(standing), json!(true));
            figures
        };
        let nodes: Vec<_> = nodes.iter().map(node).collect();
        let report = json!({
            "at_unix_ms": 7, "is_watched": true, "findings": [], "nodes": nodes, "nodes_len": nodes_len,
        });
        serde_json::from_value(report).unwrap()
    }

    fn rows(all: &All) -> Vec<(&str, Option<&str>, NodeStanding)> {
        all.rows.iter().map(|(process, node)| (&*node.node, process.as_deref(), node.standing)).collect()
    }

    #[test]
    fn each_node_is_told_by_the_processes_that_have_it_and_otherwise_by_the_log_or_who_misses_it() {
        let a = report(
            4,
            &[
                ("mill", "here", "slow"),
                ("bell", "here", "well"),
                ("lamp", "elsewhere", "down"),
                ("barn", "elsewhere", "well"),
            ],
        );
        let b = report(
            3,
            &[("mill", "here", "well"), ("barn", "elsewhere", "cut"), ("lamp", "elsewhere", "well")],
        );
        let mut log = report(
            3,
            &[("barn", "elsewhere", "well"), ("mill", "elsewhere", "well"), ("yard", "elsewhere", "well")],
        );
        log.nodes[2].processes = vec!["1-silent".to_owned()];
        let gone = Error::new(ErrorKind::Closed { what: "the process".to_owned() });
        let told = vec![("b".to_owned(), Ok(b)), ("a".to_owned(), Ok(a)), ("c".to_owned(), Err(gone))];
        let all = All::of(told, log, &BTreeMap::from([("1-silent", vec!["yard"])]));
        use NodeStanding::{Cut, Down, Slow, Well};
        assert_eq!(
            rows(&all),
            [
                ("barn", None, Cut),
                ("bell", Some("a"), Well),
                ("lamp", None, Down),
                ("mill", Some("a"), Slow),
                ("mill", Some("b"), Well),
                ("yard", None, Well),
            ]
        );
        assert!(!all.rows[5].1.is_taken, "its process may have died");
        assert_eq!(all.nodes_len, 6, "nothing is left out");
        let why = |name: &str| {
            let process = all.processes.iter().find(|process| process.name == name).unwrap();
            process.why.as_ref().map(|(code, _)| code.as_str())
        };
        assert_eq!(["a", "b", "c", "1-silent"].map(why), [None, None, Some("closed"), Some("closed")]);
        let told = all.json();
        assert_eq!((&told["nodes"][1]["process"], &told["nodes"][0]["process"]), (&json!("a"), &Json::Null));
        assert_eq!(told["processes"][3]["error"]["code"], "closed");
        assert_eq!((&told["is_watched"], &told["nodes_len"]), (&json!(true), &json!(6)));
    }

    #[test]
    fn nodes_that_a_process_had_no_room_for_are_counted() {
        let of = |nodes: &[(&str, &str, &str)]| {
            All::of(vec![("a".to_owned(), Ok(report(9, nodes)))], report(0, &[]), &BTreeMap::new()).nodes_len
        };
        assert_eq!(of(&[("mill", "here", "well")]), 9);
        assert_eq!(of(&[("mill", "here", "well"), ("barn", "elsewhere", "well")]), 2);
    }
}

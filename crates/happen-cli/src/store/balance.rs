//! `happen balance`: whether the nodes of a space keep up, and what they would need. Owns how the figures are shown; who
//! has them is the space that runs in a folder, or else the store.

use clap::Args;
use happen::balance::{BalanceReport, NodeBalance, NodeStanding};
use happen::control::{self, Answer, Client, Request};
use happen_nats::Address;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, number};
use crate::store::hand::other_answer;
use crate::store::moment::span;
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
/// [`Failure::NotFound`] when the node that was named is not there, [`Failure::Store`] for the rest.
pub(crate) async fn run(arguments: &BalanceArguments, output: &Output) -> Result<(), Failure> {
    let mut report = ask(&arguments.place).await?;
    if let Some(node) = &arguments.node {
        report.nodes.retain(|figures| figures.node == *node);
        if report.nodes.is_empty() {
            return Err(Failure::NotFound(format!(
                "no node `{node}` is among those whose figures are known; `happen balance` lists them"
            )));
        }
    }
    if arguments.place.json {
        return output.write_json(&json!(report));
    }
    for finding in &report.findings {
        let (event, nodes) = (&finding.event, finding.nodes.join(" "));
        let told = format!("{event}  {}  for {}  {nodes}", finding.pattern, span(finding.for_ms));
        output.write(&format!("{}\n", told.trim_end()))?;
    }
    let mut page = Listing::new(
        &arguments.place,
        &["NODE", "STANDS", "LAG", "OLDEST", "PLACES", "COME/S", "DONE/S", "NEEDS", "REFUSED", "FAILED"],
    );
    for node in &report.nodes {
        page.push(|| row(node), || json!(node));
    }
    page.write(output)?;
    if arguments.node.is_none() && report.nodes_len > report.nodes.len() as u64 {
        return Err(Failure::Store(format!(
            "there are {} nodes, and those after the first {} are not shown; name one with --node",
            number(report.nodes_len),
            number(report.nodes.len() as u64)
        )));
    }
    Ok(())
}

async fn ask(place: &Place) -> Result<BalanceReport, Failure> {
    let address = place.address()?;
    if let Address::Folder(folder) = &address {
        let failed = |error| of_store(&address, &error);
        if let Some(mut client) = Client::connect(folder).map_err(failed)? {
            return report_in(client.ask(&Request::Balance).await.map_err(failed)?);
        }
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

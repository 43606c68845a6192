//! `happen region`: which of several regions writes the log of a space on NATS, and making these servers the ones. Owns how
//! that is told; what it takes is the library's.

use clap::{Args, Subcommand};
use happen::ErrorKind;
use happen_nats::{Address, Former, LogPlace, LogRegion, Surplus};
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, number};
use crate::store::opened::connected;
use crate::store::{Place, of_store};

/// What is done with the regions of a log.
#[derive(Debug, Subcommand)]
pub(crate) enum RegionCommand {
    /// Say whether the servers of this address write the log of the space, or follow those of another region
    Show(Place),
    /// Have the servers of this address write the log from now on, in place of the region that they follow
    TakeOver(TakeOverArguments),
    /// Have the servers of this address follow another region, which has taken the log over
    Follow(FollowArguments),
}

/// `happen region take-over`.
#[derive(Debug, Args)]
pub(crate) struct TakeOverArguments {
    /// The other region does not answer, and what it did not send on is given up; without this it is stopped first, and
    /// nothing is lost
    #[arg(long)]
    lost: bool,
    #[command(flatten)]
    place: Place,
}

/// `happen region follow`.
#[derive(Debug, Args)]
pub(crate) struct FollowArguments {
    /// The JetStream domain whose servers write the log
    domain: String,
    /// Delete what these servers have that is not in the log; without this nothing is done while there is any
    #[arg(long)]
    give_up: bool,
    #[command(flatten)]
    place: Place,
}

/// Runs the command.
///
/// # Errors
///
/// [`Failure::Usage`] when the address is not on NATS, [`Failure::NotFound`] when there is no log, [`Failure::Store`] for
/// the rest.
pub(crate) async fn run(command: &RegionCommand, output: &Output) -> Result<(), Failure> {
    match command {
        RegionCommand::Show(place) => show(place, output).await,
        RegionCommand::TakeOver(arguments) => take_over(arguments, output).await,
        RegionCommand::Follow(arguments) => follow(arguments, output).await,
    }
}

async fn show(place: &Place, output: &Output) -> Result<(), Failure> {
    let (address, region) = region(place).await?;
    let (json, text) = match region.look().await.map_err(|error| of_store(&address, &error))? {
        LogPlace::Absent => {
            return Err(Failure::NotFound(format!("these servers have no log of {address}")));
        }
        LogPlace::Written { epoch, sequence } => (
            json!({ "stands": "written", "epoch": epoch, "sequence": sequence }),
            format!("written here, up to message {}", number(sequence)),
        ),
        LogPlace::Mirrored { domain, sequence, behind } => (
            json!({ "stands": "mirrored", "of": domain, "sequence": sequence, "behind": behind }),
            format!(
                "follows region {domain}, up to message {}; {} have not come yet",
                number(sequence),
                number(behind)
            ),
        ),
        LogPlace::Sealed { sequence } => (
            json!({ "stands": "sealed", "sequence": sequence }),
            format!("sealed at message {}: another region has taken the log over", number(sequence)),
        ),
        _ => return Err(Failure::Store("the log stands as this version does not know".to_owned())),
    };
    if place.json { output.write_json(&json) } else { output.write(&format!("{text}\n")) }
}

async fn take_over(arguments: &TakeOverArguments, output: &Output) -> Result<(), Failure> {
    let (address, region) = region(&arguments.place).await?;
    let former = if arguments.lost { Former::Lost } else { Former::Answers };
    let taken = region.take_over(former).await.map_err(|error| of_store(&address, &error))?;
    if arguments.place.json {
        return output.write_json(&json!({ "epoch": taken.epoch, "sequence": taken.sequence }));
    }
    output.write(&format!("written here, from behind message {}\n", number(taken.sequence)))
}

async fn follow(arguments: &FollowArguments, output: &Output) -> Result<(), Failure> {
    let (address, region) = region(&arguments.place).await?;
    let surplus = if arguments.give_up { Surplus::GiveUp } else { Surplus::Keep };
    let followed = region.follow(&arguments.domain, surplus).await.map_err(|error| match error.kind() {
        ErrorKind::Conflict { what } => Failure::Store(format!("{what} with --give-up")),
        _ => of_store(&address, &error),
    })?;
    if arguments.place.json {
        return output.write_json(&json!({ "shared": followed.shared, "given_up": followed.given_up }));
    }
    let behind = match followed.given_up {
        0 => String::new(),
        given_up => format!("; {} messages behind it are deleted", number(given_up)),
    };
    let (domain, shared) = (&arguments.domain, number(followed.shared));
    output.write(&format!("follows region {domain}, which has the same up to message {shared}{behind}\n"))
}

async fn region(place: &Place) -> Result<(Address, LogRegion), Failure> {
    let address = place.address()?;
    let Address::Nats { servers, space } = &address else {
        return Err(Failure::Usage(format!(
            "{address} is in one place only; regions are those of NATS servers"
        )));
    };
    let connection = connected(&address, servers, &place.reach).await?;
    let region = LogRegion::new(connection.client().clone(), place.reach.log(space)?);
    Ok((address, region))
}

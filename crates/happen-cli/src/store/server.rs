//! What `happen doctor` finds out of a space on NATS: its servers, its log, and its processes. Owns these checks and their
//! advice; those of what the log says are with the others.

use std::time::Duration;

use happen::control::{self, NodeOwner};
use happen_nats::{Address, LogInfo, LogPlace, LogRegion, OtherRegion, limits};
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::failure::Failure;
use crate::output::{count_of, number};
use crate::store::doctor::{Check, Holder};
use crate::store::env;
use crate::store::inbox::Registered;
use crate::store::of_store;
use crate::store::opened::Opened;
use crate::store::presence::Presence;

/// The checks, whether a process has nodes of the log, and which nodes those are.
pub(crate) async fn checks(store: &Opened, monitors: &[String]) -> (Vec<Check>, Holder, Registered) {
    let mut checks = vec![Check::ok("address", store.address().to_string())];
    let Some((log, connection)) = store.nats() else { return (checks, Holder::Nobody, Registered::Unknown) };
    let client = connection.client();
    let info = client.server_info();
    let (major, minor) = limits::SERVER_VERSION_MIN;
    let found = format!("{} {}", info.server_name, info.version);
    checks.push(match client.is_server_compatible(major, minor, 0) {
        true => Check::ok("server", found),
        false => Check::fail("server", found, format!("update it to {major}.{minor} or later")),
    });
    checks.push(match info.jetstream {
        true => Check::ok("jetstream", "on"),
        false => Check::warn(
            "jetstream",
            "off on this server; others of the cluster have it",
            "name the addresses of those",
        ),
    });
    match log.log_info().await {
        Ok(info_of_log) => {
            checks.extend([
                stream(&info_of_log),
                replicas(&info_of_log, info.cluster.is_some()),
                copy(&info_of_log),
            ]);
        }
        Err(error) => checks.push(Check::broken("stream", &of_store(store.address(), &error))),
    }
    checks.push(match regions(store, client).await {
        Ok((here, other)) => {
            region(&here, other.as_ref().map(|other| (other.domain.as_str(), other.place.as_ref())))
        }
        Err(failure) => Check::broken("region", &failure),
    });
    if monitors.is_empty() {
        checks.push(Check::warn(
            "sync",
            "not known: a server does not tell its clients whether it syncs every write",
            "name the monitoring address of each server: --monitor http://HOST:8222",
        ));
    }
    for monitor in monitors {
        checks.push(sync(monitor, looked_at(monitor).await));
    }
    checks.push(refused(log.refused()));
    match processes(store).await {
        Ok((check, holder, registered)) => {
            checks.push(check);
            (checks, holder, registered)
        }
        Err(failure) => {
            checks.push(Check::broken("processes", &failure));
            (checks, Holder::Nobody, Registered::Unknown)
        }
    }
}

fn stream(log: &LogInfo) -> Check {
    let found = format!(
        "{}, {} of {} KiB, up to message {}",
        log.stream,
        count_of(log.messages, "message"),
        number(log.bytes.div_ceil(1 << 10)),
        log.last_sequence
    );
    match log.is_on_disk {
        true => Check::ok("stream", found),
        false => {
            Check::fail("stream", format!("{found}, in memory only"), "make a stream that is kept in files")
        }
    }
}

fn replicas(log: &LogInfo, is_cluster: bool) -> Check {
    const NAME: &str = "replicas";
    let LogInfo { replicas, replicas_current: current, leader, .. } = log;
    let found = format!("{current} of {replicas} up to date");
    let found = match leader {
        Some(leader) => format!("{found}, led by {leader}"),
        None => found,
    };
    match (current < replicas, *replicas, is_cluster) {
        (true, _, _) => {
            Check::warn(NAME, found, "bring the other servers back, or wait until they have caught up")
        }
        (false, 1, true) => {
            let advice = format!("nats stream edit {} --replicas 3", log.stream);
            Check::warn(NAME, format!("{found}, in a cluster that could keep more"), advice)
        }
        _ => Check::ok(NAME, found),
    }
}

fn copy(log: &LogInfo) -> Check {
    const NAME: &str = "copy";
    match log.copied_up_to {
        Some(sequence) => {
            let behind = log.last_sequence.saturating_sub(sequence);
            Check::ok(
                NAME,
                format!("up to message {sequence}, and {} behind it", count_of(behind, "message")),
            )
        }
        // Without a copy all of the log has to be there.
        None if log.first_sequence > 1 => Check::fail(
            NAME,
            format!("none, and the log begins at message {}", log.first_sequence),
            "messages were removed by hand: restore a backup",
        ),
        None => {
            Check::ok(NAME, format!("none yet; one is kept after {} MiB", limits::COPY_AFTER_BYTES >> 20))
        }
    }
}

/// What these servers do with the log, and what the other region does that they know of.
async fn regions(
    store: &Opened,
    client: &async_nats::Client,
) -> Result<(LogPlace, Option<OtherRegion>), Failure> {
    let Address::Nats { space, .. } = store.address() else { return Ok((LogPlace::Absent, None)) };
    let failed = |error| of_store(store.address(), &error);
    let region = LogRegion::new(client.clone(), store.reach().log(space)?);
    let here = region.look().await.map_err(failed)?;
    Ok((here, region.look_at_other().await.map_err(failed)?))
}

/// What is said of these servers, from what they do and what the other region does, if they know of one and it answers.
fn region(here: &LogPlace, other: Option<(&str, Option<&LogPlace>)>) -> Check {
    const NAME: &str = "region";
    let (domain, there) = other.unwrap_or_default();
    match (here, there) {
        (LogPlace::Mirrored { domain, sequence, behind }, there) => mirror(domain, *sequence, *behind, there),
        (LogPlace::Written { .. }, _) if other.is_none() => {
            Check::ok(NAME, "these servers write the log, and took it over from nobody")
        }
        (LogPlace::Written { .. }, None) => Check::warn(
            NAME,
            format!(
                "these servers write the log in place of region `{domain}`, which does not answer: it may not know \
                 yet, and take what is lost"
            ),
            format!(
                "keep a process of this space running here: it seals the log in `{domain}` as soon as that answers"
            ),
        ),
        (LogPlace::Written { epoch, .. }, Some(LogPlace::Written { epoch: theirs, .. }))
            if theirs < epoch =>
        {
            Check::fail(
                NAME,
                format!(
                    "these servers write the log in place of region `{domain}`, which is not sealed yet: what is committed \
                     there is lost"
                ),
                format!("keep a process of this space running here: it seals the log in `{domain}`"),
            )
        }
        (LogPlace::Written { .. }, Some(LogPlace::Written { .. })) => Check::fail(
            NAME,
            format!(
                "region `{domain}` has taken the log over from these servers, which are not sealed yet: what is committed \
                 here is lost"
            ),
            format!("stop the processes here, and keep one running in `{domain}`: it seals the log here"),
        ),
        (LogPlace::Written { .. }, Some(there)) => {
            let there = match there {
                LogPlace::Sealed { .. } => "is sealed and takes nothing more",
                LogPlace::Mirrored { .. } => "follows now",
                _ => "has no log now",
            };
            Check::ok(
                NAME,
                format!("these servers write the log in place of region `{domain}`, which {there}"),
            )
        }
        (LogPlace::Sealed { sequence }, _) => Check::fail(
            NAME,
            format!(
                "sealed at message {}: another region has taken the log over, and nothing is written here",
                number(*sequence)
            ),
            "have it follow the region that writes with `happen region follow`",
        ),
        _ => Check::fail(NAME, "these servers have no log", "name the address of those that have it"),
    }
}

/// What is said of servers that follow a region, from what those do that they follow.
fn mirror(domain: &str, sequence: u64, behind: u64, there: Option<&LogPlace>) -> Check {
    const NAME: &str = "region";
    let follows = format!("these servers follow region `{domain}`");
    let anew = "have it follow the region that writes with `happen region follow`";
    match there {
        Some(LogPlace::Written { sequence: theirs, .. }) => {
            let behind = theirs.saturating_sub(sequence);
            let found = format!(
                "{follows}, which writes the log and answers; {} behind it",
                count_of(behind, "message")
            );
            match behind < BEHIND_WARN {
                true => Check::ok(NAME, found),
                false => Check::warn(
                    NAME,
                    found,
                    "look again: when it grows, the way between the regions is too slow or broken",
                ),
            }
        }
        None => Check::warn(
            NAME,
            format!(
                "{follows}, which writes the log and does not answer; {} behind it when it was last heard of",
                count_of(behind, "message")
            ),
            "bring it back, or the way to it: until then nothing is committed here. If it is lost, give it up with `happen \
             region take-over --lost`",
        ),
        Some(LogPlace::Sealed { .. }) => {
            Check::fail(NAME, format!("{follows}, from which another one has taken the log over"), anew)
        }
        Some(LogPlace::Mirrored { domain: further, .. }) => {
            Check::fail(NAME, format!("{follows}, which follows region `{further}` itself"), anew)
        }
        Some(_) => Check::fail(NAME, format!("{follows}, which has no log any more"), anew),
    }
}

fn refused(count: u64) -> Check {
    match count {
        0 => Check::ok("refused", "no message of the log was refused"),
        count => Check::warn(
            "refused",
            format!("{} of the log are none of Happen's and were left out", count_of(count, "message")),
            "find who else may publish on the subject of the log",
        ),
    }
}

/// What a server says of syncing, from what its monitoring address gave.
fn sync(monitor: &str, given: Result<Json, String>) -> Check {
    const NAME: &str = "sync";
    let given = match given {
        Ok(given) => given,
        Err(why) => {
            let found = format!("{monitor} did not tell ({why})");
            return Check::warn(
                NAME,
                found,
                "turn monitoring on in the server's configuration: `http: 8222`",
            );
        }
    };
    let name = given["server_name"].as_str().unwrap_or(monitor);
    let config = &given["jetstream"]["config"];
    match (config["sync_always"].as_bool(), config["sync_interval"].as_u64()) {
        (Some(true), _) => Check::ok(NAME, format!("{name} syncs every write")),
        (_, Some(nanoseconds)) => Check::warn(
            NAME,
            format!(
                "{name} syncs every {:?}, and a power failure takes what came since",
                Duration::from_nanos(nanoseconds)
            ),
            "write `jetstream { sync_interval: always }` into its configuration; see deploy/",
        ),
        _ => Check::warn(
            NAME,
            format!("{name} has no JetStream, or does not tell"),
            "look into its configuration; see deploy/",
        ),
    }
}

/// What a server tells at its monitoring address.
///
/// # Errors
///
/// Why there was nothing to be read.
async fn looked_at(monitor: &str) -> Result<Json, String> {
    let host = monitor.strip_prefix("http://").unwrap_or(monitor).trim_end_matches('/');
    if host.contains(['/', '@', ' ', '\r', '\n']) {
        return Err("an address is http://HOST:PORT".to_owned());
    }
    let asked = async {
        let mut stream = TcpStream::connect(host).await?;
        // Before 1.1 an answer comes in one piece and ends with the connection.
        stream.write_all(format!("GET /varz HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let env = env();
    let answer = tokio::select! {
        answer = asked => answer.map_err(|error| error.to_string())?,
        () = env.sleep(Duration::from_millis(ANSWER_MS)) => return Err("no answer in time".to_owned()),
    };
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = head.and_then(|head| answer.get(head + 4..)).unwrap_or_default();
    serde_json::from_slice(body).map_err(|_| "it is no monitoring address of NATS".to_owned())
}

/// Which processes are there, by the nodes that they have.
async fn processes(store: &Opened) -> Result<(Check, Holder, Registered), Failure> {
    const NAME: &str = "processes";
    let failed = |error| of_store(store.address(), &error);
    let owners = control::owners(&store.shared()).await.map_err(failed)?;
    let Some(presence) = Presence::join(store, |presence| presence.has_all(&owners)).await? else {
        return Ok((Check::ok(NAME, "none"), Holder::Nobody, Registered::Unknown));
    };
    let (mut running, mut silent) = (Vec::new(), Vec::new());
    for owner in &owners {
        match presence.of(&owners, owner) {
            Some(member) => running.push((member, owner)),
            None if owner.has_gone => {}
            None => silent.push(owner),
        }
    }
    presence.leave().await.map_err(failed)?;
    let mut members: Vec<_> = running.iter().map(|(member, _)| member.clone()).collect();
    members.sort_unstable();
    members.dedup();
    let nodes = |owners: &[&NodeOwner]| {
        let shown: Vec<_> =
            owners.iter().take(NODES_SHOWN).map(|owner| format!("`{}`", owner.node)).collect();
        shown.join(", ")
    };
    let found = match members.len() {
        0 => "none with durable nodes is there".to_owned(),
        count => {
            format!("{} there, with {}", number(count as u64), count_of(running.len() as u64, "durable node"))
        }
    };
    let check = match silent.is_empty() {
        true => Check::ok(NAME, found),
        false => Check::warn(
            NAME,
            format!("{found}; nothing is heard of that with {}", nodes(&silent)),
            "start it again: the next process with these nodes takes them over",
        ),
    };
    let holder = if members.is_empty() { Holder::Nobody } else { Holder::Process(None) };
    let registered = running.into_iter().map(|(_, owner)| owner.node.clone()).collect();
    Ok((check, holder, Registered::These(registered)))
}

/// Messages by which a region may be behind the one that it follows. On their way are some hundred between distant ones
/// that write as fast as they can; with more, somebody who takes over loses what takes seconds to come.
const BEHIND_WARN: u64 = 1_000;
/// Bytes of what a server tells: some forty kilobytes of a large one.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// How long a monitoring address may take to answer.
const ANSWER_MS: u64 = 3_000;
/// Nodes that are named of a process that is silent.
const NODES_SHOWN: usize = 3;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::doctor::Verdict;

    fn log() -> LogInfo {
        LogInfo::default()
    }

    #[test]
    fn what_a_server_tells_of_syncing_is_judged() {
        let told = |config: Json| {
            sync("http://a:8222", Ok(json!({ "server_name": "a", "jetstream": { "config": config } })))
        };
        let always = told(json!({ "sync_always": true, "sync_interval": 120_000_000_000_u64 }));
        assert_eq!((always.verdict, always.found.as_str()), (Verdict::Ok, "a syncs every write"));
        let late = told(json!({ "sync_interval": 120_000_000_000_u64 }));
        assert_eq!(late.verdict, Verdict::Warn);
        assert!(late.found.starts_with("a syncs every 120s, "), "{}", late.found);
        assert_eq!(told(json!({})).verdict, Verdict::Warn);
        assert_eq!(sync("http://a:8222", Err("no answer".into())).verdict, Verdict::Warn);
    }

    #[test]
    fn a_log_that_is_kept_on_too_few_servers_is_told() {
        let of = |replicas, replicas_current, is_cluster| {
            let mut log = log();
            (log.replicas, log.replicas_current) = (replicas, replicas_current);
            super::replicas(&log, is_cluster).verdict
        };
        assert_eq!(of(1, 1, false), Verdict::Ok);
        assert_eq!(of(1, 1, true), Verdict::Warn);
        assert_eq!(of(3, 2, true), Verdict::Warn);
        assert_eq!(of(3, 3, true), Verdict::Ok);
    }

    #[test]
    fn the_region_of_a_log_is_judged_by_what_it_and_the_other_one_do() {
        let written = |epoch, sequence| LogPlace::Written { epoch, sequence };
        let mirrored =
            |domain: &str, sequence| LogPlace::Mirrored { domain: domain.to_owned(), sequence, behind: 7 };
        let sealed = || LogPlace::Sealed { sequence: 5 };
        let mirror = |there: Option<LogPlace>| {
            let check = mirror("east", 1_000, 7, there.as_ref());
            (check.verdict, check.found)
        };
        let ahead = |messages| mirror(Some(written(1, 1_000 + messages))).0;
        let around = [BEHIND_WARN - 1, BEHIND_WARN, BEHIND_WARN + 1].map(ahead);
        assert_eq!(around, [Verdict::Ok, Verdict::Warn, Verdict::Warn]);
        let (verdict, found) = mirror(None);
        assert_eq!(verdict, Verdict::Warn);
        assert!(found.contains("does not answer; 7 messages behind"), "{found}");
        for there in [sealed(), mirrored("west", 9), LogPlace::Absent] {
            assert_eq!(mirror(Some(there.clone())).0, Verdict::Fail, "{there:?}");
        }
        let of = |here: LogPlace, other: Option<Option<LogPlace>>| {
            let check = region(&here, other.as_ref().map(|there| ("east", there.as_ref())));
            (check.verdict, check.found)
        };
        assert_eq!(of(written(1, 5), None).0, Verdict::Ok);
        assert_eq!(of(written(2, 5), Some(None)).0, Verdict::Warn);
        for there in [sealed(), mirrored("west", 9), LogPlace::Absent] {
            assert_eq!(of(written(2, 5), Some(Some(there.clone()))).0, Verdict::Ok, "{there:?}");
        }
        for (theirs, says) in [(1, "there is lost"), (2, "here is lost"), (3, "here is lost")] {
            let (verdict, found) = of(written(2, 5), Some(Some(written(theirs, 9))));
            assert_eq!(verdict, Verdict::Fail);
            assert!(found.ends_with(says), "{found}");
        }
        assert_eq!(of(mirrored("east", 5), Some(None)).0, Verdict::Warn);
        assert_eq!(of(mirrored("east", 5), Some(Some(written(1, 5)))).0, Verdict::Ok);
        assert_eq!(of(sealed(), None).0, Verdict::Fail);
        assert_eq!(of(LogPlace::Absent, None).0, Verdict::Fail);
    }

    #[test]
    fn a_log_whose_beginning_is_gone_is_told() {
        let of = |first_sequence, copied_up_to| {
            let mut log = log();
            (log.first_sequence, log.copied_up_to) = (first_sequence, copied_up_to);
            copy(&log).verdict
        };
        assert_eq!(of(1, None), Verdict::Ok);
        assert_eq!(of(2, None), Verdict::Fail);
        assert_eq!(of(2, Some(7)), Verdict::Ok);
        assert_eq!(refused(0).verdict, Verdict::Ok);
        assert_eq!(refused(1).verdict, Verdict::Warn);
    }
}

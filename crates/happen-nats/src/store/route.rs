//! Where entries of a log are sent, which another region may change, and what is done when a region that follows does not
//! get what the other one has. Owns the subject; does not know what is sent.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::Config;
use happen_core::Result;
use serde::Deserialize;

use super::region::at;
use super::writer::told;
use super::{NatsStoreOptions, stream};
use crate::limits;

/// Where entries of a log are sent, which another region may change.
#[derive(Clone)]
pub(crate) struct Route {
    here: Context,
    options: NatsStoreOptions,
    subject: String,
    /// Whether these servers follow others, or did when the log was opened.
    mirrors: bool,
    unheard: Unheard,
}

/// What is known of a server that has the log come to this region and has not heard from it yet.
#[derive(Clone, Default)]
struct Unheard {
    leader: Option<String>,
    /// Since when it is known, of the environment's monotonic time.
    since: Duration,
    /// How often another server was asked to do it, since something came.
    roused: u32,
}

impl Unheard {
    /// Whether another server of the region is to have the log come: the one that does has not heard from the region that
    /// writes for long, or never since it began long ago. `idle` is the time since it heard something, if it did.
    fn is_over(&mut self, leader: Option<&str>, idle: Option<Duration>, now: Duration) -> bool {
        if self.leader.as_deref() != leader {
            self.leader = leader.map(str::to_owned);
            self.since = now;
        }
        let silent = Duration::from_millis(limits::MIRROR_SILENT_MS);
        let long = silent.saturating_mul(1 << self.roused.min(limits::MIRROR_ROUSED_DOUBLE_MAX));
        let known = now.saturating_sub(self.since);
        let over = match idle {
            // Right after another one was asked to, this may be the one before.
            Some(idle) => idle >= silent && (self.roused == 0 || known >= long),
            None => known >= long,
        };
        if over {
            self.roused = self.roused.saturating_add(1);
            self.since = now;
        }
        over
    }
}

/// What a server says of having given up leading.
#[derive(Debug, Deserialize)]
struct SteppedDown {
    success: bool,
}

impl Route {
    pub(crate) fn new(here: Context, options: &NatsStoreOptions, found: &Config) -> Result<Self> {
        let mirrors = stream::mirrored(found).is_some();
        let subject = match &found.subjects[..] {
            [subject] => subject.clone(),
            _ => stream::subject(options)?,
        };
        Ok(Self { here, options: options.clone(), subject, mirrors, unheard: Unheard::default() })
    }

    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// Looks whether another region writes the log now. Servers that wrote it themselves are asked only when nobody has
    /// taken anything for long: one that fails over for a moment is not kept from that.
    pub(crate) async fn look_again(&mut self, for_long: bool) {
        if for_long && !self.mirrors {
            let Ok(name) = stream::name(&self.options) else { return };
            let Ok(stream) = self.here.get_stream(&name).await else { return };
            self.mirrors = stream::mirrored(&stream.cached_info().config).is_some();
        }
        self.look().await;
    }

    /// Looks who writes the log now. Gives its last message, when it can be had.
    pub(crate) async fn look(&mut self) -> Option<u64> {
        if !self.mirrors {
            return None;
        }
        let name = stream::name(&self.options).ok()?;
        let mut stream = self.here.get_stream(&name).await.ok()?;
        if let Some(domain) = stream::mirrored(&stream.cached_info().config) {
            stream = at(&self.here.client(), domain).get_stream(&name).await.ok()?;
        }
        let info = stream.cached_info();
        if let [subject] = &info.config.subjects[..] {
            self.subject.clone_from(subject);
        }
        Some(info.state.last_sequence)
    }

    /// Notes that the log comes.
    pub(crate) fn heard(&mut self) {
        self.unheard.roused = 0;
    }

    /// Has another server of this region get the log from the one that writes it, when the one that does has heard nothing
    /// of it for long. That server looks by itself every 10 s, then asks anew, and waits 30 s for an answer that was lost.
    pub(crate) async fn rouse(&mut self) {
        if !self.mirrors {
            return;
        }
        match self.another_gets_it().await {
            Ok(false) => {}
            Ok(true) => tracing::debug!(target: "happen", "another server was asked to get the log"),
            // It is tried again for as long as the log does not come.
            Err(why) => tracing::debug!(target: "happen", "no other server was asked to get the log: {why}"),
        }
    }

    /// False when there is no need.
    ///
    /// # Errors
    ///
    /// Why it could not be done, or is of no use: who is asked does not answer.
    async fn another_gets_it(&mut self) -> Result<bool, String> {
        let name = stream::name(&self.options).map_err(|error| error.to_string())?;
        let stream = self.here.get_stream(&name).await.map_err(|error| told(&error))?;
        let info = stream.cached_info();
        let (Some(domain), Some(mirror), Some(cluster)) =
            (stream::mirrored(&info.config), &info.mirror, &info.cluster)
        else {
            return Ok(false);
        };
        // A region that is out of reach is not heard by any other server either.
        at(&self.here.client(), domain).get_stream(&name).await.map_err(|error| told(&error))?;
        let now = self.options.env.monotonic();
        let has_others = cluster.replicas.iter().any(|replica| !replica.offline);
        if !has_others || !self.unheard.is_over(cluster.leader.as_deref(), mirror.active, now) {
            return Ok(false);
        }
        let step_down = format!("STREAM.LEADER.STEPDOWN.{name}");
        let answer: Response<SteppedDown> =
            self.here.request(step_down, &()).await.map_err(|error| told(&error))?;
        match answer {
            Response::Ok(SteppedDown { success: true }) => Ok(true),
            Response::Ok(SteppedDown { success: false }) => Err("the server goes on leading".into()),
            Response::Err { error } => Err(told(&error)),
        }
    }

    /// Why an entry that was taken does not come.
    pub(crate) fn silent(&self) -> &'static str {
        if self.mirrors {
            "the region that writes the log has it, and it has not come here"
        } else {
            "the log has it, and the server does not give it"
        }
    }

    /// Why nobody takes an entry.
    pub(crate) fn nobody(&self) -> &'static str {
        if self.mirrors {
            "the region that writes the log is out of reach, or no server leads it at this moment"
        } else {
            "no server leads the log at this moment"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Duration = Duration::from_millis(limits::MIRROR_SILENT_MS);
    const SHORTER: Duration = Duration::from_millis(limits::MIRROR_SILENT_MS - 1);

    #[test]
    fn a_server_that_has_heard_nothing_for_long_is_replaced_once() {
        let mut unheard = Unheard::default();
        let now = Duration::from_secs(100);
        assert!(!unheard.is_over(Some("one"), Some(SHORTER), now));
        assert!(unheard.is_over(Some("one"), Some(SILENT), now));
        assert!(!unheard.is_over(Some("one"), Some(SILENT), now), "it may not have been told yet");
        assert!(!unheard.is_over(Some("two"), None, now), "it has just begun");
        assert!(!unheard.is_over(Some("two"), None, now + SHORTER));
    }

    #[test]
    fn a_server_that_never_hears_anything_is_replaced_ever_more_rarely() {
        let mut unheard = Unheard::default();
        let mut now = Duration::ZERO;
        for doubled in [0, 1, 2, 3, 4, 4, 4] {
            let long = SILENT * (1 << doubled);
            let leader = now.as_secs().to_string();
            assert!(!unheard.is_over(Some(&leader), None, now));
            assert!(!unheard.is_over(Some(&leader), None, now + long - Duration::from_millis(1)));
            now += long;
            assert!(unheard.is_over(Some(&leader), None, now), "{doubled}");
        }
        unheard.roused = 0;
        assert!(!unheard.is_over(Some("other"), None, now));
        assert!(unheard.is_over(Some("other"), None, now + SILENT));
    }
}

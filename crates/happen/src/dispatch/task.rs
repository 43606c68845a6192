//! Flows that go on without their sender: as a task of their own from their first wait on, or on a thread of their own
//! because their handler proved slow.

use std::sync::Arc;

use happen_core::{ErasedEvent, Error, ErrorKind};

use super::queue::Place;
use super::reply::Reply;
use super::{Want, finish};
use crate::context::Context;
use crate::flow::{self, Drive, Paused};
use crate::gate::Queued;
use crate::lent::Lease;
use crate::limits;
use crate::local;
use crate::node::NodeInner;
use crate::sync::{Mutex, lock};
use crate::table::{Entry, Phase, Table};

/// Lets a flow that waits go on as a task of its own.
#[cold]
pub(super) fn spawn_flow(
    node: &Arc<NodeInner>,
    table: &Table,
    entry: &Arc<Entry>,
    (context, paused): (Context, Paused),
    event: Arc<dyn ErasedEvent>,
    mut reply: Reply,
    place: Arc<Place>,
) {
    let space = &node.space;
    context.inner().set_place(&place);
    let mut under_way = node.under_way(&context, table.build());
    let entry = Arc::clone(entry);
    let mut drive = Drive::new(context, paused, event, table.options.flow_time_max());
    let node = Arc::clone(node);
    space.env.spawn(Box::pin(async move {
        let mut gone = false;
        let mut outcome = std::future::poll_fn(|task| {
            use std::future::Future;
            if !gone && reply.poll_gone(task) {
                gone = true;
                // Once more before it is cancelled: a flow that emits learns that its reader has gone and cleans up.
                let polled = std::pin::Pin::new(&mut drive).poll(task);
                if polled.is_ready() {
                    return polled;
                }
                drive.context().cancel();
            }
            std::pin::Pin::new(&mut drive).poll(task)
        })
        .await;
        let (context, event) = drive.into_parts();
        let space = &node.space;
        node.table.read(&space.readers, space.here(), |table| {
            finish(&node, Some(table), &entry, &*event, &mut outcome);
        });
        space.settled(&*event, node.key, &outcome);
        // The place first: whoever gets the reply may send the next event at once and finds it free.
        drop(place);
        under_way.unlist();
        if let Some(flow) = context.end() {
            local::recycle(flow);
        }
        reply.send(outcome);
        // Last: a space that stops waits for what is under way and then leaves its link, which takes the reply along.
        drop(under_way);
    }));
}

/// Runs a plain handler that proved slow on a thread of its own, in order.
#[cold]
pub(super) fn run_slow(
    node: &Arc<NodeInner>,
    entry: &Arc<Entry>,
    event: Arc<dyn ErasedEvent>,
    (want, serial): (Want, Option<u64>),
    reply: Reply,
    place: Arc<Place>,
) {
    let (at, lane) = (Arc::clone(node), Arc::clone(entry));
    let overflow_event = Arc::clone(&event);
    let shared = Arc::new(Mutex::new(Some(reply)));
    let reply = Arc::clone(&shared);
    let under_way = crate::slow::UnderWay::new(&node.space);
    let job: crate::slow::SlowJob = Box::new(move || {
        // Last, as for a flow that waits: a space that stops waits for what is under way.
        let _under_way = under_way;
        let table = at.table.load();
        if table.phase == Phase::Closed {
            drop(place);
            let reply = lock(&reply).take().unwrap_or(Reply::Nobody);
            return at.space.undelivered(&*event, &at.name, at.closed_error(Phase::Closed), reply);
        }
        let mut outcome = Ok(None);
        let mut way = at.space.way();
        let lease = Lease::new(&mut way, &at, (&*event, event.is_batch()), lane.id, serial, want);
        if let Some(paused) = flow::run(Some(&table), &lane, &*event, &lease, &mut outcome) {
            let waiting = (lease.keep(), paused);
            drop(way);
            let reply = lock(&reply).take().unwrap_or(Reply::Nobody);
            return spawn_flow(&at, &table, &lane, waiting, event, reply, place);
        }
        lease.end();
        drop(way);
        finish(&at, Some(&table), &lane, &*event, &mut outcome);
        at.space.settled(&*event, at.key, &outcome);
        drop(place);
        let reply = lock(&reply).take().unwrap_or(Reply::Nobody);
        reply.send(outcome);
    });
    let order = crate::config::QueueOrder::Fifo;
    let reject = crate::config::Overflow::Reject;
    let lane = node.slow_lane(entry.id);
    match lane.gate.queue(job, 0, 1, limits::SLOW_QUEUE_LIMIT, order, reject) {
        Queued::Drain => {
            node.space.env.spawn_blocking(Box::new(move || lane.drain()));
        }
        Queued::Waits | Queued::Instead(_) => {}
        Queued::Full(job) => {
            drop(job);
            let what = format!("queue of the slow handler `{}` of node `{}`", entry.name, node.name);
            let reply = lock(&shared).take().unwrap_or(Reply::Nobody);
            node.space.undelivered(&*overflow_event, &node.name, Error::new(ErrorKind::Busy { what }), reply);
        }
    }
}

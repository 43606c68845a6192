//! Every limit of the framework: name, unit, default, reason. Nothing here knows what the limits guard.

/// Handlers nested on one stack, by events sent from handlers that run inline. Deeper ones wait for the stack to
/// unwind, so that a long cascade needs no long stack: a frame takes about one kilobyte in release builds and several
/// in debug builds, and threads of tests have two megabytes.
pub const INLINE_DEPTH_MAX: u32 = 32;

/// Events on one thread that wait for the stack to unwind.
pub const DEFERRED_MAX: usize = 1_000_000;

/// Dispatches in a row from one task before it lets others run. Tokio looks at its timers after some sixty turns of
/// tasks that are ready, so as many tasks that each send without an end hold a timer up by sixty times this: 16 000
/// events, below five milliseconds for quick handlers.
pub const INLINE_RUN_MAX: u32 = 256;

/// Milliseconds of handlers in a row from one task before it lets others run, so that a timer beside a flood is
/// late by this and the length of one handler. Measured by the coarse clock, which adds a tick.
pub const INLINE_RUN_MS_MAX: u32 = 1;

/// Flows of one node that may be under way at once.
pub const MAX_CONCURRENT: u32 = 100;

/// Events that may wait for a node.
pub const QUEUE_LIMIT: usize = 10_000;

/// The part of a queue, in percent, from which a node signals back-pressure.
pub const BACK_PRESSURE_PERCENT: usize = 80;

/// Events that may wait for a node that counts as keeping up. Some hundred wait when many senders come at once, and are
/// gone a moment later; more than this for a whole [`BALANCE_WINDOW_MS`] are not.
pub const LAG_MAX: usize = 100;

/// Steps of one flow, so that a loop that never ends is found. A loop of ten thousand turns is better several events.
pub const STEPS_MAX: u32 = 10_000;

/// Causes between an event and its root.
pub const DEPTH_MAX: u32 = 100_000;

/// Events that one flow may send.
pub const FAN_OUT_MAX: u32 = 1_000_000;

/// Events below one root that one thread may handle.
pub const CORRELATION_EVENTS_MAX: u64 = 1_000_000;

/// Event headers that each thread remembers of a space, 80 bytes each.
pub const REMEMBERED_EVENTS: usize = 4_096;

/// Event types whose routes are kept. Beyond it they are found anew for every event.
pub const TYPES_MAX: usize = 16_384;

/// Options of nodes for which there is a table that such nodes have in common. Programs have a few kinds of nodes; those
/// beyond have tables of their own.
pub const CLASSES_MAX: usize = 64;

/// Tables that come of a common one by one registration more and are common too. As many are looked through for every
/// registration, so a program whose nodes all listen to something else pays little for looking in vain.
pub const CLASS_TABLES_MAX: usize = 16;

/// Routes of a node that its types have in common: combinations of registrations, of which even a node with many patterns
/// has few. Types with other ones have routes of their own.
pub const ROUTES_MAX: usize = 64;

/// Names of nodes that were destroyed and are kept so that traces can tell them: as many as headers are remembered, for
/// each of those names two nodes at most.
pub const FORMER_NAMES_MAX: usize = REMEMBERED_EVENTS;

/// Letters that could not be delivered and are kept for a look and another try.
pub const DEAD_LETTERS_MAX: usize = 1_000;

/// Items of a stream that wait for its reader.
pub const STREAM_ITEMS_MAX: usize = 16;

/// Items of a broadcast stream that wait for its slowest listener before that one misses some.
pub const STREAM_BROADCAST_ITEMS_MAX: usize = 256;

/// Restarts of a supervised node within the window below, before its supervisor gives up.
pub const RESTARTS_MAX: u32 = 3;

/// Milliseconds in which a supervisor counts restarts.
pub const RESTARTS_WINDOW_MS: u64 = 60_000;

/// Milliseconds before the first restart within a window; every further one takes twice as long.
pub const RESTART_BACKOFF_FIRST_MS: u64 = 100;

/// Milliseconds before a restart at most.
pub const RESTART_BACKOFF_MS_MAX: u64 = 30_000;

/// Bytes of an encoded event.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Milliseconds a plain handler may take before it counts as slow.
pub const SLOW_HANDLER_MS: u64 = 10;

/// Slow runs in a row that move a plain handler off its caller's thread. Each quick run between makes up
/// for a sixteenth of a slow one, so a handler that is slow every other time is moved as soon, and one that is slow
/// every sixteenth time at its eighteenth slow run.
pub const SLOW_RUNS_MAX: u32 = 3;

/// Events that may wait for a plain handler that was moved off its caller's thread.
pub const SLOW_QUEUE_LIMIT: usize = 10_000;

/// Runs of a handler under `retry`, the first one included, unless the policy says otherwise: a call that fails thrice
/// in a row seldom meets a passing disturbance.
pub const RETRY_ATTEMPTS_MAX: u32 = 3;

/// Milliseconds before the second attempt under `retry`; each further wait doubles.
pub const RETRY_WAIT_MS: u64 = 100;

/// Milliseconds of the longest wait between two attempts under `retry`.
pub const RETRY_WAIT_MS_MAX: u64 = 30_000;

/// Failures in a row that open a breaker.
pub const BREAKER_FAILURES_MAX: u32 = 5;

/// Milliseconds a breaker stays open before it lets a probe through.
pub const BREAKER_OPEN_MS: u64 = 30_000;

/// Probes a half-open breaker lets through at once; as many must succeed to close it.
pub const BREAKER_PROBES_MAX: u32 = 1;

/// Parts that `parallel` runs at once for one event. All of them are polled whenever one is woken, so very many are
/// better sent to nodes of their own.
pub const PARALLEL_PARTS_MAX: usize = 256;
/// Changes of state that hooks around changes of state may make on one stack. Hooks that set each other off are a loop;
/// a chain of eight is longer than anybody can follow.
pub const STATE_HOOKS_NESTED_MAX: u32 = 8;

/// Changes that a value with undo keeps to take back. Nobody takes back more one by one, and each takes room in a
/// document of limited size.
pub const UNDO_STEPS_MAX: usize = 100;

/// Passages of a state machine that its document keeps. A phase has a few ways out, so a hundred passages are the whole
/// life of most documents and the recent part of any.
pub const PASSAGES_MAX: usize = 100;

/// Contexts and futures that each thread keeps to use again.
pub(crate) const RECYCLED_MAX: usize = 64;

/// Buffers for payloads encoded to be read in place that each thread keeps to use again: as many as events are read
/// inside one another, which is rarely more than three.
pub(crate) const ENCODED_BUFFERS_MAX: usize = 8;

/// Bytes such a buffer begins with: what most events have, so that it seldom grows.
pub(crate) const ENCODED_BUFFER_BYTES_MIN: usize = 1 << 10;

/// Bytes of such a buffer. One that grew beyond is freed, so a thread keeps half a mebibyte at most; a payload beyond
/// is encoded into memory of its own each time.
pub const ENCODED_BUFFER_BYTES_MAX: usize = 64 << 10;

/// Milliseconds a stopping space waits for flows under way.
pub const DRAIN_MS: u64 = 30_000;

/// Frames on their way to one member of a hub. As many as may wait for a node, so that a burst which its node could
/// queue is not lost on the way there.
pub const LINK_QUEUE_MAX: usize = QUEUE_LIMIT;

/// Bytes of the frames on their way to one member of a hub: 64 of the largest events.
pub const LINK_QUEUE_BYTES_MAX: usize = 64 * EVENT_BYTES_MAX;

/// Requests from beyond the link that a space answers at once. Each keeps some hundred bytes besides what its flow
/// needs; flows have limits of their own at each node.
pub const LINK_ANSWERING_MAX: usize = 65_536;

/// Events that may wait in a space for nodes of other processes: a sensor that tells something every second is cut off for
/// a day.
pub const OUTBOX_EVENTS_MAX: usize = 100_000;

/// Bytes of the events that may wait in a space for nodes of other processes: what a small machine can spare.
pub const OUTBOX_BYTES_MAX: u64 = 256 << 20;

/// Events that leave for a node of another process before it has taken in the first of them. Ten thousand that waited go in
/// ten rounds, each of which is a commit on either side. As many as a store gives at once.
pub const HANDOVER_WINDOW_MAX: usize = 1_000;

/// Bytes of events after which no more leaves before something was taken in: half of what a link lets be on its way.
pub const HANDOVER_WINDOW_BYTES_MAX: usize = 2 << 20;

/// Milliseconds that a node of another process may be silent before what waits for it is handed over again. It says that
/// it has an event when that is stored, which a busy disk makes some seconds.
pub const HANDOVER_ANSWER_MS_MAX: u64 = 30_000;

/// Milliseconds before what a node of another process did not take is handed over again; each further wait doubles.
pub const HANDOVER_AGAIN_MS: u64 = 50;

/// Milliseconds of the longest such wait: so long after a node can be reached again, what waits for it leaves. To look for
/// a node costs next to nothing.
pub const HANDOVER_AGAIN_MS_MAX: u64 = 1_000;

/// Bytes by which the frame of an event grows when it is handed over: its field in the envelope has 58.
pub const HANDOVER_BYTES: usize = 64;

/// Bytes that are left free in a frame for the hash of each event that leaves without one, because nobody signs: whoever
/// stores the event stores its hash. With its name it has 40, and may make the lengths around it longer.
pub const HASH_BYTES: usize = 44;

/// Pairs of a node and a space that hands events over to it of which a process has in mind how far they are; beyond it one
/// that is at rest is forgotten. What is stored is looked up again then.
pub const HANDOVER_LANES_MAX: usize = 16_384;

/// Ids of nodes elsewhere that a space knows by events; beyond it the one learned first is forgotten. A stranger may
/// make up names, so the table cannot grow with them.
pub const LINK_NAMES_MAX: usize = 16_384;

/// Keys of one node or router for which is remembered where they stick; beyond it the one that came first is forgotten, and
/// goes by its hash again. 24 bytes each.
pub const STICKY_KEYS_MAX: usize = 16_384;

/// Instances of a shared node that turn out to be gone, one after the other, before a sender is told. When one process goes
/// the next one is there; as many at once are a network that is down.
pub const ROUTE_TRIES_MAX: usize = 8;

/// Routers that an event goes through on its way to one node. More are a circle.
pub const ROUTERS_NESTED_MAX: usize = 8;

/// Events that crossed a link or whose hashes were asked for, so that effects can tell the hashes of their causes; 40
/// bytes each beside their frames. Effects mostly follow at once, so few of the newest are ever needed.
pub const LINK_HASHES_MAX: usize = 16_384;

/// Bytes of a frame that is kept to be hashed when that is asked for. Of a larger one the hash is computed at once: that
/// takes little beside its way.
pub const LINK_FRAME_KEPT_BYTES_MAX: usize = 1_024;

/// Bytes of all frames that are kept so: half a KiB for each of [`LINK_HASHES_MAX`], and with larger ones for fewer.
pub const LINK_FRAMES_KEPT_BYTES_MAX: usize = LINK_HASHES_MAX * 512;

/// Batches that one call brings to a store. As many as flows of some nodes may run at once; a larger group would make
/// those at its end wait for those at its beginning.
pub const COMMIT_GROUP_MAX: usize = 256;

/// Calls that are under way to a store at once, when it keeps their order and says that it takes so many. The store makes
/// groups of them itself; beyond this many they go in groups, which cost less than calls of one step each.
pub const COMMIT_GROUPS_MAX: usize = 256;

/// How often a commit is built anew because a document was changed by somebody else meanwhile, before the step decides
/// again. Within one process nobody else changes a document, so the second time nearly always succeeds.
pub const COMMIT_TRIES_MAX: u32 = 16;

/// How often in a row a step is run again because what it had seen was no longer so, before that counts as a failure.
pub const STEP_RERUNS_MAX: u32 = 100;

/// Milliseconds of the longest wait before another attempt at a step of a durable node: a day, after which somebody should
/// look.
pub const DURABLE_RETRY_WAIT_MS_MAX: u64 = 24 * 3_600_000;

/// Milliseconds before a commit is tried again that a store did not take; each further wait doubles.
pub const STORE_WAIT_MS: u64 = 50;

/// Milliseconds of the longest such wait: so long after room was made on a full disk, work goes on.
pub const STORE_WAIT_MS_MAX: u64 = 5_000;

/// Documents of durable nodes that are kept in memory, beside those in use. Beyond it the others are forgotten and read
/// again when they are asked for.
pub const STATE_DOCUMENTS_MAX: usize = 65_536;

/// Past revisions that are kept of one state or entity: what a person would still look through.
pub const REVISIONS_MAX: u32 = 100;

/// Milliseconds that a store remembers a record: thirty days.
pub const RECORD_AGE_MS: u64 = 30 * 24 * 3_600_000;

/// Milliseconds between two looks for what may be forgotten. A day's work is then forgotten in twenty-four parts.
pub const PRUNE_EVERY_MS: u64 = 3_600_000;

/// Events from before the time of a pruning whose records stay because flows under way or dead letters need them. Each
/// record is compared with all of them, so many more would make a pruning take hours.
pub const PRUNE_KEPT_MAX: usize = 1_000;

/// Bytes of a line of the control channel: the JSON of the largest document, which is at most some four times as long as
/// the document, but for spaces.
pub const CONTROL_LINE_BYTES_MAX: usize = 4 << 20;

/// Processes that are connected to the control channel of one space at once, each served by a thread. More are told that it
/// is busy.
pub const CONTROL_CLIENTS_MAX: usize = 128;

/// Milliseconds after which the control channel gives up a connection on which nothing is said or read.
pub const CONTROL_IDLE_MS: u64 = 30_000;

/// Milliseconds that a request to send waits for the reply: longer than a person does.
pub const CONTROL_REPLY_MS: u64 = 30_000;

/// Milliseconds that a request to cancel waits until a flow has ended, which one that waits for something does at once.
pub const CONTROL_CANCEL_MS: u64 = 2_000;

/// Dead letters that one request of the control channel does something to. More take further requests, so that none holds
/// its connection for minutes.
pub const CONTROL_LETTERS_MAX: usize = 500;

/// Nodes that the figures of a space name.
pub const CONTROL_NODES_MAX: usize = 1_000;

/// Requests by hand that came over the link and whose answers a space remembers, so that one which comes again is not done
/// again. While so many are not older than [`CONTROL_CARRIED_MS`], further ones are told that it is busy.
pub const CONTROL_CARRIED_MAX: usize = 1_024;

/// The bytes of those answers. Most have a few hundred.
pub const CONTROL_CARRIED_BYTES_MAX: usize = 16 << 20;

/// Milliseconds for which such an answer is remembered: as long as whoever asked may ask again, which is
/// [`CONTROL_AGAIN_MS`] and one wait for a reply, and as much again for clocks and queues.
pub const CONTROL_CARRIED_MS: u64 = 2 * (CONTROL_AGAIN_MS + CONTROL_REPLY_MS);

/// Milliseconds for which a request by hand whose answer was lost on the link is made again, under the same id: longer than
/// a connection to another server of a cluster takes, with its leaders chosen anew.
pub const CONTROL_AGAIN_MS: u64 = 20_000;

/// Milliseconds between two such attempts.
pub const CONTROL_AGAIN_WAIT_MS: u64 = 100;

/// Milliseconds after which a process that stands by looks again whether its nodes are free.
pub const STAND_BY_LOOK_MS: u64 = 250;

/// Milliseconds for which a process that has just come waits to hear of others, before it takes over nodes of one that did
/// not say that it goes. Those that are there tell at once; a second is a slow network.
pub const OWNER_LOOK_MS: u64 = 1_000;

/// Documents that following references from one to the next may come to.
pub const VIEWS_FOLLOWED_MAX: usize = 1_000;

/// How often references are followed anew because they changed meanwhile.
pub const VIEWS_TRIES_MAX: u32 = 16;

/// Milliseconds from which on a durable node remembers that it sleeps. A shorter sleep is over before a commit would pay: a
/// step that is run again sleeps again.
pub const SLEEP_REMEMBERED_MS: u64 = 1_000;

/// Bytes of a text of cron. The longest that mean something list every minute, hour and day; what is longer lists some of
/// them twice.
pub const CRON_BYTES_MAX: usize = 512;

/// Milliseconds after which a space looks at the clock again while something is to come. No sleep notices that the clock
/// was set, or that the machine slept; a minute is the finest that cron knew, and a look a minute costs nothing.
pub const CLOCK_LOOK_MS_MAX: u64 = 60_000;

/// Milliseconds before a timer or schedule is due again whose event no node took: its queue was full or it is not there.
/// Long enough that a queue has moved on, and that the log does not fill with complaints.
pub const DUE_AGAIN_MS: u64 = 5_000;

/// Milliseconds by which a due time of a schedule is over and still counts as kept. The look at the clock may come so
/// late.
pub const SCHEDULE_LATE_MS_MAX: u64 = CLOCK_LOOK_MS_MAX;

/// Due times that a schedule makes up for at a start, when it is to make up for all: each is a commit and an event. A
/// schedule of every minute has as many in 16 hours; what was missed longer is better asked for by `backfill`.
pub const SCHEDULE_MISSED_MAX: usize = 1_000;

/// Due times that one call of `backfill` makes up for: those of every minute of a week. They are told at once, so their
/// ids are held in memory.
pub const SCHEDULE_BACKFILL_MAX: usize = 10_000;

/// Flows of one key that may begin within a span, where a node limits that. Their times are kept for as long as the span,
/// eight bytes each; who wants more says it by a shorter span.
pub const RATE_FLOWS_MAX: usize = 1_000;

/// Keys of which a node knows when their flows began, before it looks for those that are over: few enough that they may as
/// well stay.
pub(crate) const RATE_KEYS_MIN: usize = 1_024;

/// Records of a node that are looked through at a start for flows that began within the last span. Those beyond are not
/// counted: a node that writes so much within a span may begin more flows once, after a start. So many are read in some
/// tens of milliseconds.
pub const RATE_LOOK_RECORDS_MAX: usize = 10_000;

/// Milliseconds for which an idempotency key is remembered: a day, in which a client gives up, is repaired and tries
/// again.
pub const IDEMPOTENCY_WINDOW_MS: u64 = 24 * 60 * 60 * 1_000;

/// Milliseconds that a key may stay behind its time before all that are over are deleted together. Looking through them
/// takes longer than deleting some; a sixteenth of the window in which they are wanted.
pub const SEEN_SWEEP_MS: u64 = IDEMPOTENCY_WINDOW_MS / 16;

/// Milliseconds between two pages of keys that are looked through, in which what is due gets its turn.
pub const SEEN_PAUSE_MS: u64 = 10;

/// Calls that wait for the writer of an embedded store; the next caller waits for a place. Far more than one group
/// takes, so that the disk never waits for callers, and few enough that the last of them waits for some tens of
/// milliseconds.
pub const STORE_CALLS_MAX: usize = 1_024;

/// How often it is looked whether a folder is free that this process itself still has, with [`STORE_LOCK_LOOK_MS`] between:
/// for a tenth of a second, in which a child that was just started has begun its own program.
pub const STORE_LOCK_LOOKS_MAX: u32 = 20;

/// Milliseconds between two such looks.
pub const STORE_LOCK_LOOK_MS: u64 = 5;

/// How often the writer of an embedded store looks for the next call before it sleeps: for some 100 µs, in which the step
/// after the one that was just committed comes if it comes at once.
pub const STORE_LOOKS_MAX: u32 = 4_000;

/// Waits that go by without looking once looking was in vain again and again. Then looking costs less than one part in a
/// hundred of what a commit does.
pub const STORE_LOOKS_SKIPPED_MAX: u32 = 64;

/// Bytes of records and documents after which a group of commits takes no further call. A group is one transaction,
/// which SQLite holds in memory and everybody in it waits for.
pub const STORE_GROUP_BYTES_MAX: usize = 16 << 20;

/// Threads that read from an embedded store, unless its options say otherwise: one may wait for the disk while the
/// other answers from memory.
pub const STORE_READERS: usize = 2;

/// Reads that wait for a reader of an embedded store; the next caller waits for a place.
pub const STORE_READS_MAX: usize = 1_024;

/// Names of nodes, types, senders and shapes that each thread of an embedded store remembers, some 100 bytes each.
/// Beyond it all are forgotten and looked up again.
pub const STORE_NAMES_MAX: usize = 16_384;

/// Records, or revisions, that one slice of a pruning looks at. A commit that comes meanwhile waits for the slice, so
/// it is about what a small group of commits takes.
pub const STORE_PRUNE_SLICE_MAX: usize = 32;

/// Microseconds after which a slice of a pruning ends: about what a commit takes, so that who comes meanwhile waits for
/// one more commit.
pub const STORE_PRUNE_SLICE_US_MAX: u64 = 400;

/// Microseconds without a call after which the writer of an embedded store takes up a pruning.
pub const STORE_PRUNE_PAUSE_US: u64 = 200;

/// Groups of commits, without a pause between them, after which one carries a slice of a pruning. Fewer than one in a
/// hundred commits then notices, so the 99th percentile does not.
pub const STORE_PRUNE_GROUPS: u64 = 512;

/// How many times larger such a slice is: so much that a pruning gets on, and about as long as SQLite takes every some
/// hundred commits anyway to carry its log over.
pub const STORE_PRUNE_RARE: usize = 16;

/// Places that `SqliteStore::verify` names before it only counts on.
pub const STORE_DAMAGES_MAX: usize = 100;

/// Bytes from which on a past revision of a document is compressed. A shorter one takes a small part of a page of the
/// database whatever is done to it, and moving it as it is takes the writer one statement less.
pub const STORE_PACKED_BYTES_MIN: usize = 512;

/// Revisions that are read at most to unpack one. Twice as many would save two hundredths of what there is, and double
/// what damage to one of them can take along.
pub const STORE_PACKED_CHAIN_MAX: usize = 16;

/// Milliseconds between two looks of a watch at a store that another process writes.
pub const STORE_FOLLOW_MS: u64 = 20;

/// Bytes of a key of global state with its scopes, `/` and `%` counting three each: what a document's key may have
/// without what stands before it.
pub const GLOBAL_KEY_BYTES_MAX: usize = happen_core::limits::KEY_BYTES_MAX - "global/".len();

/// Times that one change of global state is tried when others are faster. Changes of one space wait in line after their
/// first failure, so only other processes can be faster so often.
pub const GLOBAL_ATTEMPTS_MAX: u32 = 64;

/// Lines in which changes of global state wait after a conflict, by key. Two keys of one line hold each other up for the
/// time of a commit, and only while both are contended.
pub(crate) const GLOBAL_LINES: usize = 64;

/// Records of changes of global state that a space in memory keeps at least, for watches that are behind; it has up to
/// twice as many. A watch that is not read for so long misses some and is told. Stores that outlive the space keep what
/// their retention says.
pub const GLOBAL_RECORDS_KEPT: u64 = 8_192;

/// Milliseconds that a space in memory remembers at least which revision a deleted entry of global state had: a day,
/// which is longer than anybody keeps a revision to change what it belongs to. Then the entry counts as never written, so
/// that keys which are used once take no room for good.
pub const GLOBAL_DELETED_KEPT_MS: u64 = 86_400_000;

/// Entries whose expiry the sweep of a space remembers, some 200 bytes each: those that expire first. When one beyond
/// is due, it looks through the store again.
pub const GLOBAL_EXPIRIES_MAX: usize = 65_536;

/// Milliseconds that the sweep sleeps at most while something is to expire, so that a wall clock that was set forward is
/// noticed.
pub const GLOBAL_SWEEP_MS_MAX: u64 = 3_600_000;

/// Milliseconds after which the sweep tries again when the store failed.
pub const GLOBAL_SWEEP_RETRY_MS: u64 = 1_000;

/// Expired entries that the sweep deletes by one call to the store: as many as a group of commits takes without holding
/// up others for long.
pub(crate) const GLOBAL_SWEEP_COMMITS: usize = 256;

/// Bytes of a large value. It is given back as one piece of memory, so several readers at once have to fit; what is
/// larger belongs into an object store, with its address in the event.
pub const LARGE_BYTES_MAX: usize = 64 << 20;

/// Bytes of one part of a large value: the largest document, less 4 KiB for what a backend adds around it.
pub const LARGE_PART_BYTES: usize = happen_core::limits::DOCUMENT_BYTES_MAX - (4 << 10);

/// Milliseconds from the beginning of a large value until its parts are removed when it was never finished. Longer than
/// anybody needs to write [`LARGE_BYTES_MAX`].
pub const LARGE_UNFINISHED_MS: u64 = 3_600_000;

/// Parts of a large value that are read or removed by one call to the store: 8 MiB.
pub(crate) const LARGE_PARTS_AT_ONCE: usize = 8;

/// Large values given up by their writers that are kept in mind until the sweep removes them; those beyond wait for
/// [`LARGE_UNFINISHED_MS`].
pub(crate) const LARGE_GIVEN_UP_MAX: usize = 1_024;
/// Events of one trace. Nobody reads more, and each takes some 500 bytes while the tree is put together. The trace says
/// that it was cut.
pub const JOURNAL_TRACE_EVENTS_MAX: usize = 50_000;

/// Ids that the journal asks a store for at once. Each is a look into an index, so a few hundred share the cost of the
/// call and hold up other readers for a few milliseconds.
pub const JOURNAL_TAGS_MAX: usize = 256;

/// Hexadecimal digits that the beginning of an id has at least. Eight tell an id's time to about a minute; fewer would
/// mean reading hours of a log.
pub const JOURNAL_PREFIX_DIGITS_MIN: usize = 8;

/// Milliseconds after an id was made within which its record is looked for by the beginning of the id. Most events are
/// stored when they are sent; one that comes from another process may be late by the time it was cut off.
pub const JOURNAL_PREFIX_LATE_MS: u64 = 60_000;

/// Milliseconds before an id was made from which on its record is looked for: an id may be ahead of its store's clock by
/// what the clocks of two processes differ.
pub const JOURNAL_PREFIX_EARLY_MS: u64 = 1_000;

/// Records that are looked through for the beginning of an id: a minute of a busy log, read in some hundred
/// milliseconds.
pub const JOURNAL_PREFIX_RECORDS_MAX: usize = 50_000;

/// Ids that are named when the beginning of one stands for several.
pub const JOURNAL_CANDIDATES_MAX: usize = 10;

/// Reasons, snapshots, or rows of flows that one call of the journal gives, unless less is asked for.
pub const JOURNAL_ROWS_MAX: usize = 100;

/// Records that one call looks through for snapshots before it gives what it found and where to go on, so that a
/// predicate that nothing fulfils does not hold its caller for minutes.
pub const JOURNAL_LOOKED_AT_MAX: usize = 10_000;

/// Hashes of events that a verification keeps, about 100 bytes each. Effects mostly stand close behind their causes;
/// the hash of a cause farther back is read again.
pub const JOURNAL_HASHES_MAX: usize = 65_536;

/// Keys that a trust store trusts, and as many that it has revoked. Each has some hundred bytes; a program with more
/// processes than this has a key for many of them.
pub const TRUSTED_KEYS_MAX: usize = 16_384;

/// Milliseconds that a signed frame is believed, before and after the time at which it was signed: as far as clocks may
/// differ and frames may be late. Five minutes are what other protocols allow.
pub const REPLAY_WINDOW_MS: u64 = 300_000;

/// Senders whose numbers are remembered, so that no frame is taken twice: processes, since each has a session of its own.
/// Each takes eight kilobytes. Beyond it the key with the most of them loses the one heard longest ago, and nothing of
/// that time is believed from sessions of the key that are not known.
pub const REPLAY_SENDERS_MAX: usize = 1_024;

/// How much later than another one of its sender a frame may come. A thread that was stopped between signing and sending
/// is overtaken by as many frames as the others send meanwhile: half a second of 100 000 in a second.
pub const REPLAY_NUMBERS_MAX: usize = 65_536;

/// Groups of frames whose signature was verified, so that it is verified once. The frames of a group come one after the
/// other, from a few senders at once.
pub const VERIFIED_GROUPS_MAX: usize = 64;

/// Milliseconds between two looks at how nodes keep up. A look reads some counters of each node, and the headers that were
/// remembered since the last one; a second is as soon as anybody acts on what is told.
pub const BALANCE_EVERY_MS: u64 = 1_000;

/// Milliseconds for which something has to hold at every look before it is told, and over which rates are measured. Longer
/// than a burst, a pause of the machine, or the time in which all members of a cut group are missed.
pub const BALANCE_WINDOW_MS: u64 = 5_000;

/// Milliseconds for which it has to be gone at every look before its end is told. Twice the window, so that what comes and
/// goes is told as one.
pub const BALANCE_CALM_MS: u64 = 2 * BALANCE_WINDOW_MS;

/// Looks that a window may consist of. Each is kept for each node, 64 bytes.
pub const BALANCE_LOOKS_MAX: u64 = 120;

/// The part of its limit on lag, in percent, below which a node that fell behind has caught up.
pub const BALANCE_RELIEF_PERCENT: usize = 50;

/// Nodes that are many: as many that fall behind together are an overload, and as many that are affected can be most of a
/// system. Two may be one that asks the other.
pub const BALANCE_MANY_NODES: usize = 3;

/// The part of the busy nodes, in percent, that has to fall behind together for an overload.
pub const BALANCE_MANY_PERCENT: u32 = 50;

/// The part of all watched nodes, in percent, that is most of a system.
pub const BALANCE_MOST_PERCENT: u32 = 60;

/// Nodes of other processes that go at once for a partition: one alone has failed.
pub const BALANCE_PARTITION_NODES_MIN: usize = 2;

/// Milliseconds by which a look may be late. A runtime that comes to a timer later than this has more to do than it can.
pub const BALANCE_LATE_MS_MAX: u64 = 500;

/// How busy the places of a node are to be, in percent, for which is told how many are needed: beyond it waiting grows
/// steeply with each further event.
pub const BALANCE_UTILISATION_PERCENT: u32 = 70;

/// Nodes that are watched, about a kilobyte each with the window that is the default; of more, those of the own process and
/// those whose names come first.
pub const BALANCE_NODES_MAX: usize = 10_000;

/// Nodes that one event of the detector names; how many there are is told beside them.
pub const BALANCE_NAMED_MAX: usize = 100;

/// Events in the inbox of one node that are counted at a look: enough to tell that it falls behind, and few enough to be
/// read every second.
pub const BALANCE_INBOX_MAX: usize = 256;

/// Milliseconds that a process has to tell over the link how its nodes keep up. It looks at counters and at its log's copy,
/// which takes one some milliseconds that has a thousand nodes; one that is this late has other troubles, and whoever looks
/// on is shown that.
pub const BALANCE_ASK_MS: u64 = 3_000;

/// Processes that are asked at once for that. Each may answer with as much as an event has, so these are some 64 MiB.
pub const BALANCE_ASKED_MAX: usize = 64;

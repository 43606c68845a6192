//! Every limit of this crate with its reason. Owns the numbers; does not know what is done when one is reached.

use std::time::Duration;

/// How many bytes an entry of the log may have, put together from its messages: 64 MiB.
///
/// A batch has at most a thousand parts of a mebibyte or, as records, eight, and hardly ever more than a few kilobytes;
/// whoever writes more than this at once is told so.
pub const ENTRY_BYTES_MAX: usize = 64 << 20;

/// From how many bytes on an entry of the log is compressed, when that takes an eighth of it away.
///
/// A commit of one small step has fewer; what a few steps write together has much in common.
pub const ENTRY_PACKED_BYTES_MIN: usize = 1_024;

/// How many bytes of batches go into one message of the log, unless a single batch has more: 256 KiB.
///
/// What waits while messages are on their way leaves together. A server takes a mebibyte, and copies a message several
/// times; beyond a quarter of that nothing is won.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// How many calls to commit wait to leave before further ones have to wait to be taken.
pub const LOG_CALLS_MAX: usize = 1_024;

/// How many entries are on their way to the log at once.
///
/// Three servers that sync every write take 64 at once at their full rate; what comes meanwhile goes with the next.
pub const LOG_FLIGHTS_MAX: usize = 64;

/// How many entries of the log are being taken into the copy at once, before reading waits.
pub const LOG_AHEAD_MAX: usize = 256;

/// How long a commit waits for its answer before it is told that nobody knows, in milliseconds.
///
/// Longer than three servers take to choose another leader, 4 to 8 seconds measured.
pub const COMMIT_WAIT_MS: u64 = 10_000;

/// How long a server may take to acknowledge a message before it is sent again, in milliseconds.
pub const ACKNOWLEDGE_WAIT_MS: u64 = 2_000;

/// How long a server may take to answer a question about the log before it is asked again, in milliseconds.
///
/// Servers that choose who leads them answer nothing at all; otherwise they take a few milliseconds, and some hundred when
/// they make a stream.
pub const ASK_WAIT_MS: u64 = 500;

/// How long a message waits before it is sent again, in milliseconds, doubled up to [`RESEND_WAIT_MS_MAX`].
pub const RESEND_WAIT_MS: u64 = 20;

/// The longest wait before a message is sent again, in milliseconds.
pub const RESEND_WAIT_MS_MAX: u64 = 500;

/// How often whoever waits for a server looks whether the connection was made anew, in milliseconds.
pub const CONNECTION_LOOK_MS: u64 = 25;

/// How long opening waits for a server that is away, or says no, in milliseconds, before that is an error.
pub const OPEN_WAIT_MS: u64 = 10_000;

/// How long opening waits for servers that have not agreed yet on who leads them, in milliseconds, and how long a log may
/// stand still while it is read.
///
/// Three servers that have just begun take under a second to choose, up to 3 s on a busy machine, and after the leader was
/// killed up to 8 s. Whoever is not there after 30 s does not come by itself.
pub const AGREE_WAIT_MS: u64 = 30_000;

/// How long a space that works on alone waits before it tries again to join the others, in milliseconds. When the
/// connection is there it tries at once.
pub const JOIN_AGAIN_MS: u64 = 500;

/// How often a server that follows with nothing to tell says so, in milliseconds. After twice that it is asked anew, so a
/// process goes on within a second after its server was killed and is back.
pub const LOG_HEARTBEAT_MS: u64 = 400;

/// How long a server keeps the reader of a process that has gone, in milliseconds.
pub const READER_KEPT_MS: u64 = 60_000;

/// After which time in milliseconds a process that wrote nothing is forgotten: a week.
///
/// A message of a process that is forgotten has no effect, so no message may be on its way for so long.
pub const WRITER_AGE_MS: u64 = 7 * 24 * 3_600_000;

/// After which time in milliseconds a process that wrote nothing takes another name as a writer: half of the time after
/// which it may be forgotten.
pub const WRITER_REST_MS: u64 = WRITER_AGE_MS / 2;

/// After how many messages of the log it is looked whose writers are to be forgotten.
pub const WRITER_LOOK_MESSAGES: u64 = 1_024;

/// How many of the last standings of a copy are kept, to be compared with those of others.
pub const STANDINGS_KEPT: usize = 4_096;

/// How long after a copy of the log was due it is looked whether somebody kept it, in milliseconds: from once to twice
/// this, so that one process of several keeps it. Whoever was to may have died, or keep its copies in another region.
pub const COPY_LATE_MS: u64 = 60_000;

/// How often it is looked whether a region answers again from which the log was taken over, in milliseconds.
pub const REGION_LOOK_MS: u64 = 5_000;

/// How long a reader that a log is opened with may give nothing before another one is begun, in milliseconds. Servers that
/// have just begun may put a reader where nothing comes from, although it says that it is there.
pub const READER_WAIT_MS: u64 = 2_000;

/// How many readers are begun more, at most, to have one at the server that leads a log. Of three servers each is as
/// likely, and a reader takes some 2 ms to begin.
pub const READER_PLACES_MAX: u32 = 12;

/// How often a message that does not come is asked for before it counts as gone.
pub const READ_AGAIN_MAX: u32 = 5;

/// How often it is looked for an entry that the log has acknowledged and does not give before it is read anew: with
/// [`CONNECTION_LOOK_MS`] between two looks, after half a second. Twice as often each time that this was in vain.
pub const SILENT_LOOKS: u32 = 20;

/// The most looks before a log is read anew: some four seconds. A reader needs time to begin at servers that are busy.
pub const SILENT_LOOKS_MAX: u32 = 160;

/// How long the server that gets a log for its region may have heard nothing from the region that writes, in milliseconds,
/// before another one is asked to: five times as long as between two signs of life.
pub const MIRROR_SILENT_MS: u64 = 5_000;

/// After how many looks for an entry that does not come it is asked how long that server has heard nothing: with
/// [`CONNECTION_LOOK_MS`] between two looks, each second.
pub const ROUSE_LOOKS: u32 = 40;

/// How often [`MIRROR_SILENT_MS`] doubles when it is in vain that another server was asked: up to 80 s.
pub const MIRROR_ROUSED_DOUBLE_MAX: u32 = 4;

/// How many bytes the batches of one call to commit may have: 32 MiB.
pub const CALL_BYTES_MAX: usize = 32 << 20;

/// The oldest server that a store runs on: its major and minor version.
///
/// Since 2.15 servers that sync every write do so for many messages at once; before, three of them took a tenth.
pub const SERVER_VERSION_MIN: (i64, i64) = (2, 15);

/// How long a server remembers the ids of messages, in milliseconds. The log does not use them.
pub const SERVER_WINDOW_MS: u64 = 1_000;

/// How long to wait before a server is asked again that could not open the log, in milliseconds.
pub const OPEN_AGAIN_MS: u64 = 50;

/// After how many bytes of messages a copy of the log is kept at the server: 64 MiB, which are read again in some seconds.
pub const COPY_AFTER_BYTES: u64 = 64 << 20;

/// How many bytes may say to which message a copy goes and who wrote until then: 64 MiB, for entries that are half written.
pub const SNAPSHOT_HEADER_BYTES_MAX: usize = 64 << 20;

/// How long a part of a copy may take to come before it is asked for the copy anew, in milliseconds.
///
/// A copy that is replaced while it is read loses its parts; others come within milliseconds.
pub const SNAPSHOT_PART_WAIT_MS: u64 = 2_000;

/// How long after a copy was kept the log before the last one is let go, in milliseconds: for readers that are slow.
pub const PURGE_AFTER_MS: u64 = 3_000;

/// How often a copy is asked for whose parts do not come.
pub const SNAPSHOT_TRIES_MAX: u32 = 5;

/// The bytes of frames that travel together in one message of NATS. A single frame may be larger.
///
/// 64 KiB is what the client writes to its connection at once; larger messages gather no more.
pub const ENVELOPE_BYTES_MAX: usize = 64 << 10;

/// How soon after the one before a frame is taken for part of a flood: such frames are gathered by a task, and one that
/// comes later leaves on the stack of its sender.
///
/// Waking a task takes about as long. Nothing waits for this time to pass.
pub const GATHER_AFTER: Duration = Duration::from_micros(20);

/// The frames that wait to leave for one member. As many as wait in the queue of a node by default.
pub const LINK_QUEUE_MAX: usize = 10_000;

/// The bytes of the frames that wait to leave for one member: 64 of the largest events.
pub const LINK_QUEUE_BYTES_MAX: usize = 64 << 20;

/// The frames that have left for one member and that it has not handed over yet; the next ones wait.
///
/// The member's client keeps them in memory meanwhile. As many cover a round trip of 50 ms at 300 000 events a second.
pub const WINDOW_FRAMES_MAX: usize = 16_384;

/// The bytes of the frames that have left for one member and that it has not handed over yet.
///
/// Together with the number of senders this bounds the memory of a slow receiver. The last message may go beyond.
pub const WINDOW_BYTES_MAX: usize = 4 << 20;

/// The replies that a member may send ahead of the reader of one request, in units of [`CREDIT_UNIT_BYTES`].
///
/// A reader gives back half at a time, so that 32 items travel on each round trip; one of 200 µs makes 160 000 items a
/// second, and items that are ready together travel together.
pub const CREDIT_UNITS: u32 = 64;

/// The bytes of a reply beyond which it counts as one reply more. So 1 MiB waits for a slow reader and not 64 MiB.
pub const CREDIT_UNIT_BYTES: usize = 16 << 10;

/// The requests of one link that wait for replies. Each keeps some hundred bytes; the other side answers as many.
pub const REQUESTS_MAX: usize = 65_536;

/// The bytes of the name of a space or a member. Subjects have two of them, three bytes for each in the worst case, and
/// a server takes 4 096 bytes of subjects in one command.
pub const NAME_BYTES_MAX: usize = 128;

/// The members of one space that a link remembers. Each sends a heartbeat to each.
pub const MEMBERS_MAX: usize = 4_096;

/// The messages in which a member tells of its nodes: with messages of 1 MB, some hundred thousand nodes.
pub const PRESENCE_PARTS_MAX: u32 = 64;

/// How often a member says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a member may be silent until it counts as gone, if its heartbeats come in time. Three may be lost or late.
pub const SILENT_MAX: Duration = Duration::from_millis(3_500);

/// A process that looks for silence so long after the last time stood still itself, and has not read what the others said
/// meanwhile: their silence begins anew.
pub const STOOD_STILL: Duration = Duration::from_millis(2_500);

/// Beyond this a pause between two heartbeats is no chance any more: its member may be silent for longer than
/// [`SILENT_MAX`], by three times what was too much.
pub const PAUSE_USUAL: Duration = Duration::from_millis(1_500);

/// How long a member may be silent whose heartbeats come with pauses, at most. A longer pause is none.
pub const SILENT_ADAPTED_MAX: Duration = Duration::from_secs(14);

/// A pause that is over counts for less with each heartbeat, by the so manieth part: half as much after ten.
pub const PAUSE_FADES: u32 = 16;

/// How long a link waits, when it attaches, for the one who may have its name, and for the first answer of the others.
///
/// Who has the name answers within a round trip. One that does not is one whose machine has gone and whose connection the
/// server still believes in.
pub const ATTACH_WAIT: Duration = Duration::from_secs(2);

/// How long a link waits, when it attaches, until the server has taken what it subscribed and told. A large member has
/// many messages to tell, and a busy machine is slow.
pub const JOIN_WAIT: Duration = Duration::from_secs(10);

/// How long a link that closes waits until what is in its queues has left.
pub const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How long an end that came another way than the replies waits for replies that were sent before it.
pub const LEAVE_GRACE: Duration = Duration::from_millis(500);

/// The longest time between two attempts to connect again. Handling has to go on within a second of the server's return.
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(200);

/// The types of events for which a link remembers who listens. As many as a space has types.
pub const LINK_TYPES_MAX: usize = 16_384;

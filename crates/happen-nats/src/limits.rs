//! Every limit of this crate with its unit, its default and its reason. Owns the numbers; does not know what is done when
//! one is reached.

use std::time::Duration;

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

/// How long a member may be silent until it counts as gone. Three heartbeats may be lost or late.
pub const SILENT_MAX: Duration = Duration::from_millis(3_500);

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

//! Every limit of this crate: its name with its unit, its default, and the reason. Knows nothing of who keeps to it;
//! the tests at each limit stand beside the code that does.

/// The most bytes one encoded event or reply has, unless a caller passes another limit.
///
/// 1 MiB is what a NATS server takes by default, so that an event that can be stored can also be sent. Larger values
/// go by reference.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// The most arrays and maps inside one another in MessagePack that comes from outside.
///
/// 128 is what `serde_json` takes, so that whatever came in as JSON can go on. The reader descends by calling itself,
/// and 128 calls need a few kilobytes of stack.
pub const NESTING_MAX: usize = 128;

/// The most causes of one event.
///
/// An event made from a batch has one cause for each event of the batch; 10 000 is the default length of a queue, which
/// no batch goes over.
pub const CAUSES_MAX: usize = 10_000;

/// The most bytes of one event's metadata, encoded.
///
/// Metadata is read, hashed and copied with the envelope, on the way of every event that has some; what is larger is
/// content and belongs into the payload.
pub const METADATA_BYTES_MAX: usize = 64 << 10;

/// The most delegations of one event: who acted on whose behalf.
///
/// Each hands the work on to another node on somebody's account; a chain of 64 is a loop.
pub const DELEGATIONS_MAX: usize = 64;

/// The most permissions of an event's user.
///
/// They travel with every event of a correlation. The limit also bounds what decoding may allocate: an empty text has
/// one byte on the wire and 24 in memory.
pub const PERMISSIONS_MAX: usize = 256;

/// The most fields of one frame that the reader does not know and keeps for the next.
///
/// A later version adds a few fields, not dozens; keeping one takes 32 bytes of memory for as little as two on the
/// wire.
pub const UNKNOWN_FIELDS_MAX: usize = 32;

/// The most causes of one error that are looked at. A chain of causes is somebody else's code; one that leads back to
/// itself has no end.
pub const ERROR_CAUSES_MAX: usize = 256;

/// The most lines of each list in an error that crosses a link: context, causes, names.
///
/// A reader of an error looks at the first lines. The last one says so when there were more.
pub const ERROR_LINES_MAX: usize = 32;

/// The most bytes of one text in an error that crosses a link.
///
/// Panic messages and errors of other libraries can quote whole documents; with [`ERROR_LINES_MAX`] this keeps any error
/// below [`EVENT_BYTES_MAX`], so that a failure can always be told.
pub const ERROR_TEXT_BYTES_MAX: usize = 4 << 10;

/// The segments of a field path that are split in advance; those beyond are split at each use.
///
/// A path of eight is deeper than payloads usually are, and each segment takes three words.
pub const PATH_SEGMENTS_AHEAD: usize = 8;

/// The most events of one batch on the wire.
///
/// What a handler sends for a batch is caused by all of its events, so this is the limit of causes, [`CAUSES_MAX`].
pub const BATCH_EVENTS_MAX: usize = CAUSES_MAX;
/// The most bytes of one document.
///
/// 1 MiB, as of an event: what is written as a document may have to travel. Larger values go by reference.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// The most bytes of one record.
///
/// A record has what a step consumed, changed and emitted, so room for several events of the largest size. 8 MiB is
/// also what a NATS server is advised to be raised to at most.
pub const RECORD_BYTES_MAX: usize = 8 << 20;

/// The most tags of one record.
///
/// A record has about six of its own, and a fact one for each thing it is about. Each is an entry of an index.
pub const RECORD_TAGS_MAX: usize = 256;

/// The most bytes of a tag's text or of a document's key.
///
/// Indexes keep them whole, and NATS has them in subjects.
pub const KEY_BYTES_MAX: usize = 1 << 10;

/// The most records, documents and conditions of one batch together.
///
/// 1 000 is what JetStream publishes atomically. The limit also bounds how long one writer holds up the others.
pub const BATCH_PARTS_MAX: usize = 1_000;

/// The most records or documents of one page that is read from a store.
///
/// Enough that the call costs little beside its records, and few enough to be held in memory by every reader.
pub const PAGE_RECORDS_MAX: usize = 1_000;

/// The bytes after which a page that is read from a store ends, if it has a record.
///
/// Two records of the largest size; a thousand of them would take 8 GiB.
pub const PAGE_BYTES_MAX: usize = 16 << 20;

/// The most events that one step may send, and the most of them that one record tells.
///
/// Each is a record of the same commit, which [`BATCH_PARTS_MAX`] bounds; the rest is for the documents it writes.
pub const RECORD_EFFECTS_MAX: usize = 800;

/// The most points of one step at which it waits and something is committed.
///
/// Each is a commit of its own, and all of them are read again when the step is; a step that asks a hundred nodes one
/// after the other is better several steps.
pub const RECORD_POINTS_MAX: usize = 256;

/// The most values that the steps of one flow share by name.
///
/// They are written with every step.
pub const RECORD_VALUES_MAX: usize = 256;

/// The most frames that one signature covers.
///
/// A signature costs some twenty microseconds and a hash beside the way to the root a tenth of one, so among a thousand
/// its part is as small as that of one such hash. Each doubling makes every seal 32 bytes longer. A power of two.
pub const SEAL_GROUP_MAX: usize = 1 << 10;

//! A handler that tells of its progress while it works, and has a final value at the end.
//!
//! You learn `cx.emit` and `.stream()`, who waits for whom, and what happens when the reader leaves. Run it with
//! `cargo run --example stream_progress`.
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use happen::{Context, Event, Space, Step, done, with};
use serde::{Deserialize, Serialize};

#[derive(happen::Event, Clone, Serialize, Deserialize)]
#[event("import")]
struct Import {
    rows: u32,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Progress {
    percent: u32,
}

#[derive(happen::Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Imported {
    rows: u32,
}

/// Imports row by row. `emit` waits while the reader is behind, so a slow reader slows the work down and no item is
/// lost; it fails once the reader has gone, so `?` ends work that nobody looks at any more.
async fn import(written: Arc<AtomicU32>, import: Event<Import>, cx: Context) -> happen::Result<Step> {
    for row in 1..=import.rows {
        written.fetch_add(1, Ordering::SeqCst);
        cx.emit(Progress { percent: row * 100 / import.rows }).await?;
    }
    done(Imported { rows: import.rows })
}

#[tokio::main]
async fn main() -> happen::Result<()> {
    let written = Arc::new(AtomicU32::new(0));
    let space = Space::memory();
    let importer = space.node("importer");
    importer.on("import", with(Arc::clone(&written), import));
    space.start().await?;

    // Read to the end: every item in order, then the final value.
    let mut items = space.send(&importer, Import { rows: 4 }).stream::<Progress>();
    let mut seen = Vec::new();
    while let Some(progress) = items.next().await {
        let Progress { percent } = progress?;
        println!("{percent} %");
        seen.push(percent);
    }
    let imported = items.finish::<Imported>().await?;
    println!("imported {} rows", imported.rows);
    assert_eq!((seen, imported), (vec![25, 50, 75, 100], Imported { rows: 4 }));

    // Only the final value, for a caller that does not care for the steps.
    let imported = space.send(&importer, Import { rows: 100 }).reply::<Imported>().await?;
    assert_eq!(imported.rows, 100);

    // Leave after the first item: the handler stops instead of writing a million rows for nobody.
    written.store(0, Ordering::SeqCst);
    let mut items = space.send(&importer, Import { rows: 1_000_000 }).stream::<Progress>();
    let first = items.next().await.ok_or_else(|| happen::Error::msg("no item came"))??;
    drop(items);
    space.settled(Duration::from_secs(30)).await?;
    let rows = written.load(Ordering::SeqCst);
    println!("left at {} %, and the work stopped early: {}", first.percent, rows < 1_000);
    assert!(rows < 1_000, "{rows} rows were written after the reader had gone");
    space.stop().await
}

//! Sensor readings handled in place: a gateway sends blocks of readings as arrays of records of fixed size, and the
//! handlers read them without copying or allocating.
//!
//! Run it with `cargo run --example sensor_batch`. `docs/zero.md` describes the memory layout.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::{Arc, Mutex};

use happen::raw::{FieldPath, RawWriter, Texts, WriteError};
use happen::{Context, Dynamic, Event, EventType, RawEvent, Space};

/// Split by the compiler, so that no event pays for it.
const READINGS: FieldPath<'_> = FieldPath::new("block.readings");

const BLOCKS: u64 = 100;
const READINGS_PER_BLOCK: u64 = 32;
const BLOCK_BYTES_MAX: usize = 1_024;

/// What the handlers know of each sensor, by the number of its name.
#[derive(Clone, Copy, Default)]
struct Sensor {
    readings: u64,
    celsius_max: f64,
}

#[derive(happen::Event, Clone, Debug, serde::Serialize, serde::Deserialize)]
#[event("sensor.alarm")]
struct Alarm {
    block: u64,
    celsius: f64,
}

/// A block as a gateway in any language would write it: the sensor's name once, then `[seconds, celsius]` records.
fn write_block(number: u64, buffer: &mut [u8]) -> Result<&[u8], WriteError> {
    let mut writer = RawWriter::new(buffer);
    writer.map(2);
    writer.field("sensor").str(if number.is_multiple_of(2) { "kitchen" } else { "cellar" });
    writer.field("block").map(2);
    writer.field("number").u64(number);
    writer.field("readings").array(READINGS_PER_BLOCK as usize);
    for second in 0..READINGS_PER_BLOCK {
        // `f64` always takes nine bytes and a second below 128 takes one, so all records have the same size.
        writer.array(2).u64(second).f64(20.0 + (number * second) as f64 / 100.0);
    }
    writer.finish()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> happen::Result<()> {
    let space = Space::memory();
    let (statistics, alarms, log) = (space.node("statistics"), space.node("alarms"), space.node("log"));

    let known = Arc::new(Mutex::new((Texts::new(16, 64), [Sensor::default(); 16])));
    let shared = Arc::clone(&known);
    statistics.zero("sensor.block", move |event: RawEvent<'_>| -> happen::Result<()> {
        event.check()?;
        let (Some(name), Some(readings)) = (event.str("sensor"), event.records(&READINGS)) else {
            return Ok(());
        };
        let Ok(mut known) = shared.lock() else { return Ok(()) };
        let (names, sensors) = &mut *known;
        let Some(number) = names.number(name) else { return Ok(()) };
        let sensor = &mut sensors[number as usize];
        for celsius in readings.filter_map(|record| record.f64(1)) {
            sensor.readings += 1;
            sensor.celsius_max = sensor.celsius_max.max(celsius);
        }
        Ok(())
    });

    // Records of one size are found by index in constant time: here only the last one is looked at.
    alarms.zero("sensor.block", |event: RawEvent<'_>| -> happen::Result<()> {
        let last = event
            .records(&READINGS)
            .and_then(|readings| readings.fixed())
            .and_then(|readings| readings.at(readings.len() - 1));
        match (event.u64("block.number"), last.and_then(|record| record.f64(1))) {
            (Some(block), Some(celsius)) if celsius > 50.0 => {
                event.context().broadcast(Alarm { block, celsius })?;
                Ok(())
            }
            _ => Ok(()),
        }
    });

    // An ordinary handler beside the others; what it is told is caused by the block.
    let heard = Arc::new(Mutex::new(Vec::new()));
    let alarms_heard = Arc::clone(&heard);
    log.on("sensor.alarm", move |alarm: &Event<Alarm>, cx: &Context| {
        assert_eq!(cx.sender().as_deref(), Some("alarms"));
        if let Ok(mut heard) = alarms_heard.lock() {
            heard.push(alarm.block);
        }
    });
    space.start().await?;

    let block_type = EventType::new("sensor.block");
    let mut buffer = [0; BLOCK_BYTES_MAX];
    let mut bytes_sent = 0;
    for number in 0..BLOCKS {
        let block =
            write_block(number, &mut buffer).map_err(|error| happen::Error::msg(error.to_string()))?;
        bytes_sent += block.len();
        space.broadcast(Dynamic::from_bytes(block_type.clone(), block.into()))?;
    }

    let Ok(known) = known.lock() else { return Err(happen::Error::msg("a handler panicked")) };
    let (names, sensors) = &*known;
    for (number, sensor) in sensors.iter().enumerate().take(names.len()) {
        let name = names.text(number as u32).unwrap_or_default();
        println!("{name}: {} readings, at most {:.2} °C", sensor.readings, sensor.celsius_max);
    }
    let heard = heard.lock().map(|heard| heard.clone()).unwrap_or_default();
    println!("{} alarms, the first for block {:?}", heard.len(), heard.first());
    println!("{BLOCKS} blocks in {bytes_sent} bytes");

    assert_eq!(sensors.map(|sensor| sensor.readings)[..3], [1_600, 1_600, 0]);
    assert_eq!(sensors[1].celsius_max, 20.0 + 99.0 * 31.0 / 100.0);
    assert_eq!(heard, (97..100).collect::<Vec<u64>>());
    Ok(())
}

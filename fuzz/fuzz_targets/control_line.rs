//! Any bytes as a line of the control channel: what can be read as a request or an answer is written again and read as the
//! same kind of one, and an error in it can be built.
#![no_main]

use std::mem::discriminant;

use happen::control::{Answer, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = Request::parse(bytes) {
        // A number may take more digits than it came with, so a line at the limit may become too long.
        if let Ok(line) = request.to_line() {
            let again = Request::parse(&line[..line.len() - 1]).expect("what was written is readable");
            assert_eq!(discriminant(&again), discriminant(&request));
        }
    }
    let answer = Answer::parse(bytes);
    let line = Answer::to_line(&answer);
    match (Answer::parse(&line[..line.len() - 1]), answer) {
        (Ok(again), Ok(answer)) => assert_eq!(discriminant(&again), discriminant(&answer)),
        (Err(again), Err(error)) => assert_eq!(again.code(), error.code()),
        (Err(again), Ok(_)) => assert_eq!(again.code(), "oversized"),
        (Ok(_), Err(_)) => panic!("an error was read as an answer"),
    }
});

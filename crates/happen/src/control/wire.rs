//! Requests and answers as lines of JSON. Owns what a line may be; does not know where it comes from.

use happen_core::codec::{Outcome, WireError, WireReply};
use happen_core::limits::EVENT_BYTES_MAX;
use happen_core::{Error, ErrorKind, EventId, Result};
use serde::{Deserialize, Serialize};

use super::{Answer, Request};
use crate::limits;

/// What a line in answer says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Told<A> {
    Answer(A),
    Error(ToldError),
}

/// An error: for people and scripts, and whole for programs.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldError {
    code: String,
    text: String,
    /// The frame of a reply with the error, in hexadecimal digits.
    frame: String,
}

impl Request {
    /// The request in a line, with or without its end.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Oversized`]: it has more than [`limits::CONTROL_LINE_BYTES_MAX`] bytes.
    /// - [`ErrorKind::Misuse`]: it is no request.
    pub fn parse(line: &[u8]) -> Result<Self> {
        within(line.len())?;
        serde_json::from_slice(line)
            .map_err(|error| Error::misuse(format!("the line is no request of this version ({error})")))
    }

    /// The request as a line, with its end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Oversized`], as [`Request::parse`].
    pub fn to_line(&self) -> Result<Vec<u8>> {
        line_of(self)
    }
}

impl Answer {
    /// The answer in a line, or the error that it tells.
    ///
    /// # Errors
    ///
    /// The error that was told, with its kind; otherwise as [`Request::parse`].
    pub fn parse(line: &[u8]) -> Result<Self> {
        within(line.len())?;
        let told: Told<Self> = serde_json::from_slice(line)
            .map_err(|error| Error::misuse(format!("the line is no answer of this version ({error})")))?;
        match told {
            Told::Answer(answer) => Ok(answer),
            Told::Error(told) => Err(error_of(&told)),
        }
    }

    /// What came of a request as a line, with its end.
    #[must_use]
    pub fn to_line(result: &Result<Self>) -> Vec<u8> {
        let line = match result {
            Ok(answer) => line_of(&Told::Answer(answer)),
            Err(error) => line_of(&told::<&Self>(error)),
        };
        // What is too long to be told is told to be so, which is short.
        line.or_else(|error| line_of(&told::<&Self>(&error))).unwrap_or_default()
    }
}

fn told<A>(error: &Error) -> Told<A> {
    let event = error.event_id().unwrap_or(EventId::MIN);
    let mut frame = Vec::new();
    let reply = WireReply::new(event, Outcome::Error(WireError::of(error)));
    // Without its frame an error is still told by its code and its text.
    if reply.encode_into(&mut frame, EVENT_BYTES_MAX).is_err() {
        frame.clear();
    }
    Told::Error(ToldError {
        code: error.code().to_owned(),
        text: error.chain().join(": "),
        frame: frame.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

fn error_of(told: &ToldError) -> Error {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| match *pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    let frame: Option<Vec<u8>> = told.frame.as_bytes().chunks(2).map(pair).collect();
    let reply = frame.as_deref().and_then(|frame| WireReply::decode(frame, EVENT_BYTES_MAX).ok());
    match reply.map(|reply| reply.outcome) {
        Some(Outcome::Error(error)) => error.to_error(),
        _ => {
            let reason = format!("{} (code `{}`)", told.text, told.code);
            Error::new(ErrorKind::Refused { node: String::new(), reason })
        }
    }
}

fn line_of<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)
        .map_err(|error| Error::misuse(format!("it cannot be said in JSON ({error})")))?;
    within(line.len())?;
    line.push(b'\n');
    Ok(line)
}

fn within(bytes: usize) -> Result<()> {
    let bytes_max = limits::CONTROL_LINE_BYTES_MAX;
    if bytes > bytes_max {
        return Err(Error::new(ErrorKind::Oversized { bytes, bytes_max }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{FlowsOf, Letters, Mode, Redrive, Wait};

    #[test]
    fn requests_come_back_as_they_were() {
        let event = "0197a5d0-7c00-7000-8000-000000000001".parse().unwrap();
        let letters = Letters { event_type: Some("a.b".into()), mode: Mode::DryRun, ..Letters::default() };
        for request in [
            Request::Stats,
            Request::Retry(FlowsOf { event, node: Some("a/b".into()) }),
            Request::Drop(Letters::default()),
            Request::Redrive(Redrive { letters, payload: Some(serde_json::json!([1, null, "\n"])) }),
        ] {
            let line = request.to_line().unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(Request::parse(&line).unwrap(), request);
        }
        let short = br#"{"send":{"node":"a","type":"b"}}"#;
        let Request::Send(send) = Request::parse(short).unwrap() else { panic!("no send") };
        assert_eq!((send.payload, send.correlation, send.wait), (serde_json::Value::Null, None, Wait::Taken));
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        for line in [
            &b""[..],
            b"{}",
            b"null",
            b"stats",
            b"\"stat\"",
            b"{\"send\":{}}",
            b"{\"send\":{\"node\":\"a\",\"type\":\"b\",\"more\":1}}",
            b"{\"send\":{\"node\":\"a\",\"node\":\"a\",\"type\":\"b\"}}",
            b"{\"cancel\":{\"event\":\"7\"}}",
            b"{\"stats\":null,\"drop\":{}}",
            b"\"stats\" \"stats\"",
            b"\xff\xfe",
        ] {
            let told = Request::parse(line).expect_err(&String::from_utf8_lossy(line));
            assert_eq!(told.code(), "misuse");
            assert_eq!(Answer::parse(line).unwrap_err().code(), "misuse");
        }
        let deep = [vec![b'['; 10_000], vec![b']'; 10_000]].concat();
        assert_eq!(Request::parse(&deep).unwrap_err().code(), "misuse");
    }

    #[test]
    fn a_line_has_a_limit() {
        let max = limits::CONTROL_LINE_BYTES_MAX;
        for (len, fits) in [(max - 1, true), (max, true), (max + 1, false)] {
            let line = [&b"\"stats\""[..], &vec![b' '; len - 7]].concat();
            assert_eq!(Request::parse(&line).is_ok(), fits, "{len}");
        }
    }

    #[test]
    fn errors_keep_their_kind() {
        let kinds = [
            ErrorKind::NotFound { what: "a flow".into() },
            ErrorKind::Conflict { what: "it".into() },
            ErrorKind::Unfit { flows: vec!["a".into(), "b".into()] },
            ErrorKind::NoHandler { node: "a".into(), event_type: "b".into() },
        ];
        for kind in kinds {
            let line = Answer::to_line(&Err(Error::new(kind.clone()).at_node("n")));
            let error = Answer::parse(&line).unwrap_err();
            assert_eq!((error.kind(), error.node_id()), (&kind, Some("n")));
        }
        for frame in ["", "zz", "f", "c0", "ß"] {
            let line = serde_json::json!({ "error": { "code": "x", "text": "y", "frame": frame } });
            let error = Answer::parse(line.to_string().as_bytes()).unwrap_err();
            assert!(error.to_string().contains("y (code `x`)"), "{error}");
        }
    }
}

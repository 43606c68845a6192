//! The text of a caught panic. Knows the two types that `panic!` makes, and nothing of who caught it.

use std::any::Any;

/// The message a panic was raised with.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic whose value is no text".to_owned()
    }
}

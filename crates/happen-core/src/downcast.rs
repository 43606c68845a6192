//! Downcasts on the way of an event. The standard library's compare two type ids in memory, right after they were
//! written there in halves, and the processor waits for that; here they stay in registers.
#![expect(unsafe_code, reason = "two downcasts for every event, about 3 ns each (docs/performance.md)")]

use std::any::{Any, TypeId};
use std::mem::transmute;

/// The value as a `T`, when it is one.
///
/// # Examples
///
/// ```
/// use happen_core::downcast::downcast_ref;
///
/// assert_eq!(downcast_ref::<u64>(&7_u64), Some(&7));
/// assert_eq!(downcast_ref::<u32>(&7_u64), None);
/// ```
#[must_use]
#[inline(always)]
pub fn downcast_ref<T: Any>(any: &dyn Any) -> Option<&T> {
    if halves(any.type_id()) == halves(TypeId::of::<T>()) {
        // SAFETY: the ids are equal, so the value is a `T`.
        Some(unsafe { &*std::ptr::from_ref(any).cast::<T>() })
    } else {
        None
    }
}

#[inline(always)]
fn halves(id: TypeId) -> (u64, u64) {
    // SAFETY: a type id is 16 bytes that are all initialised, and any bytes are two numbers. Were it of another size
    // some day, this would not compile.
    unsafe { transmute::<TypeId, (u64, u64)>(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_what_it_is_and_nothing_else() {
        let text = "here".to_owned();
        let any: &dyn Any = &text;
        assert_eq!(downcast_ref::<String>(any).map(String::as_str), Some("here"));
        assert!(downcast_ref::<&str>(any).is_none());
        assert!(downcast_ref::<Box<String>>(any).is_none());
        assert!(downcast_ref::<Vec<u8>>(any).is_none());
        assert!(downcast_ref::<()>(&()).is_some());
    }
}

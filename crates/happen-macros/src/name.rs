//! The rules for names: which text is legal, what to write in place of one that is not, and how the name of a Rust type
//! reads as one. Does not know where a name is written.

/// The longest name. It becomes a part of subjects on a link, and NATS advises to keep those below 256 characters
/// (its documentation, "Subject-Based Messaging"); the rest is for prefixes.
pub(crate) const NAME_BYTES_MAX: usize = 200;

/// What is wrong with a name, as the end of a sentence that starts with what it names; `None` when it is legal.
pub(crate) fn flaw(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("is not empty".to_owned());
    }
    if text.len() > NAME_BYTES_MAX {
        return Some(format!("has at most {NAME_BYTES_MAX} bytes and this one has {}", text.len()));
    }
    if let Some(refused) = text.chars().find(|&char| is_refused(char)) {
        return Some(match refused {
            '*' | '{' | '}' | ',' => format!("has no `{refused}`, which belongs to patterns"),
            space if space.is_whitespace() => "has no white space".to_owned(),
            _ => "has no control characters".to_owned(),
        });
    }
    text.split('.').any(str::is_empty).then(|| "has no empty segment beside a dot".to_owned())
}

/// The legal name nearest to this text: hyphens for what is refused, no empty segments. `None` when nothing is left of
/// it or too much.
pub(crate) fn mended(text: &str) -> Option<String> {
    let segments: Vec<_> =
        text.split('.').map(mended_segment).filter(|segment| !segment.is_empty()).collect();
    let mended = segments.join(".");
    flaw(&mended).is_none().then_some(mended)
}

/// The name of a Rust type in kebab-case. Empty for one that consists of underscores.
///
/// A word starts at a capital after a small letter, and at the last capital of several when a small letter follows it,
/// so that `HTTPError` has two words. Digits belong to the word before them and do not interrupt a run of capitals:
/// `X509Key` is `x509-key`, and `B2BOrder` is `b2b-order`.
pub(crate) fn kebab_case(ident: &str) -> String {
    let mut kebab = String::with_capacity(ident.len() + 4);
    let mut last_letter: Option<char> = None;
    let mut chars = ident.chars().peekable();
    while let Some(char) = chars.next() {
        if char == '_' {
            last_letter = None;
            push_hyphen(&mut kebab);
            continue;
        }
        let ends_capitals = chars.peek().is_some_and(|next| next.is_lowercase());
        let starts_word =
            char.is_uppercase() && last_letter.is_some_and(|last| !last.is_uppercase() || ends_capitals);
        if starts_word {
            push_hyphen(&mut kebab);
        }
        kebab.extend(char.to_lowercase());
        if char.is_alphabetic() {
            last_letter = Some(char);
        }
    }
    kebab.truncate(kebab.trim_end_matches('-').len());
    kebab
}

fn is_refused(char: char) -> bool {
    matches!(char, '*' | '{' | '}' | ',') || char.is_whitespace() || char.is_control()
}

fn mended_segment(segment: &str) -> String {
    let words: Vec<_> = segment.split(is_refused).map(|word| word.trim_matches('-')).collect();
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

fn push_hyphen(kebab: &mut String) {
    if !kebab.is_empty() && !kebab.ends_with('-') {
        kebab.push('-');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_names_in_kebab_case() {
        let cases = [
            ("OrderPlaced", "order-placed"),
            ("Order", "order"),
            ("HTTPError", "http-error"),
            ("ParseHTTP", "parse-http"),
            ("HTTP", "http"),
            ("HTTP2Error", "http2-error"),
            ("Sha256Sum", "sha256-sum"),
            ("X509Key", "x509-key"),
            ("B2BOrder", "b2b-order"),
            ("V2", "v2"),
            ("Order2Placed", "order2-placed"),
            ("ABTest", "ab-test"),
            ("A", "a"),
            ("Order_Placed", "order-placed"),
            ("ORDER_PLACED", "order-placed"),
            ("order_placed", "order-placed"),
            ("_Private__Thing_", "private-thing"),
            ("GrößeGeändert", "größe-geändert"),
            ("注文", "注文"),
            ("__", ""),
        ];
        for (ident, kebab) in cases {
            assert_eq!(kebab_case(ident), kebab, "{ident}");
        }
    }

    #[test]
    fn legal_names() {
        for text in ["order", "order.created", "create-order", "a.b.c", "Order_2", "größe", "a/b:c", "-"] {
            assert_eq!(flaw(text), None, "{text}");
        }
    }

    #[test]
    fn flaws_and_what_to_write() {
        let cases = [
            ("", "is not empty", None),
            (".", "has no empty segment beside a dot", None),
            ("order..created", "has no empty segment beside a dot", Some("order.created")),
            (".order", "has no empty segment beside a dot", Some("order")),
            ("order.", "has no empty segment beside a dot", Some("order")),
            ("order.*", "has no `*`, which belongs to patterns", Some("order")),
            ("{order,payment}", "has no `{`, which belongs to patterns", Some("order-payment")),
            ("a}", "has no `}`, which belongs to patterns", Some("a")),
            ("a,b", "has no `,`, which belongs to patterns", Some("a-b")),
            ("create order", "has no white space", Some("create-order")),
            ("create \t- order", "has no white space", Some("create-order")),
            ("a\u{a0}b", "has no white space", Some("a-b")),
            ("a\0b", "has no control characters", Some("a-b")),
            ("**", "has no `*`, which belongs to patterns", None),
        ];
        for (text, reason, instead) in cases {
            assert_eq!(flaw(text).as_deref(), Some(reason), "{text:?}");
            assert_eq!(mended(text).as_deref(), instead, "{text:?}");
        }
    }

    #[test]
    fn length_at_the_limit() {
        assert_eq!(flaw(&"x".repeat(NAME_BYTES_MAX - 1)), None);
        assert_eq!(flaw(&"x".repeat(NAME_BYTES_MAX)), None);
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(flaw(&long).as_deref(), Some("has at most 200 bytes and this one has 201"));
        assert_eq!(mended(&long), None);
        assert!(flaw(&"ö".repeat(NAME_BYTES_MAX / 2 + 1)).is_some(), "bytes are counted, not characters");
    }
}

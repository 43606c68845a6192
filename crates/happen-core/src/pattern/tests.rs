//! Owns the tests by example: the grammar, its mistakes and limits, the runtime rule and the combinators.

use std::error::Error as _;
use std::time::Duration;

use super::limits::{
    ALIASES_LEN_MAX, PATTERN_ALTERNATIVES_MAX, PATTERN_BYTES_MAX, PATTERN_DEPTH_MAX, PATTERN_NESTING_MAX,
};
use super::{
    Aliases, Domain, FirstSegment, IntoPattern, Pattern, PatternError, PatternErrorKind as Kind, all_of, any,
    domain, exact, is_runtime, not, one_of, predicate, wildcard,
};

fn parse(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn refusal(text: &str) -> (Kind, usize) {
    let error = Pattern::parse(text).unwrap_err();
    (error.kind(), error.position())
}

#[test]
fn pattern_is_shareable() {
    fn shareable<T: Clone + Send + Sync + std::fmt::Debug + 'static>() {}
    shareable::<Pattern>();
    shareable::<PatternError>();
    shareable::<Aliases>();
}

#[test]
fn table_of_matches() {
    let table: &[(&str, &[&str], &[&str])] = &[
        (
            "order.created",
            &["order.created"],
            &["order", "order.create", "order.created.x", "order.createdx", ""],
        ),
        ("order", &["order"], &["orders", "order.x", ""]),
        (
            "order.*",
            &["order.a", "order.é"],
            &["order", "order.", "order.a.b", "orders.a", "order-a", "xorder.a"],
        ),
        ("*.created", &["a.created"], &["created", ".created", "a.b.created", "a.created.b"]),
        ("a.*.c", &["a.b.c"], &["a.c", "a..c", "a.b.b.c", "a.b.d"]),
        ("order.**", &["order.a", "order.a.b.c"], &["order", "order.", "order..a", "order.a..b", "order.a."]),
        ("**", &["a", "a.b", "a.b.c"], &["", ".", "a.", ".a", "a..b"]),
        ("*", &["a"], &["", "a.b"]),
        ("**.x", &["a.x", "a.b.x", "x.x", "x.a.x"], &["x", "a.x.b", ".x"]),
        ("a.**.b.**.c", &["a.1.b.2.c", "a.b.b.b.c", "a.b.c.b.c.c"], &["a.b.c", "a.1.b.c", "a.b.1.c"]),
        ("**.a.b", &["a.a.b", "a.b.a.b", "x.a.a.b"], &["a.b", "a.b.b"]),
        ("**.**", &["a.b", "a.b.c"], &["a"]),
        ("**.*.*", &["a.b.c", "a.b.c.d"], &["a.b"]),
        ("{order,payment}.created", &["order.created", "payment.created"], &["user.created", "order"]),
        ("order-{a,b}.x", &["order-a.x", "order-b.x"], &["order-.x", "order-c.x", "order.a.x"]),
        ("{a.b,c}.d", &["a.b.d", "c.d"], &["a.d", "b.d", "a.b.c.d"]),
        ("{a.*,**.z}", &["a.b", "x.y.z", "a.z"], &["a", "z", "b.a"]),
        ("{a,{b,c}.d}.e", &["a.e", "b.d.e", "c.d.e"], &["b.e", "a.d.e"]),
        ("{a.,b}x", &["a.x", "bx"], &["ax", "b.x"]),
        ("a{.b,c}", &["a.b", "ac"], &["ab", "a.c"]),
        ("a,b", &["a,b"], &["a", "b"]),
        ("заказ.*", &["заказ.создан"], &["заказ", "заказы.создан"]),
        ("日本.{東,西}", &["日本.東", "日本.西"], &["日本.南"]),
        (" a . b ", &[" a . b "], &["a.b"]),
    ];
    for (text, yes, no) in table {
        let pattern = parse(text);
        assert_eq!(pattern.to_string(), *text);
        for ty in *yes {
            assert!(pattern.matches(ty), "{text} should match {ty:?}");
            assert!(pattern.captures(ty).is_some(), "{text} should capture {ty:?}");
        }
        for ty in *no {
            assert!(!pattern.matches(ty), "{text} should not match {ty:?}");
            assert!(pattern.captures(ty).is_none(), "{text} should not capture {ty:?}");
        }
    }
}

#[test]
fn table_of_mistakes() {
    let table: &[(&str, Kind, usize)] = &[
        ("", Kind::EmptyPattern, 0),
        ("order..x", Kind::EmptySegment, 6),
        (".x", Kind::EmptySegment, 0),
        ("order.", Kind::EmptySegment, 6),
        (".", Kind::EmptySegment, 0),
        ("*.", Kind::EmptySegment, 2),
        ("{a.,b}.x", Kind::EmptySegment, 6),
        ("x.{a,b.}", Kind::EmptySegment, 7),
        ("é..x", Kind::EmptySegment, 3),
        ("{}", Kind::EmptyAlternative, 1),
        ("{a,}", Kind::EmptyAlternative, 3),
        ("{,a}", Kind::EmptyAlternative, 1),
        ("{a,,b}", Kind::EmptyAlternative, 3),
        ("a.{b", Kind::UnclosedBrace, 2),
        ("{", Kind::UnclosedBrace, 0),
        ("{a,", Kind::UnclosedBrace, 0),
        ("{a,{b}", Kind::UnclosedBrace, 0),
        ("a}", Kind::StrayBrace, 1),
        ("{a}}", Kind::StrayBrace, 3),
        ("order*", Kind::PartialWildcard, 5),
        ("*order", Kind::PartialWildcard, 0),
        ("a.**b", Kind::PartialWildcard, 2),
        ("x{*,a}", Kind::PartialWildcard, 2),
        ("{*,a}x", Kind::PartialWildcard, 1),
        ("{a,*}*", Kind::PartialWildcard, 5),
        ("***", Kind::TooManyStars, 0),
        ("a.****", Kind::TooManyStars, 2),
    ];
    for (text, kind, position) in table {
        assert_eq!(refusal(text), (*kind, *position), "{text:?}");
    }
}

#[test]
fn errors_fit_on_one_line_and_say_what_to_write() {
    let error = Pattern::parse("order*").unwrap_err();
    assert_eq!(
        error.to_string(),
        "bad pattern `order*` at byte 5: a wildcard is a whole segment, write it between dots as in \
         `order.*`, or match part of a segment with alternatives such as `order-{a,b}` or with a predicate"
    );
    assert_eq!(error.text(), "order*");
    assert!(error.source().is_none());
    assert_eq!(
        Pattern::parse("a\n..b").unwrap_err().to_string(),
        r"bad pattern `a\n..b` at byte 3: empty segment"
    );
    let long = Pattern::parse(&"é".repeat(PATTERN_BYTES_MAX)).unwrap_err();
    assert!(long.text().len() <= PATTERN_BYTES_MAX + '…'.len_utf8());
}

#[test]
fn length_has_a_limit() {
    for len in [PATTERN_BYTES_MAX - 1, PATTERN_BYTES_MAX] {
        assert!(parse(&"a".repeat(len)).matches(&"a".repeat(len)));
    }
    assert_eq!(refusal(&"a".repeat(PATTERN_BYTES_MAX + 1)), (Kind::TooLong, PATTERN_BYTES_MAX));
}

#[test]
fn nesting_has_a_limit() {
    let nested = |depth: usize| format!("{}a{}", "{".repeat(depth), "}".repeat(depth));
    for depth in [PATTERN_NESTING_MAX - 1, PATTERN_NESTING_MAX] {
        assert!(parse(&nested(depth)).matches("a"));
    }
    assert_eq!(refusal(&nested(PATTERN_NESTING_MAX + 1)), (Kind::TooDeep, PATTERN_NESTING_MAX));
    assert_eq!(refusal(&"{".repeat(PATTERN_BYTES_MAX)).0, Kind::TooDeep);
}

#[test]
fn alternatives_have_a_limit() {
    let listed = |len: usize| {
        let names: Vec<String> = (0..len).map(|index| format!("a{index}")).collect();
        format!("{{{}}}", names.join(","))
    };
    for len in [PATTERN_ALTERNATIVES_MAX - 1, PATTERN_ALTERNATIVES_MAX] {
        assert!(parse(&listed(len)).matches(&format!("a{}", len - 1)));
    }
    assert_eq!(refusal(&listed(PATTERN_ALTERNATIVES_MAX + 1)).0, Kind::TooManyAlternatives);
    // Seven pairs are exactly 128, the eighth begins at byte 7 * 5.
    assert_eq!(PATTERN_ALTERNATIVES_MAX, 1 << 7);
    assert!(parse(&"{a,b}".repeat(7)).matches("abababa"));
    assert_eq!(refusal(&"{a,b}".repeat(8)), (Kind::TooManyAlternatives, 35));
    assert_eq!(refusal(&"{a,b}".repeat(100)).0, Kind::TooManyAlternatives);
}

#[test]
fn combinators_have_a_depth_limit() {
    let mut pattern = exact("a");
    for level in 2..=PATTERN_DEPTH_MAX {
        pattern = if level % 2 == 0 { pattern.or(exact("b")) } else { pattern.and(any()) };
        if level == PATTERN_DEPTH_MAX - 1 {
            assert!(pattern.matches("a"));
        }
    }
    assert!(pattern.matches("a"));
    assert!(pattern.explain("a").matched());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pattern.negate())).is_err());
}

#[test]
fn repeated_combinators_stay_flat() {
    let (mut either, mut both, mut twisted) = (exact("a"), any(), exact("a"));
    for index in 0..PATTERN_DEPTH_MAX * 4 {
        either = either.or(exact(&index.to_string()));
        both = both.and(not(exact(&index.to_string())));
        twisted = twisted.negate();
    }
    assert!(either.matches("7"));
    assert!(!both.matches("7"));
    assert!(twisted.matches("a"));
    assert!(!twisted.negate().matches("a"));
}

#[test]
fn many_double_stars_end_quickly() {
    // A matcher that tries every split needs about 1000^20 / 20! steps here.
    let text = format!("{}.x", ["**"; 20].join("."));
    let ty = vec!["a"; 1000].join(".");
    let (sender, receiver) = std::sync::mpsc::channel();
    // Only a thread of its own lets a hanging matcher fail the test.
    std::thread::Builder::new().spawn(move || sender.send(parse(&text).matches(&ty))).unwrap();
    assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(false));
}

#[test]
fn captures_follow_the_order_of_the_text() {
    let table: &[(&str, &str, &[Option<&str>])] = &[
        ("order.created", "order.created", &[]),
        ("*.*", "a.b", &[Some("a"), Some("b")]),
        ("**.x.**", "a.x.b.x.c", &[Some("a"), Some("b.x.c")]),
        ("**.x", "a.b.x", &[Some("a.b")]),
        ("{a,b}.*", "b.c", &[Some("b"), Some("c")]),
        ("{a.*,b}.c", "a.x.c", &[Some("a.x"), Some("x")]),
        ("{a.*,b}.c", "b.c", &[Some("b"), None]),
        ("{a,{b,c}.*}.e", "c.d.e", &[Some("c.d"), Some("c"), Some("d")]),
        ("{a,{b,c}.*}.e", "a.e", &[Some("a"), None, None]),
        ("x-{a,b}-{c,d}.y", "x-b-c.y", &[Some("b"), Some("c")]),
        ("{a.,b}x", "a.x", &[Some("a.")]),
        ("a{.*,b}", "a.c", &[Some(".c"), Some("c")]),
        ("*{.a,.b}.c", "x.b.c", &[Some("x"), Some(".b")]),
        ("{*.,b}c", "x.c", &[Some("x."), Some("x")]),
        ("{*,a}", "a", &[Some("a"), Some("a")]),
        ("é.*.{ß,東}", "é.ü.東", &[Some("ü"), Some("東")]),
    ];
    for (text, ty, expected) in table {
        let pattern = parse(text);
        let captures = pattern.captures(ty).unwrap();
        assert_eq!(captures.iter().collect::<Vec<_>>(), *expected, "{text} on {ty}");
        assert_eq!(captures.len(), expected.len());
        assert_eq!(captures.is_empty(), expected.is_empty());
        for (index, group) in expected.iter().enumerate() {
            assert_eq!(captures.get(index), *group);
        }
        assert_eq!(captures.get(expected.len()), None);
    }
}

#[test]
fn captures_of_combinators() {
    let groups = |pattern: Pattern, ty: &str| -> Option<Vec<String>> {
        let captures = pattern.captures(ty)?;
        Some(captures.iter().map(|group| group.unwrap_or("-").to_owned()).collect())
    };
    assert_eq!(groups(domain("a"), "a.b.c").unwrap(), ["b.c"]);
    assert_eq!(groups(one_of([parse("a.*"), parse("*.b")]), "x.b").unwrap(), ["x"]);
    assert_eq!(groups(all_of([parse("a.*"), parse("*.b")]), "a.b").unwrap(), ["b", "a"]);
    assert_eq!(groups(all_of([parse("a.*"), parse("*.b")]), "a.c"), None);
    let failing_first = one_of([parse("a.*").and(parse("*.x")), parse("**.b")]);
    assert_eq!(groups(failing_first, "a.b").unwrap(), ["a"]);
    assert!(groups(not(parse("*.c")), "a.b").unwrap().is_empty());
    assert!(groups(any(), "a.b").unwrap().is_empty());
    assert_eq!(groups(not(any()), "a.b"), None);
    let outlives = {
        let pattern = parse("a.*");
        pattern.captures("a.b").unwrap().get(0)
    };
    assert_eq!(outlives, Some("b"));
}

#[test]
fn runtime_types() {
    for ty in [
        "node.down",
        "system.connection-status",
        "order.error",
        "a.b.error",
        "node.a.error",
        "node.",
        ".error",
    ] {
        assert!(is_runtime(ty), "{ty}");
    }
    for ty in
        ["node", "system", "error", "nodes.down", "order.errors", "xerror", "order.node.x", "", "error.x"]
    {
        assert!(!is_runtime(ty), "{ty}");
        assert!(!Pattern::runtime(|_| true).matches_runtime(ty), "{ty}");
    }
}

#[test]
fn runtime_events_reach_only_patterns_that_name_them() {
    // Patterns, what reaches them, and what matches without reaching them.
    let table: Vec<(Pattern, &[&str], &[&str])> = vec![
        (parse("node.down"), &["node.down"], &[]),
        (exact("node.down"), &["node.down"], &[]),
        (parse("node.*"), &["node.down", "node.error"], &[]),
        (parse("nod{e,x}.*"), &["node.down"], &[]),
        (parse("system.**"), &["system.a.b"], &[]),
        (domain("system"), &["system.a.b"], &[]),
        (domain("node.a"), &["node.a.b", "node.a.error"], &[]),
        (parse("*.error"), &["order.error", "node.error"], &[]),
        (parse("order.*.error"), &["order.a.error"], &[]),
        (parse("**.error"), &["order.a.error", "system.x.error"], &[]),
        (parse("order.{error,done}"), &["order.error"], &[]),
        (parse("*"), &[], &[]),
        (parse("**"), &[], &["node.down", "order.error"]),
        (parse("*.*"), &[], &["node.down", "system.down", "order.error"]),
        (parse("order.**"), &[], &["order.error", "order.a.error"]),
        (domain("order"), &[], &["order.error"]),
        (parse("*.down"), &[], &["node.down"]),
        (parse("{node.down,**}"), &["node.down"], &["node.slow"]),
        (any(), &[], &["node.down", "order.error"]),
        (not(exact("x")), &[], &["node.down", "order.error"]),
        (not(not(exact("node.down"))), &[], &["node.down"]),
        (predicate(|_| true), &[], &["node.down", "order.error"]),
        (Pattern::runtime(|ty| ty != "node.slow"), &["node.down", "order.error"], &[]),
        (one_of([exact("node.down"), any()]), &["node.down"], &["node.slow", "order.error"]),
        (domain("node").and(not(exact("node.slow"))), &["node.down"], &[]),
        (domain("node").and(predicate(|ty| ty.ends_with("n"))), &["node.down"], &[]),
        (any().and(predicate(|_| true)), &[], &["node.down"]),
        (all_of([one_of([exact("node.down"), any()]), any()]), &["node.down"], &["node.slow"]),
        (all_of([]), &[], &["node.down"]),
    ];
    for (pattern, reaching, kept_away) in table {
        for ty in reaching {
            assert!(pattern.matches_runtime(ty), "{pattern} should hear {ty}");
            assert!(pattern.names(ty), "{pattern} should name {ty}");
            assert!(pattern.names_runtime(), "{pattern}");
            assert!(pattern.matches(ty), "{pattern} should match {ty}");
        }
        for ty in kept_away {
            assert!(!pattern.matches_runtime(ty), "{pattern} should not hear {ty}");
            assert!(pattern.matches(ty), "{pattern} should match {ty}");
            assert!(pattern.explain(ty).to_string().contains("the runtime's own"), "{pattern} on {ty}");
        }
        assert!(!pattern.matches_runtime("order.created"));
    }
    assert!(!parse("node").names_runtime());
    assert!(!exact("error").names_runtime());
    assert!(!domain("order.error").names_runtime());
    assert!(!parse("node.slow").matches_runtime("node.down"));
    assert!(parse("node.slow").names("node.down"));
    assert!(!parse("node.slow").names("order.error"));
    assert!(!parse("order.created").names("order.created"));
}

#[test]
fn literals_and_first_segments_are_told() {
    use FirstSegment::{Any, Literal, OneOf};
    let table = [
        (parse("a.b"), Some("a.b"), Literal("a")),
        (exact("a"), Some("a"), Literal("a")),
        (exact(""), Some(""), Literal("")),
        (exact("*"), Some("*"), Literal("*")),
        (parse("{a}.b"), Some("a.b"), Literal("a")),
        (one_of([exact("a.b")]), Some("a.b"), Literal("a")),
        (parse("a.*"), None, Literal("a")),
        (parse("a-{b,c}.*"), None, OneOf(vec!["a-b", "a-c"])),
        (parse("{a.b,a.c}"), None, Literal("a")),
        (parse("{a,*}.b"), None, Any),
        (parse("**.b"), None, Any),
        (domain("a.b"), None, Literal("a")),
        (one_of([domain("b"), exact("a.x"), domain("b")]), None, OneOf(vec!["a", "b"])),
        (one_of([domain("b"), any()]), None, Any),
        (one_of([]), None, OneOf(vec![])),
        (all_of([any(), parse("{a,b}.*"), parse("{b,c}.*")]), None, Literal("b")),
        (all_of([domain("a"), domain("b")]), None, OneOf(vec![])),
        (all_of([]), None, Any),
        (not(domain("a")), None, Any),
        (any(), None, Any),
        (predicate(|_| true), None, Any),
    ];
    for (pattern, literal, first) in table {
        assert_eq!(pattern.is_literal(), literal, "{pattern}");
        assert_eq!(pattern.first_segment(), first, "{pattern}");
    }
}

#[test]
fn empty_combinators() {
    assert!(!one_of([]).matches("a"));
    assert!(all_of([]).matches("a"));
    assert!(!Domain::new("a").one_of([]).matches("a.b"));
}

#[test]
fn display_shows_how_a_pattern_was_built() {
    let pattern = all_of([
        parse("order.*"),
        not(exact("order.test").or(domain("x"))),
        any(),
        predicate(|_| true),
        Pattern::runtime(|_| true),
    ]);
    let text =
        "all_of(order.*, not(one_of(exact(order.test), domain(x))), any(), predicate(..), runtime(..))";
    assert_eq!(pattern.to_string(), text);
    assert_eq!(format!("{pattern:?}"), format!("Pattern({text})"));
}

#[test]
fn domains_build_patterns() {
    let order = Domain::new("order");
    assert_eq!(order.name(), "order");
    assert_eq!(order.event("submitted").is_literal(), Some("order.submitted"));
    assert!(order.all().matches("order.a.b"));
    assert!(!order.all().matches("order"));
    let some = order.one_of(["a", "b"]);
    assert!(some.matches("order.a"));
    assert!(!some.matches("order.c"));
}

#[test]
fn aliases_stand_for_whole_patterns() {
    let mut aliases = Aliases::new();
    aliases.define("orders", "order.*").unwrap();
    aliases.define("done", |ty: &str| ty.ends_with(".done")).unwrap();
    assert!(aliases.parse("@orders").unwrap().matches("order.a"));
    assert!(aliases.parse("@done").unwrap().matches("a.done"));
    assert!(aliases.parse("x.*").unwrap().matches("x.y"));
    assert_eq!(aliases.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["done", "orders"]);

    let unknown = aliases.parse("@order").unwrap_err();
    assert_eq!(unknown.to_string(), "bad pattern `@order` at byte 1: no alias has this name");
    assert_eq!(aliases.parse("@").unwrap_err().kind(), Kind::UnknownAlias);
    let twice = aliases.define("orders", "x").unwrap_err();
    assert_eq!(twice.kind(), Kind::DuplicateAlias);
    assert!(aliases.parse("@orders").unwrap().matches("order.a"));
    assert_eq!(aliases.define("new", "a..b").unwrap_err().kind(), Kind::EmptySegment);
    for name in ["", "@a", "a b", "a*", &"a".repeat(PATTERN_BYTES_MAX)] {
        assert_eq!(aliases.define(name, "a").unwrap_err().kind(), Kind::BadAliasName, "{name}");
    }
    assert!(aliases.define(&"a".repeat(PATTERN_BYTES_MAX - 1), "a").is_ok());
}

#[test]
fn aliases_have_a_limit() {
    let mut aliases = Aliases::new();
    for index in 0..ALIASES_LEN_MAX {
        aliases.define(&index.to_string(), "a").unwrap();
    }
    assert_eq!(aliases.define("more", "a").unwrap_err().kind(), Kind::TooManyAliases);
    assert_eq!(aliases.iter().len(), ALIASES_LEN_MAX);
}

#[test]
fn anything_that_means_a_pattern_is_taken() {
    fn take<M>(pattern: impl IntoPattern<M>) -> Pattern {
        pattern.into_pattern().unwrap()
    }
    let prefix = String::from("order");
    let text = String::from("order.*");
    let shared = domain("order");
    for pattern in [
        take("order.*"),
        take(&text),
        take(text.clone()),
        take(domain("order")),
        take(&shared),
        take(wildcard("order.*")),
        take(|ty: &str| ty.ends_with(".done")),
        take(move |ty: &str| ty.starts_with(&prefix)),
    ] {
        assert!(pattern.matches("order.done"), "{pattern}");
    }
    fn named(ty: &str) -> bool {
        ty.is_empty()
    }
    assert!(take(named).matches(""));
    assert!("a..b".into_pattern().is_err());
    assert!(wildcard("a..b").into_pattern().is_err());
}

#[test]
fn explanations_say_where_and_why() {
    let table = [
        ("order.*", "order.a", "yes  order.*"),
        ("order.*", "order", "no   order.*: the type ends after segment 1, `*` is missing"),
        ("order.*", "order.a.b", "no   order.*: segment 3 `b` is one too many"),
        ("order.*", "user.a", "no   order.*: segment 1 is `user`, not `order`"),
        ("a.b.c", "a.b.d", "no   a.b.c: segment 3 is `d`, not `c`"),
        ("a.b.c", "a.b", "no   a.b.c: the type ends after segment 2, `c` is missing"),
        ("a.*", "a..b", "no   a.*: segment 2 is empty"),
        ("a.*", "", "no   a.*: segment 1 is empty"),
        ("**.x", "a.b.c", "no   **.x: the type ends after segment 3, `x` is missing"),
    ];
    for (text, ty, expected) in table {
        assert_eq!(parse(text).explain(ty).to_string(), format!("type `{ty}`\n{expected}"));
    }
    assert_eq!(
        parse("{a,b}.*").explain("c.d").to_string(),
        "type `c.d`\nno   {a,b}.*: no alternative matches\n  no   a.*: segment 1 is `c`, not `a`\n  \
         no   b.*: segment 1 is `c`, not `b`"
    );
    assert_eq!(
        domain("a").or(predicate(|_| false)).explain("a").to_string(),
        "type `a`\nno   one_of: no branch matches\n  \
         no   domain(a): the type ends after segment 1, `**` is missing\n  \
         no   predicate(..): the function says false"
    );
    assert_eq!(
        parse("*.*").explain("node.down").to_string(),
        "type `node.down`\nyes  *.*\nbut the type is the runtime's own and reaches only patterns that name it"
    );
    assert!(!exact("a\nb").explain("x\ny").to_string().contains("x\ny"));
}

#[cfg(feature = "regex")]
mod regular {
    use super::*;
    use crate::pattern::regex;

    #[test]
    fn the_whole_type_has_to_match() {
        let pattern = regex("a|ab").unwrap();
        assert!(pattern.matches("ab"));
        assert!(!pattern.matches("abc"));
        assert!(!pattern.matches("ab\n"));
        assert!(!regex("(?m)^a$").unwrap().matches("a\nb"));
        assert_eq!(pattern.to_string(), "regex(a|ab)");
        assert_eq!(pattern.first_segment(), FirstSegment::Any);
        assert_eq!(pattern.is_literal(), None);
    }

    #[test]
    fn groups_are_captures() {
        let pattern = regex(r"(a)|(?<rest>b.*)").unwrap();
        let captures = pattern.captures("bé").unwrap();
        assert_eq!(captures.iter().collect::<Vec<_>>(), [None, Some("bé")]);
        assert!(pattern.captures("c").is_none());
    }

    #[test]
    fn a_comment_at_the_end_does_no_harm() {
        let pattern = regex("(?x) order [.] .+ # all orders").unwrap();
        assert!(pattern.matches("order.a"));
        assert!(!pattern.matches("xorder.a"));
    }

    #[test]
    fn runtime_events_need_a_name_beside_it() {
        let pattern = regex("node[.].*").unwrap();
        assert!(pattern.matches("node.down"));
        assert!(!pattern.names_runtime());
        assert!(!pattern.matches_runtime("node.down"));
        assert!(domain("node").and(pattern).matches_runtime("node.down"));
    }

    #[test]
    fn mistakes_are_placed() {
        let error = regex("é(a").unwrap_err();
        assert_eq!(error.to_string(), "bad pattern `é(a` at byte 2: not a regular expression");
        assert!(error.source().unwrap().to_string().contains("unclosed group"));
        assert_eq!(regex("a)|(b").unwrap_err().position(), 1);
        assert_eq!(regex("a\n(").unwrap_err().kind(), Kind::BadRegex);
        assert_eq!(regex("").unwrap_err().kind(), Kind::EmptyPattern);
    }

    #[test]
    fn size_has_limits() {
        for len in [PATTERN_BYTES_MAX - 1, PATTERN_BYTES_MAX] {
            assert!(regex(&"a".repeat(len)).is_ok());
        }
        assert_eq!(regex(&"a".repeat(PATTERN_BYTES_MAX + 1)).unwrap_err().kind(), Kind::TooLong);
        assert!(regex(r"\w{2}").is_ok());
        assert_eq!(regex(r"\w{1000}").unwrap_err().kind(), Kind::RegexTooLarge);
    }
}

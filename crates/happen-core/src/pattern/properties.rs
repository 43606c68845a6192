//! Owns the comparison of patterns with a second matcher that works on text alone and is slow and obvious.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::limits::PATTERN_ALTERNATIVES_MAX;
use super::{FirstSegment, Pattern, all_of, domain, exact, is_runtime, not, one_of, predicate};

/// Replaces the first pair of braces by each of its alternatives, then the rest of each.
fn expanded(text: &str) -> Vec<String> {
    let Some(open) = text.find('{') else { return vec![text.to_owned()] };
    let (mut depth, mut from, mut options) = (0, open + 1, Vec::new());
    for (at, character) in text.char_indices().skip_while(|(at, _)| *at < open) {
        match character {
            '{' => depth += 1,
            ',' if depth == 1 => {
                options.push(&text[from..at]);
                from = at + 1;
            }
            '}' if depth == 1 => {
                options.push(&text[from..at]);
                let (head, tail) = (&text[..open], &text[at + 1..]);
                return options
                    .iter()
                    .flat_map(|option| expanded(&format!("{head}{option}{tail}")))
                    .collect();
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    unreachable!("generated braces are paired");
}

/// Tries every split.
fn naive(pattern: &[&str], ty: &[&str]) -> bool {
    match (pattern, ty) {
        ([], []) => true,
        (["**", rest @ ..], [first, more @ ..]) => {
            !first.is_empty() && (naive(rest, more) || naive(pattern, more))
        }
        (["*", rest @ ..], [first, more @ ..]) => !first.is_empty() && naive(rest, more),
        ([literal, rest @ ..], [first, more @ ..]) => literal == first && naive(rest, more),
        _ => false,
    }
}

fn naive_matches(pattern: &str, ty: &str) -> bool {
    let ty: Vec<&str> = ty.split('.').collect();
    expanded(pattern).iter().any(|one| naive(&one.split('.').collect::<Vec<_>>(), &ty))
}

fn naive_reaches(pattern: &str, ty: &str) -> bool {
    let names = |one: &String| {
        let segments: Vec<&str> = one.split('.').collect();
        let (first, last) = (segments[0], segments[segments.len() - 1]);
        (first == "node" && ty.starts_with("node."))
            || (first == "system" && ty.starts_with("system."))
            || (last == "error" && ty.ends_with(".error"))
    };
    is_runtime(ty) && expanded(pattern).iter().filter(|one| names(one)).any(|one| naive_matches(one, ty))
}

/// Few words, so that patterns and types meet often.
fn word() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "ab", "a-b", "é", "東京", "node", "system", "error"])
}

fn segments() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        4 => word().prop_map(str::to_owned),
        2 => Just("*".to_owned()),
        2 => Just("**".to_owned()),
        1 => (word(), word(), word()).prop_map(|(head, one, two)| format!("{head}{{{one},{two}}}")),
    ];
    vec(segment, 1..4).prop_map(|segments| segments.join("."))
}

fn pattern_text() -> impl Strategy<Value = String> {
    let leaf = segments();
    let nested = leaf.prop_recursive(2, 12, 3, |inner| {
        let braces = vec(inner.clone(), 1..4).prop_map(|options| format!("{{{}}}", options.join(",")));
        vec(prop_oneof![braces, inner], 1..3).prop_map(|parts| parts.join("."))
    });
    nested.prop_filter("few enough alternatives", |text| expanded(text).len() <= PATTERN_ALTERNATIVES_MAX)
}

fn ty() -> impl Strategy<Value = String> {
    prop_oneof![
        9 => vec(word(), 1..6).prop_map(|words| words.join(".")),
        1 => vec(prop_oneof![word(), Just("")], 0..5).prop_map(|words| words.join(".")),
    ]
}

/// A type made from one alternative of the pattern by filling in its wildcards; most of the time it matches.
fn pattern_and_type() -> impl Strategy<Value = (String, String)> {
    let near = (pattern_text(), any::<prop::sample::Index>(), vec(word(), 24), any::<bool>());
    let near = near.prop_map(|(text, pick, fill, spoil)| {
        let mut fill = fill.into_iter();
        let mut next = || fill.next().unwrap_or("a");
        let all = expanded(&text);
        let one = &all[pick.index(all.len())];
        let filled = one.split('.').map(|segment| match segment {
            "*" => next().to_owned(),
            "**" => match next() {
                "a" => "a".to_owned(),
                word => format!("{word}.{}", next()),
            },
            literal => literal.to_owned(),
        });
        let mut ty = filled.collect::<Vec<_>>().join(".");
        if spoil && ty.len().is_multiple_of(3) {
            ty.push_str(".b");
        }
        (text, ty)
    });
    prop_oneof![3 => near, 1 => (pattern_text(), ty())]
}

/// A combination of patterns together with what it should answer, as a function of the type.
#[derive(Debug, Clone)]
enum Tree {
    Text(String),
    Exact(String),
    Domain(String),
    Any,
    Even,
    OneOf(Vec<Tree>),
    AllOf(Vec<Tree>),
    Not(Box<Tree>),
}

impl Tree {
    fn pattern(&self) -> Pattern {
        match self {
            Self::Text(text) => Pattern::parse(text).unwrap(),
            Self::Exact(text) => exact(text),
            Self::Domain(text) => domain(text),
            Self::Any => super::any(),
            Self::Even => predicate(|ty| ty.len().is_multiple_of(2)),
            Self::OneOf(parts) => one_of(parts.iter().map(Self::pattern)),
            Self::AllOf(parts) => all_of(parts.iter().map(Self::pattern)),
            Self::Not(inner) => not(inner.pattern()),
        }
    }

    fn matches(&self, ty: &str) -> bool {
        match self {
            Self::Text(text) => naive_matches(text, ty),
            Self::Exact(text) => text == ty,
            Self::Domain(text) => naive_matches(&format!("{text}.**"), ty),
            Self::Any => true,
            Self::Even => ty.len().is_multiple_of(2),
            Self::OneOf(parts) => parts.iter().any(|part| part.matches(ty)),
            Self::AllOf(parts) => parts.iter().all(|part| part.matches(ty)),
            Self::Not(inner) => !inner.matches(ty),
        }
    }

    fn reaches(&self, ty: &str) -> bool {
        match self {
            Self::Text(text) | Self::Exact(text) => naive_reaches(text, ty),
            Self::Domain(text) => naive_reaches(&format!("{text}.**"), ty),
            Self::Any | Self::Even | Self::Not(_) => false,
            Self::OneOf(parts) => parts.iter().any(|part| part.reaches(ty)),
            Self::AllOf(parts) => self.matches(ty) && parts.iter().any(|part| part.reaches(ty)),
        }
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let words = || vec(word(), 1..3).prop_map(|words| words.join("."));
    let leaf = prop_oneof![
        3 => segments().prop_map(Tree::Text),
        2 => words().prop_map(Tree::Exact),
        2 => words().prop_map(Tree::Domain),
        1 => Just(Tree::Any),
        1 => Just(Tree::Even),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Tree::OneOf),
            vec(inner.clone(), 0..4).prop_map(Tree::AllOf),
            inner.prop_map(|inner| Tree::Not(Box::new(inner))),
        ]
    })
}

fn allows(first: &FirstSegment<'_>, ty: &str) -> bool {
    let segment = ty.split('.').next().unwrap_or_default();
    match first {
        FirstSegment::Literal(only) => *only == segment,
        FirstSegment::OneOf(some) => some.contains(&segment),
        FirstSegment::Any => true,
    }
}

/// What holds for every pattern and every type.
fn consistent(pattern: &Pattern, ty: &str) -> Result<(), TestCaseError> {
    let matched = pattern.matches(ty);
    prop_assert_eq!(pattern.captures(ty).is_some(), matched);
    prop_assert_eq!(pattern.explain(ty).matched(), matched);
    prop_assert!(!pattern.explain(ty).to_string().is_empty());
    prop_assert!(!matched || allows(&pattern.first_segment(), ty), "{} starts too narrow", pattern);
    if let Some(literal) = pattern.is_literal() {
        prop_assert_eq!(matched, literal == ty);
    }
    let reached = pattern.matches_runtime(ty);
    prop_assert!(!reached || (matched && pattern.names(ty) && pattern.names_runtime()));
    prop_assert!(!reached || is_runtime(ty));
    Ok(())
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn text_agrees_with_the_naive_matcher((text, ty) in pattern_and_type()) {
        let pattern = Pattern::parse(&text).unwrap();
        prop_assert_eq!(pattern.matches(&ty), naive_matches(&text, &ty));
        prop_assert_eq!(pattern.matches_runtime(&ty), naive_reaches(&text, &ty));
        prop_assert_eq!(pattern.to_string(), text);
        consistent(&pattern, &ty)?;
    }

    #[test]
    fn combinators_agree_with_the_naive_matcher(tree in tree(), ty in ty()) {
        let pattern = tree.pattern();
        prop_assert_eq!(pattern.matches(&ty), tree.matches(&ty));
        prop_assert_eq!(pattern.matches_runtime(&ty), tree.reaches(&ty));
        consistent(&pattern, &ty)?;
    }

    #[test]
    fn captures_put_back_into_the_text_give_the_type((text, ty) in pattern_and_type()) {
        let pattern = Pattern::parse(&text).unwrap();
        if let Some(captures) = pattern.captures(&ty) && !text.contains('{') {
            let mut groups = captures.iter();
            let filled: Vec<&str> = text
                .split('.')
                .map(|segment| match segment {
                    "*" | "**" => groups.next().unwrap().unwrap(),
                    literal => literal,
                })
                .collect();
            prop_assert_eq!(filled.join("."), ty.as_str());
            prop_assert!(groups.next().is_none());
        }
    }

    #[test]
    fn parsing_never_panics(text in any::<String>(), ty in any::<String>()) {
        if let Ok(pattern) = Pattern::parse(&text) {
            consistent(&pattern, &ty)?;
        }
    }

    #[test]
    fn parsing_marks_alone_never_panics(text in "[ab.*{},é]{0,12}", ty in "[ab.é]{0,6}") {
        match Pattern::parse(&text) {
            Ok(pattern) => {
                prop_assert_eq!(pattern.matches(&ty), naive_matches(&text, &ty));
                consistent(&pattern, &ty)?;
            }
            Err(error) => prop_assert!(text.is_char_boundary(error.position())),
        }
    }

    #[cfg(feature = "regex")]
    #[test]
    fn regular_expressions_never_panic(text in any::<String>(), ty in any::<String>()) {
        if let Ok(pattern) = super::regex(&text) {
            consistent(&pattern, &ty)?;
        }
    }
}

#[test]
fn generated_pairs_match_often() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let matches = (0..400).filter(|_| {
        let (text, ty) = pattern_and_type().new_tree(&mut runner).unwrap().current();
        naive_matches(&text, &ty)
    });
    let matches = matches.count();
    assert!((100..390).contains(&matches), "{matches} of 400 match, which tests little");
}

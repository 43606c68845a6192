//! Helps tests to read what a derive expands to: its mistakes with the source they point at, and its code. Not part of
//! the derives.

use proc_macro2::{Span, TokenStream, TokenTree};

/// A derive as a function.
type Derive = fn(TokenStream) -> TokenStream;

/// Asserts that the source expands to this code, and without a mistake.
#[track_caller]
pub(crate) fn assert_code(derive: Derive, source: &str, code: &str) {
    assert_eq!(normalised(derive(tokens(source))), normalised(tokens(code)), "{source}");
}

/// Asserts that the source expands to no `impl`, and to this mistake.
#[track_caller]
pub(crate) fn assert_refused(derive: Derive, source: &str, at: &str, message: &str) {
    assert_eq!(pointed(derive, source), [(at.to_owned(), message.to_owned())], "{source}");
    assert!(!implements(derive, source), "{source}");
}

/// Asserts that the source has these mistakes, each as what it points at and its message, and expands to an `impl` all
/// the same.
#[track_caller]
pub(crate) fn assert_mistakes(derive: Derive, source: &str, mistakes: &[(&str, &str)]) {
    let found = pointed(derive, source);
    let found: Vec<_> = found.iter().map(|(at, message)| (at.as_str(), message.as_str())).collect();
    assert_eq!(found, mistakes, "{source}");
    assert!(implements(derive, source), "{source}");
}

/// The mistakes, each as what it points at and its message.
fn pointed(derive: Derive, source: &str) -> Vec<(String, String)> {
    let code: Vec<_> = derive(tokens(source)).into_iter().collect();
    let mistake_at =
        |index: &usize| matches!(&code[*index], TokenTree::Ident(word) if word == "compile_error");
    let mistakes = (0..code.len()).filter(mistake_at);
    mistakes.map(|index| mistake(code[index].span(), &code[index + 2])).collect()
}

/// Reads `{ "message" }`, which has the last place an error covers, as the macro's name has the first.
fn mistake(first: Span, body: &TokenTree) -> (String, String) {
    let TokenTree::Group(body) = body else { panic!("`compile_error!` takes its message in brackets") };
    let at = first.join(body.span()).and_then(|span| span.source_text()).unwrap_or_default();
    let message: syn::LitStr = syn::parse2(body.stream()).unwrap();
    (at, message.value())
}

fn implements(derive: Derive, source: &str) -> bool {
    derive(tokens(source)).into_iter().any(|token| matches!(token, TokenTree::Ident(word) if word == "impl"))
}

/// The tokens one by one: the text of a whole stream depends on which of them were written without a space.
fn normalised(code: TokenStream) -> String {
    let words = code.into_iter().map(|token| match token {
        TokenTree::Group(group) => format!("{:?}({})", group.delimiter(), normalised(group.stream())),
        token => token.to_string(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn tokens(source: &str) -> TokenStream {
    source.parse().unwrap()
}

//! Expands `#[derive(Event)]`. Owns the shape of the `impl` and which types may have one.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Generics, Path, Result, parse_quote};

use crate::options::{Kind, options};

/// The `impl` of `Payload` for a type, after the errors in its attribute if there are any.
pub(crate) fn event(input: TokenStream) -> TokenStream {
    let input = match syn::parse2(input).and_then(carries) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let (options, mistakes) = options(Kind::Event, &input);
    let mistakes = mistakes.into_code();
    let (happen, name, ident) = (&options.happen, &options.name, &input.ident);
    let generics = bounded(input.generics, happen);
    let (parameters, arguments, bounds) = generics.split_for_impl();
    quote! {
        #mistakes
        #[automatically_derived]
        impl #parameters #happen::Payload for #ident #arguments #bounds {
            const TYPE: &'static #happen::TypeName = &#happen::TypeName::new(#name);
        }
    }
}

/// The type, when an event can carry it.
fn carries(input: DeriveInput) -> Result<DeriveInput> {
    if let Data::Union(data) = &input.data {
        let message = "an event is a struct or an enum: a union does not know which of its fields to encode";
        return Err(Error::new(data.union_token.span, message));
    }
    if let Some(parameter) = input.generics.lifetimes().next() {
        let message = format!(
            "an event owns its data, because it outlives the code that sends it: remove `{}` from `{}`, \
             with `String` for a `&str` and `Vec<T>` for a `&[T]`",
            parameter.lifetime, input.ident
        );
        return Err(Error::new_spanned(&parameter.lifetime, message));
    }
    Ok(input)
}

/// The generics with each type a payload: what `Payload` asks of the whole (to be cloned, encoded, sent to another
/// thread) a derive of serde or the compiler gives only when the parts have it.
fn bounded(mut generics: Generics, happen: &Path) -> Generics {
    let types: Vec<_> = generics.type_params().map(|parameter| parameter.ident.clone()).collect();
    if types.is_empty() {
        return generics;
    }
    let bounds = generics.make_where_clause();
    for ident in types {
        bounds.predicates.push(parse_quote!(#ident: #happen::Payload));
    }
    generics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expansion::{assert_code, assert_mistakes, assert_refused};

    fn payload(ident: &str, name: &str) -> String {
        format!(
            "#[automatically_derived] impl ::happen::Payload for {ident} {{
                const TYPE: &'static ::happen::TypeName = &::happen::TypeName::new({name:?});
            }}"
        )
    }

    #[test]
    fn structs_and_enums() {
        for source in [
            "#[event(\"create-order\")] struct X { customer: String }",
            "#[event(\"create-order\")] struct X(u32, String);",
            "#[event(\"create-order\",)] struct X;",
            "#[event[\"create-order\"]] enum X { A, B(u32), C { d: u8 } }",
            "#[doc = \"text\"] #[event(\"create-order\")] #[state(\"x\")] pub enum X {}",
        ] {
            assert_code(event, source, &payload("X", "create-order"));
        }
    }

    #[test]
    fn named_after_the_type() {
        assert_code(event, "struct OrderPlaced;", &payload("OrderPlaced", "order-placed"));
        assert_code(event, "struct HTTPError;", &payload("HTTPError", "http-error"));
        assert_code(event, "struct r#struct;", &payload("r#struct", "struct"));
    }

    #[test]
    fn each_type_parameter_is_a_payload() {
        let source = "#[event(\"pair\", crate = my::happen)]
            struct Pair<A, B: Copy = u8, const N: usize = 3> where A: Ord { a: A, b: [B; N] }";
        let code = "#[automatically_derived]
            impl<A, B: Copy, const N: usize> my::happen::Payload for Pair<A, B, N>
            where A: Ord, A: my::happen::Payload, B: my::happen::Payload {
                const TYPE: &'static my::happen::TypeName = &my::happen::TypeName::new(\"pair\");
            }";
        assert_code(event, source, code);
        let code = "#[automatically_derived] impl<const N: usize> ::happen::Payload for Bytes<N> {
                const TYPE: &'static ::happen::TypeName = &::happen::TypeName::new(\"bytes\");
            }";
        assert_code(event, "struct Bytes<const N: usize>([u8; N]);", code);
    }

    #[test]
    fn crate_paths() {
        for path in
            ["crate", "crate::happen", "self::happen", "super::super::happen", "::my::happen", "happen"]
        {
            let code = payload("X", "x").replace("::happen::", &format!("{path}::"));
            assert_code(event, &format!("#[event(crate = {path})] struct X;"), &code);
            assert_code(event, &format!("#[event(\"x\", crate = {path})] struct X;"), &code);
        }
    }

    #[test]
    fn unions_and_lifetimes_have_no_code() {
        let union = "an event is a struct or an enum: a union does not know which of its fields to encode";
        assert_refused(event, "union X { a: u8 }", "union", union);
        let lifetime = "an event owns its data, because it outlives the code that sends it: remove `'a` from `X`, \
             with `String` for a `&str` and `Vec<T>` for a `&[T]`";
        assert_refused(event, "#[event(\"x\")] struct X<'a, T>(&'a T);", "'a", lifetime);
    }

    #[test]
    fn illegal_names() {
        let long = format!("\"{}\"", "x".repeat(201));
        let cases = [
            ("\"\"", "is not empty: write `\"order-placed\"`"),
            ("\"create order\"", "has no white space: write `\"create-order\"`"),
            ("\"order\\n\"", "has no white space: write `\"order\"`"),
            ("\"order\\u{7}x\"", "has no control characters: write `\"order-x\"`"),
            ("\"order..created\"", "has no empty segment beside a dot: write `\"order.created\"`"),
            ("r\"order.*\"", "has no `*`, which belongs to patterns: write `\"order\"`"),
            (&long, "has at most 200 bytes and this one has 201: write `\"order-placed\"`"),
        ];
        for (literal, message) in cases {
            let source = format!("#[event({literal}, crate = my)] struct OrderPlaced;");
            assert_mistakes(event, &source, &[(literal, &format!("an event type {message}"))]);
            assert!(event(source.parse().unwrap()).to_string().contains("my :: Payload"));
        }
    }

    #[test]
    fn a_type_that_cannot_be_named_after_itself() {
        let message = "an event type is not empty, so `__` cannot be named after itself: \
             name it, as in `#[event(\"order-placed\")]`";
        assert_mistakes(event, "struct __;", &[("__", message)]);
        assert_code(event, "#[event(\"x\")] struct __;", &payload("__", "x"));
        let long = "X".repeat(201);
        let message = format!(
            "an event type has at most 200 bytes and this one has 201, so `{long}` cannot be named after itself: \
             name it, as in `#[event(\"order-placed\")]`"
        );
        assert_mistakes(event, &format!("struct {long};"), &[(&long, &message)]);
    }

    #[test]
    fn mistakes_in_the_attribute() {
        let nothing = "this says nothing: write `#[event(\"order-placed\")]`, \
             or remove it to name the type after itself";
        let quotes = "an event type is a text in quotes: write `\"order-placed\"`";
        let created = "an event type is a text in quotes: write `\"order.re-created\"`";
        let cases: &[(&str, &str, &str)] = &[
            ("#[event]", "#[event]", nothing),
            ("#[event()]", "#[event()]", nothing),
            (
                "#[event = \"a b\"]",
                "event = \"a b\"",
                "the name stands in parentheses: write `#[event(\"a-b\")]`",
            ),
            ("#[event(order.re-created)]", "order.re-created", created),
            ("#[event(42)]", "42", quotes),
            ("#[event(b\"x\")]", "b\"x\"", quotes),
            ("#[event(*)]", "*", quotes),
            ("#[event(\"a\", \"b\")]", "\"b\"", "an event type is given once: keep `\"a\"` or this"),
            ("#[event(\"a\" crate = b)]", "crate", "a comma is missing before this"),
            (
                "#[event(name = \"a b\")]",
                "name",
                "an event type has no key: write `\"a-b\"` without `name =`",
            ),
            (
                "#[event(type = 1)]",
                "type",
                "an event type has no key: write `\"order-placed\"` without `type =`",
            ),
            (
                "#[event(\"a\", version = 1)]",
                "version",
                "`#[event]` has no key `version`: beside the name it takes `crate = path`",
            ),
            ("#[event(crate)]", "crate", "`crate` takes a path: write `crate = my::happen`"),
            ("#[event(crate = a, crate = b)]", "crate", "`crate` is given once: remove one of them"),
            ("#[event(crate = \"a::b\")]", "\"a::b\"", "the path has no quotes: write `crate = a::b`"),
            ("#[event(crate = \"%\")]", "\"%\"", "the path has no quotes: write `crate = my::happen`"),
            (
                "#[event(\"a\")] #[event(crate = b)]",
                "#[event(crate = b)]",
                "`#[event]` is given once: move what this one says into the first and remove it",
            ),
        ];
        for (attribute, at, message) in cases {
            assert_mistakes(event, &format!("{attribute} struct OrderPlaced;"), &[(at, message)]);
        }
    }

    #[test]
    fn mistakes_of_what_is_not_there() {
        let comma = "there is nothing before this comma: remove it";
        let path = "`crate` takes a path: write `crate = my::happen`";
        assert_mistakes(event, "#[event(, \"a\")] struct X;", &[(",", comma)]);
        assert_mistakes(event, "#[event(\"a\",,)] struct X;", &[(",", comma)]);
        assert_mistakes(event, "#[event(crate = , \"a\")] struct X;", &[("crate", path)]);
        assert_mistakes(event, "#[event(crate = )] struct X;", &[("crate", path)]);
    }

    #[test]
    fn every_mistake_is_reported_and_the_rest_is_kept() {
        let source = "#[event(\"a b\", color = { 1, 2 }, crate = my)] struct X;";
        let mistakes = [
            ("\"a b\"", "an event type has no white space: write `\"a-b\"`"),
            ("color", "`#[event]` has no key `color`: beside the name it takes `crate = path`"),
        ];
        assert_mistakes(event, source, &mistakes);
        assert!(event(source.parse().unwrap()).to_string().contains("impl my :: Payload for X"));
    }

    #[test]
    fn attributes_on_parts() {
        let message = "`#[event]` names a whole type: move it above the struct or enum, or remove it";
        for source in [
            "struct X { #[event(\"a\")] a: u8 }",
            "struct X(#[event(\"a\")] u8);",
            "enum X { #[event(\"a\")] A }",
            "enum X { A { #[event(\"a\")] a: u8 } }",
        ] {
            assert_mistakes(event, source, &[("#[event(\"a\")]", message)]);
        }
        assert_code(event, "struct X { #[serde(default)] a: u8 }", &payload("X", "x"));
    }
}

//! Expands `#[derive(State)]`. Owns the shape of the `impl` and which types may have one.

use proc_macro2::{Literal, TokenStream};
use quote::quote;
use syn::{Data, DeriveInput, Error, GenericParam, Result};

use crate::options::{Kind, options};

/// The `impl` of `State` for a type, after the errors in its attribute if there are any.
pub(crate) fn state(input: TokenStream) -> TokenStream {
    let input = match syn::parse2(input).and_then(keeps) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let (options, mistakes) = options(Kind::State, &input);
    let mistakes = mistakes.into_code();
    let (happen, name, ident) = (&options.happen, &options.name, &input.ident);
    let version = Literal::u32_unsuffixed(options.version);
    let migrate = options.migrate.map(|function| {
        quote! {
            fn migrate(old: &#happen::OldState<'_>) -> #happen::Result<Self> {
                #function(old)
            }
        }
    });
    quote! {
        #mistakes
        #[automatically_derived]
        impl #happen::State for #ident {
            const NAME: &'static str = #name;
            const VERSION: u32 = #version;
            #migrate
        }
    }
}

/// The type, when a node can keep it.
fn keeps(input: DeriveInput) -> Result<DeriveInput> {
    if let Data::Union(data) = &input.data {
        let message = "a state is a struct or an enum: a union does not know which of its fields to encode";
        return Err(Error::new(data.union_token.span, message));
    }
    match input.generics.params.first() {
        None => Ok(input),
        Some(GenericParam::Lifetime(parameter)) => {
            let message = format!(
                "a state owns its data, because it outlives the code that sets it: remove `{}` from `{}`, \
                 with `String` for a `&str` and `Vec<T>` for a `&[T]`",
                parameter.lifetime, input.ident
            );
            Err(Error::new_spanned(&parameter.lifetime, message))
        }
        Some(GenericParam::Type(parameter)) => Err(several_shapes(&input, &parameter.ident)),
        Some(GenericParam::Const(parameter)) => Err(several_shapes(&input, &parameter.ident)),
    }
}

/// Not accepted with bounds, as generic events are: an event of another shape is a message that fails to decode, a
/// stored document of another shape is data that a node can no longer read.
fn several_shapes(input: &DeriveInput, parameter: &syn::Ident) -> Error {
    let message = format!(
        "a state has one shape under one name, and `{}` has another for each `{parameter}`: \
         put a type in its place, or implement `State` by hand with a name for each",
        input.ident
    );
    Error::new_spanned(parameter, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expansion::{assert_code, assert_mistakes, assert_refused};

    fn stored(happen: &str, ident: &str, name: &str, version: u32) -> String {
        format!(
            "#[automatically_derived] impl {happen}::State for {ident} {{
                const NAME: &'static str = {name:?};
                const VERSION: u32 = {version};
            }}"
        )
    }

    #[test]
    fn names_versions_and_paths() {
        let cases = [
            ("struct StockLevels;", stored("::happen", "StockLevels", "stock-levels", 1)),
            ("#[state(\"orders\")] struct X { a: u8 }", stored("::happen", "X", "orders", 1)),
            ("#[state(\"orders\", version = 3)] struct X(u8);", stored("::happen", "X", "orders", 3)),
            ("#[state(version = 2u32)] enum X { A }", stored("::happen", "X", "x", 2)),
            ("#[state(version = 4_294_967_295)] struct X;", stored("::happen", "X", "x", u32::MAX)),
            ("#[state(crate = my::happen)] struct X;", stored("my::happen", "X", "x", 1)),
            (
                "#[state(\"a.b\", crate = crate::happen, version = 0x10)] #[event(\"x\")] struct X;",
                stored("crate::happen", "X", "a.b", 16),
            ),
        ];
        for (source, code) in cases {
            assert_code(state, source, &code);
        }
    }

    #[test]
    fn a_migration_is_called_by_its_path() {
        for path in ["from_old", "Self::from_old", "crate::old::orders"] {
            let source = format!("#[state(\"orders\", migrate = {path}, version = 3)] struct X;");
            let code = format!(
                "#[automatically_derived] impl ::happen::State for X {{
                    const NAME: &'static str = \"orders\";
                    const VERSION: u32 = 3;
                    fn migrate(old: &::happen::OldState<'_>) -> ::happen::Result<Self> {{
                        {path}(old)
                    }}
                }}"
            );
            assert_code(state, &source, &code);
        }
    }

    #[test]
    fn versions_start_at_one() {
        let one = "a version is a whole number from 1 to 4294967295: write `version = 1`";
        for value in ["0", "-1", "4294967296", "1.0", "1u64", "V", "\"0\"", "V + 1", "[1, 2]"] {
            let source = format!("#[state(\"orders\", version = {value}, crate = my)] struct X;");
            assert_mistakes(state, &source, &[(value, one)]);
            assert!(state(source.parse().unwrap()).to_string().contains("impl my :: State for X"));
        }
        let two = "a version is a whole number from 1 to 4294967295: write `version = 2`";
        assert_mistakes(state, "#[state(version = \"2\")] struct X;", &[("\"2\"", two)]);
        assert_mistakes(state, "#[state(version = , \"x\")] struct X;", &[("version", one)]);
    }

    #[test]
    fn mistakes_in_the_attribute() {
        let cases: &[(&str, &str, &str)] = &[
            (
                "#[state]",
                "#[state]",
                "this says nothing: write `#[state(\"orders\", version = 1)]`, \
                 or remove it to name the type after itself",
            ),
            (
                "#[state = \"stock\"]",
                "state = \"stock\"",
                "the name stands in parentheses: write `#[state(\"stock\", version = 1)]`",
            ),
            ("#[state(\"a\", 2)]", "2", "a version has a key: write `version = 2`"),
            ("#[state(\"a\", version)]", "version", "`version` takes a number: write `version = 1`"),
            ("#[state(\"a\", migrate)]", "migrate", "`migrate` takes a function: write `migrate = from_old`"),
            (
                "#[state(\"a\", migrate =)]",
                "migrate",
                "`migrate` takes a function: write `migrate = from_old`",
            ),
            (
                "#[state(\"a\", migrate = \"old::orders\")]",
                "\"old::orders\"",
                "`migrate` takes the path of a function: write `migrate = old::orders`",
            ),
            (
                "#[state(\"a\", migrate = |old| old.state())]",
                "|old| old.state()",
                "`migrate` takes the path of a function: write `migrate = from_old`",
            ),
            ("#[state(migrate = f, migrate = g)]", "migrate", "`migrate` is given once: remove one of them"),
            ("#[state(version = 1, version = 2)]", "version", "`version` is given once: remove one of them"),
            (
                "#[state(\"a\", verson = 2)]",
                "verson",
                "`#[state]` has no key `verson`: beside the name it takes `version = 1`, `migrate = from_old` and \
                 `crate = path`",
            ),
            ("#[state(orders)]", "orders", "the name of a state is a text in quotes: write `\"orders\"`"),
            (
                "#[state(\"my orders\")]",
                "\"my orders\"",
                "the name of a state has no white space: write `\"my-orders\"`",
            ),
            (
                "#[state(\"a\")] #[state(\"b\")]",
                "#[state(\"b\")]",
                "`#[state]` is given once: move what this one says into the first and remove it",
            ),
        ];
        for (attribute, at, message) in cases {
            assert_mistakes(state, &format!("{attribute} struct Orders;"), &[(at, message)]);
        }
    }

    #[test]
    fn unions_and_generics_have_no_code() {
        let union = "a state is a struct or an enum: a union does not know which of its fields to encode";
        let lifetime = "a state owns its data, because it outlives the code that sets it: remove `'a` from `X`, \
             with `String` for a `&str` and `Vec<T>` for a `&[T]`";
        let shapes = |parameter: &str| {
            format!(
                "a state has one shape under one name, and `X` has another for each `{parameter}`: \
                 put a type in its place, or implement `State` by hand with a name for each"
            )
        };
        let cases = [
            ("union X { a: u8 }", "union", union.to_owned()),
            ("struct X<'a>(&'a str);", "'a", lifetime.to_owned()),
            ("struct X<T>(T);", "T", shapes("T")),
            ("struct X<const N: usize>([u8; N]);", "N", shapes("N")),
        ];
        for (source, at, message) in cases {
            assert_refused(state, source, at, &message);
        }
    }
}

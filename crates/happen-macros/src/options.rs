//! What the attributes `#[event(..)]` and `#[state(..)]` say. Owns their grammar and the messages about it; does not
//! know what is generated from them.
//!
//! Reading goes on behind an error, for two reasons: all mistakes in one attribute are reported at once, and the `impl`
//! is generated all the same, with what was understood. Without it each use of the type would be an error of its own and
//! bury the one that matters.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::{Attribute, Data, DeriveInput, Error, Ident, Lit, LitInt, LitStr, Meta, Path, Result, Token};

use crate::name::{flaw, kebab_case, mended};

/// Which of the two attributes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Event,
    State,
}

/// What an attribute says, with the defaults filled in.
pub(crate) struct Options {
    /// The name of the type; legal, unless there is an error.
    pub(crate) name: LitStr,
    /// The version of a state; 1 for an event.
    pub(crate) version: u32,
    /// The function that makes a state of an older version's document.
    pub(crate) migrate: Option<Path>,
    /// The path that `::happen` is the default of.
    pub(crate) happen: Path,
}

/// The mistakes found so far.
#[derive(Default)]
pub(crate) struct Mistakes(Option<Error>);

/// The attributes of one type while they are read.
struct Reader {
    kind: Kind,
    /// A name that is legal, for suggestions.
    example: String,
    name: Option<LitStr>,
    version: Option<u32>,
    migrate: Option<Path>,
    happen: Option<Path>,
    mistakes: Mistakes,
}

/// Reads the attributes of this kind from a type.
pub(crate) fn options(kind: Kind, input: &DeriveInput) -> (Options, Mistakes) {
    let default_name = kebab_case(&input.ident.unraw().to_string());
    let mut reader = Reader::new(kind, &default_name);
    let mut attributes = input.attrs.iter().filter(|attribute| kind.owns(attribute));
    let attribute = attributes.next();
    if let Some(attribute) = attribute {
        reader.attribute(attribute);
    }
    for repeated in attributes {
        reader.repeated(repeated);
    }
    reader.misplaced(&input.data);
    // An attribute with a mistake may have been meant to give the name, so the default is not judged beside it.
    let says_no_name = reader.name.is_none() && reader.mistakes.0.is_none();
    if says_no_name && let Some(flaw) = flaw(&default_name) {
        reader.unnamed(&input.ident, &flaw);
    }
    reader.finish(input.ident.span())
}

impl Kind {
    /// The attribute's name.
    fn attribute(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::State => "state",
        }
    }

    /// What the attribute's text is, with an article.
    fn noun(self) -> &'static str {
        match self {
            Self::Event => "an event type",
            Self::State => "the name of a state",
        }
    }

    /// The attribute, as one would write it with this name.
    fn form(self, name: &str) -> String {
        match self {
            Self::Event => format!("#[event({name:?})]"),
            Self::State => format!("#[state({name:?}, version = 1)]"),
        }
    }

    /// The keys that the attribute takes, for a sentence.
    fn keys(self) -> &'static str {
        match self {
            Self::Event => "`crate = path`",
            Self::State => "`version = 1`, `migrate = from_old` and `crate = path`",
        }
    }

    fn owns(self, attribute: &Attribute) -> bool {
        attribute.path().is_ident(self.attribute())
    }
}

impl Mistakes {
    /// Adds one.
    pub(crate) fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// The mistakes as code that does not compile; nothing when there are none.
    pub(crate) fn into_code(self) -> TokenStream {
        self.0.map(Error::into_compile_error).unwrap_or_default()
    }
}

impl Reader {
    fn new(kind: Kind, default_name: &str) -> Self {
        let example = match (flaw(default_name), kind) {
            (None, _) => default_name,
            (Some(_), Kind::Event) => "order-placed",
            (Some(_), Kind::State) => "orders",
        };
        Self {
            kind,
            example: example.to_owned(),
            name: None,
            version: None,
            migrate: None,
            happen: None,
            mistakes: Mistakes::default(),
        }
    }

    fn attribute(&mut self, attribute: &Attribute) {
        let read = match &attribute.meta {
            Meta::List(list) if !list.tokens.is_empty() => {
                attribute.parse_args_with(|input: ParseStream<'_>| {
                    self.items(input);
                    Ok(())
                })
            }
            Meta::NameValue(pair) => Err(self.bare_assignment(pair)),
            Meta::Path(_) | Meta::List(_) => Err(self.says_nothing(attribute)),
        };
        if let Err(error) = read {
            self.mistakes.add(error);
        }
    }

    /// Reads items up to the end, whatever they are, and goes on at the next comma behind one with a mistake.
    fn items(&mut self, input: ParseStream<'_>) {
        while !input.is_empty() {
            let item = self.item(input).and_then(|()| at_comma_or_end(input));
            if let Err(error) = item {
                self.mistakes.add(error);
            }
            take_until_comma(input);
            // Never fails: a comma or the end stands here.
            let _ = input.parse::<Option<Token![,]>>();
        }
    }

    fn item(&mut self, input: ParseStream<'_>) -> Result<()> {
        if input.peek(Lit) {
            let literal = input.parse()?;
            return self.literal(literal);
        }
        if input.peek(Ident::peek_any) && input.peek2(Token![=]) {
            let key = input.call(Ident::parse_any)?;
            input.parse::<Token![=]>()?;
            return self.pair(&key, input);
        }
        if input.peek(Token![,]) {
            return Err(input.error("there is nothing before this comma: remove it"));
        }
        Err(self.unquoted(&take_until_comma(input)))
    }

    fn literal(&mut self, literal: Lit) -> Result<()> {
        let text = match literal {
            Lit::Str(text) => text,
            Lit::Int(number) if self.kind == Kind::State => {
                return Err(Error::new_spanned(
                    &number,
                    format!("a version has a key: write `version = {number}`"),
                ));
            }
            other => {
                let message = format!("{} is a text in quotes: write `{:?}`", self.kind.noun(), self.example);
                return Err(Error::new_spanned(other, message));
            }
        };
        if let Some(first) = &self.name {
            let message = format!("{} is given once: keep `{}` or this", self.kind.noun(), first.token());
            return Err(Error::new_spanned(text, message));
        }
        let error = flaw(&text.value()).map(|flaw| self.illegal_name(&text, &flaw));
        self.name = Some(text);
        error.map_or(Ok(()), Err)
    }

    fn pair(&mut self, key: &Ident, input: ParseStream<'_>) -> Result<()> {
        match (key.to_string().as_str(), self.kind) {
            ("crate", _) => {
                let path = crate_path(key, input)?;
                fill(&mut self.happen, key, path)
            }
            ("version", Kind::State) => {
                let version = version(key, &take_until_comma(input))?;
                fill(&mut self.version, key, version)
            }
            ("migrate", Kind::State) => {
                let function = function(key, &take_until_comma(input))?;
                fill(&mut self.migrate, key, function)
            }
            ("name" | "type" | "rename", _) => {
                let value = syn::parse2::<LitStr>(take_until_comma(input)).map(|text| text.value());
                let name = value.ok().and_then(|text| mended(&text)).unwrap_or_else(|| self.example.clone());
                let message = format!("{} has no key: write `{name:?}` without `{key} =`", self.kind.noun());
                Err(Error::new_spanned(key, message))
            }
            _ => Err(self.unknown_key(key)),
        }
    }

    fn repeated(&mut self, attribute: &Attribute) {
        let name = self.kind.attribute();
        let message =
            format!("`#[{name}]` is given once: move what this one says into the first and remove it");
        self.mistakes.add(Error::new_spanned(attribute, message));
    }

    /// Reports attributes on fields and variants, where they would be ignored.
    fn misplaced(&mut self, data: &Data) {
        let attributes: Vec<&Attribute> = match data {
            Data::Struct(data) => data.fields.iter().flat_map(|field| &field.attrs).collect(),
            Data::Enum(data) => {
                let fields = data.variants.iter().flat_map(|variant| &variant.fields);
                let on_fields = fields.flat_map(|field| &field.attrs);
                data.variants.iter().flat_map(|variant| &variant.attrs).chain(on_fields).collect()
            }
            Data::Union(_) => Vec::new(),
        };
        for attribute in attributes.into_iter().filter(|attribute| self.kind.owns(attribute)) {
            let message = format!(
                "`#[{}]` names a whole type: move it above the struct or enum, or remove it",
                self.kind.attribute()
            );
            self.mistakes.add(Error::new_spanned(attribute, message));
        }
    }

    /// Reports a type without a name whose own name does not make one.
    fn unnamed(&mut self, ident: &Ident, flaw: &str) {
        let (noun, form) = (self.kind.noun(), self.kind.form(&self.example));
        let message =
            format!("{noun} {flaw}, so `{ident}` cannot be named after itself: name it, as in `{form}`");
        self.mistakes.add(Error::new_spanned(ident, message));
    }

    fn finish(self, span: Span) -> (Options, Mistakes) {
        let options = Options {
            name: self.name.unwrap_or_else(|| LitStr::new(&self.example, span)),
            version: self.version.unwrap_or(1),
            migrate: self.migrate,
            happen: self.happen.unwrap_or_else(|| syn::parse_quote!(::happen)),
        };
        (options, self.mistakes)
    }

    fn illegal_name(&self, text: &LitStr, flaw: &str) -> Error {
        let instead = mended(&text.value()).unwrap_or_else(|| self.example.clone());
        Error::new_spanned(text, format!("{} {flaw}: write `{instead:?}`", self.kind.noun()))
    }

    fn says_nothing(&self, attribute: &Attribute) -> Error {
        let form = self.kind.form(&self.example);
        let message =
            format!("this says nothing: write `{form}`, or remove it to name the type after itself");
        Error::new_spanned(attribute, message)
    }

    fn bare_assignment(&self, pair: &syn::MetaNameValue) -> Error {
        let value = syn::parse2::<LitStr>(pair.value.to_token_stream()).map(|text| text.value());
        let name = value.ok().and_then(|text| mended(&text)).unwrap_or_else(|| self.example.clone());
        let form = self.kind.form(&name);
        Error::new_spanned(pair, format!("the name stands in parentheses: write `{form}`"))
    }

    /// Words without quotes; most often a name.
    fn unquoted(&self, words: &TokenStream) -> Error {
        let text: String = words.clone().into_iter().map(|word| word.to_string()).collect();
        match text.as_str() {
            "crate" => Error::new_spanned(words, "`crate` takes a path: write `crate = my::happen`"),
            "version" if self.kind == Kind::State => {
                Error::new_spanned(words, "`version` takes a number: write `version = 1`")
            }
            "migrate" if self.kind == Kind::State => {
                Error::new_spanned(words, "`migrate` takes a function: write `migrate = from_old`")
            }
            _ => {
                let name = mended(&text).unwrap_or_else(|| self.example.clone());
                let message = format!("{} is a text in quotes: write `{name:?}`", self.kind.noun());
                Error::new_spanned(words, message)
            }
        }
    }

    fn unknown_key(&self, key: &Ident) -> Error {
        let message = format!(
            "`#[{}]` has no key `{key}`: beside the name it takes {}",
            self.kind.attribute(),
            self.kind.keys()
        );
        Error::new_spanned(key, message)
    }
}

/// Keeps the value of a key, unless there is one.
fn fill<T>(place: &mut Option<T>, key: &Ident, value: T) -> Result<()> {
    if place.is_some() {
        return Err(Error::new_spanned(key, format!("`{key}` is given once: remove one of them")));
    }
    *place = Some(value);
    Ok(())
}

fn crate_path(key: &Ident, input: ParseStream<'_>) -> Result<Path> {
    if input.peek(LitStr) {
        let text: LitStr = input.parse()?;
        let path = text.parse_with(Path::parse_mod_style).map(|path| path.to_token_stream().to_string());
        let path = path.map_or_else(|_| "my::happen".to_owned(), |path| path.replace(' ', ""));
        return Err(Error::new_spanned(&text, format!("the path has no quotes: write `crate = {path}`")));
    }
    if input.is_empty() || input.peek(Token![,]) {
        return Err(Error::new_spanned(key, "`crate` takes a path: write `crate = my::happen`"));
    }
    input.call(Path::parse_mod_style)
}

fn version(key: &Ident, value: &TokenStream) -> Result<u32> {
    let number = syn::parse2::<LitInt>(value.clone()).ok();
    let number = number.filter(|number| matches!(number.suffix(), "" | "u32"));
    match number.and_then(|number| number.base10_parse::<u32>().ok()) {
        Some(version) if version > 0 => Ok(version),
        _ => Err(illegal_version(key, value)),
    }
}

fn illegal_version(key: &Ident, value: &TokenStream) -> Error {
    let quoted = syn::parse2::<LitStr>(value.clone()).ok();
    let quoted = quoted.and_then(|text| text.value().parse::<u32>().ok()).filter(|&version| version > 0);
    let version = quoted.unwrap_or(1);
    let message = format!("a version is a whole number from 1 to {}: write `version = {version}`", u32::MAX);
    if value.is_empty() { Error::new_spanned(key, message) } else { Error::new_spanned(value, message) }
}

/// The path of a function. A closure is refused: commas in it would end it here, and a name tells what it does.
fn function(key: &Ident, value: &TokenStream) -> Result<Path> {
    if value.is_empty() {
        return Err(Error::new_spanned(key, "`migrate` takes a function: write `migrate = from_old`"));
    }
    let path = Path::parse_mod_style.parse2(value.clone()).ok();
    path.ok_or_else(|| {
        let quoted = syn::parse2::<LitStr>(value.clone()).ok();
        let quoted = quoted.and_then(|text| text.parse_with(Path::parse_mod_style).ok());
        let path = quoted.map_or_else(|| "from_old".to_owned(), |path| path.to_token_stream().to_string());
        let path = path.replace(' ', "");
        let message = format!("`migrate` takes the path of a function: write `migrate = {path}`");
        Error::new_spanned(value, message)
    })
}

fn at_comma_or_end(input: ParseStream<'_>) -> Result<()> {
    if input.is_empty() || input.peek(Token![,]) {
        return Ok(());
    }
    Err(input.error("a comma is missing before this"))
}

fn take_until_comma(input: ParseStream<'_>) -> TokenStream {
    let mut taken = TokenStream::new();
    while !input.is_empty() && !input.peek(Token![,]) {
        match input.parse::<TokenTree>() {
            Ok(token) => taken.extend([token]),
            Err(_) => break,
        }
    }
    taken
}

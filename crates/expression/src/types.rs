//! The types of CEL, and of data described by an OpenAPI schema.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Type {
    Dyn,
    /// Of what could not be checked; fits everything.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// A type as a value; with the type where it is known.
    Type(Option<Arc<Type>>),
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    /// A value only functions look into (`kubernetes.Quantity`).
    Opaque(&'static str),
    /// An object with the fields of a declaration.
    Object(Arc<Object>),
    /// `Object`, `Object.spec` and the like: messages made in mutations, of any fields.
    Open(Arc<str>),
    /// A type parameter of a declaration.
    Param(char),
    /// An unknown the checker solves for.
    Var(usize),
}

impl Type {
    pub fn list(element: Type) -> Type {
        Type::List(Arc::new(element))
    }

    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(inner: Type) -> Type {
        Type::Optional(Arc::new(inner))
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// Whether a value of this type has a size that does not depend on data.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }

    pub(crate) fn params(&self) -> smallvec::SmallVec<[&Type; 2]> {
        match self {
            Type::List(a) | Type::Optional(a) | Type::Type(Some(a)) => smallvec::smallvec![&**a],
            Type::Map(a, b) => smallvec::smallvec![&**a, &**b],
            _ => smallvec::SmallVec::new(),
        }
    }

    /// The same type, to the last parameter.
    pub(crate) fn same(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Type(Some(a)), Type::Type(Some(b))) => a.same(b),
            (Type::Type(a), Type::Type(b)) => a.is_none() && b.is_none(),
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a.same(b),
            (Type::Map(a, b), Type::Map(c, d)) => a.same(c) && b.same(d),
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Object(a), Type::Object(b)) => Arc::ptr_eq(a, b) || a.name == b.name,
            (Type::Open(a), Type::Open(b)) => a == b,
            (Type::Param(a), Type::Param(b)) => a == b,
            (Type::Var(a), Type::Var(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }

    /// As a value of this type answers `type()`.
    pub(crate) fn name(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Type::Null => "null_type".into(),
            Type::Duration => "google.protobuf.Duration".into(),
            Type::Timestamp => "google.protobuf.Timestamp".into(),
            Type::List(_) => "list".into(),
            Type::Map(..) => "map".into(),
            Type::Optional(_) => "optional_type".into(),
            Type::Type(_) => "type".into(),
            Type::Object(object) => object.name.as_ref().into(),
            Type::Open(name) => name.as_ref().into(),
            other => other.to_string().into(),
        }
    }
}

impl Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Type(None) => f.write_str("type"),
            Type::Type(Some(inner)) => write!(f, "type({inner})"),
            Type::List(a) => write!(f, "list({a})"),
            Type::Map(a, b) => write!(f, "map({a}, {b})"),
            Type::Optional(a) => write!(f, "optional_type({a})"),
            Type::Opaque(name) => f.write_str(name),
            Type::Object(object) => f.write_str(&object.name),
            Type::Open(name) => f.write_str(name),
            Type::Param(name) => write!(f, "{name}"),
            Type::Var(n) => write!(f, "_var{n}"),
        }
    }
}

/// An object type: what its fields are. Keys are names as expressions spell them.
#[derive(Debug)]
pub struct Object {
    pub name: Arc<str>,
    pub fields: BTreeMap<String, ObjectField>,
}

#[derive(Debug)]
pub struct ObjectField {
    /// As data spells it.
    pub name: String,
    pub decl: Arc<Decl>,
}

/// How the elements of a list relate, which decides when two lists are equal and what their sum is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map(Vec<String>),
}

/// Data as a schema describes it: its type and how large it may be.
#[derive(Debug)]
pub struct Decl {
    pub kind: DeclKind,
    pub nullable: bool,
    /// Of lists and maps the most elements, of strings the most characters.
    pub max_elements: u64,
    /// The least number of bytes it takes as JSON.
    pub min_size: u64,
}

#[derive(Debug)]
pub enum DeclKind {
    Dyn,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Decl>, ListType),
    Map(Arc<Decl>),
    Object(Arc<Object>),
    /// Something that is no data, such as a variable computed by an expression.
    Other(Type),
}

impl Decl {
    pub fn ty(&self) -> Type {
        match &self.kind {
            DeclKind::Dyn => Type::Dyn,
            DeclKind::Bool => Type::Bool,
            DeclKind::Int => Type::Int,
            DeclKind::Double => Type::Double,
            DeclKind::String => Type::String,
            DeclKind::Bytes => Type::Bytes,
            DeclKind::Duration => Type::Duration,
            DeclKind::Timestamp => Type::Timestamp,
            DeclKind::List(element, _) => Type::list(element.ty()),
            DeclKind::Map(value) => Type::map(Type::String, value.ty()),
            DeclKind::Object(object) => Type::Object(object.clone()),
            DeclKind::Other(ty) => ty.clone(),
        }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&ObjectField> {
        match &self.kind {
            DeclKind::Object(object) => object.fields.get(name),
            _ => None,
        }
    }

    pub(crate) fn element(&self) -> Option<&Arc<Decl>> {
        match &self.kind {
            DeclKind::List(element, _) | DeclKind::Map(element) => Some(element),
            _ => None,
        }
    }
}

/// Names that no variable may have: literals and an operator first, then words kept for other languages.
pub(crate) const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether an expression can name a variable so.
pub fn is_identifier(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b == b'_' || b.is_ascii_alphabetic());
    first && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) && !RESERVED.contains(&name)
}

/// A property name as expressions spell it; `None` where no expression can.
pub fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("__") {
            out.push_str("__underscores__");
            rest = &rest[2..];
            continue;
        }
        match c {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

/// A name that an expression spells, as data spells it.
pub fn unescape(name: &str) -> String {
    if let Some(inner) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && RESERVED.contains(&inner)
    {
        return inner.to_owned();
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    'all: while let Some(c) = rest.chars().next() {
        for (escaped, plain) in
            [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")]
        {
            if let Some(after) = rest.strip_prefix(escaped) {
                out.push_str(plain);
                rest = after;
                continue 'all;
            }
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_names() {
        for (name, want) in [
            ("plain", Some("plain")),
            ("a.b-c/d", Some("a__dot__b__dash__c__slash__d")),
            ("a__b", Some("a__underscores__b")),
            ("a_b", Some("a_b")),
            ("___", Some("__underscores___")),
            ("namespace", Some("__namespace__")),
            ("int", Some("int")),
            ("1a", None),
            ("", None),
            ("a b", None),
            ("é", None),
        ] {
            assert_eq!(escape(name).as_deref(), want, "{name}");
            if let Some(escaped) = want {
                assert_eq!(unescape(escaped), name);
            }
        }
    }
}

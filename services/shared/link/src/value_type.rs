//! Types of values, apart from any engine, so that an interface's declaration and a component can be compared.

use std::fmt::{self, Display, Formatter};

use wasmtime::component::{ResourceType, Type, Val};

/// A component-model type. Names of records, variants and so on play no part: structure does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in the component model")]
pub enum ValueType {
    Bool,
    S8,
    U8,
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
    F32,
    F64,
    Char,
    String,
    List(Box<ValueType>),
    Record(Vec<(String, ValueType)>),
    Tuple(Vec<ValueType>),
    Variant(Vec<(String, Option<ValueType>)>),
    Enum(Vec<String>),
    Option(Box<ValueType>),
    Result {
        ok: Option<Box<ValueType>>,
        err: Option<Box<ValueType>>,
    },
    Flags(Vec<String>),
    /// An owned handle to the interface's resource of this name.
    Own(String),
    /// A borrowed handle to the interface's resource of this name.
    Borrow(String),
    /// Something that cannot pass between plugins.
    Unsupported(&'static str),
}

impl ValueType {
    /// A list of `item`.
    #[must_use]
    pub fn list(item: Self) -> Self {
        Self::List(Box::new(item))
    }

    /// An optional `item`.
    #[must_use]
    pub fn option(item: Self) -> Self {
        Self::Option(Box::new(item))
    }

    /// A result of `ok` or `err`.
    #[must_use]
    pub fn result(ok: Option<Self>, err: Option<Self>) -> Self {
        Self::Result { ok: ok.map(Box::new), err: err.map(Box::new) }
    }

    /// Whether a value of this type may hold a handle.
    #[must_use]
    pub fn has_resources(&self) -> bool {
        self.any(&|ty| matches!(ty, Self::Own(_) | Self::Borrow(_)))
    }

    /// Whether a value of this type may give a handle away.
    pub(crate) fn has_owned(&self) -> bool {
        self.any(&|ty| matches!(ty, Self::Own(_)))
    }

    fn any(&self, is: &dyn Fn(&Self) -> bool) -> bool {
        is(self)
            || match self {
                Self::List(item) | Self::Option(item) => item.any(is),
                Self::Record(fields) => fields.iter().any(|(_, ty)| ty.any(is)),
                Self::Tuple(items) => items.iter().any(|ty| ty.any(is)),
                Self::Variant(cases) => cases.iter().any(|(_, ty)| ty.as_ref().is_some_and(|ty| ty.any(is))),
                Self::Result { ok, err } => [ok, err].into_iter().flatten().any(|ty| ty.any(is)),
                _ => false,
            }
    }

    /// Whether `value` is of this type. Handles count as fitting: their owner is found when they are used.
    #[must_use]
    pub fn fits(&self, value: &Val) -> bool {
        match (self, value) {
            (Self::Bool, Val::Bool(_))
            | (Self::S8, Val::S8(_))
            | (Self::U8, Val::U8(_))
            | (Self::S16, Val::S16(_))
            | (Self::U16, Val::U16(_))
            | (Self::S32, Val::S32(_))
            | (Self::U32, Val::U32(_))
            | (Self::S64, Val::S64(_))
            | (Self::U64, Val::U64(_))
            | (Self::F32, Val::Float32(_))
            | (Self::F64, Val::Float64(_))
            | (Self::Char, Val::Char(_))
            | (Self::String, Val::String(_))
            | (Self::Own(_) | Self::Borrow(_), Val::Resource(_))
            | (Self::Option(_), Val::Option(None)) => true,
            (Self::List(item), Val::List(values)) => values.iter().all(|value| item.fits(value)),
            (Self::Record(fields), Val::Record(values)) => {
                fields.len() == values.len()
                    && fields.iter().zip(values).all(|((name, ty), (given, value))| name == given && ty.fits(value))
            }
            (Self::Tuple(items), Val::Tuple(values)) => {
                items.len() == values.len() && items.iter().zip(values).all(|(ty, value)| ty.fits(value))
            }
            (Self::Variant(cases), Val::Variant(case, value)) => {
                cases.iter().any(|(name, ty)| name == case && fits_optional(ty.as_ref(), value.as_deref()))
            }
            (Self::Enum(names), Val::Enum(name)) => names.contains(name),
            (Self::Flags(names), Val::Flags(set)) => set.iter().all(|flag| names.contains(flag)),
            (Self::Option(item), Val::Option(Some(value))) => item.fits(value),
            (Self::Result { ok, err }, Val::Result(value)) => match value {
                Ok(value) => fits_optional(ok.as_deref(), value.as_deref()),
                Err(value) => fits_optional(err.as_deref(), value.as_deref()),
            },
            _ => false,
        }
    }

    /// Reads a type of a compiled component. `resources` are the names under which the interface exports resources.
    pub(crate) fn of(ty: &Type, resources: &[(ResourceType, String)]) -> Self {
        let of = |ty: &Type| Self::of(ty, resources);
        let named = |ty: &ResourceType| {
            resources.iter().find(|(known, _)| known == ty).map_or_else(|| "?".to_owned(), |(_, name)| name.clone())
        };
        match ty {
            Type::Bool => Self::Bool,
            Type::S8 => Self::S8,
            Type::U8 => Self::U8,
            Type::S16 => Self::S16,
            Type::U16 => Self::U16,
            Type::S32 => Self::S32,
            Type::U32 => Self::U32,
            Type::S64 => Self::S64,
            Type::U64 => Self::U64,
            Type::Float32 => Self::F32,
            Type::Float64 => Self::F64,
            Type::Char => Self::Char,
            Type::String => Self::String,
            Type::List(list) => Self::list(of(&list.ty())),
            Type::Record(record) => {
                Self::Record(record.fields().map(|field| (field.name.to_owned(), of(&field.ty))).collect())
            }
            Type::Tuple(tuple) => Self::Tuple(tuple.types().map(|ty| of(&ty)).collect()),
            Type::Variant(variant) => {
                Self::Variant(variant.cases().map(|case| (case.name.to_owned(), case.ty.as_ref().map(of))).collect())
            }
            Type::Enum(names) => Self::Enum(names.names().map(str::to_owned).collect()),
            Type::Option(option) => Self::option(of(&option.ty())),
            Type::Result(result) => Self::result(result.ok().as_ref().map(of), result.err().as_ref().map(of)),
            Type::Flags(flags) => Self::Flags(flags.names().map(str::to_owned).collect()),
            Type::Own(ty) => Self::Own(named(ty)),
            Type::Borrow(ty) => Self::Borrow(named(ty)),
            Type::Map(_) => Self::Unsupported("map"),
            Type::Future(_) => Self::Unsupported("future"),
            Type::Stream(_) => Self::Unsupported("stream"),
            Type::ErrorContext => Self::Unsupported("error-context"),
            Type::FixedLengthList(_) => Self::Unsupported("list of fixed length"),
        }
    }
}

fn fits_optional(ty: Option<&ValueType>, value: Option<&Val>) -> bool {
    match (ty, value) {
        (None, None) => true,
        (Some(ty), Some(value)) => ty.fits(value),
        _ => false,
    }
}

impl Display for ValueType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let or_blank = |ty: &Option<Box<Self>>| ty.as_ref().map_or_else(|| "_".to_owned(), ToString::to_string);
        match self {
            Self::List(item) => write!(f, "list<{item}>"),
            Self::Option(item) => write!(f, "option<{item}>"),
            Self::Result { ok, err } => write!(f, "result<{}, {}>", or_blank(ok), or_blank(err)),
            Self::Tuple(items) => write!(f, "tuple<{}>", join(items.iter())),
            Self::Record(fields) => {
                write!(f, "record {{{}}}", join(fields.iter().map(|(name, ty)| format!("{name}: {ty}"))))
            }
            Self::Variant(cases) => {
                let case = |(name, ty): &(String, Option<Self>)| {
                    ty.as_ref().map_or_else(|| name.clone(), |ty| format!("{name}({ty})"))
                };
                write!(f, "variant {{{}}}", join(cases.iter().map(case)))
            }
            Self::Enum(names) => write!(f, "enum {{{}}}", join(names.iter())),
            Self::Flags(names) => write!(f, "flags {{{}}}", join(names.iter())),
            Self::Own(name) => f.write_str(name),
            Self::Borrow(name) => write!(f, "borrow<{name}>"),
            Self::Unsupported(what) => write!(f, "{what} (cannot pass between plugins)"),
            scalar => f.write_str(&format!("{scalar:?}").to_lowercase()),
        }
    }
}

pub(crate) fn join(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fit_by_structure() {
        let record = ValueType::Record(vec![("a".into(), ValueType::U8), ("b".into(), ValueType::String)]);
        let good = Val::Record(vec![("a".into(), Val::U8(1)), ("b".into(), Val::String("x".into()))]);
        let swapped = Val::Record(vec![("b".into(), Val::String("x".into())), ("a".into(), Val::U8(1))]);
        let table = [
            (ValueType::U32, Val::U32(1), true),
            (ValueType::U32, Val::S32(1), false),
            (record.clone(), good.clone(), true),
            (record.clone(), swapped, false),
            (ValueType::list(record.clone()), Val::List(vec![good]), true),
            (ValueType::list(record), Val::List(vec![Val::Bool(true)]), false),
            (ValueType::option(ValueType::U8), Val::Option(None), true),
            (ValueType::result(None, Some(ValueType::U8)), Val::Result(Ok(None)), true),
            (ValueType::result(None, Some(ValueType::U8)), Val::Result(Err(None)), false),
            (ValueType::Enum(vec!["x".into()]), Val::Enum("y".into()), false),
            (ValueType::Flags(vec!["x".into()]), Val::Flags(vec!["x".into(), "y".into()]), false),
        ];
        for (ty, value, fits) in table {
            assert_eq!(ty.fits(&value), fits, "{ty} {value:?}");
        }
    }

    #[test]
    fn types_are_shown_as_in_wit() {
        let ty = ValueType::result(Some(ValueType::list(ValueType::U8)), Some(ValueType::Own("file".into())));
        assert_eq!(ty.to_string(), "result<list<u8>, file>");
        assert_eq!(ValueType::Variant(vec![("a".into(), None)]).to_string(), "variant {a}");
    }
}

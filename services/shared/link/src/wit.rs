//! Reading an interface from WIT.

use wit_parser::{FunctionKind, Handle, InterfaceId, Resolve, Type, TypeDefKind, WorldKey};

use crate::interface::{Cardinality, Function, Interface};
use crate::signature::Signature;
use crate::value_type::ValueType;

/// Why an interface could not be read from WIT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WitError {
    /// The text.
    #[error("read WIT: {0}")]
    Syntax(String),
    /// No interface of that name.
    #[error("read WIT: no interface {0:?}; write package, name and version, such as my:package/example@1.0.0")]
    NoSuchInterface(String),
}

impl Interface {
    /// Reads the interface `path` from WIT packages, each a text of its own, what is used before what uses it.
    ///
    /// # Errors
    /// When a text is not WIT or none has the interface.
    pub fn from_wit(
        id: impl Into<String>,
        path: &str,
        cardinality: Cardinality,
        packages: &[&str],
    ) -> Result<Self, WitError> {
        let mut resolve = Resolve::default();
        for (at, text) in packages.iter().enumerate() {
            resolve
                .push_str(format!("package-{at}.wit"), text)
                .map_err(|error| WitError::Syntax(format!("{error:#}")))?;
        }
        let known = resolve.interfaces.iter().map(|(known, _)| known);
        let known: Option<InterfaceId> =
            known.into_iter().find(|known| resolve.name_world_key(&WorldKey::Interface(*known)) == path);
        let known = known.ok_or_else(|| WitError::NoSuchInterface(path.to_owned()))?;
        let declared = &resolve.interfaces[known];
        let mut interface = Self::new(id, path, cardinality);
        for (name, ty) in &declared.types {
            if matches!(resolve.types[*ty].kind, TypeDefKind::Resource) {
                interface = interface.resource(name.clone());
            }
        }
        for function in declared.functions.values() {
            let asynchronous = matches!(
                function.kind,
                FunctionKind::AsyncFreestanding | FunctionKind::AsyncMethod(_) | FunctionKind::AsyncStatic(_)
            );
            let params = function.params.iter().map(|param| value_type(&resolve, &param.ty)).collect();
            let result = function.result.as_ref().map(|ty| value_type(&resolve, ty));
            let signature = Signature { params, result, asynchronous };
            interface = interface.function(Function::of(function.name.clone(), signature));
        }
        Ok(interface)
    }
}

fn value_type(resolve: &Resolve, ty: &Type) -> ValueType {
    let of = |ty: &Type| value_type(resolve, ty);
    let id = match ty {
        Type::Bool => return ValueType::Bool,
        Type::U8 => return ValueType::U8,
        Type::U16 => return ValueType::U16,
        Type::U32 => return ValueType::U32,
        Type::U64 => return ValueType::U64,
        Type::S8 => return ValueType::S8,
        Type::S16 => return ValueType::S16,
        Type::S32 => return ValueType::S32,
        Type::S64 => return ValueType::S64,
        Type::F32 => return ValueType::F32,
        Type::F64 => return ValueType::F64,
        Type::Char => return ValueType::Char,
        Type::String => return ValueType::String,
        Type::ErrorContext => return ValueType::Unsupported("error-context"),
        Type::Id(id) => *id,
    };
    let resource = |id: &wit_parser::TypeId| resolve.types[*id].name.clone().unwrap_or_default();
    match &resolve.types[id].kind {
        TypeDefKind::Type(ty) => of(ty),
        TypeDefKind::Record(record) => {
            ValueType::Record(record.fields.iter().map(|field| (field.name.clone(), of(&field.ty))).collect())
        }
        TypeDefKind::Tuple(tuple) => ValueType::Tuple(tuple.types.iter().map(of).collect()),
        TypeDefKind::Variant(variant) => {
            ValueType::Variant(variant.cases.iter().map(|case| (case.name.clone(), case.ty.as_ref().map(of))).collect())
        }
        TypeDefKind::Enum(names) => ValueType::Enum(names.cases.iter().map(|case| case.name.clone()).collect()),
        TypeDefKind::Flags(names) => ValueType::Flags(names.flags.iter().map(|flag| flag.name.clone()).collect()),
        TypeDefKind::Option(inner) => ValueType::option(of(inner)),
        TypeDefKind::Result(result) => ValueType::result(result.ok.as_ref().map(of), result.err.as_ref().map(of)),
        TypeDefKind::List(inner) => ValueType::list(of(inner)),
        TypeDefKind::Handle(Handle::Own(id)) => ValueType::Own(resource(id)),
        TypeDefKind::Handle(Handle::Borrow(id)) => ValueType::Borrow(resource(id)),
        TypeDefKind::Future(_) => ValueType::Unsupported("future"),
        TypeDefKind::Stream(_) => ValueType::Unsupported("stream"),
        _ => ValueType::Unsupported("type"),
    }
}

//! Untyped calls of functions from number to number, which are typed underneath.
//!
//! wasmtime's untyped call looks up the types at each call and allocates room for the answer; a typed one has all that from
//! the compiler, and takes three quarters of the time. So a function of at most one parameter, whose types are among the
//! commonest of numbers, is called typed. As each pair of types is code of its own, it is no more than those.

use wasmtime::component::{ComponentNamedList, Lift, Lower, Val};

use crate::live::Live;
use crate::signature::Signature;
use crate::value_type::ValueType;

/// Calls a function of an instance, by its place in the interface, with arguments of the types that this was
/// [chosen](choose) for.
pub(crate) type Flat<T> = fn(&mut Live<T>, usize, &[Val]) -> wasmtime::Result<Option<Val>>;

/// No number, or one.
trait Numbers: ComponentNamedList + Lift + Lower + 'static {
    const ONE: bool;
    /// `None`: they are others.
    fn of(values: &[Val]) -> Option<Self>;
    fn value(self) -> Option<Val>;
}

impl Numbers for () {
    const ONE: bool = false;

    #[inline]
    fn of(values: &[Val]) -> Option<Self> {
        values.is_empty().then_some(())
    }

    #[inline]
    fn value(self) -> Option<Val> {
        None
    }
}

macro_rules! numbers {
    ($($ty:ident $val:ident $number:ty;)*) => {
        $(impl Numbers for ($number,) {
            const ONE: bool = true;

            #[inline]
            fn of(values: &[Val]) -> Option<Self> {
                match values {
                    [Val::$val(number)] => Some((*number,)),
                    _ => None,
                }
            }

            #[inline]
            fn value(self) -> Option<Val> {
                Some(Val::$val(self.0))
            }
        })*

        /// How to call a function of this signature, if there is a quicker way than wasmtime's untyped call.
        pub(crate) fn choose<T: 'static>(signature: &Signature) -> Option<Flat<T>> {
            match &*signature.params {
                [] => answering::<T, ()>(signature.result.as_ref()),
                $([ValueType::$ty] => answering::<T, ($number,)>(signature.result.as_ref()),)*
                _ => None,
            }
        }

        fn answering<T: 'static, P: Numbers>(result: Option<&ValueType>) -> Option<Flat<T>> {
            match result {
                None => Some(call::<T, P, ()>),
                $(Some(ValueType::$ty) => Some(call::<T, P, ($number,)>),)*
                _ => None,
            }
        }
    };
}

numbers! {
    Bool Bool bool;
    U32 U32 u32;
    S32 S32 i32;
    U64 U64 u64;
    S64 S64 i64;
    F64 Float64 f64;
}

fn call<T: 'static, P: Numbers, R: Numbers>(
    live: &mut Live<T>,
    function: usize,
    arguments: &[Val],
) -> wasmtime::Result<Option<Val>> {
    let Some(arguments) = P::of(arguments) else {
        // wasmtime's own words for what does not fit.
        return live.call(function, arguments, R::ONE);
    };
    let typed = live.typed::<P, R>(function)?;
    typed.call(&mut live.store, arguments).map(R::value)
}

//! What [`discern`](crate::discern) answers with.

use std::fmt;

/// The name of a kind of data: `json`, `png`, `text`.
///
/// `Display` writes it as the workspace socket does, `Primitive { name: "json" }`;
/// [`TypeName::name`] is the short form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeName(pub(crate) &'static str);

impl TypeName {
    /// The short name, lower-case ASCII letters and digits.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Primitive {{ name: {:?} }}", self.0)
    }
}

/// A kind of data and how sure the recogniser was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Discernment {
    /// What it is.
    pub ty: TypeName,
    /// From 0 (nothing fits) to 1.
    pub confidence: f32,
    /// The media type, where the kind has one.
    pub mime: Option<&'static str>,
    /// The view that suits the data: `tree`, `table`, `card`, `gallery`, `reader`, `markdown` or
    /// `code`; `None` where no view does.
    pub lens: Option<&'static str>,
}

impl Discernment {
    pub(crate) const fn new(
        name: &'static str,
        confidence: f32,
        mime: &'static str,
        lens: Option<&'static str>,
    ) -> Self {
        Self { ty: TypeName(name), confidence, mime: Some(mime), lens }
    }

    /// What bytes are of which nothing else can be said: `bytes`, confidence 0.
    #[must_use]
    pub const fn unknown() -> Self {
        Self::new("bytes", 0.0, "application/octet-stream", None)
    }
}

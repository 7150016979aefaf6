//! What a handler is handed and what it answers (`vane:plugin/handler-*`).

#[cfg(feature = "runtime")]
use wasmtime::component::{ComponentType, Lift, Lower};

/// A value of the connection's context.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(variant))]
pub enum ContextValue {
    /// UTF-8 text.
    #[cfg_attr(feature = "runtime", component(name = "text"))]
    Text(String),
    /// Raw bytes.
    #[cfg_attr(feature = "runtime", component(name = "bytes"))]
    Bytes(Vec<u8>),
    /// Signed number.
    #[cfg_attr(feature = "runtime", component(name = "int64"))]
    Int64(i64),
    /// Unsigned number.
    #[cfg_attr(feature = "runtime", component(name = "uint64"))]
    Uint64(u64),
    /// Truth value.
    #[cfg_attr(feature = "runtime", component(name = "boolean"))]
    Boolean(bool),
    /// Texts in order.
    #[cfg_attr(feature = "runtime", component(name = "list-text"))]
    ListText(Vec<String>),
}

/// One entry of the context: a path that the export's `inspects` names, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct ContextEntry {
    /// Such as `conn.tls.sni`.
    pub path: String,
    /// Of the type that [`crate::inspect::KNOWN`] gives for the path.
    pub value: ContextValue,
}

/// A header field. Names in lower-case ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct Header {
    /// Lower-case ASCII.
    pub name: String,
    /// Bytes that are not UTF-8 written `\x{HH}`.
    pub value: String,
}

/// As many bytes as the limit lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct BytesView {
    /// The bytes.
    pub data: Vec<u8>,
    /// There was more.
    pub truncated: bool,
}

/// Input of `handler-l4-peek`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct L4PeekInput {
    /// First bytes of the connection.
    pub peek: Vec<u8>,
    /// What the export inspects.
    pub context: Vec<ContextEntry>,
}

/// Answer of `handler-l4-peek`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(variant))]
pub enum L4PeekDecision {
    /// Go on.
    #[cfg_attr(feature = "runtime", component(name = "continue"))]
    Continue,
    /// Close the connection.
    #[cfg_attr(feature = "runtime", component(name = "close"))]
    Close,
}

/// Input of `handler-l4-bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct L4BytesInput {
    /// The bytes.
    pub bytes: BytesView,
    /// What the export inspects.
    pub context: Vec<ContextEntry>,
}

/// Answer of `handler-l4-bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(variant))]
pub enum L4BytesDecision {
    /// Go on and ask again.
    #[cfg_attr(feature = "runtime", component(name = "continue"))]
    Continue,
    /// Go on and ask no more.
    #[cfg_attr(feature = "runtime", component(name = "tunnel"))]
    Tunnel,
    /// Close the connection.
    #[cfg_attr(feature = "runtime", component(name = "close"))]
    Close,
}

/// Input of `handler-l7-request`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct L7RequestInput {
    /// As received.
    pub method: String,
    /// As received.
    pub uri: String,
    /// In order, repeats kept.
    pub headers: Vec<Header>,
    /// Present if and only if the export needs it.
    pub body: Option<BytesView>,
    /// What the export inspects.
    pub context: Vec<ContextEntry>,
}

/// [`Header`] whose texts lie elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lower), component(record))]
pub struct HeaderRef<'a> {
    /// Lower-case ASCII.
    pub name: &'a str,
    /// Bytes that are not UTF-8 written `\x{HH}`.
    pub value: &'a str,
}

/// [`BytesView`] whose bytes lie elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lower), component(record))]
pub struct BytesRef<'a> {
    /// The bytes.
    pub data: &'a [u8],
    /// There was more.
    pub truncated: bool,
}

/// [`L7RequestInput`] whose texts and bytes lie elsewhere: a request has dozens of them, and each copy has its price.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lower), component(record))]
pub struct L7RequestRef<'a> {
    /// As received.
    pub method: &'a str,
    /// As received.
    pub uri: &'a str,
    /// In order, repeats kept.
    pub headers: Vec<HeaderRef<'a>>,
    /// Present if and only if the export needs it.
    pub body: Option<BytesRef<'a>>,
    /// What the export inspects.
    pub context: Vec<ContextEntry>,
}

impl From<L7RequestRef<'_>> for L7RequestInput {
    fn from(lent: L7RequestRef<'_>) -> Self {
        let header = |h: HeaderRef<'_>| Header { name: h.name.to_owned(), value: h.value.to_owned() };
        Self {
            method: lent.method.to_owned(),
            uri: lent.uri.to_owned(),
            headers: lent.headers.into_iter().map(header).collect(),
            body: lent.body.map(|b| BytesView { data: b.data.to_vec(), truncated: b.truncated }),
            context: lent.context,
        }
    }
}

impl<'a> From<&'a L7RequestInput> for L7RequestRef<'a> {
    fn from(owned: &'a L7RequestInput) -> Self {
        Self {
            method: &owned.method,
            uri: &owned.uri,
            headers: owned.headers.iter().map(|h| HeaderRef { name: &h.name, value: &h.value }).collect(),
            body: owned.body.as_ref().map(|b| BytesRef { data: &b.data, truncated: b.truncated }),
            context: owned.context.clone(),
        }
    }
}

/// A response that the plugin makes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct SynthResponse {
    /// 100 to 599.
    pub status: u16,
    /// In order.
    pub headers: Vec<Header>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Answer of `handler-l7-request`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(variant))]
pub enum L7RequestDecision {
    /// Go on.
    #[cfg_attr(feature = "runtime", component(name = "continue"))]
    Continue,
    /// Answer with this.
    #[cfg_attr(feature = "runtime", component(name = "short"))]
    Short(SynthResponse),
    /// Close the connection.
    #[cfg_attr(feature = "runtime", component(name = "close"))]
    Close,
}

/// Input of `handler-l7-response`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct L7ResponseInput {
    /// As received from upstream.
    pub status: u16,
    /// In order, repeats kept.
    pub headers: Vec<Header>,
    /// Present if and only if the export needs it.
    pub body: Option<BytesView>,
    /// What the export inspects.
    pub context: Vec<ContextEntry>,
}

/// What to change in a response; absent parts stay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct ModifiedResponse {
    /// 100 to 599.
    pub status: Option<u16>,
    /// Replaces all headers.
    pub headers: Option<Vec<Header>>,
    /// Replaces the body.
    pub body: Option<Vec<u8>>,
}

/// Answer of `handler-l7-response`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(variant))]
pub enum L7ResponseDecision {
    /// Pass it on as it is.
    #[cfg_attr(feature = "runtime", component(name = "continue"))]
    Continue,
    /// Pass it on changed.
    #[cfg_attr(feature = "runtime", component(name = "modify"))]
    Modify(ModifiedResponse),
    /// Drop it and close.
    #[cfg_attr(feature = "runtime", component(name = "abort"))]
    Abort,
}

//! An answer's head, whatever version it came in, where something may still change it.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use shipote_rules::{HeaderEdit, Response};

use crate::http1::Refusal;
use crate::http1::head::{Known, nominated};
use crate::http1::response::ResponseHead;

/// Status and headers, without those about framing and the connection.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Bytes of the body, if it is known. For an answer without a body: what it would be.
    pub(crate) length: Option<u64>,
}

const NO_HEADER: Refusal = Refusal { status: 502, reason: "the upstream sent a header that is none" };

impl Reply {
    pub(crate) fn one(head: &ResponseHead, bytes: &[u8]) -> Result<Self, Refusal> {
        let mut headers = HeaderMap::with_capacity(head.lines.lines.len());
        for (known, name, value) in head.lines.iter(bytes) {
            match known {
                Known::ContentLength
                | Known::TransferEncoding
                | Known::Connection
                | Known::HopByHop
                | Known::Upgrade => {}
                _ if head.nominates && nominated(&head.lines, bytes, name) => {}
                _ => {
                    let name = HeaderName::from_bytes(name).map_err(|_| NO_HEADER)?;
                    headers.append(name, HeaderValue::from_bytes(value).map_err(|_| NO_HEADER)?);
                }
            }
        }
        Ok(Self { status: head.status, headers, length: head.length })
    }

    pub(crate) fn two(parts: http::response::Parts) -> Self {
        let mut headers = parts.headers;
        let length = headers.remove(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        Self { status: parts.status.as_u16(), headers, length }
    }

    /// An answer of the proxy's own, or of a plugin.
    pub(crate) fn own(response: &Response) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in &response.headers {
            // Rules and plugins were held to what a header can be; what is none all the same is left out.
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.append(name, value);
            }
        }
        let length = (!matches!(response.status, 204 | 304)).then_some(response.body.len() as u64);
        Self { status: response.status, headers, length }
    }

    /// Headers that a plugin gives in place of those that were there.
    pub(crate) fn set_headers(&mut self, headers: &[(String, String)]) {
        self.headers.clear();
        for (name, value) in headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                self.headers.append(name, value);
            }
        }
    }

    pub(crate) fn edit(&mut self, edits: &[&HeaderEdit]) {
        for edit in edits {
            for name in edit.remove.iter().chain(edit.set.iter().map(|(name, _)| name)) {
                self.headers.remove(name.as_str());
            }
            for (name, value) in edit.set.iter().chain(&edit.add) {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    self.headers.append(name, value);
                }
            }
        }
    }
}

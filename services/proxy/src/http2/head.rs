//! Heads between HTTP/2 and the text of HTTP/1.1.
//!
//! Everything that decides on requests reads HTTP/1.1 text by one strict parser. A head of HTTP/2 is therefore written
//! down as such text first, so that there is one place that says what a request is, for both versions; and what the
//! proxy composed for an upstream is read back into fields. Nothing can be smuggled in between: the `h2` crate refuses
//! names and values that hold line ends, and the parser sees whatever came.

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderValue, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, Uri, Version};

use crate::http1::Refusal;
use crate::http1::head::MAX_LINES;

/// Writes a request's head down. `end`: there is no body.
pub(crate) fn text(out: &mut Vec<u8>, parts: &http::request::Parts, end: bool) -> Result<(), Refusal> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = parts.headers.get(HOST).map(HeaderValue::as_bytes);
    let host = match (authority, host) {
        (None, None) => return Err(Refusal::bad("no host")),
        (Some(a), Some(h)) if !a.as_bytes().eq_ignore_ascii_case(h) => {
            return Err(Refusal::bad("the host contradicts the authority"));
        }
        (Some(a), _) => a.as_bytes(),
        (None, Some(h)) => h,
    };
    if parts.headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(Refusal::bad("more than one host"));
    }
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    out.extend_from_slice(if target.is_empty() { b"/" } else { target.as_bytes() });
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(host);
    out.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        if *name != HOST && *name != COOKIE {
            line(out, name, value.as_bytes());
        }
    }
    // Cookies may come in crumbs, which only HTTP/2 knows (RFC 9113, section 8.2.3).
    let crumbs: Vec<&[u8]> = parts.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if !crumbs.is_empty() {
        line(out, &COOKIE, &crumbs.join(&b"; "[..]));
    }
    if !end && !parts.headers.contains_key(CONTENT_LENGTH) {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Reads what was composed for an upstream back, as a request of HTTP/2.
pub(crate) fn request(text: &[u8], scheme: &str, trailers: bool) -> Result<http::Request<()>, Refusal> {
    const WRONG: Refusal = Refusal { status: 500, reason: "the request cannot be sent as HTTP/2" };
    // The proxy's own lines come on top of the client's.
    let mut slots = vec![httparse::EMPTY_HEADER; 2 * MAX_LINES];
    let mut parsed = httparse::Request::new(&mut slots);
    if !matches!(parsed.parse(text), Ok(httparse::Status::Complete(_))) {
        return Err(WRONG);
    }
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut host = None;
    for header in parsed.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| WRONG)?;
        match name.as_str() {
            "host" => host = std::str::from_utf8(header.value).ok(),
            "transfer-encoding" | "connection" => {}
            _ => drop(headers.append(name, HeaderValue::from_bytes(header.value).map_err(|_| WRONG)?)),
        }
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(host.unwrap_or("localhost"))
        .path_and_query(parsed.path.unwrap_or("/"))
        .build()
        .map_err(|_| WRONG)?;
    let mut request = http::Request::new(());
    *request.method_mut() = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes()).map_err(|_| WRONG)?;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(request: http::request::Builder, end: bool) -> Result<String, u16> {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut out = Vec::new();
        text(&mut out, &parts, end).map_err(|r| r.status)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn heads_are_written_down_as_one_version_reads_them() {
        let get = || http::Request::get("https://a.example/x?y");
        assert_eq!(written(get(), true).unwrap(), "GET /x?y HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let crumbs = get().header("cookie", "a=1").header("x", "y").header("cookie", "b=2");
        let want = "GET /x?y HTTP/1.1\r\nHost: a.example\r\nx: y\r\ncookie: a=1; b=2\r\n\r\n";
        assert_eq!(written(crumbs, true).unwrap(), want);
        let body = "GET /x?y HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(written(get(), false).unwrap(), body);
        assert_eq!(written(get().header("host", "A.example"), true).map(|t| t.len()), Ok(38));
        assert_eq!(written(get().header("host", "b.example"), true), Err(400));
        assert_eq!(written(http::Request::get("/x"), true), Err(400));
    }

    #[test]
    fn what_was_composed_is_read_back() {
        let text = b"POST /x?y HTTP/1.1\r\nHost: a:81\r\nX-A: 1\r\nX-A: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
        let request = request(text, "http", true).unwrap();
        assert_eq!(request.uri(), "http://a:81/x?y");
        assert_eq!(request.headers().get_all("x-a").iter().count(), 2);
        assert_eq!(request.headers().get("te").unwrap(), "trailers");
        assert!(!request.headers().contains_key("transfer-encoding"));
    }
}

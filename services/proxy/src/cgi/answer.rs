//! The head of a program's answer (RFC 3875, section 6).

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};

use crate::http::reply::Reply;
use crate::http1::Refusal;
use crate::http1::head::{Known, MAX_LINES, length};

/// What a program answers.
#[derive(Debug)]
pub(super) enum Answer {
    /// A document, or a redirection that the client is told.
    Reply(Reply),
    /// What this path and query would have been answered with.
    Local(String),
}

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: 502, reason }
}

/// Reads the head at the beginning of `bytes`: how long it is, and what it says. Nothing: there is not all of it yet.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(usize, Answer)>, Refusal> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_LINES];
    let (end, lines) = match httparse::parse_headers(bytes, &mut slots) {
        Ok(httparse::Status::Complete(found)) => found,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(bad("the program wrote too many header lines")),
        Err(_) => return Err(bad("the program did not begin its answer with header lines")),
    };
    let mut headers = HeaderMap::with_capacity(lines.len());
    let (mut status, mut location, mut size, mut typed) = (None, None, None, false);
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| bad("the program wrote no header"))?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| bad("the program wrote no header"))?;
        match (name.as_str(), Known::of(name.as_str().as_bytes())) {
            ("status", _) => {
                if status.replace(code(line.value).ok_or(bad("the program wrote no status"))?).is_some() {
                    return Err(bad("the program wrote more than one status"));
                }
            }
            ("location", _) => {
                let text = value.to_str().map_err(|_| bad("the program wrote no location"))?.to_owned();
                if location.replace(text).is_some() {
                    return Err(bad("the program wrote more than one location"));
                }
            }
            (_, Known::ContentLength) => {
                let said = length(line.value).ok_or(bad("the program wrote no length"))?;
                if size.replace(said).is_some() {
                    return Err(bad("the program wrote more than one length"));
                }
            }
            // How it travels is the proxy's to say, and `X-CGI-` is for the server alone (section 6.3.5).
            (_, Known::TransferEncoding | Known::Connection | Known::HopByHop | Known::Upgrade) => {}
            (name, _) if name.starts_with("x-cgi-") => {}
            (known, _) => {
                typed |= known == "content-type";
                headers.append(name, value);
            }
        }
    }
    debug_assert!(!headers.contains_key(CONTENT_LENGTH));
    match (&location, status) {
        (Some(path), None) if path.starts_with('/') && !path.starts_with("//") => {
            return Ok(Some((end, Answer::Local(path.clone()))));
        }
        (None, None) if !typed => {
            return Err(bad("the program's answer has neither Content-Type, Location nor Status"));
        }
        _ => {}
    }
    let status = status.unwrap_or(if location.is_some() { 302 } else { 200 });
    if let Some(location) = location {
        let value = HeaderValue::try_from(location).map_err(|_| bad("the program wrote no location"))?;
        headers.insert(http::header::LOCATION, value);
    }
    Ok(Some((end, Answer::Reply(Reply { status, headers, length: size }))))
}

/// The number of `404 Not Found`: that of a final answer.
fn code(value: &[u8]) -> Option<u16> {
    let (digits, rest) = value.split_at_checked(3)?;
    let number: u16 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let apart = rest.is_empty() || rest.starts_with(b" ");
    (apart && (200..=599).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, &'static str> {
        let (end, answer) = parse(text.as_bytes()).map_err(|r| r.reason)?.ok_or("more")?;
        let rest = &text[end..];
        Ok(match answer {
            Answer::Local(path) => format!("local {path} {rest}"),
            Answer::Reply(reply) => {
                let headers: Vec<_> =
                    reply.headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
                format!("{} {} {:?} {rest}", reply.status, headers.join(","), reply.length)
            }
        })
    }

    #[test]
    fn the_four_kinds_of_answer() {
        for (text, want) in [
            ("Content-Type: text/plain\n\nhi", "200 content-type=text/plain None hi"),
            ("Content-Type: a\r\nStatus: 404 Not Found\r\n\r\nno", "404 content-type=a None no"),
            ("Status: 204\n\n", "204  None "),
            ("Content-Type: a\nContent-Length: 2\n\nhi", "200 content-type=a Some(2) hi"),
            ("Location: /other?x\n\n", "local /other?x "),
            ("Location: https://a.example/\n\n", "302 location=https://a.example/ None "),
            ("Location: //a.example/\n\n", "302 location=//a.example/ None "),
            ("Location: /a\nStatus: 303 See Other\n\n", "303 location=/a None "),
            ("Set-Cookie: a\nSet-Cookie: b\nStatus: 200\n\n", "200 set-cookie=a,set-cookie=b None "),
            (
                "Content-Type: a\nTransfer-Encoding: chunked\nConnection: close\nX-CGI-Foo: 1\n\n",
                "200 content-type=a None ",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Ok(want), "{text:?}");
        }
        assert_eq!(read("Content-Type: text/pl"), Err("more"));
        assert_eq!(read(""), Err("more"));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            "\nhi",
            "X-A: 1\n\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "hello world\n\n",
            "Status: 99\n\n",
            "Status: 101 Switching\n\n",
            "Status: 2000\n\n",
            "Status: abc\n\n",
            "Status: 200\nStatus: 200\n\n",
            "Location: /a\nLocation: /b\n\n",
            "Content-Type: a\nContent-Length: 1\nContent-Length: 1\n\n",
            "Content-Type: a\nContent-Length: -1\n\n",
            "Content-Type: a\n folded\n\n",
            "A\u{0}: b\n\n",
        ] {
            assert!(read(text).is_err_and(|e| e != "more"), "{text:?}: {:?}", read(text));
        }
    }
}

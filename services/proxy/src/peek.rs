//! The first bytes of a connection: whether they are HTTP, and which server name a TLS client asks for.

use rustls::server::Acceptor;

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    /// More are needed to say.
    Unclear,
    /// A request.
    Http,
    /// A TLS handshake, with the server name that it asks for.
    Tls(Option<String>),
    /// Something else.
    Other,
}

/// Most bytes looked at.
pub(crate) const PEEK_BYTES: usize = 16 << 10;

/// Looks at the first bytes.
pub(crate) fn look(bytes: &[u8]) -> First {
    match bytes {
        [] => First::Unclear,
        [0x16, ..] => hello(bytes),
        _ => request_line(bytes),
    }
}

/// A method, a space, and the beginning of a target.
fn request_line(bytes: &[u8]) -> First {
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase()).count();
    match &bytes[method..] {
        _ if method == 0 || method > 20 => First::Other,
        [] | [b' '] => First::Unclear,
        [b' ', b'/' | b'*' | b'h' | b'H', ..] => First::Http,
        _ => First::Other,
    }
}

/// rustls reads the handshake; nothing is answered.
fn hello(bytes: &[u8]) -> First {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return First::Other;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return First::Tls(hello.server_name().map(str::to_ascii_lowercase));
            }
            Ok(None) => {}
            Err(_) => return First::Other,
        }
    }
    if bytes.len() >= PEEK_BYTES { First::Other } else { First::Unclear }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello for TLS 1.2 with one suite and a server name.
    fn client_hello(name: &str) -> Vec<u8> {
        let mut sni = vec![0];
        sni.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        sni.extend(name.bytes());
        let mut list = u16::try_from(sni.len()).unwrap().to_be_bytes().to_vec();
        list.extend(sni);
        let mut extensions = Vec::new();
        for (kind, body) in [
            (0u16, list),
            (10, vec![0, 2, 0, 29]), // groups: x25519
            (13, vec![0, 2, 4, 3]),  // signatures: ecdsa_secp256r1_sha256
        ] {
            extensions.extend(kind.to_be_bytes());
            extensions.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            extensions.extend(body);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        let mut record = vec![0x16, 3, 1];
        record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        record.extend(message);
        record
    }

    #[test]
    fn a_server_name_is_found_once_the_hello_is_whole() {
        let hello = client_hello("DB.example");
        assert_eq!(look(&hello), First::Tls(Some("db.example".into())));
        for n in 1..hello.len() {
            assert_eq!(look(&hello[..n]), First::Unclear, "{n}");
        }
    }

    #[test]
    fn requests_are_told_from_other_bytes() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1"[..], First::Http),
            (b"OPTIONS * HTTP/1.1", First::Http),
            (b"GET", First::Unclear),
            (b"GET ", First::Unclear),
            (b"SSH-2.0-OpenSSH", First::Other),
            (b"\x00\x01", First::Other),
            (b"HELO mail", First::Other),
            (b"\x16\x03\x01\x00", First::Unclear),
            (b"\x16\x16\x16\x16\x16\x16\x16", First::Other),
        ] {
            assert_eq!(look(bytes), want, "{bytes:?}");
        }
    }
}

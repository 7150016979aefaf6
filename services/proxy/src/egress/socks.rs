//! SOCKS5 (RFC 1928), as far as it is served: no password, `CONNECT` alone. Bytes in, what to do out.

/// A step of SOCKS5 (RFC 1928).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Socks {
    /// More bytes are needed.
    More,
    /// So many bytes were it; answer with these.
    Answer(usize, &'static [u8]),
    /// So many bytes were it: a host without brackets, and a port.
    Wanted(usize, String, u16),
    /// Answer with these, and close.
    End(&'static [u8]),
}

/// The greeting: only clients that need no password, as the socket itself says who they are.
pub(crate) fn greeting(bytes: &[u8]) -> Socks {
    let [5, count, rest @ ..] = bytes else {
        return if bytes.len() < 2 { Socks::More } else { Socks::End(b"") };
    };
    let count = usize::from(*count);
    if rest.len() < count {
        return Socks::More;
    }
    if rest[..count].contains(&0) { Socks::Answer(2 + count, &[5, 0]) } else { Socks::End(&[5, 0xff]) }
}

/// An answer to a request: a code, and no address worth telling.
pub(crate) const fn reply(code: u8) -> [u8; 10] {
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

pub(crate) const NOT_ALLOWED: u8 = 2;
pub(crate) const HOST_UNREACHABLE: u8 = 4;

/// The request.
pub(crate) fn request(bytes: &[u8]) -> Socks {
    const WRONG: &[u8] = &reply(1);
    const NO_COMMAND: &[u8] = &reply(7);
    const NO_ADDRESS: &[u8] = &reply(8);
    let [version, command, reserved, kind, rest @ ..] = bytes else { return Socks::More };
    if *version != 5 || *reserved != 0 {
        return Socks::End(WRONG);
    }
    let (start, length) = match (kind, rest) {
        (1, _) => (0, 4),
        (4, _) => (0, 16),
        (3, []) => return Socks::More,
        (3, [n, ..]) => (1, usize::from(*n)),
        _ => return Socks::End(NO_ADDRESS),
    };
    let Some(address) = rest.get(start..start + length) else { return Socks::More };
    let Some(port) = rest.get(start + length..start + length + 2) else { return Socks::More };
    if *command != 1 {
        return Socks::End(NO_COMMAND);
    }
    let host = match (kind, address) {
        (1, &[a, b, c, d]) => std::net::Ipv4Addr::new(a, b, c, d).to_string(),
        (4, v6) => <[u8; 16]>::try_from(v6).map(|o| std::net::Ipv6Addr::from(o).to_string()).unwrap_or_default(),
        _ => String::from_utf8(address.to_vec()).unwrap_or_default(),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    let port = u16::from_be_bytes([port[0], port[1]]);
    if host.is_empty() || !host.bytes().all(plain) || port == 0 {
        return Socks::End(WRONG);
    }
    Socks::Wanted(4 + start + length + 2, host, port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_of_socks() {
        assert_eq!(greeting(&[5, 2, 1, 0, 9]), Socks::Answer(4, &[5, 0]));
        assert_eq!(greeting(&[5, 1, 2]), Socks::End(&[5, 0xff]));
        assert_eq!(greeting(&[4, 1]), Socks::End(b""));
        let named = [&[5, 1, 0, 3, 9][..], b"a.example", &[1, 187]].concat();
        assert_eq!(request(&named), Socks::Wanted(16, "a.example".to_owned(), 443));
        assert_eq!(request(&[5, 1, 0, 1, 127, 0, 0, 1, 0, 80]), Socks::Wanted(10, "127.0.0.1".to_owned(), 80));
        for n in 0..named.len() {
            assert_eq!(request(&named[..n]), Socks::More, "{n}");
        }
        assert_eq!(request(&[5, 2, 0, 1, 1, 1, 1, 1, 0, 80]), Socks::End(const { &reply(7) }));
        assert_eq!(request(&[5, 1, 0, 9, 1, 1]), Socks::End(const { &reply(8) }));
        assert_eq!(request(&[&[5, 1, 0, 3, 3][..], b"a\nb", &[0, 80]].concat()), Socks::End(const { &reply(1) }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = (greeting(&bytes), request(&bytes));
        }
    }
}

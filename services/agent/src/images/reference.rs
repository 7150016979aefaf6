//! The name of an image in a registry: `[docker://][HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, with Docker's defaults.

use super::ImageError;

/// Where names without a host lead.
const DEFAULT_HOST: &str = "registry-1.docker.io";
/// Longest name.
const NAME_MAX: usize = 512;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// Host and, where it is given, port.
    pub(super) host: String,
    pub(super) repository: String,
    /// A tag, or a digest (`sha256:…`).
    pub(super) version: String,
}

impl Reference {
    pub(super) fn parse(name: &str) -> Result<Self, ImageError> {
        let invalid = |problem: &str| ImageError::invalid(name, problem);
        let text = name.strip_prefix("docker://").unwrap_or(name);
        if text.len() > NAME_MAX {
            return Err(invalid("a name of over 512 bytes"));
        }
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest)),
            None => (text, None),
        };
        // The first part is a host where it looks like one.
        let (host, path) = match text.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => ("docker.io", text),
        };
        // A colon behind the last slash begins the tag.
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (path, "latest"),
        };
        let docker = matches!(host, "docker.io" | "index.docker.io");
        let repository =
            if docker && !repository.contains('/') { format!("library/{repository}") } else { repository.to_owned() };
        if let Some(digest) = digest {
            check_digest(digest).map_err(invalid)?;
        }
        // OCI distribution spec, "Pulling manifests".
        let part = |part: &str| {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
            !part.is_empty() && part.bytes().all(good) && !part.starts_with(['.', '-', '_'])
        };
        if !repository.split('/').all(part) {
            return Err(invalid("its repository is not a-z, 0-9, `.`, `_`, `-` and `/`"));
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !(1..=128).contains(&tag.len()) || !tag.bytes().all(word) {
            return Err(invalid("its tag is not 1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`"));
        }
        let address = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        if !host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') || !host.bytes().all(address) {
            return Err(invalid("its host is none"));
        }
        let host = if docker { DEFAULT_HOST } else { host }.to_owned();
        Ok(Self { host, repository, version: digest.unwrap_or(tag).to_owned() })
    }

    /// Whether it is spoken to without TLS: on the host's loopback nobody listens in between.
    pub(super) fn is_plain(&self) -> bool {
        let name = match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        };
        name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Digests become names of files.
pub(super) fn check_digest(digest: &str) -> Result<&str, &'static str> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) => {
            Ok(hex)
        }
        _ => Err("its digest is not `sha256:` and 64 of 0-9 and a-f"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, host, repository, version) in [
            ("alpine", DEFAULT_HOST, "library/alpine", "latest"),
            ("docker.io/library/alpine:3.20", DEFAULT_HOST, "library/alpine", "3.20"),
            ("owner/app", DEFAULT_HOST, "owner/app", "latest"),
            ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000", "a/b", "v1"),
            ("docker://localhost/a", "localhost", "a", "latest"),
            ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
            (&format!("ghcr.io/a/b:v1@{digest}"), "ghcr.io", "a/b", &digest),
        ] {
            let expected = Reference { host: host.into(), repository: repository.into(), version: version.into() };
            assert_eq!(Reference::parse(name).unwrap(), expected, "{name}");
        }
        for bad in ["", "A", "a:", "a:b c", "a//b", "../a", "a@sha256:0", "a b", "h.x/", "ho st:1/a", "a:b@c", "-a"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_loopback_is_spoken_to_in_the_clear() {
        for (name, plain) in [
            ("127.0.0.1:5000/a", true),
            ("localhost:5000/a", true),
            ("[::1]:5000/a", true),
            ("10.0.0.1:5000/a", false),
            ("localhost.example.org/a", false),
            ("127.example.org/a", false),
            ("a", false),
        ] {
            assert_eq!(Reference::parse(name).unwrap().is_plain(), plain, "{name}");
        }
    }
}

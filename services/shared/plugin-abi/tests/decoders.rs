//! Whatever the bytes, the decoders answer; what they answer is bounded by their limits.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::sync::LazyLock;

use proptest::prelude::*;
use shipote_plugin_abi::check::{check_metadata, check_shape};
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::{Metadata, MiddlewareExport, MiddlewareKind};
use shipote_plugin_abi::policy::{HttpPolicy, Policy, PolicyTable};
use shipote_plugin_abi::shape::{Limits, Shape};

static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| Fixture::new("whole", "1.0.0", &MiddlewareKind::ALL).component());

const SMALL: Limits = Limits { size: 1 << 16, names: 8 };

fn bounded(bytes: &[u8]) {
    if let Ok(shape) = Shape::read(bytes, SMALL) {
        assert!(shape.imports.len() <= SMALL.names && shape.exports.len() <= SMALL.names);
        for refusal in check_shape(&shape, &Policy::default()) {
            assert!(!refusal.reason.is_empty());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        bounded(&bytes);
        let mut headed = b"\0asm\x0d\0\x01\0".to_vec();
        headed.extend(bytes);
        bounded(&headed);
    }

    #[test]
    fn a_component_with_bytes_changed_has_an_answer(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..16),
        end in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = WHOLE.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bounded(&bytes);
        bounded(&bytes[..end.index(bytes.len())]);
    }

    #[test]
    fn any_metadata_has_an_answer(
        texts in proptest::array::uniform4(".{0,80}"),
        count in 0_usize..300,
        flags in any::<(bool, bool, bool)>(),
    ) {
        let [name, version, abi_version, path] = texts;
        let export = MiddlewareExport {
            name: path.clone(),
            kind: MiddlewareKind::ALL[count % 4],
            stateless: flags.0,
            needs_body: flags.1,
            inspects: vec![path],
            needs_streaming_body: flags.2,
        };
        let metadata = Metadata { name, version, abi_version, exports: vec![export; count] };
        // An empty shape has no handler, so nothing of this can be right.
        prop_assert!(!check_metadata(&metadata, &Shape::default()).is_empty());
    }

    #[test]
    fn policies_of_any_text_are_read_or_refused(text in ".{0,200}") {
        let _ = PolicyTable::from_json(&text);
        let _ = PolicyTable::from_toml(&text, "policy.toml");
    }

    #[test]
    fn a_wildcard_allows_what_is_below_it_alone(parent in "[a-z]{1,8}\\.[a-z]{2,4}", below in "[a-z]{1,8}", host in ".{0,24}") {
        let policy = HttpPolicy { allowed_hosts: vec![format!("*.{parent}")], ..HttpPolicy::default() };
        let child = format!("{below}.{parent}");
        let glued = format!("{below}{parent}");
        prop_assert!(policy.allows_host(&child));
        prop_assert!(!policy.allows_host(&parent) && !policy.allows_host(&glued));
        let ends = host.to_ascii_lowercase().trim_end_matches('.').ends_with(&format!(".{parent}"));
        prop_assert!(!policy.allows_host(&host) || ends);
    }
}

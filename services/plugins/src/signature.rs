//! Signatures of components: minisign's, made apart from the component and checked against the keys that a policy names.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use minisign_verify::{PublicKey, Signature};
use shipote_plugin_abi::check::Refusal;

/// Most bytes of a signature's text; a real one has some 300.
pub(crate) const SIGNATURE_MAX: usize = 4096;

/// Refuses a component that none of `keys` (public keys in base64, as `minisign` prints them) has signed. Without keys no
/// signature is asked for, and none is looked at.
pub(crate) fn check(keys: &[String], signature: Option<&str>, component: &mut File) -> Result<(), Refusal> {
    if keys.is_empty() {
        return Ok(());
    }
    let refuse = |reason: String| Refusal::new("signature", reason);
    let Some(text) = signature else {
        let reason =
            "the policy wants a signature and there is none; sign it (minisign -Sm FILE) and give the .minisig";
        return Err(refuse(reason.to_owned()));
    };
    let signature = Signature::decode(text)
        .map_err(|error| refuse(format!("unreadable ({error}); give the .minisig that minisign wrote")))?;
    let mut wrong = "none of the policy's keys made it".to_owned();
    for key in keys {
        let key = PublicKey::from_base64(key).map_err(|error| {
            refuse(format!("the policy's key {key:?} is none ({error}); copy the line of minisign.pub"))
        })?;
        // Signatures of minisign's first format are of the content itself and would have to be checked in one piece.
        let mut verifier = match key.verify_stream(&signature) {
            Ok(verifier) => verifier,
            Err(minisign_verify::Error::UnexpectedKeyId) => continue,
            Err(error) => {
                wrong = error.to_string();
                continue;
            }
        };
        let mut buffer = vec![0; 64 << 10];
        component.seek(SeekFrom::Start(0)).map_err(|error| refuse(error.to_string()))?;
        loop {
            match component.read(&mut buffer).map_err(|error| refuse(error.to_string()))? {
                0 => break,
                count => verifier.update(&buffer[..count]),
            }
        }
        match verifier.finalize() {
            Ok(()) => return Ok(()),
            Err(error) => wrong = error.to_string(),
        }
    }
    Err(refuse(format!("not good for this component: {wrong}; sign the very file that is added")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write as _};

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_signature_by_one_of_the_keys_is_good_for_these_very_bytes() {
        let sign = |pair: &minisign::KeyPair, bytes: &[u8]| {
            minisign::sign(Some(&pair.pk), &pair.sk, Cursor::new(bytes), None, None).unwrap().into_string()
        };
        let pair = || minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let (one, two) = (pair(), pair());
        let keys = [two.pk.to_base64(), one.pk.to_base64()];
        let mut component = file(b"component");
        let good = sign(&one, b"component");
        check(&keys, Some(&good), &mut component).unwrap();
        check(&[], None, &mut component).unwrap();
        let altered = good.replace("trusted comment: ", "trusted comment: x");
        for (what, keys, signature, component) in [
            ("no signature", &keys[..], None, b"component".as_slice()),
            ("another component", &keys, Some(good.as_str()), b"componen7"),
            ("another key", &keys[..1], Some(&good), b"component"),
            ("a comment that was altered", &keys, Some(&altered), b"component"),
            ("no signature at all", &keys, Some("hello"), b"component"),
            ("no key", &["junk".to_owned()], Some(&good), b"component"),
        ] {
            let refusal = check(keys, signature, &mut file(component)).expect_err(what);
            assert_eq!(refusal.rule, "signature", "{what}");
        }
    }
}

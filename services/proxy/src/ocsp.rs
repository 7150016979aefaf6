//! What an authority says of a certificate (OCSP, RFC 6960), stapled to handshakes.
//!
//! The answer is a file that somebody else keeps fresh: it is read with every plan, and left out from the moment on at
//! which it does not hold any more. Its signature is the client's to verify.

use std::path::Path;

use der::Decode as _;
use der::asn1::ObjectIdentifier;
use x509_ocsp::{BasicOcspResponse, CertStatus, OcspResponse, OcspResponseStatus};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// The only kind of answer there is (RFC 6960, section 4.2.1).
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staple {
    pub(crate) der: Vec<u8>,
    /// Until when it holds, seconds since the epoch.
    pub(crate) until: Option<u64>,
}

/// Reads the answer for this certificate; the error names the file.
pub(crate) fn read(path: &Path, leaf: &[u8]) -> Result<Staple, String> {
    let der = std::fs::read(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let until = look(&der, leaf).map_err(|e| format!("OCSP answer {}: {e}", path.display()))?;
    Ok(Staple { der, until })
}

fn look(der: &[u8], leaf: &[u8]) -> Result<Option<u64>, String> {
    let answer = OcspResponse::from_der(der).map_err(|e| format!("not one in DER: {e}"))?;
    if answer.response_status != OcspResponseStatus::Successful {
        return Err(format!("the authority answered {:?}", answer.response_status));
    }
    let bytes = answer.response_bytes.filter(|b| b.response_type == BASIC).ok_or("it is of another kind")?;
    let basic = BasicOcspResponse::from_der(bytes.response.as_bytes()).map_err(|e| format!("not one in DER: {e}"))?;
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|e| format!("the certificate cannot be read: {e}"))?;
    let serial = certificate.raw_serial();
    let all = basic.tbs_response_data.responses;
    let one = all.iter().find(|one| one.cert_id.serial_number.as_bytes() == serial);
    let one = one.ok_or("it is for another certificate")?;
    match one.cert_status {
        CertStatus::Good(_) => {}
        CertStatus::Revoked(_) => return Err("the certificate is revoked".to_owned()),
        CertStatus::Unknown(_) => return Err("the authority does not know the certificate".to_owned()),
    }
    Ok(one.next_update.map(|time| time.0.to_unix_duration().as_secs()))
}

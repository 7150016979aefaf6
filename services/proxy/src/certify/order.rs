//! One certificate, from the order to the chain (RFC 8555, section 7.4).

use std::collections::BTreeMap;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use shipote_bus::proxy::CertificatesProxy;

use super::said;

/// How long an authority may look at names, and then make the certificate. It is asked less and less often meanwhile.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));

/// A new key and the chain of a certificate for it that carries these names, in PEM.
pub(super) async fn fetch(
    account: &Account,
    names: &[String],
    certificates: &CertificatesProxy<'_>,
) -> Result<String, String> {
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    let order = account.new_order(&NewOrder::new(&identifiers)).await;
    let mut order = order.map_err(|e| format!("order it: {e}"))?;
    let mut answered = Vec::new();
    let proved = prove(&mut order, certificates, &mut answered).await;
    for token in &answered {
        if let Err(error) = certificates.forget_challenge(token, BTreeMap::new()).await {
            tracing::warn!("have the proxy forget the challenge {token}: {}", said(&error));
        }
    }
    proved?;
    let (key, request) = request(names).map_err(|e| format!("make a key and a request: {e}"))?;
    order.finalize_csr(&request).await.map_err(|e| format!("ask for it: {e}"))?;
    let chain = order.poll_certificate(&PATIENCE).await.map_err(|e| format!("fetch it: {e}"))?;
    Ok(key + &chain)
}

/// Has the proxy answer for each name that the authority wants proof of, until the order is ready.
async fn prove(
    order: &mut Order,
    certificates: &CertificatesProxy<'_>,
    answered: &mut Vec<String>,
) -> Result<(), String> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(|e| format!("ask what is to be proved: {e}"))?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => return Err(format!("prove {name}: the authority says {other:?}")),
        }
        let Some(mut challenge) = authorization.challenge(ChallengeType::Http01) else {
            return Err(format!("prove {name}: the authority takes no proof over HTTP (http-01)"));
        };
        let (token, answer) = (challenge.token.clone(), challenge.key_authorization());
        let set = certificates.answer_challenge(&token, answer.as_str(), BTreeMap::new()).await;
        set.map_err(|e| format!("prove {name}: have the proxy answer: {}", said(&e)))?;
        answered.push(token);
        challenge.set_ready().await.map_err(|e| format!("prove {name}: {e}"))?;
    }
    match order.poll_ready(&PATIENCE).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(status) => Err(reason(order).await.unwrap_or_else(|| format!("the authority says the order is {status:?}"))),
        Err(error) => Err(reason(order).await.unwrap_or_else(|| format!("wait for the authority: {error}"))),
    }
}

/// Why a name was not proved, as the authority says it.
async fn reason(order: &mut Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let error = authorization.refresh().await.ok()?.challenges.iter().find_map(|c| c.error.as_ref());
        if let Some(error) = error {
            return Some(format!(
                "prove {name}: {error}; port 80 of this name must lead to a listener of the proxy that speaks HTTP"
            ));
        }
    }
    None
}

/// A new key in PEM, and a request for these names signed by it, in DER.
fn request(names: &[String]) -> Result<(String, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

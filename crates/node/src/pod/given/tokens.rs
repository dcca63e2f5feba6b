//! Tokens of service accounts for pods: bound to the pod, asked for again before they end.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};

use super::objects::bounded;

/// A token is renewed when it is this old, whatever its life.
const OLDEST: SignedDuration = SignedDuration::from_hours(24);
/// When one could not be had.
const AGAIN: SignedDuration = SignedDuration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) renew: Timestamp,
    ends: Timestamp,
}

impl Token {
    fn new(text: String, life: i64, ends: Timestamp) -> Self {
        let life = SignedDuration::from_secs(life.max(0));
        let begun = ends.checked_sub(life).unwrap_or(Timestamp::MIN);
        let aged = begun.checked_add(OLDEST).unwrap_or(Timestamp::MAX);
        Self { text, renew: aged.min(ends.checked_sub(life / 5).unwrap_or(Timestamp::MIN)), ends }
    }
}

/// The token that is kept, if it is young enough, or another. One that could not be renewed is used until it ends.
///
/// # Errors
/// In the words of a kubelet.
pub(super) async fn token(
    client: &Client,
    pod: &Pod,
    (audience, life): &(String, i64),
    kept: Option<Token>,
    now: Timestamp,
) -> Result<Token, String> {
    let kept = match kept {
        Some(it) if now < it.renew => return Ok(it),
        other => other,
    };
    let again = now.checked_add(AGAIN).unwrap_or(Timestamp::MAX);
    match ask(client, pod, audience, *life).await {
        // A server whose clock is not ours may give what seems old already.
        Ok(it) => Ok(Token { renew: it.renew.max(again), ..it }),
        Err(why) => match kept {
            None => Err(format!("failed to fetch token: {why}")),
            Some(it) if now < it.ends => Ok(Token { renew: again, ..it }),
            Some(_) => Err(format!("token expired and refresh failed: {why}")),
        },
    }
}

async fn ask(client: &Client, pod: &Pod, audience: &str, life: i64) -> Result<Token, String> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|it| it.service_account_name.as_deref()).filter(|it| !it.is_empty());
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: if audience.is_empty() { Vec::new() } else { vec![audience.to_owned()] },
            expiration_seconds: Some(life),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let api = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let params = PostParams::default();
    let given = bounded(api.create_token_request(account.unwrap_or("default"), &params, &request)).await?;
    let life = given.spec.expiration_seconds.unwrap_or(life);
    let status = given.status.ok_or("the API server gave no token")?;
    Ok(Token::new(status.token, life, status.expiration_timestamp.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_of_their_life_and_every_day() {
        let ends: Timestamp = "2026-03-28T00:00:00Z".parse().unwrap();
        let table =
            [(3600, "2026-03-27T23:48:00Z"), (30 * 3600, "2026-03-27T18:00:00Z"), (48 * 3600, "2026-03-27T00:00:00Z")];
        for (life, renew) in table {
            assert_eq!(Token::new(String::new(), life, ends).renew.to_string(), renew, "{life}");
        }
    }
}

//! Tokens of service accounts: JWTs (ES256) that the server signs and knows again. Each lives as long as it says, and no
//! longer than its account and what it is bound to. `pkg/serviceaccount` of upstream.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::rules::quoted;
use super::{User, account_groups, account_name};
use crate::core::Core;
use crate::store::Key;

/// The server's own name, and what a token is for that names no audience.
pub(crate) const AUDIENCE: &str = "https://kubernetes.default.svc";
const ISSUER: &str = AUDIENCE;
const ALGORITHM: &str = "ES256";
/// The longest token that is looked at.
const LONGEST: usize = 16 << 10;
/// How far clocks may differ, and how long what is deleted goes on counting.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);

/// What signs and knows tokens: the cluster's one key.
pub(crate) struct Tokens {
    key: EcdsaKeyPair,
    id: String,
    random: SystemRandom,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("it is no private key")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("it is no key of P-256 in PKCS#8")]
    Kind,
    #[error("it is refused: {0}")]
    Rejected(String),
}

/// An object that a token names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Ref {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
}

/// The part of a token that only Kubernetes reads.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Private {
    pub(crate) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Ref>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Ref>,
    #[serde(rename = "serviceaccount")]
    pub(crate) account: Ref,
    #[serde(default, rename = "warnafter", skip_serializing_if = "Option::is_none")]
    pub(crate) warn_after: Option<i64>,
}

/// In upstream's order of fields.
#[derive(Deserialize, Serialize)]
struct Claims {
    #[serde(rename = "aud")]
    audiences: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    private: Private,
    nbf: i64,
    sub: String,
}

/// Whose token it is.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) user: User,
    /// What it is for, of what was asked for.
    pub(crate) audiences: Vec<String>,
}

/// Why a token is not taken, in the words of a TokenReview.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It is nothing that this server can have issued.
    #[error("invalid bearer token")]
    Unknown,
    #[error("[invalid bearer token, {0}]")]
    Bad(String),
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

impl Tokens {
    /// `pem` is a private key of P-256 (PKCS#8).
    pub(crate) fn new(pem: &str) -> Result<Self, KeyError> {
        let PrivateKeyDer::Pkcs8(der) = PrivateKeyDer::from_pem_slice(pem.as_bytes())? else {
            return Err(KeyError::Kind);
        };
        let rejected = |error: String| KeyError::Rejected(error);
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
            .map_err(|error| rejected(error.to_string()))?;
        let public = key.public_key().as_der().map_err(|error| rejected(error.to_string()))?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(public.as_ref()));
        Ok(Self { key, id, random: SystemRandom::new() })
    }

    /// A token that begins now and lasts `seconds`. None when the system has no randomness.
    pub(crate) fn issue(&self, private: Private, audiences: &[String], now: Timestamp, seconds: i64) -> Option<String> {
        let begins = now.as_second();
        let claims = Claims {
            audiences: audiences.to_vec(),
            exp: begins.saturating_add(seconds),
            iat: begins,
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: account_name(&private.namespace, &private.account.name),
            private,
            nbf: begins,
        };
        let head = URL_SAFE_NO_PAD.encode(json!({"alg": ALGORITHM, "kid": self.id}).to_string());
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).ok()?));
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// Whose token it is, if it is for one of these audiences, good now, and its account and what it is bound to are there.
    pub(crate) fn verify(&self, core: &Core, token: &str, audiences: &[String]) -> Result<Known, Refused> {
        let bad = |why: &str| Refused::Bad(why.to_owned());
        let claims = self.signed(token)?;
        let both: Vec<String> = audiences.iter().filter(|it| claims.audiences.contains(it)).cloned().collect();
        if both.is_empty() {
            return Err(Refused::Bad(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(&claims.audiences),
                quoted(audiences)
            )));
        }
        let now = core.clock.now();
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::MIN);
        let (early, late) = (now.saturating_sub(LEEWAY).unwrap_or(now), now.saturating_add(LEEWAY).unwrap_or(now));
        if at(claims.exp) < early {
            return Err(bad("service account token has expired"));
        }
        if at(claims.nbf) > late {
            return Err(bad("service account token is not valid yet"));
        }
        if at(claims.iat) > late {
            return Err(bad("service account token is issued in the future"));
        }
        let Private { namespace, node, pod, secret, account, .. } = &claims.private;
        match found(core, "serviceaccounts", namespace, &account.name) {
            None => return Err(Refused::Bad(format!("serviceaccounts {:?} not found", account.name))),
            Some(it) if it.uid != account.uid => {
                let why = format!("service account UID ({}) does not match claim ({})", it.uid, account.uid);
                return Err(Refused::Bad(why));
            }
            Some(it) if it.is_gone(early) => {
                return Err(Refused::Bad(format!("service account {namespace}/{} has been deleted", account.name)));
            }
            Some(_) => {}
        }
        // A pod's node is only told.
        let node_binds = node.as_ref().filter(|_| pod.is_none());
        for (kind, plural, namespace, bound) in [
            ("secret", "secrets", namespace.as_str(), secret.as_ref()),
            ("pod", "pods", namespace.as_str(), pod.as_ref()),
            ("node", "nodes", "", node_binds),
        ] {
            let Some(bound) = bound else { continue };
            match found(core, plural, namespace, &bound.name) {
                Some(it) if it.uid != bound.uid => {
                    let (is, was) = (&it.uid, &bound.uid);
                    let why = format!("{kind} UID ({is}) does not match service account {kind} ref claim ({was})");
                    return Err(Refused::Bad(why));
                }
                Some(it) if !it.is_gone(early) => {}
                _ => return Err(bad("service account token has been invalidated")),
            }
        }
        let mut user = User::new(account_name(namespace, &account.name), account_groups(namespace));
        user.uid.clone_from(&account.uid);
        let mut tell = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        if !claims.jti.is_empty() {
            tell("credential-id", &format!("JTI={}", claims.jti));
        }
        for (kind, of) in [("node", node), ("pod", pod)] {
            let of = of.clone().unwrap_or_default();
            tell(&format!("{kind}-name"), &of.name);
            tell(&format!("{kind}-uid"), &of.uid);
        }
        Ok(Known { user, audiences: both })
    }

    /// The claims of a token that this key has signed.
    fn signed(&self, token: &str) -> Result<Claims, Refused> {
        #[derive(Deserialize)]
        struct Head {
            alg: String,
        }
        if token.len() > LONGEST {
            return Err(Refused::Unknown);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Refused::Unknown)?;
        let (head, claims) = signed.split_once('.').ok_or(Refused::Unknown)?;
        let head = decode(head).and_then(|it| serde_json::from_slice::<Head>(&it).ok()).ok_or(Refused::Unknown)?;
        let claims = decode(claims).and_then(|it| serde_json::from_slice::<Claims>(&it).ok());
        let claims = claims.filter(|it| it.iss == ISSUER && head.alg == ALGORITHM).ok_or(Refused::Unknown)?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        let genuine = decode(signature).is_some_and(|it| public.verify(signed.as_bytes(), &it).is_ok());
        if !genuine {
            return Err(Refused::Bad("go-jose/go-jose: error in cryptographic primitive".to_owned()));
        }
        Ok(claims)
    }

    /// `/.well-known/openid-configuration`, for a server that is asked at this host.
    pub(crate) fn configuration(host: &str) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("https://{host}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        })
    }

    /// `/openid/v1/jwks`: the public key.
    pub(crate) fn keys(&self) -> Value {
        // 0x04, x, y.
        let point = self.key.public_key().as_ref();
        let half = |range| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": ALGORITHM,
            "x": half(1..33), "y": half(33..65),
        }]})
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Found {
    uid: String,
    deletion_timestamp: Option<Timestamp>,
}

impl Found {
    fn is_gone(&self, before: Timestamp) -> bool {
        self.deletion_timestamp.is_some_and(|it| it < before)
    }
}

fn found(core: &Core, plural: &str, namespace: &str, name: &str) -> Option<Found> {
    #[derive(Deserialize)]
    struct Object {
        metadata: Found,
    }
    let entry = core.store.get(&Key::new("", plural, namespace, name))?;
    serde_json::from_slice::<Object>(&entry.json).ok().map(|it| it.metadata)
}

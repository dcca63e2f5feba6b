//! The server's own certificate authority, its serving certificate and the administrator's client certificate.
//!
//! With a directory they are kept in `pki/`, so that a kubeconfig goes on working after a restart.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::access::MASTERS;
use crate::access::tokens::{KeyError, Tokens};
use crate::kinds::strategy::OWN_ADDRESS;

/// Certificates outlive the machine: there is nobody to renew them.
const YEARS: i64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot keep the keys in {}", path.display())]
    Files { path: PathBuf, source: io::Error },
    #[error("making the keys was interrupted")]
    Interrupted,
    #[error("cannot make a certificate")]
    Made(#[from] rcgen::Error),
    #[error("{} is no certificate or key", path.display())]
    Unreadable { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("the certificates cannot be used")]
    Unusable(#[from] rustls::Error),
    #[error("{} cannot sign tokens", path.display())]
    Tokens { path: PathBuf, source: KeyError },
    #[error("clients cannot be verified")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate and its key, as PEM.
struct Pair {
    certificate: String,
    key: String,
}

/// Everything that TLS needs.
pub(crate) struct Pki {
    authority: String,
    admin: Pair,
    pub(crate) tls: Arc<ServerConfig>,
}

impl Pki {
    /// What is in the directory, or new; new and kept nowhere without a directory. And the key that signs the tokens of
    /// service accounts. Blocks for some milliseconds.
    pub(crate) fn open(directory: Option<&Path>, now: jiff::Timestamp) -> Result<(Self, Tokens), PkiError> {
        let found = match directory {
            Some(directory) => load(directory)?,
            None => None,
        };
        let [authority, serving, admin] = match found {
            Some([authority, mut serving, admin]) => {
                if !is_for_all_names(&serving) {
                    // Of an earlier version. Under the key that it has, so that killed here nothing has changed.
                    serving.certificate = signed_again(&authority, &serving, now)?;
                    if let Some(directory) = directory {
                        keep_one(directory, &format!("{SERVING}.crt"), &serving.certificate)?;
                    }
                }
                [authority, serving, admin]
            }
            None => {
                let made = make(now)?;
                if let Some(directory) = directory {
                    keep(directory, &made)?;
                }
                made
            }
        };
        let tls = Arc::new(config(&authority.certificate, &serving)?);
        let tokens = tokens(directory)?;
        Ok((Self { authority: authority.certificate, admin, tls }, tokens))
    }

    /// A kubeconfig for the administrator, the server's authority and his certificate in it.
    pub(crate) fn kubeconfig(&self, server: &str) -> String {
        let encoded = |text: &str| STANDARD.encode(text);
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: insula\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
             contexts:\n\
             - name: insula\n  context:\n    cluster: insula\n    user: admin\n    namespace: default\n\
             current-context: insula\n\
             preferences: {{}}\n\
             users:\n\
             - name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            encoded(&self.authority),
            encoded(&self.admin.certificate),
            encoded(&self.admin.key),
        )
    }

    /// The authority's certificate as PEM: what `kube-root-ca.crt` publishes.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }
}

fn params(name: &str, now: jiff::Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let day = |timestamp: jiff::Timestamp| {
        let date = timestamp.to_zoned(jiff::tz::TimeZone::UTC).date();
        let (month, day) = (u8::try_from(date.month()).unwrap_or(1), u8::try_from(date.day()).unwrap_or(1).min(28));
        (i32::from(date.year()), month, day)
    };
    // A clock that is set back a little must not make the certificates of the future.
    let (year, month, from) = day(now.saturating_sub(jiff::SignedDuration::from_hours(48)).unwrap_or(now));
    params.not_before = rcgen::date_time_ymd(year, month, from);
    params.not_after = rcgen::date_time_ymd(year.saturating_add(i32::try_from(YEARS).unwrap_or(10)), month, from);
    params
}

/// The names under which the server is asked: on this machine, and from within pods.
const DNS: [&str; 5] =
    ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

fn addresses() -> [IpAddr; 3] {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), OWN_ADDRESS.into()]
}

fn authority(now: jiff::Timestamp) -> CertificateParams {
    let mut authority = params("insula-ca", now);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    authority
}

fn serving(now: jiff::Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut serving = params("kubernetes", now);
    for name in DNS {
        serving.subject_alt_names.push(SanType::DnsName(name.try_into()?));
    }
    serving.subject_alt_names.extend(addresses().map(SanType::IpAddress));
    Ok(serving)
}

/// The certificate of a key, for this use.
fn signed(
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    key: &KeyPair,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<String, rcgen::Error> {
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    Ok(params.signed_by(key, issuer)?.pem())
}

fn make(now: jiff::Timestamp) -> Result<[Pair; 3], PkiError> {
    let key = KeyPair::generate()?;
    let authority = authority(now);
    let certificate = authority.self_signed(&key)?;
    let root = Pair { certificate: certificate.pem(), key: key.serialize_pem() };
    let issuer = Issuer::new(authority, key);
    let pair = |params: CertificateParams, usage: ExtendedKeyUsagePurpose| -> Result<Pair, PkiError> {
        let key = KeyPair::generate()?;
        Ok(Pair { certificate: signed(params, usage, &key, &issuer)?, key: key.serialize_pem() })
    };
    let mut admin = params("system:admin", now);
    admin.distinguished_name.push(DnType::OrganizationName, MASTERS);
    let serving = pair(serving(now)?, ExtendedKeyUsagePurpose::ServerAuth)?;
    Ok([root, serving, pair(admin, ExtendedKeyUsagePurpose::ClientAuth)?])
}

/// The serving certificate as it is made now, for the key that there is.
fn signed_again(root: &Pair, pair: &Pair, now: jiff::Timestamp) -> Result<String, PkiError> {
    let issuer = Issuer::new(authority(now), KeyPair::from_pem(&root.key)?);
    Ok(signed(serving(now)?, ExtendedKeyUsagePurpose::ServerAuth, &KeyPair::from_pem(&pair.key)?, &issuer)?)
}

/// What is no certificate at all is said where it is used.
fn is_for_all_names(serving: &Pair) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_slice(serving.certificate.as_bytes()) else { return true };
    let Ok(certificate) = ParsedCertificate::try_from(&certificate) else { return true };
    let names = DNS.into_iter().filter_map(|it| ServerName::try_from(it).ok());
    let mut all = names.chain(addresses().into_iter().map(|it| ServerName::IpAddress(it.into())));
    all.all(|it| verify_server_name(&certificate, &it).is_ok())
}

/// The key of service accounts that is kept, or a new one.
fn tokens(directory: Option<&Path>) -> Result<Tokens, PkiError> {
    let path = directory.map(|it| it.join("sa.key")).unwrap_or_default();
    let made = || -> Result<String, PkiError> { Ok(KeyPair::generate()?.serialize_pem()) };
    let key = match directory {
        None => made()?,
        Some(directory) => match fs::read_to_string(&path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = made()?;
                keep_one(directory, "sa.key", &key)?;
                key
            }
            Err(source) => return Err(PkiError::Files { path, source }),
        },
    };
    Tokens::new(&key).map_err(|source| PkiError::Tokens { path, source })
}

/// Of the serving certificate's files.
const SERVING: &str = "apiserver";
const NAMES: [&str; 3] = ["ca", SERVING, "admin"];

fn load(directory: &Path) -> Result<Option<[Pair; 3]>, PkiError> {
    let read = |name: &str| -> Result<Option<String>, PkiError> {
        let path = directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::Files { path, source }),
        }
    };
    let pair = |name: &str| -> Result<Option<Pair>, PkiError> {
        let (certificate, key) = (read(&format!("{name}.crt"))?, read(&format!("{name}.key"))?);
        Ok(certificate.zip(key).map(|(certificate, key)| Pair { certificate, key }))
    };
    let [ca, serving, admin] = NAMES;
    Ok(match (pair(ca)?, pair(serving)?, pair(admin)?) {
        (Some(root), Some(serving), Some(admin)) => Some([root, serving, admin]),
        _ => None,
    })
}

/// Keys are written before their certificates, so that a half-written directory is found incomplete and made anew.
fn keep(directory: &Path, pairs: &[Pair; 3]) -> Result<(), PkiError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PkiError::Files { path, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    private(directory, 0o700).map_err(failed(directory))?;
    for (name, pair) in NAMES.iter().zip(pairs) {
        for (extension, text) in [("key", &pair.key), ("crt", &pair.certificate)] {
            keep_one(directory, &format!("{name}.{extension}"), text)?;
        }
    }
    Ok(())
}

fn keep_one(directory: &Path, name: &str, text: &str) -> Result<(), PkiError> {
    let (path, new) = (directory.join(name), directory.join(format!(".{name}.new")));
    write_private(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(|source| PkiError::Files { path, source })
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn private(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn config(authority: &str, serving: &Pair) -> Result<ServerConfig, PkiError> {
    let bad = |name: &str| {
        let path = PathBuf::from(name);
        move |source| PkiError::Unreadable { path, source }
    };
    let root = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(bad("pki/ca.crt"))?;
    let chain = CertificateDer::from_pem_slice(serving.certificate.as_bytes()).map_err(bad("pki/apiserver.crt"))?;
    let key = PrivateKeyDer::from_pem_slice(serving.key.as_bytes()).map_err(bad("pki/apiserver.key"))?;
    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // Who shows no certificate is nobody, and is told so in HTTP's words.
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).allow_unauthenticated().build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![chain], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::UnixTime;

    use super::*;

    #[test]
    fn a_certificate_that_lacks_a_name_is_signed_again_under_the_same_key_and_authority() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let [root, mut pair, admin] = make(now).unwrap();
        let mut params = serving(now).unwrap();
        params.subject_alt_names.retain(|it| !matches!(it, SanType::IpAddress(it) if *it == OWN_ADDRESS));
        let issuer = Issuer::new(authority(now), KeyPair::from_pem(&root.key).unwrap());
        let key = KeyPair::from_pem(&pair.key).unwrap();
        pair.certificate = signed(params, ExtendedKeyUsagePurpose::ServerAuth, &key, &issuer).unwrap();
        assert!(!is_for_all_names(&pair));
        let made = [root, pair, admin];
        keep(&pki, &made).unwrap();

        let (opened, _) = Pki::open(Some(&pki), now).unwrap();
        let [root, serving, _] = load(&pki).unwrap().unwrap();
        assert_eq!((&serving.key, opened.authority()), (&made[1].key, made[0].certificate.as_str()));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let certificate = CertificateDer::from_pem_slice(serving.certificate.as_bytes()).unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second() as u64));
        for (name, is_ours) in [
            ("10.96.0.1", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("kubernetes", true),
            ("kubernetes.default", true),
            ("kubernetes.default.svc", true),
            ("kubernetes.default.svc.cluster.local", true),
            ("10.96.0.2", false),
            ("web.default.svc", false),
        ] {
            let verified = verifier.verify_server_cert(&certificate, &[], &name.try_into().unwrap(), &[], at);
            assert_eq!(verified.is_ok(), is_ours, "{name}: {verified:?}");
        }
        // What is whole is left as it is.
        drop(Pki::open(Some(&pki), now).unwrap());
        assert_eq!(load(&pki).unwrap().unwrap()[1].certificate, serving.certificate);
    }
}

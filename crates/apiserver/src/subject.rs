//! Who a client certificate is for: the common name is the user, every organization a group. Only verified certificates
//! come here; what cannot be read is nobody.

use rustls::pki_types::CertificateDer;

pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// `[0]`, the version in front of a certificate's fields.
const EXPLICIT_0: u8 = 0xa0;
/// 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Subject> {
    let (whole, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(whole, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, EXPLICIT_0) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer, validity; then the subject.
    for _ in 0..4 {
        fields = any(fields)?.2;
    }
    let (mut names, _) = element(fields, SEQUENCE)?;
    let mut subject = Subject { name: String::new(), groups: Vec::new() };
    while !names.is_empty() {
        let (mut set, rest) = element(names, SET)?;
        names = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (id, value) = element(pair, OBJECT_ID)?;
            let (_, text, _) = any(value)?;
            let text = String::from_utf8_lossy(text).into_owned();
            match id {
                COMMON_NAME => subject.name = text,
                ORGANIZATION => subject.groups.push(text),
                _ => {}
            }
        }
    }
    (!subject.name.is_empty()).then_some(subject)
}

/// The content of the element in front if it has this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = any(bytes)?;
    (found == tag).then_some((content, rest))
}

/// Tag, content and rest of the DER element in front.
fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = bytes else { return None };
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn a_certificate_names_its_user_and_groups() {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.distinguished_name.push(DnType::CommonName, "jane");
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let subject = of(made.der()).unwrap();
        assert_eq!(
            (subject.name.as_str(), subject.groups.as_slice()),
            ("jane", ["system:masters".to_owned()].as_slice())
        );
    }

    #[test]
    fn rubbish_is_nobody() {
        for bytes in [&[][..], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0x02, 0x30, 0x00], &[0x30, 0x80, 0, 0]] {
            assert!(of(&CertificateDer::from(bytes)).is_none());
        }
    }
}

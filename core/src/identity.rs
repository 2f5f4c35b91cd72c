//! Identity: SPIFFE IDs and trust domains.
//! Shape: text in, validated newtypes out. Weft's own form is `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`;
//! an ID of another form is a valid [`Identity`] without namespace and service account.
//! Spec: SPIFFE-ID (2.1 trust domain, 2.2 path, 2.3 maximum length).

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest SPIFFE ID accepted, in bytes (SPIFFE-ID 2.3).
pub const MAX_LENGTH: usize = 2048;
/// Longest trust domain accepted, in bytes (SPIFFE-ID 2.1).
pub const MAX_TRUST_DOMAIN_LENGTH: usize = 255;

/// The name of a root of trust, such as `weft.local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID: the identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity(Arc<str>);

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text does not start with `spiffe://`.
    #[error("a SPIFFE ID starts with \"spiffe://\"")]
    Scheme,
    /// The text is longer than the specification allows.
    #[error("longer than {max} bytes")]
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// The trust domain is empty.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// The trust domain has a character outside `a-z 0-9 . - _` (so no port, user or upper case).
    #[error("the trust domain may hold only a-z, 0-9, '.', '-' and '_', not {0:?}")]
    TrustDomainCharacter(char),
    /// There is no path, so the ID names a trust domain and not a workload.
    #[error("the path is missing")]
    EmptyPath,
    /// A path segment is empty, `.` or `..`, or the path ends with a slash.
    #[error("a path segment is empty, \".\" or \"..\"")]
    PathSegment,
    /// A path segment has a character outside `a-z A-Z 0-9 . - _` (so no percent-encoding, query or fragment).
    #[error("the path may hold only letters, digits, '.', '-' and '_', not {0:?}")]
    PathCharacter(char),
}

impl TrustDomain {
    /// Parses a trust domain.
    /// Errors: empty, too long, or a character outside `a-z 0-9 . - _`.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Identity {
    /// Parses a SPIFFE ID of any form.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_LENGTH {
            return Err(IdentityError::TooLong { max: MAX_LENGTH });
        }
        let rest = text.strip_prefix("spiffe://").ok_or(IdentityError::Scheme)?;
        let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        check_trust_domain(domain)?;
        if path.is_empty() {
            return Err(IdentityError::EmptyPath);
        }
        for segment in path.split('/') {
            if matches!(segment, "" | "." | "..") {
                return Err(IdentityError::PathSegment);
            }
            if let Some(bad) = segment.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '_')) {
                return Err(IdentityError::PathCharacter(bad));
            }
        }
        Ok(Self(text.into()))
    }

    /// The identity of a service account: `spiffe://<domain>/ns/<namespace>/sa/<service_account>`.
    /// Errors: a name that is no valid path segment.
    pub fn new(domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        if namespace.contains('/') || service_account.contains('/') {
            return Err(IdentityError::PathCharacter('/'));
        }
        Self::parse(&format!("spiffe://{}/ns/{namespace}/sa/{service_account}", domain.as_str()))
    }

    /// The whole ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain part.
    pub fn trust_domain(&self) -> &str {
        self.parts().0
    }

    /// The namespace, if the ID has Weft's form.
    pub fn namespace(&self) -> Option<&str> {
        self.account().map(|(namespace, _)| namespace)
    }

    /// The service account, if the ID has Weft's form.
    pub fn service_account(&self) -> Option<&str> {
        self.account().map(|(_, account)| account)
    }

    fn parts(&self) -> (&str, &str) {
        let rest = self.0.strip_prefix("spiffe://").unwrap_or_default();
        rest.split_once('/').unwrap_or((rest, ""))
    }

    fn account(&self) -> Option<(&str, &str)> {
        let mut segments = self.parts().1.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }
}

fn check_trust_domain(text: &str) -> Result<(), IdentityError> {
    if text.is_empty() {
        return Err(IdentityError::EmptyTrustDomain);
    }
    if text.len() > MAX_TRUST_DOMAIN_LENGTH {
        return Err(IdentityError::TooLong { max: MAX_TRUST_DOMAIN_LENGTH });
    }
    match text.chars().find(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit() && !matches!(c, '.' | '-' | '_')) {
        Some(bad) => Err(IdentityError::TrustDomainCharacter(bad)),
        None => Ok(()),
    }
}

macro_rules! text_newtype {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = IdentityError;
            fn try_from(text: String) -> Result<Self, IdentityError> {
                Self::parse(&text)
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0.as_ref().into()
            }
        }
        impl std::str::FromStr for $type {
            type Err = IdentityError;
            fn from_str(text: &str) -> Result<Self, IdentityError> {
                Self::parse(text)
            }
        }
    };
}
text_newtype!(TrustDomain);
text_newtype!(Identity);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_of_our_form_tells_namespace_and_account() {
        let id = Identity::parse("spiffe://weft.local/ns/shop/sa/order").unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("weft.local", Some("shop"), Some("order"))
        );
        assert_eq!(Identity::new(&TrustDomain::parse("weft.local").unwrap(), "shop", "order").unwrap(), id);
    }

    #[test]
    fn an_identity_of_another_form_has_no_namespace() {
        let id = Identity::parse("spiffe://other.org/team/a").unwrap();
        assert_eq!((id.namespace(), id.service_account()), (None, None));
    }

    #[test]
    fn malformed_ids_are_refused_with_the_reason() {
        for (text, error) in [
            ("https://a/b", IdentityError::Scheme),
            ("spiffe:///ns/a", IdentityError::EmptyTrustDomain),
            ("spiffe://Weft.local/ns/a", IdentityError::TrustDomainCharacter('W')),
            ("spiffe://weft:80/ns/a", IdentityError::TrustDomainCharacter(':')),
            ("spiffe://u@weft/ns/a", IdentityError::TrustDomainCharacter('@')),
            ("spiffe://weft", IdentityError::EmptyPath),
            ("spiffe://weft/", IdentityError::EmptyPath),
            ("spiffe://weft/ns/", IdentityError::PathSegment),
            ("spiffe://weft/ns//a", IdentityError::PathSegment),
            ("spiffe://weft/ns/../a", IdentityError::PathSegment),
            ("spiffe://weft/ns/%61", IdentityError::PathCharacter('%')),
            ("spiffe://weft/ns/a?x", IdentityError::PathCharacter('?')),
            ("spiffe://weft/ns/a#x", IdentityError::PathCharacter('#')),
        ] {
            assert_eq!(Identity::parse(text), Err(error), "{text}");
        }
        let long = format!("spiffe://weft/{}", "a".repeat(MAX_LENGTH));
        assert_eq!(Identity::parse(&long), Err(IdentityError::TooLong { max: MAX_LENGTH }));
    }
}

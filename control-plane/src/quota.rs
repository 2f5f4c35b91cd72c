//! Quotas: the part that one identity may have of something whose total is bounded, so that no identity uses up all of it.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use weft_core::identity::Identity;

/// A quota, the same for every identity.
#[derive(Debug)]
pub struct Quota {
    limit: usize,
    used: Mutex<HashMap<Identity, usize>>,
}

/// What one stream or connection of an identity uses; given back when dropped.
pub struct Share {
    quota: Arc<Quota>,
    identity: Identity,
    amount: usize,
}

/// The identity has used up its quota.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{identity} is at its limit of {limit}: divide its workloads among more service accounts")]
pub struct QuotaError {
    identity: Identity,
    limit: usize,
}

impl Quota {
    /// At most `limit` for each identity.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: Mutex::default() })
    }

    /// An identity that uses nothing yet.
    pub fn of(self: &Arc<Self>, identity: Identity) -> Share {
        Share { quota: Arc::clone(self), identity, amount: 0 }
    }

    /// One unit for an identity, until it is dropped.
    /// Errors: the identity has used up its quota.
    pub fn take(self: &Arc<Self>, identity: Identity) -> Result<Share, QuotaError> {
        let mut share = self.of(identity);
        share.set(1).map(|()| share)
    }
}

impl Share {
    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Changes the amount.
    /// Errors: the identity would have more than its quota; the amount stays as it was.
    pub fn set(&mut self, amount: usize) -> Result<(), QuotaError> {
        if amount == self.amount {
            return Ok(());
        }
        let mut used = self.quota.used.lock();
        let others = used.get(&self.identity).map_or(0, |used| used - self.amount);
        if amount > self.amount && others + amount > self.quota.limit {
            return Err(QuotaError { identity: self.identity.clone(), limit: self.quota.limit });
        }
        self.amount = amount;
        match others + amount {
            0 => used.remove(&self.identity),
            sum => used.insert(self.identity.clone(), sum),
        };
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Giving back never fails.
        self.set(0).ok();
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("identity", &self.identity).field("amount", &self.amount).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (30)
    #[test]
    fn an_identity_at_its_quota_leaves_others_alone_and_gets_back_what_it_drops() {
        let quota = Quota::new(3);
        let identity = |name: &str| Identity::parse(&format!("spiffe://weft.local/ns/shop/sa/{name}")).unwrap();
        let one = quota.take(identity("a")).unwrap();
        let mut more = quota.of(identity("a"));
        more.set(2).unwrap();
        let error = quota.take(identity("a")).unwrap_err().to_string();
        assert!(error.contains("/sa/a") && error.contains("limit of 3"), "{error}");
        assert!(more.set(3).is_err() && more.set(2).is_ok(), "the amount is as before");
        quota.take(identity("b")).unwrap();
        drop(one);
        more.set(3).unwrap();
        drop(more);
        assert!(quota.used.lock().is_empty());
    }
}

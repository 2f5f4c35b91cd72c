//! Tokens: join tokens for a workload's first certificate, and the API's admin token.
//! Texts: `weft1.<id>.<secret>.<sha256 of the root, hex>` and `weftadmin.<id>.<secret>`. Only the SHA-256 of a secret is
//! kept, and compared in constant time. A secret has 256 random bits, so guessing needs no other bound.

use std::{fmt, sync::Arc, time::Duration};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::{SignedDuration, Timestamp};
use subtle::ConstantTimeEq;

use crate::{
    random::{self, RandomError},
    sha256,
    store::{LastUse, Store, StoreError, TokenPurpose, TokenRecord},
};

/// How long a join token is good when nothing is said.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Longest life time of a join token.
pub const MAX_TTL: Duration = Duration::from_secs(365 * 86_400);
/// How long who used a one-time token may use it again, for the same key: its answer may have been lost on the way.
pub const RETRY: SignedDuration = SignedDuration::from_mins(2);
/// Most tokens that are kept; expired ones make room.
pub const MAX_TOKENS: usize = 10_000;

const JOIN: &str = "weft1";
const ADMIN: &str = "weftadmin";

/// The tokens.
#[derive(Clone)]
pub struct Tokens {
    store: Arc<dyn Store>,
    root_hash: [u8; 32],
}

/// A token's text, shown once. Its `Debug` hides the secret.
pub struct Secret(String);

/// A wish for a join token.
#[derive(Clone, Debug)]
pub struct JoinWish {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's service account.
    pub service_account: String,
    /// How long it is good.
    pub ttl: Duration,
    /// It may be used any number of times.
    pub reusable: bool,
    /// Who asks.
    pub author: String,
}

/// Why a token is not accepted or not made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The text has not the form of a token.
    #[error("not of the form {0}")]
    Form(&'static str),
    /// There is none with this name and secret.
    #[error("unknown")]
    Unknown,
    /// It has ended.
    #[error("expired at {0}")]
    Expired(Timestamp),
    /// It was used as often as it may be.
    #[error("already used")]
    Used,
    /// It was made for another root than this mesh has.
    #[error("of another mesh: its pinned root is not this one's")]
    OtherRoot,
    /// There are too many.
    #[error("there are {MAX_TOKENS} tokens; delete some")]
    TooMany,
    /// The store failed.
    #[error("tokens cannot be read or written")]
    Store(#[from] StoreError),
    /// No random numbers.
    #[error("no secret can be made")]
    Random(#[from] RandomError),
}

impl Secret {
    /// The text, for whoever is to use it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Tokens {
    /// Tokens of a store, for a mesh with this root.
    pub fn new(store: Arc<dyn Store>, root_hash: [u8; 32]) -> Self {
        Self { store, root_hash }
    }

    /// Makes the admin token when there is none yet; its text is given out this once.
    /// Blocks on the store.
    pub fn first_admin(&self, now: Timestamp) -> Result<Option<Secret>, TokenError> {
        if self.store.tokens()?.iter().any(|token| matches!(token.purpose, TokenPurpose::Admin { .. })) {
            return Ok(None);
        }
        self.new_admin("first start", now).map(Some)
    }

    /// Makes a new admin token; every other one is unknown from then on. Blocks on the store.
    /// Errors: the store; there may be two tokens then, and the older one still is good.
    pub fn replace_admin(&self, author: &str, now: Timestamp) -> Result<Secret, TokenError> {
        let old = self.store.tokens()?.into_iter().filter(|token| matches!(token.purpose, TokenPurpose::Admin { .. }));
        let secret = self.new_admin(author, now)?;
        for token in old {
            self.store.delete_token(&token.id)?;
        }
        Ok(secret)
    }

    fn new_admin(&self, author: &str, now: Timestamp) -> Result<Secret, TokenError> {
        let (id, secret) = (random::hex::<8>()?, BASE64URL_NOPAD.encode(&random::bytes::<32>()?));
        let purpose = TokenPurpose::Admin { name: "admin".into() };
        self.store.put_token(&record(&id, &secret, purpose, now, None, None, author))?;
        Ok(Secret(format!("{ADMIN}.{id}.{secret}")))
    }

    /// Makes a join token. Blocks on the store.
    /// Errors: too many tokens; the store.
    pub fn create(&self, wish: &JoinWish, now: Timestamp) -> Result<(TokenRecord, Secret), TokenError> {
        let tokens = self.store.tokens()?;
        if tokens.len() >= MAX_TOKENS {
            let ended: Vec<_> = tokens.iter().filter(|token| token.ended(now)).collect();
            if ended.is_empty() {
                return Err(TokenError::TooMany);
            }
            for token in ended {
                self.store.delete_token(&token.id)?;
            }
        }
        let (id, secret) = (random::hex::<8>()?, BASE64URL_NOPAD.encode(&random::bytes::<32>()?));
        let purpose =
            TokenPurpose::Join { namespace: wish.namespace.clone(), service_account: wish.service_account.clone() };
        let life = SignedDuration::try_from(wish.ttl.min(MAX_TTL)).unwrap_or(SignedDuration::ZERO);
        let expires = now.saturating_add(life).unwrap_or(Timestamp::MAX);
        let uses = if wish.reusable { None } else { Some(1) };
        let record = record(&id, &secret, purpose, now, Some(expires), uses, &wish.author);
        self.store.put_token(&record)?;
        let root = HEXLOWER.encode(&self.root_hash);
        Ok((record, Secret(format!("{JOIN}.{id}.{secret}.{root}"))))
    }

    /// Every join token, in the order of their making. Blocks on the store.
    pub fn list(&self) -> Result<Vec<TokenRecord>, TokenError> {
        let mut tokens = self.store.tokens()?;
        tokens.retain(|token| matches!(token.purpose, TokenPurpose::Join { .. }));
        tokens.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(tokens)
    }

    /// Deletes a join token; says whether there was one. Blocks on the store.
    pub fn delete(&self, id: &str) -> Result<bool, TokenError> {
        if !self.list()?.iter().any(|token| token.id == id) {
            return Ok(false);
        }
        Ok(self.store.delete_token(id)?)
    }

    /// Uses a join token once: namespace and service account that it stands for. Blocks on the store. `key`: the public
    /// key that is to be certified, whose owner may come again within [`RETRY`] of the last use.
    /// Errors: any of [`TokenError`]; the token is then as it was.
    pub fn consume(&self, text: &str, key: &[u8], now: Timestamp) -> Result<(String, String), TokenError> {
        const FORM: TokenError = TokenError::Form("weft1.<id>.<secret>.<root>");
        let mut parts = text.trim().split('.');
        let (Some(JOIN), Some(id), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FORM);
        };
        let hash = sha256(secret.as_bytes());
        let key = HEXLOWER.encode(&sha256(key));
        let pinned = HEXLOWER.decode(root.as_bytes()).map_err(|_cause| FORM)?;
        let mut outcome = Err(TokenError::Unknown);
        self.store.take_token(id, &mut |found| {
            let (result, kept) = judge(found, &hash, &key, now);
            let result = if pinned == self.root_hash { result } else { result.and(Err(TokenError::OtherRoot)) };
            let kept = if result.is_ok() { kept } else { None };
            outcome = result;
            kept
        })?;
        outcome
    }

    /// The name of the administrator whose token this is. Blocks on the store.
    pub fn admin(&self, text: &str, now: Timestamp) -> Result<String, TokenError> {
        let mut parts = text.split('.');
        let (Some(ADMIN), Some(id), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form("weftadmin.<id>.<secret>"));
        };
        let mut outcome = Err(TokenError::Unknown);
        self.store.take_token(id, &mut |found| {
            if let Some(token) = found
                && matches(&token, &sha256(secret.as_bytes()))
                && !token.ended(now)
                && let TokenPurpose::Admin { name } = token.purpose
            {
                outcome = Ok(name);
            }
            None
        })?;
        outcome
    }
}

impl TokenRecord {
    /// Whether it can not be used any more.
    pub fn ended(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now) || self.uses_left == Some(0)
    }
}

type Account = (String, String);

/// Whether a token may be used, and what is left of it then.
fn judge(
    found: Option<TokenRecord>,
    hash: &[u8; 32],
    key: &str,
    now: Timestamp,
) -> (Result<Account, TokenError>, Option<TokenRecord>) {
    let Some(token) = found.filter(|token| matches(token, hash)) else { return (Err(TokenError::Unknown), None) };
    let TokenPurpose::Join { namespace, service_account } = token.purpose.clone() else {
        return (Err(TokenError::Unknown), None);
    };
    if let Some(expires) = token.expires.filter(|expires| *expires <= now) {
        return (Err(TokenError::Expired(expires)), None);
    }
    let uses_left = match token.uses_left {
        Some(0) => {
            let again =
                token.last_use.as_ref().is_some_and(|last| last.key == key && now.duration_since(last.at) < RETRY);
            return (if again { Ok((namespace, service_account)) } else { Err(TokenError::Used) }, None);
        }
        Some(left) => left - 1,
        None => return (Ok((namespace, service_account)), Some(token)),
    };
    let last_use = Some(LastUse { key: key.to_owned(), at: now });
    (Ok((namespace, service_account)), Some(TokenRecord { uses_left: Some(uses_left), last_use, ..token }))
}

fn matches(token: &TokenRecord, hash: &[u8; 32]) -> bool {
    token.hash.as_bytes().ct_eq(HEXLOWER.encode(hash).as_bytes()).into()
}

fn record(
    id: &str,
    secret: &str,
    purpose: TokenPurpose,
    created: Timestamp,
    expires: Option<Timestamp>,
    uses_left: Option<u32>,
    author: &str,
) -> TokenRecord {
    let hash = HEXLOWER.encode(&sha256(secret.as_bytes()));
    TokenRecord {
        id: id.to_owned(),
        hash,
        purpose,
        created,
        expires,
        uses_left,
        author: author.to_owned(),
        last_use: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&dir.path().join("store.redb")).unwrap());
        (dir, Tokens::new(store, [7; 32]))
    }

    fn wish(reusable: bool) -> JoinWish {
        let (namespace, service_account) = ("shop".into(), "order".into());
        JoinWish { namespace, service_account, ttl: DEFAULT_TTL, reusable, author: "admin".into() }
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const KEY: &[u8] = b"key";

    #[test]
    fn a_token_is_good_once_and_pins_the_root() {
        let (_dir, tokens) = tokens();
        let (record, secret) = tokens.create(&wish(false), NOW).unwrap();
        let text = secret.reveal().to_owned();
        assert!(text.starts_with(&format!("weft1.{}.", record.id)) && text.ends_with(&"07".repeat(32)));
        assert_eq!(tokens.consume(&text, KEY, NOW).unwrap(), ("shop".to_owned(), "order".to_owned()));
        assert!(matches!(tokens.consume(&text, b"other", NOW), Err(TokenError::Used)));
        assert!(!format!("{secret:?}").contains(text.split('.').nth(2).unwrap()));
        assert!(!record.hash.contains(text.split('.').nth(2).unwrap()));
    }

    #[test]
    fn who_used_a_token_may_come_again_soon_with_the_same_key() {
        let (_dir, tokens) = tokens();
        let (_, secret) = tokens.create(&wish(false), NOW).unwrap();
        let at = |key: &[u8], seconds| tokens.consume(secret.reveal(), key, NOW + SignedDuration::from_secs(seconds));
        assert!(at(KEY, 0).is_ok() && at(KEY, 60).is_ok() && at(KEY, 119).is_ok());
        assert!(matches!(at(b"other", 60), Err(TokenError::Used)));
        assert!(matches!(at(KEY, 120), Err(TokenError::Used)), "counted from the first use");
    }

    #[test]
    fn a_new_admin_token_ends_the_old_one_and_no_join_token() {
        let (_dir, tokens) = tokens();
        let old = tokens.first_admin(NOW).unwrap().unwrap();
        let (_, join) = tokens.create(&wish(false), NOW).unwrap();
        let new = tokens.replace_admin("local", NOW).unwrap();
        assert_eq!(tokens.admin(new.reveal(), NOW).unwrap(), "admin");
        assert!(matches!(tokens.admin(old.reveal(), NOW), Err(TokenError::Unknown)));
        assert!(tokens.consume(join.reveal(), KEY, NOW).is_ok());
        assert!(tokens.first_admin(NOW).unwrap().is_none());
    }

    #[test]
    fn a_reusable_token_is_good_until_it_expires_or_is_deleted() {
        let (_dir, tokens) = tokens();
        let (record, secret) = tokens.create(&wish(true), NOW).unwrap();
        for _ in 0..3 {
            tokens.consume(secret.reveal(), KEY, NOW).unwrap();
        }
        let later = NOW + SignedDuration::from_hours(1);
        assert!(matches!(tokens.consume(secret.reveal(), KEY, later), Err(TokenError::Expired(_))));
        assert!(tokens.delete(&record.id).unwrap() && !tokens.delete(&record.id).unwrap());
        assert!(matches!(tokens.consume(secret.reveal(), KEY, NOW), Err(TokenError::Unknown)));
    }

    #[test]
    fn altered_and_foreign_texts_are_refused_and_use_nothing_up() {
        let (_dir, tokens) = tokens();
        let admin = tokens.first_admin(NOW).unwrap().unwrap();
        let (_, secret) = tokens.create(&wish(false), NOW).unwrap();
        let text = secret.reveal();
        let part = |n: usize| text.split('.').nth(n).unwrap();
        let other_root = format!("weft1.{}.{}.{}", part(1), part(2), "08".repeat(32));
        assert!(matches!(tokens.consume(&other_root, KEY, NOW), Err(TokenError::OtherRoot)));
        let other_secret = format!("weft1.{}.{}A.{}", part(1), part(2), part(3));
        assert!(matches!(tokens.consume(&other_secret, KEY, NOW), Err(TokenError::Unknown)));
        let admin_parts: Vec<_> = admin.reveal().split('.').collect();
        let as_join = format!("weft1.{}.{}.{}", admin_parts[1], admin_parts[2], part(3));
        assert!(matches!(tokens.consume(&as_join, KEY, NOW), Err(TokenError::Unknown)));
        for bad in
            ["", "weft1", "weft1.a.b", "weft1.a.b.zz", "weft2.a.b.00", &format!("{text}.x"), &"x".repeat(100_000)]
        {
            assert!(matches!(tokens.consume(bad, KEY, NOW), Err(TokenError::Form(_))), "{bad:.20}");
        }
        tokens.consume(text, KEY, NOW).unwrap();
    }

    #[test]
    fn the_admin_token_is_made_once_and_a_join_token_is_none() {
        let (_dir, tokens) = tokens();
        let secret = tokens.first_admin(NOW).unwrap().unwrap();
        assert!(tokens.first_admin(NOW).unwrap().is_none());
        assert_eq!(tokens.admin(secret.reveal(), NOW).unwrap(), "admin");
        assert!(tokens.list().unwrap().is_empty());
        let (_, join) = tokens.create(&wish(true), NOW).unwrap();
        let parts: Vec<_> = join.reveal().split('.').collect();
        assert!(tokens.admin(&format!("weftadmin.{}.{}", parts[1], parts[2]), NOW).is_err());
        assert!(tokens.admin(&format!("{}x", secret.reveal()), NOW).is_err());
        let id = secret.reveal().split('.').nth(1).unwrap();
        assert!(!tokens.delete(id).unwrap(), "the admin token is not a join token");
    }
}

//! Tokens: join tokens for a workload's first certificate, and the API's admin token.
//! Texts: `weft1.<id>.<secret>.<sha256 of the root, hex>` and `weftadmin.<id>.<secret>`. Only the SHA-256 of a secret is
//! stored, and compared in constant time; the admin token is in a private file of the data directory too. A secret has
//! 256 random bits, so no rate limit is needed against guessing.

use std::{collections::BTreeSet, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::{SignedDuration, Timestamp};
use parking_lot::RwLock;
use subtle::ConstantTimeEq;

use crate::{
    crypto::{self, RandomError, sha256},
    files,
    store::{LastUse, Store, StoreError, TokenPurpose, TokenRecord},
};

/// Default lifetime of a join token.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Maximum lifetime of a join token.
pub const MAX_TTL: Duration = Duration::from_secs(365 * 86_400);
/// Time after its last use in which a one-time token may be used again for the same key: the answer may have been lost.
pub const RETRY: SignedDuration = SignedDuration::from_mins(2);
/// Maximum number of tokens; expired and used ones are deleted first.
pub const MAX_TOKENS: usize = 10_000;

const JOIN: &str = "weft1";
const ADMIN: &str = "weftadmin";

/// The tokens.
#[derive(Clone)]
pub struct Tokens {
    store: Arc<dyn Store>,
    root_hash: [u8; 32],
    /// The file of the admin token.
    admin_file: PathBuf,
    accounts: Arc<Accounts>,
}

/// The accounts that there is a join token for, used up or not: a workload has them or may soon. Readable without the store.
#[derive(Debug, Default)]
pub struct Accounts {
    known: RwLock<Arc<BTreeSet<Account>>>,
    /// One reading of the store after another, so that the last one has seen every change.
    reading: tokio::sync::Mutex<()>,
}

/// A token's text, shown once. Its `Debug` hides the secret.
pub struct Secret(String);

/// A request for a join token.
#[derive(Clone, Debug)]
pub struct JoinTokenRequest {
    /// The workload's namespace.
    pub namespace: String,
    /// The workload's service account.
    pub service_account: String,
    /// Its lifetime.
    pub ttl: Duration,
    /// It may be used any number of times.
    pub reusable: bool,
    /// The author of the request.
    pub author: String,
}

/// Why a token is rejected or not created.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The text does not have the form of a token.
    #[error("not of the form {0}")]
    Form(&'static str),
    /// There is no token with this id and secret.
    #[error("unknown")]
    Unknown,
    /// It has expired.
    #[error("expired at {0}")]
    Expired(Timestamp),
    /// It has no uses left.
    #[error("already used")]
    Used,
    /// It is for another workload than the caller.
    #[error("for {namespace}/{service_account}, and the proxy's file says {}/{}", expected.0, expected.1)]
    OtherAccount {
        /// The namespace that it is for.
        namespace: String,
        /// The service account that it is for.
        service_account: String,
        /// Namespace and service account of the caller.
        expected: (String, String),
    },
    /// It pins the root of another mesh.
    #[error("of another mesh: its pinned root is not this one's")]
    OtherRoot,
    /// There are too many tokens.
    #[error("there are {MAX_TOKENS} tokens; delete some")]
    TooMany,
    /// The file of the admin token was not written.
    #[error("writing the admin token to {path} failed")]
    AdminFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store failed.
    #[error("reading or writing tokens failed")]
    Store(#[from] StoreError),
    /// No random numbers.
    #[error("generating a secret failed")]
    Random(#[from] RandomError),
}

impl Secret {
    /// The text of the token.
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
    /// Tokens of a store, for a mesh with this root; the admin token is written to `admin_file` with mode 0600.
    pub fn new(store: Arc<dyn Store>, root_hash: [u8; 32], admin_file: PathBuf) -> Self {
        Self { store, root_hash, admin_file, accounts: Arc::default() }
    }

    /// The accounts of the join tokens, as of [`Tokens::read_accounts`] and the changes since.
    pub fn accounts(&self) -> &Arc<Accounts> {
        &self.accounts
    }

    /// Reads the accounts of the join tokens. Cost: linear in the tokens.
    /// Errors: the store.
    pub async fn read_accounts(&self) -> Result<(), TokenError> {
        let _one = self.accounts.reading.lock().await;
        let accounts = self.store.tokens().await?.into_iter().filter_map(|token| match token.purpose {
            TokenPurpose::Join { namespace, service_account } => Some((namespace, service_account)),
            TokenPurpose::Admin { .. } => None,
        });
        let accounts = Arc::new(accounts.collect());
        *self.accounts.known.write() = accounts;
        Ok(())
    }

    /// Creates the admin token if there is none; its text is returned only here, and in its file.
    /// Errors: the file or the store; the next call tries again.
    pub async fn first_admin(&self, now: Timestamp) -> Result<Option<Secret>, TokenError> {
        if self.store.tokens().await?.iter().any(|token| matches!(token.purpose, TokenPurpose::Admin { .. })) {
            return Ok(None);
        }
        self.new_admin("first start", now).await.map(Some)
    }

    /// Creates a new admin token and deletes every other one.
    /// Errors: the file or the store; there may be two tokens then, and the older one still works.
    pub async fn replace_admin(&self, author: &str, now: Timestamp) -> Result<Secret, TokenError> {
        let all = self.store.tokens().await?;
        let secret = self.new_admin(author, now).await?;
        for old in all.iter().filter(|token| matches!(token.purpose, TokenPurpose::Admin { .. })) {
            self.store.delete_token(&old.id).await?;
        }
        Ok(secret)
    }

    async fn new_admin(&self, author: &str, now: Timestamp) -> Result<Secret, TokenError> {
        let (id, secret) = (crypto::hex::<8>()?, BASE64URL_NOPAD.encode(&crypto::bytes::<32>()?));
        let purpose = TokenPurpose::Admin { name: "admin".into() };
        let text = format!("{ADMIN}.{id}.{secret}");
        // The file comes first: a crash in between leaves a token that does not work yet, never one that nobody can know.
        files::write_private(&self.admin_file, format!("{text}\n").as_bytes())
            .map_err(|source| TokenError::AdminFile { path: self.admin_file.clone(), source })?;
        self.store.put_token(record(&id, &secret, purpose, now, None, None, author)).await?;
        Ok(Secret(text))
    }

    /// Creates a join token.
    /// Errors: too many tokens; the store.
    pub async fn create(
        &self,
        request: &JoinTokenRequest,
        now: Timestamp,
    ) -> Result<(TokenRecord, Secret), TokenError> {
        let tokens = self.store.tokens().await?;
        if tokens.len() >= MAX_TOKENS {
            let ended: Vec<_> = tokens.iter().filter(|token| token.ended(now)).collect();
            if ended.is_empty() {
                return Err(TokenError::TooMany);
            }
            for token in ended {
                self.store.delete_token(&token.id).await?;
            }
        }
        let (id, secret) = (crypto::hex::<8>()?, BASE64URL_NOPAD.encode(&crypto::bytes::<32>()?));
        let purpose = TokenPurpose::Join {
            namespace: request.namespace.clone(),
            service_account: request.service_account.clone(),
        };
        let life = SignedDuration::try_from(request.ttl.min(MAX_TTL)).unwrap_or(SignedDuration::ZERO);
        let expires = now.saturating_add(life).unwrap_or(Timestamp::MAX);
        let uses = if request.reusable { None } else { Some(1) };
        let record = record(&id, &secret, purpose, now, Some(expires), uses, &request.author);
        self.store.put_token(record.clone()).await?;
        self.read_accounts().await?;
        let root = HEXLOWER.encode(&self.root_hash);
        Ok((record, Secret(format!("{JOIN}.{id}.{secret}.{root}"))))
    }

    /// Every join token, in the order of creation.
    pub async fn list(&self) -> Result<Vec<TokenRecord>, TokenError> {
        let mut tokens = self.store.tokens().await?;
        tokens.retain(|token| matches!(token.purpose, TokenPurpose::Join { .. }));
        tokens.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(tokens)
    }

    /// Deletes a join token; returns whether there was one.
    pub async fn delete(&self, id: &str) -> Result<bool, TokenError> {
        if !self.list().await?.iter().any(|token| token.id == id) {
            return Ok(false);
        }
        let deleted = self.store.delete_token(id).await?;
        self.read_accounts().await?;
        Ok(deleted)
    }

    /// Uses a join token once: the namespace and service account that it authorises. `key`: the public key that is to be
    /// certified; the same key may use the token again within [`RETRY`] of the last use. `expected`: the namespace and service
    /// account that the caller means to become, if it says so.
    /// Errors: any of [`TokenError`]; the token is then as it was.
    pub async fn consume(
        &self,
        text: &str,
        key: &[u8],
        expected: Option<&(String, String)>,
        now: Timestamp,
    ) -> Result<(String, String), TokenError> {
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
        loop {
            let found = self.store.token(id).await?.ok_or(TokenError::Unknown)?;
            let (account, used) = judge(&found, &hash, &key, now)?;
            if pinned != self.root_hash {
                return Err(TokenError::OtherRoot);
            }
            if let Some(expected) = expected.filter(|expected| **expected != account) {
                let (namespace, service_account) = account;
                return Err(TokenError::OtherAccount { namespace, service_account, expected: expected.clone() });
            }
            // A reusable token, and a retry, are not written, so that they cost no flush of the disk. If another use came
            // between, the token is judged again: each use counts, and every failed turn means that another one was used.
            let Some(used) = used else { return Ok(account) };
            if self.store.replace_token(found, used).await? {
                return Ok(account);
            }
        }
    }

    /// The name of the administrator that an admin token belongs to.
    pub async fn admin(&self, text: &str, now: Timestamp) -> Result<String, TokenError> {
        let mut parts = text.split('.');
        let (Some(ADMIN), Some(id), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form("weftadmin.<id>.<secret>"));
        };
        match self.store.token(id).await? {
            Some(token) if matches(&token, &sha256(secret.as_bytes())) && !token.ended(now) => match token.purpose {
                TokenPurpose::Admin { name } => Ok(name),
                TokenPurpose::Join { .. } => Err(TokenError::Unknown),
            },
            Some(_) | None => Err(TokenError::Unknown),
        }
    }
}

impl Accounts {
    /// The accounts: namespace and service account.
    pub fn known(&self) -> Arc<BTreeSet<(String, String)>> {
        Arc::clone(&self.known.read())
    }
}

impl TokenRecord {
    /// Whether it has expired or has no uses left.
    pub fn ended(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now) || self.uses_left == Some(0)
    }
}

type Account = (String, String);

/// The account that a use of this token gives, and the token after it; `None` if the use does not change it.
fn judge(
    token: &TokenRecord,
    hash: &[u8; 32],
    key: &str,
    now: Timestamp,
) -> Result<(Account, Option<TokenRecord>), TokenError> {
    let TokenPurpose::Join { namespace, service_account } = &token.purpose else { return Err(TokenError::Unknown) };
    if !matches(token, hash) {
        return Err(TokenError::Unknown);
    }
    let account = (namespace.clone(), service_account.clone());
    if let Some(expires) = token.expires.filter(|expires| *expires <= now) {
        return Err(TokenError::Expired(expires));
    }
    match token.uses_left {
        None => Ok((account, None)),
        Some(0) => {
            let last = token.last_use.as_ref();
            let retry = last.is_some_and(|last| last.key == key && now.duration_since(last.at) < RETRY);
            if retry { Ok((account, None)) } else { Err(TokenError::Used) }
        }
        Some(left) => {
            let last_use = Some(LastUse { key: key.to_owned(), at: now });
            Ok((account, Some(TokenRecord { uses_left: Some(left - 1), last_use, ..token.clone() })))
        }
    }
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
    use crate::store::{Embedded, Older};

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&dir.path().join("store.redb"), Older::Refuse).unwrap());
        let file = dir.path().join("admin-token");
        (dir, Tokens::new(store, [7; 32], file))
    }

    fn wish(reusable: bool) -> JoinTokenRequest {
        let (namespace, service_account) = ("shop".into(), "order".into());
        JoinTokenRequest { namespace, service_account, ttl: DEFAULT_TTL, reusable, author: "admin".into() }
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const KEY: &[u8] = b"key";

    #[tokio::test]
    async fn a_token_is_good_once_and_pins_the_root() {
        let (_dir, tokens) = tokens();
        let (record, secret) = tokens.create(&wish(false), NOW).await.unwrap();
        let text = secret.reveal().to_owned();
        assert!(text.starts_with(&format!("weft1.{}.", record.id)) && text.ends_with(&"07".repeat(32)));
        assert_eq!(tokens.consume(&text, KEY, None, NOW).await.unwrap(), ("shop".to_owned(), "order".to_owned()));
        assert!(matches!(tokens.consume(&text, b"other", None, NOW).await, Err(TokenError::Used)));
        assert!(!format!("{secret:?}").contains(text.split('.').nth(2).unwrap()));
        assert!(!record.hash.contains(text.split('.').nth(2).unwrap()));
    }

    /// (26)
    #[tokio::test]
    async fn a_token_for_another_account_is_refused_and_not_used_up() {
        let (_dir, tokens) = tokens();
        let (_, secret) = tokens.create(&wish(false), NOW).await.unwrap();
        let account = |name: &str| ("shop".to_owned(), name.to_owned());
        let refused = tokens.consume(secret.reveal(), KEY, Some(&account("web")), NOW).await.unwrap_err();
        assert_eq!(refused.to_string(), "for shop/order, and the proxy's file says shop/web");
        assert_eq!(tokens.consume(secret.reveal(), KEY, Some(&account("order")), NOW).await.unwrap(), account("order"));
    }

    #[tokio::test]
    async fn who_used_a_token_may_come_again_soon_with_the_same_key() {
        let (_dir, tokens) = tokens();
        let (_, secret) = tokens.create(&wish(false), NOW).await.unwrap();
        let at = async |key: &[u8], seconds| {
            tokens.consume(secret.reveal(), key, None, NOW + SignedDuration::from_secs(seconds)).await
        };
        assert!(at(KEY, 0).await.is_ok() && at(KEY, 60).await.is_ok() && at(KEY, 119).await.is_ok());
        assert!(matches!(at(b"other", 60).await, Err(TokenError::Used)));
        assert!(matches!(at(KEY, 120).await, Err(TokenError::Used)), "counted from the first use");
    }

    #[tokio::test]
    async fn a_new_admin_token_ends_the_old_one_and_no_join_token() {
        let (dir, tokens) = tokens();
        let old = tokens.first_admin(NOW).await.unwrap().unwrap();
        let (_, join) = tokens.create(&wish(false), NOW).await.unwrap();
        let new = tokens.replace_admin("local", NOW).await.unwrap();
        assert_eq!(tokens.admin(new.reveal(), NOW).await.unwrap(), "admin");
        let file = std::fs::read_to_string(dir.path().join("admin-token")).unwrap();
        assert_eq!(file.trim(), new.reveal(), "the file has the one that works");
        assert!(matches!(tokens.admin(old.reveal(), NOW).await, Err(TokenError::Unknown)));
        assert!(tokens.consume(join.reveal(), KEY, None, NOW).await.is_ok());
        assert!(tokens.first_admin(NOW).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_reusable_token_is_good_until_it_expires_or_is_deleted() {
        let (_dir, tokens) = tokens();
        let (record, secret) = tokens.create(&wish(true), NOW).await.unwrap();
        for _ in 0..3 {
            tokens.consume(secret.reveal(), KEY, None, NOW).await.unwrap();
        }
        let later = NOW + SignedDuration::from_hours(1);
        assert!(matches!(tokens.consume(secret.reveal(), KEY, None, later).await, Err(TokenError::Expired(_))));
        assert!(tokens.delete(&record.id).await.unwrap() && !tokens.delete(&record.id).await.unwrap());
        assert!(matches!(tokens.consume(secret.reveal(), KEY, None, NOW).await, Err(TokenError::Unknown)));
    }

    #[tokio::test]
    async fn altered_and_foreign_texts_are_refused_and_use_nothing_up() {
        let (_dir, tokens) = tokens();
        let admin = tokens.first_admin(NOW).await.unwrap().unwrap();
        let (_, secret) = tokens.create(&wish(false), NOW).await.unwrap();
        let text = secret.reveal();
        let part = |n: usize| text.split('.').nth(n).unwrap();
        let other_root = format!("weft1.{}.{}.{}", part(1), part(2), "08".repeat(32));
        assert!(matches!(tokens.consume(&other_root, KEY, None, NOW).await, Err(TokenError::OtherRoot)));
        let other_secret = format!("weft1.{}.{}A.{}", part(1), part(2), part(3));
        assert!(matches!(tokens.consume(&other_secret, KEY, None, NOW).await, Err(TokenError::Unknown)));
        let admin_parts: Vec<_> = admin.reveal().split('.').collect();
        let as_join = format!("weft1.{}.{}.{}", admin_parts[1], admin_parts[2], part(3));
        assert!(matches!(tokens.consume(&as_join, KEY, None, NOW).await, Err(TokenError::Unknown)));
        for bad in
            ["", "weft1", "weft1.a.b", "weft1.a.b.zz", "weft2.a.b.00", &format!("{text}.x"), &"x".repeat(100_000)]
        {
            assert!(matches!(tokens.consume(bad, KEY, None, NOW).await, Err(TokenError::Form(_))), "{bad:.20}");
        }
        tokens.consume(text, KEY, None, NOW).await.unwrap();
    }

    #[tokio::test]
    async fn the_admin_token_is_made_once_and_a_join_token_is_none() {
        let (_dir, tokens) = tokens();
        let secret = tokens.first_admin(NOW).await.unwrap().unwrap();
        assert!(tokens.first_admin(NOW).await.unwrap().is_none());
        assert_eq!(tokens.admin(secret.reveal(), NOW).await.unwrap(), "admin");
        assert!(tokens.list().await.unwrap().is_empty());
        let (_, join) = tokens.create(&wish(true), NOW).await.unwrap();
        let parts: Vec<_> = join.reveal().split('.').collect();
        assert!(tokens.admin(&format!("weftadmin.{}.{}", parts[1], parts[2]), NOW).await.is_err());
        assert!(tokens.admin(&format!("{}x", secret.reveal()), NOW).await.is_err());
        let id = secret.reveal().split('.').nth(1).unwrap();
        assert!(!tokens.delete(id).await.unwrap(), "the admin token is not a join token");
    }
}

//! One order from top to bottom: check, read user and product, charge, insert.
//!
//! With an idempotency key the order's id is a hash of the key. Payment and the database are idempotent by that id,
//! so a repeated POST, even after a crash between charge and insert, charges once and stores once.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::payment::{ChargeError, Payment};
use crate::shop::{ReadError, Shop};
use crate::store::{Order, Store, StoreError};
use crate::trace::Trace;

/// The body of `POST /orders`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOrder {
    user: String,
    product: String,
    quantity: i32,
    #[serde(default)]
    idempotency_key: Option<String>,
}

/// A placed order, and who took part. `served_by` is absent when the order was there before.
#[derive(Debug, Serialize)]
pub(crate) struct Placed {
    #[serde(flatten)]
    pub(crate) order: Order,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) served_by: Option<ServedBy>,
}

/// The instances that answered for this order.
#[derive(Debug, Serialize)]
pub(crate) struct ServedBy {
    user: String,
    product: String,
    product_version: String,
    payment: String,
}

/// An order that was not placed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: &'static str },
    #[error("idempotency_key: used before for another order ({0})")]
    KeyReused(String),
    #[error("payment declined: {charge_id}")]
    Declined { charge_id: String },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Charge(#[from] ChargeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Places an order. When it returns `Ok`, the order is committed.
pub(crate) async fn place(
    shop: &Shop,
    payment: &Payment,
    store: &Store,
    new: NewOrder,
    trace: &Trace,
) -> Result<Placed, PlaceError> {
    new.check()?;
    let id = order_id(new.idempotency_key.as_deref());
    if new.idempotency_key.is_some()
        && let Some(order) = store.read(&id).await?
    {
        return new.same_as(order).map(|order| Placed { order, served_by: None });
    }

    let (user, product) = tokio::try_join!(shop.user(&new.user, trace), shop.product(&new.product, trace))?;
    let amount_cents = product
        .price_cents
        .checked_mul(i64::from(new.quantity))
        .ok_or(PlaceError::Field { field: "quantity", reason: "the amount is too large" })?;

    let charge = payment.charge(&id, amount_cents, &product.currency, trace).await?;
    if !charge.accepted {
        return Err(PlaceError::Declined { charge_id: charge.charge_id });
    }

    let order = store
        .insert(&Order {
            id,
            idempotency_key: new.idempotency_key.clone(),
            user: user.id,
            product: product.id,
            quantity: new.quantity,
            amount_cents,
            currency: product.currency,
            charge_id: charge.charge_id,
            created_ms: 0,
        })
        .await?;
    let served_by = ServedBy {
        user: user.instance,
        product: product.instance,
        product_version: product.version,
        payment: charge.instance,
    };
    new.same_as(order).map(|order| Placed { order, served_by: Some(served_by) })
}

impl NewOrder {
    fn check(&self) -> Result<(), PlaceError> {
        let field = |field, reason| Err(PlaceError::Field { field, reason });
        if !plain(&self.user) {
            return field("user", "expected 1 to 64 letters, digits, - or _");
        }
        if !plain(&self.product) {
            return field("product", "expected 1 to 64 letters, digits, - or _");
        }
        if !(1..=100).contains(&self.quantity) {
            return field("quantity", "expected 1 to 100");
        }
        match &self.idempotency_key {
            Some(key) if key.is_empty() || key.len() > 128 || !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
                field("idempotency_key", "expected 1 to 128 printable characters without spaces")
            }
            _ => Ok(()),
        }
    }

    /// The stored order, when it is what this request asks for.
    fn same_as(&self, order: Order) -> Result<Order, PlaceError> {
        let same = order.user == self.user && order.product == self.product && order.quantity == self.quantity;
        if same { Ok(order) } else { Err(PlaceError::KeyReused(order.id)) }
    }
}

/// Whether the text is safe as one segment of a path.
pub(crate) fn plain(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// `o-` and 32 hexadecimal digits: the key's SHA-256, cut to 128 bits, or random.
fn order_id(key: Option<&str>) -> String {
    let bits = match key {
        Some(key) => {
            let digest: [u8; 32] = Sha256::digest(key).into();
            digest.iter().take(16).fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte))
        }
        None => fastrand::u128(..),
    };
    format!("o-{bits:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_id() {
        // printf k1 | sha256sum
        assert_eq!(order_id(Some("k1")), "o-6ab9f1eb8f7d3388f4f9d586f66e99fd");
        assert_ne!(order_id(Some("k1")), order_id(Some("k2")));
        assert_ne!(order_id(None), order_id(None));
        assert_eq!(order_id(None).len(), 34);
    }

    #[test]
    fn bad_fields_are_named() {
        let good =
            || NewOrder { user: "u1".into(), product: "p1".into(), quantity: 1, idempotency_key: Some("k".into()) };
        assert!(good().check().is_ok());
        let cases: [(&str, NewOrder); 7] = [
            ("user", NewOrder { user: String::new(), ..good() }),
            ("user", NewOrder { user: "../u1".into(), ..good() }),
            ("product", NewOrder { product: "p".repeat(65), ..good() }),
            ("quantity", NewOrder { quantity: 0, ..good() }),
            ("quantity", NewOrder { quantity: 101, ..good() }),
            ("idempotency_key", NewOrder { idempotency_key: Some(String::new()), ..good() }),
            ("idempotency_key", NewOrder { idempotency_key: Some("a b".into()), ..good() }),
        ];
        for (name, new) in cases {
            match new.check() {
                Err(PlaceError::Field { field, .. }) => assert_eq!(field, name, "{new:?}"),
                other => panic!("{new:?}: {other:?}"),
            }
        }
    }
}

//! Which request comes next: the mix, and the orders that were acknowledged so far.

use serde_json::json;

/// Most order ids that are remembered; beyond that a random one makes room.
const MAX_ORDERS: usize = 100_000;

/// The routes that are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    /// `GET /products`
    Products,
    /// `GET /products/{id}`
    Product,
    /// `GET /users/{id}`
    User,
    /// `GET /orders/{id}`
    Order,
    /// `POST /orders`
    Place,
}

impl Route {
    /// As it stands in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Products => "GET /products",
            Self::Product => "GET /products/{id}",
            Self::User => "GET /users/{id}",
            Self::Order => "GET /orders/{id}",
            Self::Place => "POST /orders",
        }
    }
}

/// One request to make.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) route: Route,
    pub(crate) path: String,
    /// Of a POST: its idempotency key and its JSON body.
    pub(crate) post: Option<(String, String)>,
}

/// Chooses requests at random by weight.
#[derive(Debug)]
pub(crate) struct Plan {
    run: u32,
    posts: u64,
    users: u32,
    products: u32,
    orders: Vec<String>,
    /// How many orders were acknowledged.
    pub(crate) acknowledged: u64,
}

impl Plan {
    /// Users are `u1` to `u{users}`, products `p1` to `p{products}`; neither is 0.
    pub(crate) fn new(users: u32, products: u32) -> Self {
        Self { run: fastrand::u32(..), posts: 0, users, products, orders: Vec::new(), acknowledged: 0 }
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Planned {
        match fastrand::u32(0..100) {
            0..10 => self.place(),
            10..25 => match fastrand::choice(&self.orders) {
                Some(order) => Self::read(order),
                None => Planned { route: Route::Products, path: "/products".to_owned(), post: None },
            },
            25..45 => Planned { route: Route::User, path: format!("/users/{}", self.user()), post: None },
            45..70 => Planned { route: Route::Product, path: format!("/products/{}", self.product()), post: None },
            _ => Planned { route: Route::Products, path: "/products".to_owned(), post: None },
        }
    }

    /// Reads an order.
    pub(crate) fn read(order: &str) -> Planned {
        Planned { route: Route::Order, path: format!("/orders/{order}"), post: None }
    }

    /// Remembers an order that was answered with 201.
    pub(crate) fn acknowledge(&mut self, order: &str) {
        self.acknowledged += 1;
        if self.orders.len() >= MAX_ORDERS {
            self.orders.swap_remove(fastrand::usize(0..self.orders.len()));
        }
        self.orders.push(order.to_owned());
    }

    /// The remembered orders.
    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = &String> {
        self.orders.iter()
    }

    fn place(&mut self) -> Planned {
        self.posts += 1;
        let key = format!("load-{:08x}-{}", self.run, self.posts);
        let body = json!({
            "user": self.user(),
            "product": self.product(),
            "quantity": fastrand::u32(1..=3),
            "idempotency_key": key,
        });
        Planned { route: Route::Place, path: "/orders".to_owned(), post: Some((key, body.to_string())) }
    }

    fn user(&self) -> String {
        format!("u{}", fastrand::u32(1..=self.users))
    }

    fn product(&self) -> String {
        format!("p{}", fastrand::u32(1..=self.products))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_mix_has_its_shares_and_every_post_its_own_key() {
        fastrand::seed(7);
        let mut plan = Plan::new(20, 12);
        plan.acknowledge("o-1");
        let mut routes = BTreeMap::<Route, u32>::new();
        let mut keys = BTreeSet::new();
        for _ in 0..10_000 {
            let next = plan.next();
            *routes.entry(next.route).or_default() += 1;
            if let Some((key, _)) = next.post {
                assert!(keys.insert(key), "a key came twice");
            }
        }
        for (route, share) in
            [(Route::Place, 10), (Route::Order, 15), (Route::User, 20), (Route::Product, 25), (Route::Products, 30)]
        {
            assert!(routes[&route].abs_diff(share * 100) < 200, "{route:?}: {}", routes[&route]);
        }
    }
}

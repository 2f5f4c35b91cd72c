//! The mesh's own addresses: one IPv4 and one IPv6 address for each service, never given to another one.
//! Shape: number `n` means `240.0.0.0 + n` and `fd77:6566:7400:: + n`, so that the two of a service look alike.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use weft_core::names::{MESH_RANGE_V4, MESH_RANGE_V6};

use crate::store::ServiceAddresses;

const FIRST_V4: u32 = Ipv4Addr::new(240, 0, 0, 0).to_bits();
const FIRST_V6: u128 = Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 0).to_bits();
/// `255.255.255.255` is no address of a service.
const LAST: u32 = 0x0fff_fffe;

/// The addresses of each service.
#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    services: BTreeMap<String, ServiceAddresses>,
    owners: BTreeMap<IpAddr, String>,
    next: u32,
}

impl AddressBook {
    /// A book of the addresses that were allocated before.
    pub fn new(services: BTreeMap<String, ServiceAddresses>) -> Self {
        let mut book = Self { next: 1, ..Self::default() };
        book.extend(services);
        book
    }

    /// Adds allocated addresses.
    pub fn extend(&mut self, services: BTreeMap<String, ServiceAddresses>) {
        for (service, pair) in services {
            self.next = self.next.max(pair.v4.to_bits().wrapping_sub(FIRST_V4).saturating_add(1));
            self.owners.insert(pair.v4.into(), service.clone());
            self.owners.insert(pair.v6.into(), service.clone());
            self.services.insert(service, pair);
        }
    }

    /// The addresses of a service, `<namespace>/<name>`, if it has any.
    pub fn find(&self, service: &str) -> Option<ServiceAddresses> {
        self.services.get(service).copied()
    }

    /// The service that an address belongs to, even if it was deleted.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        self.owners.get(&address).map(String::as_str)
    }

    /// New addresses: of the first free number after every allocated one and from `cursor` on, which moves past it.
    /// `None`: none is left.
    pub fn allocate(&self, cursor: &mut u32, in_use: impl Fn(IpAddr) -> bool) -> Option<ServiceAddresses> {
        for number in (*cursor).max(self.next)..=LAST {
            let v4 = Ipv4Addr::from_bits(FIRST_V4 + number);
            let v6 = Ipv6Addr::from_bits(FIRST_V6 + u128::from(number));
            *cursor = number + 1;
            if !in_use(v4.into()) && !in_use(v6.into()) {
                return Some(ServiceAddresses { v4, v6 });
            }
        }
        None
    }
}

/// Whether an address is in the mesh's own ranges.
pub(crate) fn in_mesh_range(address: IpAddr) -> bool {
    [MESH_RANGE_V4, MESH_RANGE_V6]
        .iter()
        .any(|range| range.parse::<IpNet>().is_ok_and(|range| range.contains(&address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_addresses_of_a_service_are_alike_and_in_the_ranges() {
        let first = AddressBook::new(BTreeMap::new()).allocate(&mut 0, |_| false).unwrap();
        assert_eq!((first.v4.to_string(), first.v6.to_string()), ("240.0.0.1".into(), "fd77:6566:7400::1".into()));
        assert!(in_mesh_range(first.v4.into()) && in_mesh_range(first.v6.into()));
        assert!(!in_mesh_range("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_was_given_out_or_is_in_use_is_not_given_out_again() {
        let mut book = AddressBook::new(BTreeMap::new());
        let first = book.allocate(&mut 0, |_| false).unwrap();
        book.extend([("a/b".to_owned(), first)].into());
        assert_eq!(book.owner(first.v6.into()), Some("a/b"));
        let mut cursor = 0;
        let second = book.allocate(&mut cursor, |_| false).unwrap();
        let third = book.allocate(&mut cursor, |_| false).unwrap();
        assert!(first != second && second != third && first != third);
        let used: IpAddr = second.v6.into();
        assert_ne!(book.allocate(&mut 0, |address| address == used).unwrap(), second);
    }

    #[test]
    fn the_range_ends_before_the_broadcast_address() {
        let last =
            ServiceAddresses { v4: [255, 255, 255, 254].into(), v6: "fd77:6566:7400::fff:fffe".parse().unwrap() };
        let mut book = AddressBook::new(BTreeMap::new());
        assert_eq!(book.allocate(&mut 0x0fff_fffe, |_| false), Some(last));
        book.extend([("a/b".to_owned(), last)].into());
        assert_eq!(book.allocate(&mut 0, |_| false), None);
    }
}

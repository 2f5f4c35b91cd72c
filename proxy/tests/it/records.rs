//! The record layer of mesh TLS that a test's proxies use (`spec.tls.records`): [`with_rustls`] runs tests a second time.

use std::cell::Cell;

use weft_core::api::proxy_config::TlsRecords;

thread_local! {
    // A test has a thread of its own.
    static USED: Cell<TlsRecords> = const { Cell::new(TlsRecords::Weft) };
}

/// That of the certificates that are made from now on, on this thread.
pub(crate) fn used() -> TlsRecords {
    USED.get()
}

/// Those of rustls from now on, on this thread.
pub(crate) fn use_rustls() {
    USED.set(TlsRecords::Rustls);
}

/// Runs these tests of a module once more, with proxies that leave the records to rustls.
macro_rules! with_rustls {
    ($($name:ident)*) => {
        mod with_rustls {
            $(
                #[test]
                fn $name() {
                    crate::records::use_rustls();
                    super::$name();
                }
            )*
        }
    };
}
pub(crate) use with_rustls;

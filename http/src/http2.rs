//! One HTTP/2 connection (RFC 9113).

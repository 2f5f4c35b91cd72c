//! HTTP/1 messages (RFC 9112).

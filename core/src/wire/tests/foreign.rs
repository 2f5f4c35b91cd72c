//! xDS from others: what is read, and what is refused and how it is named.

//! Two connections of ours talk to each other, and hostile bytes to one. What others make of it: proxy/tests.

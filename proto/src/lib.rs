//! The wire: messages and services of Weft's own protocol (`weft.v1`) and of the part of xDS v3 that Weft speaks,
//! generated from the .proto files of this crate. Field numbers are facts; the texts are ours.

#![allow(clippy::large_enum_variant, reason = "generated, and lives only while a resource is written or read")]

/// The descriptors of every message here, encoded as `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

include!(concat!(env!("OUT_DIR"), "/all.rs"));

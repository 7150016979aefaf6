//! Requests of any version to upstreams of any version.
//!
//! HTTP/1.1 on both sides with nothing in between has a path of its own (`http1::exchange`), because it is the usual
//! one and can be had cheaper. All else comes here: HTTP/2 and HTTP/3 on either side, and whatever must look into bodies
//! or change answers.

pub(crate) mod acquire;
pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod compress;
pub(crate) mod exchange;
pub(crate) mod general;
pub(crate) mod multiplexed;
pub(crate) mod reply;
pub(crate) mod sink;
pub(crate) mod websocket;

pub(crate) use body::{Body, Source};
pub(crate) use client::Client;

//! Promises of the library and the command, kept against golden values of an independent
//! implementation (`tests/golden/make.py`, `make_train.py`, `make_text.py`, `make_rivals.py`) and against each other on two devices.

mod bad_input;
mod cached_golden;
mod caching;
#[cfg(all(feature = "capi", feature = "bundled"))]
mod capi;
mod common;
mod comparison;
mod devices;
mod docs;
mod embedding;
mod forecast;
mod forward;
mod gpu_faults;
mod header;
mod hub;
mod hub_server;
mod kernels;
mod large_model;
#[cfg(all(feature = "capi", target_os = "linux"))]
mod misuse;
mod pictures;
mod pixart;
mod pretrain;
mod pretrain_data;
mod residence;
mod rivals;
mod rivals_golden;
mod run_time;
mod sampling;
mod schedules;
mod solver;
mod text;
mod training;
mod vae;

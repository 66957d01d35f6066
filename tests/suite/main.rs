//! Promises of the library and the command, kept against golden values of an independent
//! implementation (`tests/golden/make.py`, `make_train.py`, `make_text.py`, `make_rivals.py`, `make_quant.py`, `make_bf16.py`) and against each other on two devices.

mod allocations;
mod autoencoder;
mod bad_input;
mod bf16;
mod cached_golden;
mod caching;
#[cfg(all(feature = "capi", feature = "bundled"))]
mod capi;
mod common;
mod comparison;
mod devices;
mod docs;
mod doctor;
mod embedding;
mod forecast;
mod formats;
mod forward;
mod fuzz;
mod gpu_faults;
mod habits;
mod header;
mod hostile;
mod hub;
mod hub_server;
mod kernels;
mod large_model;
#[cfg(all(feature = "capi", target_os = "linux"))]
mod misuse;
mod newcomer;
mod pictures;
mod pixart;
mod pretrain;
mod pretrain_data;
mod quant;
mod ranks;
mod residence;
mod rivals;
mod rivals_golden;
mod run_time;
mod sampling;
mod schedules;
mod signals;
mod solver;
mod stopping;
mod text;
mod training;
mod vae;

//! Promises of the library and the command, kept against golden values of an independent
//! implementation (`tests/golden/make.py`, `make_train.py`) and against each other on two devices.

mod bad_input;
mod caching;
mod common;
mod devices;
mod forward;
mod kernels;
mod large_model;
mod pretrain;
mod pretrain_data;
mod sampling;
mod schedules;
mod solver;
mod training;

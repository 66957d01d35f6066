//! harmonica
pub mod checkpoint;
pub mod cli;
pub mod device;
pub mod diffusion;
pub mod dit;
pub mod files;
pub mod kernels;
pub mod metrics;
pub mod policy;
pub mod report;
pub mod sampler;
pub mod schedule;
pub mod training;

//! The store on a simulated disk: what it promises, said as tests.

mod clone;
mod costs;
mod crash;
mod faults;
mod import;
mod model;
mod overwrite;
mod reads;
mod reborn;
mod repair;
mod rig;
mod smoke;
mod stale;
mod workload;

//! The store on a simulated disk: what it promises, said as tests.

mod check;
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
mod rot;
mod scrub;
mod smoke;
mod stale;
mod workload;

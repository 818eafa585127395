//! The store on a simulated disk: what it promises, said as tests.

mod costs;
mod crash;
mod faults;
mod model;
mod reads;
mod rig;
mod smoke;
mod workload;

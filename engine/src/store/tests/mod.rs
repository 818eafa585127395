//! The store on a simulated disk: what it promises, said as tests.

mod check;
mod costs;
mod crash;
mod faults;
mod model;
mod rig;
mod smoke;
mod workload;

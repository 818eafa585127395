//! The store on a simulated disk: what it promises, said as tests.
//!
//! `STORE_TIER` (`short`, `ci`, `night`) sizes the campaigns; `docs/testing.md` has the commands.

mod canaries;
mod clone;
mod costs;
mod crash;
mod enumerate;
mod faults;
mod import;
mod model;
mod overwrite;
mod reborn;
mod repair;
mod rig;
mod sequence;
mod smoke;
mod tiers;
mod workload;

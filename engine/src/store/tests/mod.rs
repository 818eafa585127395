//! The store on a simulated disk: what it promises, said as tests.
//!
//! `STORE_TIER` (`short`, `ci`, `night`) sizes the campaigns; `docs/testing.md` has the commands.

mod canaries;
mod chain;
mod check;
mod clone;
mod costs;
mod crash;
mod enumerate;
mod faults;
mod import;
mod model;
mod overwrite;
mod reads;
mod reborn;
mod repair;
mod replace;
mod rig;
mod rot;
mod rot_images;
mod scrub;
mod sequence;
mod smoke;
mod stale;
mod workload;

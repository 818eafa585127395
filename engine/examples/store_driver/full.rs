//! A disk that is full, and then has room again.

use crate::Verdict;
use crate::options::Options;
use engine::runtime::shard::Spawn;

pub(crate) fn full<R: Spawn>(_options: &Options) -> Verdict {
    Verdict::Failed("".into())
}

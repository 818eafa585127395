//! What operators ask and change: repair and drain. Every change is durable at the master on return.

use wire::ServerId;
use wire::repairs::{Drain, Repairs, RepairsOk, TuneRepairs};

use crate::{Client, Error};

impl Client {
    /// How repair stands, with at most `limit` of the chunks that wait.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the master does not answer.
    pub async fn repairs(&self, limit: u32) -> Result<RepairsOk, Error> {
        Ok(self.inner.query(&Repairs { limit }).await?)
    }

    /// Has repair begin nothing, or begin again.
    ///
    /// # Errors
    ///
    /// As for every change: `Unknown` when no answer came in time and it may have happened.
    pub async fn pause_repairs(&self, paused: bool) -> Result<(), Error> {
        let request = self.inner.request_id();
        let tune = TuneRepairs { request, paused: Some(paused), server_rate: None, cluster_rate: None };
        self.inner.change(&tune).await?;
        Ok(())
    }

    /// Bounds repair, in bytes per second: of one server (zero: 30 % of its disk), and of all together
    /// (zero: no limit). What is `None` stays.
    ///
    /// # Errors
    ///
    /// As [`Client::pause_repairs`].
    pub async fn limit_repairs(&self, server_rate: Option<u64>, cluster_rate: Option<u64>) -> Result<(), Error> {
        let tune = TuneRepairs { request: self.inner.request_id(), paused: None, server_rate, cluster_rate };
        self.inner.change(&tune).await?;
        Ok(())
    }

    /// Has a server emptied, or ends that. `force`: also when fewer servers than replicas are left.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown server, `Precondition` when too few others are alive; as
    /// [`Client::pause_repairs`].
    pub async fn drain(&self, server: ServerId, drain: bool, force: bool) -> Result<(), Error> {
        self.inner.change(&Drain { request: self.inner.request_id(), server, drain, force }).await?;
        Ok(())
    }
}

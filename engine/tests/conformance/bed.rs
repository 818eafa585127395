//! Where a case runs: a shard thread over real files and sockets, or a simulation.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::glommio::GlommioRuntime;
use engine::runtime::monoio::{Driver, MonoioRuntime};
use engine::runtime::shard::{ShardConfig, Spawn};
use engine::runtime::sim::{Sim, SimRuntime};

/// Buffers of a shard under test.
pub(crate) const MEMORY: usize = 8 << 20;
/// A case that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// One end of a connection.
pub(crate) type End<R> = (<R as Runtime>::Reader, <R as Runtime>::Writer);

/// What the suite needs beyond the seam.
pub(crate) trait Bed: Runtime {
    /// The two ends of a connection: dialled, accepted.
    async fn pair(&self) -> io::Result<(End<Self>, End<Self>)>;
}

async fn loopback<R: Runtime>(rt: &R) -> io::Result<(End<R>, End<R>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let dialled = rt.connect(listener.local_addr()?).await?;
    // Already in the backlog: does not block.
    let accepted = rt.adopt(listener.accept()?.0)?;
    Ok((dialled, accepted))
}

impl Bed for GlommioRuntime {
    async fn pair(&self) -> io::Result<(End<Self>, End<Self>)> {
        loopback(self).await
    }
}

impl<D: Driver> Bed for MonoioRuntime<D> {
    async fn pair(&self) -> io::Result<(End<Self>, End<Self>)> {
        loopback(self).await
    }
}

impl Bed for SimRuntime {
    async fn pair(&self) -> io::Result<(End<Self>, End<Self>)> {
        let address = ([10, 0, 0, 1], 1).into();
        let listener = self.listen(address)?;
        let dialled = self.connect(address).await?;
        Ok((dialled, listener.accept().await))
    }
}

/// Runs a case on a shard of its own.
pub(crate) fn real<R: Spawn, W: Future<Output = ()> + 'static>(case: impl FnOnce(R, PathBuf) -> W + Send + 'static) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    on_shard(move |rt| case(rt, root));
}

/// Runs work on a shard and waits for the shard's end.
pub(crate) fn on_shard<R: Spawn, W: Future<Output = ()> + 'static>(work: impl FnOnce(R) -> W + Send + 'static) {
    let shard = R::spawn_shard(ShardConfig { index: 0, core: None, memory: MEMORY }, work).unwrap();
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(shard.join()));
    match ended.recv_timeout(LIMIT) {
        Ok(Ok(result)) => result.unwrap(),
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => panic!("the shard did not end"),
    }
}

/// Runs a case in simulations of several seeds.
pub(crate) fn simulated<W: Future<Output = ()> + 'static>(case: impl Fn(SimRuntime, PathBuf) -> W) {
    for seed in 0..5 {
        let sim = Sim::new(seed);
        let rt = sim.start(sim.node(), MEMORY);
        sim.run(|_| case(rt, sim.root()));
    }
}

//! A disk that is full, and then has room again, without a restart in between.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use engine::runtime::Runtime;
use engine::runtime::shard::Spawn;
use engine::store::{ShardSeed, Store, StoreError};
use wire::ChunkHandle;

use crate::Verdict;
use crate::disk::{create_args, entry, open, payload, read_all, start};
use crate::history::Piece;
use crate::options::Options;

/// Filled until nothing fits.
const BIG: ChunkHandle = ChunkHandle(1);
/// Has space that was reserved before, and uses it when nothing else is left.
const RESERVED: ChunkHandle = ChunkHandle(2);
/// Created when there is room again.
const LATER: ChunkHandle = ChunkHandle(3);
const PART: u32 = 256 << 10;
const RESERVED_LEN: u32 = 2 << 20;

/// What must be in each chunk.
type Wanted = Vec<(ChunkHandle, Vec<u8>)>;

pub(crate) fn full<R: Spawn>(options: &Options) -> Verdict {
    let Some(ballast) = options.ballast.clone() else {
        return Verdict::Failed("full wants --ballast".into());
    };
    let (lock, mut recovered) = match open::<R>(options) {
        Ok(opened) => opened,
        Err(error) => return Verdict::Failed(format!("refused: {error}")),
    };
    let seed = recovered.seeds.remove(0);
    let outcome = start::<R, _, _>(0, move |rt| async move { fill_up(&rt, seed, &ballast).await })();
    let (wanted, line) = match outcome {
        Ok(done) => done,
        Err(what) => return Verdict::Broken(format!("WRONG: {what}")),
    };
    drop(lock);
    let (_lock, mut recovered) = match open::<R>(options) {
        Ok(opened) => opened,
        Err(error) => return Verdict::Broken(format!("LOST: does not open: {error}")),
    };
    let seed = recovered.seeds.remove(0);
    let same = start::<R, _, _>(0, move |rt| async move {
        let store = Store::start(rt, seed).await.unwrap();
        holds(&store, &wanted).await
    })();
    match same {
        Ok(()) => Verdict::Kept(line),
        Err(what) => Verdict::Broken(format!("LOST: after the restart: {what}")),
    }
}

async fn append<R: Runtime>(rt: &R, store: &Store<R>, chunk: ChunkHandle, piece: Piece) -> Result<(), StoreError> {
    let bytes = piece.bytes();
    store.reserve(chunk, store.view(chunk).unwrap().len + piece.len).await?;
    let buf = payload(rt, &bytes).await;
    store.append(&entry(store, chunk, &bytes), buf)?.await
}

async fn holds<R: Runtime>(store: &Store<R>, wanted: &Wanted) -> Result<(), String> {
    for (chunk, content) in wanted {
        match read_all(store, chunk.0).await {
            Ok(read) if read == *content => {}
            Ok(read) => return Err(format!("chunk {chunk}: {} bytes for {}", read.len(), content.len())),
            Err((at, error)) => return Err(format!("chunk {chunk} at byte {at}: {error}")),
        }
    }
    Ok(())
}

async fn fill_up<R: Runtime>(rt: &R, seed: ShardSeed, ballast: &Path) -> Result<(Wanted, String), String> {
    let store = Store::start(rt.clone(), seed).await.unwrap();
    let failed = |what: &'static str| move |error: StoreError| format!("{what}: {error}");
    store.create(create_args(BIG)).await.map_err(failed("create"))?;
    store.create(create_args(RESERVED)).await.map_err(failed("create"))?;
    store.reserve(RESERVED, RESERVED_LEN).await.map_err(failed("reserve"))?;

    let (mut big, mut count) = (Vec::new(), 0);
    let refused = loop {
        let piece = Piece { seed: count, at: 0, len: PART };
        match append(rt, &store, BIG, piece).await {
            Ok(()) => big.extend(piece.bytes()),
            Err(error) => break error,
        }
        count += 1;
    };
    is_no_space("an append beyond the space", Err(refused))?;
    let view = store.view(BIG).unwrap();
    if (view.len as usize, view.last_seq.0) != (big.len(), count) {
        return Err("a refused append left a trace".into());
    }
    is_no_space("a create on a full disk", store.create(create_args(LATER)).await)?;

    // Now take what the store leaves alone, to the last byte.
    let filler = eat_the_rest(ballast);
    let (mut reserved, mut at) = (Vec::new(), 0);
    while at < RESERVED_LEN {
        let piece = Piece { seed: 1000 + u64::from(at), at: 0, len: PART };
        append(rt, &store, RESERVED, piece).await.map_err(failed("an append into reserved space"))?;
        reserved.extend(piece.bytes());
        at += PART;
    }
    let mut wanted = vec![(BIG, big), (RESERVED, reserved)];
    holds(&store, &wanted).await?;

    std::fs::remove_file(&filler).map_err(|error| format!("cannot make room: {error}"))?;
    std::fs::remove_file(ballast).map_err(|error| format!("cannot make room: {error}"))?;
    let piece = Piece { seed: 5000, at: 0, len: PART };
    append(rt, &store, BIG, piece).await.map_err(failed("an append with room again"))?;
    wanted[0].1.extend(piece.bytes());
    store.create(create_args(LATER)).await.map_err(failed("a create with room again"))?;
    append(rt, &store, LATER, piece).await.map_err(failed("an append to the new chunk"))?;
    wanted.push((LATER, piece.bytes()));
    holds(&store, &wanted).await?;
    store.shutdown().await;
    Ok((wanted, format!("full after {count} appends, refused, went on with room")))
}

fn is_no_space(what: &str, outcome: Result<(), StoreError>) -> Result<(), String> {
    match outcome {
        Err(StoreError::NoSpace) => Ok(()),
        other => Err(format!("{what}: {other:?}, not NoSpace")),
    }
}

/// Fills the file system beside the store until nothing fits.
fn eat_the_rest(ballast: &Path) -> PathBuf {
    let path = ballast.with_extension("rest");
    let mut file = File::create(&path).unwrap();
    for len in [1 << 20, 4096] {
        let bytes = vec![0x55; len];
        while file.write_all(&bytes).and_then(|()| file.sync_data()).is_ok() {}
    }
    path
}

//! Writing in place: the bytes go to the head of the chunk's chain, which is re-opened for them.

use bytes::Bytes;
use tokio::time::Instant;
use wire::append::Close;
use wire::limits::PAYLOAD_LEN_MAX;
use wire::locate::{Intent, Location, Position};
use wire::member::ChunkState;
use wire::report::Trouble;
use wire::write::Write;
use wire::{ChunkHandle, Fault, InodeId, Kind, OpId, StreamId, checksum};

use crate::client::Inner;
use crate::clock::{left, now, random};
use crate::error::Outcome;
use crate::locations::end_of;
use crate::retry::{Call, Rule, pause, rule};
use crate::write::changed_text;

/// A head that is silent for so long is reported, and the master asked where to go on. More than a
/// chain's watchdog, which knows better who is at fault.
const ATTEMPT: std::time::Duration = std::time::Duration::from_secs(4);

/// The numbered operations of one call in one chunk: a repeat is never written twice.
#[derive(Clone, Copy, Debug)]
struct Numbers {
    chunk: ChunkHandle,
    stream: StreamId,
    next: u64,
}

/// Writes over bytes that exist, from `at` on: as many as lie in chunks with final length. Durable on
/// every replica. Each mebibyte of a chunk is written at once or not at all; of several, the first ones
/// may be there when the call fails.
pub(crate) async fn overwrite(inner: &Inner, file: InodeId, at: u64, data: &Bytes, deadline: Instant) -> Outcome<()> {
    let mut numbers: Option<Numbers> = None;
    let mut known: Option<Location> = None;
    let mut done = 0;
    while done < data.len() {
        let offset = at + done as u64;
        let location = match known.take().filter(|known| known.start <= offset && offset < end_of(known)) {
            Some(location) => location,
            None => locate(inner, file, offset).await?,
        };
        let (within, len) = piece(&location, offset, data.len() - done);
        let bytes = data.slice(done..done + len as usize);
        let mine = numbers.filter(|numbers| numbers.chunk == location.chunk);
        let mut mine = mine.unwrap_or_else(|| Numbers { chunk: location.chunk, stream: StreamId(random()), next: 1 });
        let written = write(inner, file, location, mine, (offset, within), bytes, deadline).await?;
        mine.next += 1;
        numbers = Some(mine);
        done += len as usize;
        if done == data.len() || at + done as u64 >= end_of(&written) {
            close(inner, &written, mine.stream).await;
        }
        known = Some(written);
    }
    Ok(())
}

/// Offset in the chunk, and length, of what one message carries: to the next mebibyte of the chunk.
fn piece(location: &Location, offset: u64, len: usize) -> (u32, u32) {
    let within = offset - location.start;
    let step = u64::from(PAYLOAD_LEN_MAX);
    let stop = ((within / step + 1) * step).min(end_of(location) - location.start);
    let len = (stop - within).min(len as u64);
    (u32::try_from(within).unwrap_or(u32::MAX), u32::try_from(len).unwrap_or(0))
}

async fn locate(inner: &Inner, file: InodeId, offset: u64) -> Outcome<Location> {
    let found = inner.locate(file, Position::Offset(offset), Intent::Write, 1).await?;
    let fits = |it: &Location| it.state == ChunkState::Reopened && it.start <= offset && offset < end_of(it);
    let location = found.items.into_iter().next().filter(|it| fits(it) && !it.members.is_empty());
    inner.locations.forget(file);
    location.ok_or_else(|| Fault::new(Kind::Precondition, changed_text(file)))
}

/// One operation, sent until it is answered; the location it was answered at comes back.
async fn write(
    inner: &Inner,
    file: InodeId,
    mut location: Location,
    numbers: Numbers,
    (offset, within): (u64, u32),
    bytes: Bytes,
    deadline: Instant,
) -> Outcome<Location> {
    let crcs = checksum::block_crcs(&bytes);
    let id = OpId { stream: numbers.stream, op: numbers.next };
    let mut unsure = false;
    for tries in 0.. {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let (chunk, epoch) = (location.chunk, location.epoch);
        let write = Write { chunk, epoch, offset: within, id, first_unacked: id.op, len, crcs: crcs.clone() };
        let fault = match send(inner, &location, &write, bytes.clone(), deadline).await {
            Ok(()) => return Ok(location),
            Err(fault) => fault,
        };
        unsure |= fault.kind == Kind::Unknown;
        let wait = pause(tries, inner.noise.next());
        let next = rule(Call::Append, &fault);
        if matches!(next, Rule::Fail | Rule::Next | Rule::ResendFrom(_)) || left(deadline) <= wait {
            let kind = if unsure { Kind::Unknown } else { fault.kind };
            return Err(Fault { kind, ..fault });
        }
        inner.counters.retries.add(1);
        if next == Rule::Roll {
            inner.report(chunk, epoch, Trouble::NoAnswer, location.members[0].server).await;
        }
        tokio::time::sleep(wait).await;
        if next != Rule::Pause {
            let found = locate(inner, file, offset).await.map_err(|fault| {
                let kind = if unsure { Kind::Unknown } else { fault.kind };
                Fault { kind, ..fault }
            })?;
            if found.chunk != chunk {
                // Replaced meanwhile: what was sent went with the old chunk.
                let kind = if unsure { Kind::Unknown } else { Kind::Precondition };
                return Err(Fault::new(kind, changed_text(file)));
            }
            location = found;
        }
    }
    Err(Fault::new(Kind::Unavailable, "the write was repeated too often"))
}

async fn send(inner: &Inner, location: &Location, write: &Write, bytes: Bytes, deadline: Instant) -> Outcome<()> {
    let limit = ATTEMPT.min(left(deadline));
    let until = now() + limit;
    let conn = inner.pool.chunk(&location.members[0], location.chunk, limit).await?;
    let (ok, _) = conn.call_with(write, bytes, left(until)).await?;
    if (ok.chunk, ok.offset, ok.len) != (write.chunk, write.offset, write.len) {
        return Err(Fault::new(Kind::Corrupt, "the server answered for another operation"));
    }
    inner.saw(location.chunk, ok.epoch, ok.committed_seq);
    Ok(())
}

/// The stream is over; best effort, servers forget silent ones.
async fn close(inner: &Inner, location: &Location, stream: StreamId) {
    let Ok(conn) = inner.pool.chunk(&location.members[0], location.chunk, ATTEMPT).await else { return };
    conn.note(&Close { chunk: location.chunk, epoch: location.epoch, stream });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locations::tests::location;

    #[test]
    fn a_piece_ends_at_the_mebibyte_of_its_chunk_at_the_chunks_end_or_at_its_own() {
        let mib = u64::from(PAYLOAD_LEN_MAX);
        let chunk = location(1, 100, PAYLOAD_LEN_MAX + 50, ChunkState::Reopened);
        assert_eq!(piece(&chunk, 100, 10), (0, 10));
        assert_eq!(piece(&chunk, 100, usize::MAX >> 1), (0, PAYLOAD_LEN_MAX));
        assert_eq!(piece(&chunk, 99 + mib, 10), (PAYLOAD_LEN_MAX - 1, 1));
        assert_eq!(piece(&chunk, 100 + mib, 1000), (PAYLOAD_LEN_MAX, 50));
    }
}

//! A fake chunkserver.

use std::collections::HashMap;

use tokio::net::{TcpListener, TcpStream};
use wire::append::{Append, Appended, LAST};
use wire::limits::{BLOCK_SIZE, CHUNK_SIZE};
use wire::message::tag;
use wire::read::{Data, Read, Version, VersionOk};
use wire::write::Write;
use wire::{Body, ChunkHandle, Epoch, Fault, Reason, Seq, checksum};

use super::{Answer, Chunk, Fake, Incoming, SHARDS, State, answer, greet, receive, send};

pub(super) async fn listen(fake: Fake, server: usize, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let (down, cut) = {
            let state = fake.state();
            (state.faults[server].down, state.cut[server].clone())
        };
        if !down {
            let serving = serve(fake.clone(), server, stream);
            tokio::spawn(async move {
                tokio::select! { () = cut.cancelled() => {} _ = serving => {} }
            });
        }
    }
}

async fn serve(fake: Fake, server: usize, mut stream: TcpStream) -> Option<()> {
    let boot = fake.state().boots[server];
    let shard = greet(&mut stream, u32::try_from(server).unwrap() + 1, boot, SHARDS).await?;
    // Parts of operations that are not whole yet, by request id.
    let mut parts: HashMap<u64, Vec<u8>> = HashMap::new();
    loop {
        let incoming = receive(&mut stream).await?;
        let late = fake.state().faults[server].late;
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        let id = incoming.header.request_id;
        if fake.state().faults[server].down || fake.state().boots[server] != boot {
            return None;
        }
        let Some(answer) = fake.state().handle(server, shard, &incoming, &mut parts)? else { continue };
        if !fake.state().faults[server].silent {
            send(&mut stream, id, &answer).await?;
        }
        fake.finish_closing();
    }
}

impl Fake {
    /// The master learns of finished chunks, as late as it was told to.
    fn finish_closing(&self) {
        let (late, closing) = {
            let state = self.state();
            let open = state.chunks.iter().filter(|(_, chunk)| chunk.closing && !chunk.sealed);
            (state.finish_late, open.map(|(handle, _)| *handle).collect::<Vec<_>>())
        };
        for handle in closing {
            let fake = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                fake.state().seal(handle);
            });
        }
    }
}

fn used(count: &mut u32) -> bool {
    let had = *count > 0;
    *count = count.saturating_sub(1);
    had
}

impl State {
    pub(crate) fn seal(&mut self, handle: ChunkHandle) {
        let Some(chunk) = self.chunks.get_mut(&handle) else { return };
        if !std::mem::replace(&mut chunk.sealed, true) {
            let (file, table) = (chunk.file, chunk.table.clone());
            let file = self.files.get_mut(&file).unwrap();
            file.version += 1;
            file.table = table;
        }
    }

    /// `None` ends the connection; `Some(None)` means that there is no answer yet.
    fn handle(
        &mut self,
        server: usize,
        shard: u32,
        incoming: &Incoming,
        parts: &mut HashMap<u64, Vec<u8>>,
    ) -> Option<Option<Answer>> {
        if used(&mut self.faults[server].lose_requests) {
            return None;
        }
        match incoming.header.tag {
            tag::APPEND => {
                let append = Append::decode(&incoming.fields).unwrap();
                self.check_shard(append.chunk, shard);
                if !checksum::matches(&incoming.payload, &append.crcs) {
                    self.violations.push(format!("bad checksums in part {} of {:?}", append.part, append.id));
                }
                let whole = parts.entry(incoming.header.request_id).or_default();
                whole.extend_from_slice(&incoming.payload);
                if append.part + 1 < append.parts {
                    return Some(None);
                }
                let data = parts.remove(&incoming.header.request_id).unwrap();
                let outcome = self.append(server, &append, &data);
                if outcome.is_ok() && used(&mut self.faults[server].lose_answers) {
                    return None;
                }
                Some(Some(answer(outcome)))
            }
            tag::WRITE => {
                let write = Write::decode(&incoming.fields).unwrap();
                self.check_shard(write.chunk, shard);
                if !checksum::matches(&incoming.payload, &write.crcs) {
                    self.violations.push(format!("bad checksums in {:?}", write.id));
                }
                let outcome = self.write(server, &write, &incoming.payload);
                if outcome.is_ok() && used(&mut self.faults[server].lose_answers) {
                    return None;
                }
                Some(Some(answer(outcome)))
            }
            tag::CLOSE => {
                self.closed += 1;
                Some(None)
            }
            tag::READ => {
                let read = Read::decode(&incoming.fields).unwrap();
                self.check_shard(read.chunk, shard);
                Some(Some(self.read(server, &read)))
            }
            tag::VERSION => {
                let version = Version::decode(&incoming.fields).unwrap();
                self.check_shard(version.chunk, shard);
                Some(Some(answer(self.version(server, &version))))
            }
            other => panic!("chunkserver got message {other}"),
        }
    }

    fn check_shard(&mut self, chunk: ChunkHandle, shard: u32) {
        if chunk.shard(SHARDS) != shard {
            self.violations.push(format!("chunk {chunk} was asked for on shard {shard}"));
        }
    }

    fn append(&mut self, server: usize, append: &Append, data: &[u8]) -> Result<Appended, Fault> {
        let refuse = |reason, detail| Err(Fault::refused(reason, detail, format!("{reason:?}")));
        let busy = self.faults[server].busy > 0;
        let roll_every = self.roll_every;
        let Some(chunk) = self.chunks.get_mut(&append.chunk) else { return refuse(Reason::UnknownChunk, 0) };
        if data.len() != append.op_len as usize {
            self.violations.push(format!("{:?} has {} bytes, not {}", append.id, data.len(), append.op_len));
        }
        if chunk.sealed {
            return refuse(Reason::Sealed, chunk.bytes.len() as u64);
        }
        if chunk.members[0] != server {
            return refuse(Reason::NotPrimary, 0);
        }
        let newest = chunk.table.keys().filter(|id| id.stream == append.id.stream).map(|id| id.op).max().unwrap_or(0);
        if let Some((handle, offset, len)) = chunk.table.get(&append.id).copied() {
            return Ok(appended(chunk, handle, offset, len));
        }
        if append.id.op <= newest {
            return refuse(Reason::StaleOp, 0);
        }
        if append.first_unacked > newest + 1 {
            if !self.forgetful {
                let text = format!("{:?} says that {} was acknowledged", append.id, append.first_unacked - 1);
                self.violations.push(text);
            }
            return refuse(Reason::LostOps, 0);
        }
        if append.id.op > newest + 1 {
            return refuse(Reason::OutOfOrder, newest + 1);
        }
        if busy {
            self.faults[server].busy -= 1;
            return refuse(Reason::Busy, 0);
        }
        let offset = u32::try_from(chunk.bytes.len()).unwrap();
        if chunk.closing || chunk.bytes.len() + data.len() > CHUNK_SIZE as usize {
            chunk.closing = true;
            return refuse(Reason::ChunkFull, 0);
        }
        chunk.bytes.extend_from_slice(data);
        chunk.seq += 1;
        chunk.table.insert(append.id, (append.chunk, offset, append.op_len));
        let keep = |id: &wire::OpId| id.stream != append.id.stream || id.op >= append.first_unacked;
        chunk.table.retain(|id, _| keep(id) || *id == append.id);
        chunk.closing |= append.flags & LAST != 0;
        let answer = appended(chunk, append.chunk, offset, append.op_len);
        if roll_every.is_some_and(|every| chunk.seq >= every) {
            self.seal(append.chunk);
        }
        Ok(answer)
    }

    fn write(&mut self, server: usize, write: &Write, data: &[u8]) -> Result<Appended, Fault> {
        let refuse = |reason, detail| Err(Fault::refused(reason, detail, format!("{reason:?}")));
        let Some(chunk) = self.chunks.get_mut(&write.chunk) else { return refuse(Reason::UnknownChunk, 0) };
        if !chunk.sealed || chunk.members[0] != server {
            return refuse(Reason::NotPrimary, 0);
        }
        if let Some((handle, offset, len)) = chunk.table.get(&write.id).copied() {
            self.repeats += 1;
            return Ok(appended(chunk, handle, offset, len));
        }
        if used(&mut self.faults[server].busy) {
            return refuse(Reason::Busy, 0);
        }
        let start = write.offset as usize;
        if start + data.len() > chunk.bytes.len() {
            return refuse(Reason::BadOffset, chunk.bytes.len() as u64);
        }
        chunk.bytes[start..start + data.len()].copy_from_slice(data);
        chunk.seq += 1;
        chunk.table.insert(write.id, (write.chunk, write.offset, write.len));
        self.overwrites += 1;
        Ok(appended(chunk, write.chunk, write.offset, write.len))
    }

    fn read(&mut self, server: usize, read: &Read) -> Answer {
        self.min_seq = read.min_seq.0;
        let faults = &mut self.faults[server];
        if used(&mut faults.not_committed) {
            return answer::<Data>(Err(Fault::refused(Reason::NotCommitted, 0, "not committed here")));
        }
        let corrupt = used(&mut faults.corrupt);
        let Some(chunk) = self.chunks.get(&read.chunk).filter(|chunk| chunk.members.contains(&server)) else {
            return answer::<Data>(Err(Fault::refused(Reason::UnknownChunk, 0, "no such chunk here")));
        };
        self.reads[server] += 1;
        let first = read.offset / BLOCK_SIZE * BLOCK_SIZE;
        let end = (read.offset + read.len).next_multiple_of(BLOCK_SIZE) as usize;
        let content = &chunk.bytes[(first as usize).min(chunk.bytes.len())..end.min(chunk.bytes.len())];
        let mut payload = content.to_vec();
        payload.resize(content.len().next_multiple_of(BLOCK_SIZE as usize), 0);
        let data = Data {
            chunk: read.chunk,
            offset: first,
            len: u32::try_from(content.len()).unwrap(),
            // Only the head knows the newest.
            committed_len: u32::try_from(chunk.bytes.len()).unwrap() / if chunk.members[0] == server { 1 } else { 2 },
            epoch: Epoch(1),
            committed_seq: Seq(chunk.seq),
            crcs: checksum::block_crcs(&payload),
        };
        if corrupt {
            payload[0] ^= 1;
        }
        Answer { payload, ..answer(Ok(data)) }
    }

    fn version(&self, server: usize, version: &Version) -> Result<VersionOk, Fault> {
        let found = self.chunks.get(&version.chunk).filter(|chunk| chunk.members.contains(&server));
        let chunk = found.ok_or_else(|| Fault::refused(Reason::UnknownChunk, 0, "no such chunk here"))?;
        if chunk.members[0] != server && !chunk.sealed {
            return Err(Fault::refused(Reason::NotPrimary, 0, "ask the head"));
        }
        let committed_len = u32::try_from(chunk.bytes.len()).unwrap();
        Ok(VersionOk { committed_seq: Seq(chunk.seq), committed_len })
    }
}

fn appended(chunk: &Chunk, handle: ChunkHandle, offset: u32, len: u32) -> Appended {
    Appended { chunk: handle, offset, len, epoch: Epoch(1), committed_seq: Seq(chunk.seq) }
}

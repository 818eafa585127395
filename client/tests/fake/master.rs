//! A fake master.

use tokio::net::{TcpListener, TcpStream};
use wire::locate::{Intent, Locate, LocateChunk, Location, Locations, Position};
use wire::member::ChunkState;
use wire::message::{Done, tag};
use wire::namespace::{Attr, CreateFile, Stat};
use wire::report::Report;
use wire::upload::{AbortUpload, BeginUpload, Precondition, Publish, Splice, Upload};
use wire::{Body, ChunkHandle, Epoch, Fault, InodeId, Kind, RequestId};

use super::{Answer, Chunk, Fake, File, State, answer, greet, receive, send};

pub(super) async fn listen(fake: Fake, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        if !fake.state().master.down {
            tokio::spawn(serve(fake.clone(), stream));
        }
    }
}

async fn serve(fake: Fake, mut stream: TcpStream) -> Option<()> {
    greet(&mut stream, 0, 1, 1).await?;
    loop {
        let incoming = receive(&mut stream).await?;
        let answer = {
            let mut state = fake.state();
            if state.master.down {
                return None;
            }
            let answer = state.handle_master(incoming.header.tag, &incoming.fields);
            if state.master.lose_answers > 0 {
                state.master.lose_answers -= 1;
                return None;
            }
            answer
        };
        send(&mut stream, incoming.header.request_id, &answer).await?;
    }
}

fn fault(kind: Kind, text: &str) -> Fault {
    Fault::new(kind, text)
}

impl State {
    fn handle_master(&mut self, tag: u16, fields: &[u8]) -> Answer {
        match tag {
            tag::STAT => answer(self.stat(&Stat::decode(fields).unwrap())),
            tag::LOCATE => answer(self.locate(&Locate::decode(fields).unwrap())),
            tag::LOCATE_CHUNK => {
                let chunk = LocateChunk::decode(fields).unwrap().chunk;
                let found = self.chunks.get(&chunk).map(|found| found.file);
                answer(
                    found
                        .map(|file| self.page(file, |location| location.chunk == chunk, 1))
                        .ok_or_else(|| fault(Kind::NotFound, "no such chunk")),
                )
            }
            tag::REPORT => {
                let report = Report::decode(fields).unwrap();
                self.reports.push(report);
                // A bad block of a sealed chunk is repaired; anything else rolls an open one.
                if !self.deaf {
                    self.seal(report.chunk);
                }
                answer(Ok(Done))
            }
            tag::CREATE_FILE => {
                let create = CreateFile::decode(fields).unwrap();
                self.once(create.request, |state| answer(state.create(&create)))
            }
            tag::BEGIN_UPLOAD => {
                let begin = BeginUpload::decode(fields).unwrap();
                self.once(begin.request, |state| answer(Ok(Upload { inode: state.new_file() })))
            }
            tag::PUBLISH => {
                let publish = Publish::decode(fields).unwrap();
                self.once(publish.request, |state| answer(state.publish(&publish)))
            }
            tag::SPLICE => {
                let splice = Splice::decode(fields).unwrap();
                self.once(splice.request, |state| answer(state.splice(&splice)))
            }
            tag::ABORT_UPLOAD => {
                let abort = AbortUpload::decode(fields).unwrap();
                self.files.remove(&abort.inode);
                answer(Ok(Done))
            }
            other => panic!("master got message {other}"),
        }
    }

    /// A change is made once; its repeats get the first answer.
    fn once(&mut self, request: RequestId, change: impl FnOnce(&mut Self) -> Answer) -> Answer {
        if let Some((tag, fields)) = self.answered.get(&request) {
            return Answer { tag: *tag, fields: fields.clone(), payload: Vec::new() };
        }
        let answer = change(self);
        if answer.tag != Fault::TAG {
            self.answered.insert(request, (answer.tag, answer.fields.clone()));
        }
        answer
    }

    fn new_file(&mut self) -> InodeId {
        self.next_inode += 1;
        let inode = InodeId(self.next_inode);
        self.files.insert(inode, File { version: 1, ..File::default() });
        inode
    }

    fn create(&mut self, create: &CreateFile) -> Result<Attr, Fault> {
        if self.names.contains_key(&create.path) {
            return Err(fault(Kind::Exists, "the name is taken"));
        }
        let inode = self.new_file();
        self.names.insert(create.path.clone(), inode);
        Ok(self.attr(inode))
    }

    fn stat(&self, stat: &Stat) -> Result<Attr, Fault> {
        let inode = self.names.get(&stat.path).ok_or_else(|| fault(Kind::NotFound, "no such file"))?;
        Ok(self.attr(*inode))
    }

    fn attr(&self, inode: InodeId) -> Attr {
        let file = &self.files[&inode];
        let sealed = file.chunks.iter().map(|chunk| &self.chunks[chunk]).filter(|chunk| chunk.sealed);
        let page = self.page(inode, |location| location.state == ChunkState::Open, 1);
        Attr {
            inode,
            is_dir: false,
            len: sealed.map(|chunk| chunk.bytes.len() as u64).sum(),
            tail: page.items.into_iter().next(),
            tail_len_hint: 0,
            chunks: u32::try_from(file.chunks.len()).unwrap(),
            version: file.version,
            created_ms: 0,
            modified_ms: 0,
            content_type: String::new(),
            sha256: file.sha256,
            replicas: 3,
        }
    }

    fn locate(&mut self, locate: &Locate) -> Result<Locations, Fault> {
        if !self.files.contains_key(&locate.file) {
            return Err(fault(Kind::NotFound, "no such file"));
        }
        if locate.intent == Intent::Write {
            let Position::Offset(offset) = locate.at else { panic!("a write is at an offset") };
            let holds = |it: &Location| it.start <= offset && (it.len == 0 || offset < it.start + u64::from(it.len));
            let found = self.page(locate.file, holds, 1).items.into_iter().next();
            let Some(found) = found else { return Err(fault(Kind::Invalid, "past the end")) };
            self.seal(found.chunk);
            let mut page = self.page(locate.file, |it| it.chunk == found.chunk, 1);
            page.items.iter_mut().for_each(|it| it.state = ChunkState::Reopened);
            return Ok(page);
        }
        let last = self.files[&locate.file].chunks.last().copied();
        if locate.intent == Intent::Append && last.is_none_or(|last| self.chunks[&last].sealed) {
            self.open(locate.file)?;
        }
        let last = self.files[&locate.file].chunks.last().copied();
        let count = locate.count as usize;
        Ok(match locate.at {
            Position::Tail => self.page(locate.file, |location| Some(location.chunk) == last, 1),
            Position::Index(index) => self.page(locate.file, |location| location.index >= index, count),
            Position::Offset(offset) => self.page(
                locate.file,
                |location| location.state == ChunkState::Open || location.start + u64::from(location.len) > offset,
                count,
            ),
        })
    }

    fn open(&mut self, file: InodeId) -> Result<(), Fault> {
        let up: Vec<usize> =
            (0..self.faults.len()).filter(|s| !self.faults[*s].down && !self.faults[*s].silent).collect();
        if up.is_empty() {
            return Err(fault(Kind::Unavailable, "no servers"));
        }
        let handle = ChunkHandle(self.next_chunk);
        self.next_chunk += 1;
        let turn = usize::try_from(handle.0).unwrap();
        let members = (0..up.len().min(3)).map(|position| up[(turn + position) % up.len()]).collect();
        let table = if self.forgetful { std::collections::BTreeMap::new() } else { self.files[&file].table.clone() };
        self.chunks.insert(handle, Chunk { file, members, table, ..Chunk::default() });
        let file = self.files.get_mut(&file).unwrap();
        file.chunks.push(handle);
        file.version += 1;
        Ok(())
    }

    fn page(&self, file: InodeId, wanted: impl Fn(&Location) -> bool, count: usize) -> Locations {
        let entry = &self.files[&file];
        let mut start = 0;
        let mut all = Vec::new();
        for (index, handle) in (0..).zip(&entry.chunks) {
            let chunk = &self.chunks[handle];
            let len = u32::try_from(chunk.bytes.len()).unwrap();
            all.push(Location {
                file,
                index,
                start,
                chunk: *handle,
                state: if chunk.sealed { ChunkState::Sealed } else { ChunkState::Open },
                epoch: Epoch(1),
                len: if chunk.sealed { len } else { 0 },
                members: chunk.members.iter().map(|server| self.member(*server)).collect(),
                expire_ms: 5000,
            });
            start += u64::from(len);
        }
        let items = all.into_iter().filter(wanted).take(count).collect();
        Locations { items, version: entry.version, chunk_count: u32::try_from(entry.chunks.len()).unwrap() }
    }

    fn all_sealed(&self, inode: InodeId) -> Result<(), Fault> {
        let open = self.files[&inode].chunks.iter().any(|chunk| !self.chunks[chunk].sealed);
        if open { Err(fault(Kind::Unavailable, "a chunk is open")) } else { Ok(()) }
    }

    fn publish(&mut self, publish: &Publish) -> Result<Attr, Fault> {
        self.all_sealed(publish.inode)?;
        let attr = self.attr(publish.inode);
        if attr.len != publish.len {
            return Err(fault(Kind::Invalid, "another length"));
        }
        if publish.precondition == Precondition::Absent && self.names.contains_key(&publish.path) {
            return Err(fault(Kind::Precondition, "there is a file"));
        }
        self.files.get_mut(&publish.inode).unwrap().sha256 = publish.sha256;
        self.names.insert(publish.path.clone(), publish.inode);
        Ok(self.attr(publish.inode))
    }

    fn splice(&mut self, splice: &Splice) -> Result<Attr, Fault> {
        self.all_sealed(splice.upload)?;
        let file = self.files.get_mut(&splice.file).unwrap();
        if self.conflicts > 0 {
            self.conflicts -= 1;
            file.version += 1;
        }
        if file.version != splice.version {
            return Err(fault(Kind::Precondition, "the file has changed"));
        }
        let new = self.files.remove(&splice.upload).unwrap().chunks;
        for chunk in &new {
            self.chunks.get_mut(chunk).unwrap().file = splice.file;
        }
        let (index, count) = (splice.index as usize, splice.remove as usize);
        let file = self.files.get_mut(&splice.file).unwrap();
        let gone: Vec<_> = file.chunks.splice(index..index + count, new).collect();
        file.version += 1;
        for chunk in gone {
            self.chunks.remove(&chunk);
        }
        Ok(self.attr(splice.file))
    }
}

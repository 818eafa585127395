//! One connection to this shard: frames in, requests to whoever does them, answers out.
//!
//! What a peer can make the shard hold is bounded: requests without an answer, operations half
//! received, and the buffers of both, which are taken from the budget of their use before a payload
//! is received. While there is no room the connection is not read; that is the backpressure.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use engine::runtime::Runtime;
use tokio::sync::Semaphore;
use wire::append::{Append, Close};
use wire::forward::{Commit, EntryKind, Forward};
use wire::hello::{Hello, Role};
use wire::message::{Malformed, tag};
use wire::write::Write;
use wire::{ChunkHandle, Fault, Kind, OpId, Reason, checksum};

use super::admit::Acceptance;
use super::append::{Operation, Wanted};
use super::budget::Use;
use super::fault;
use super::forward;
use super::frames::{Broken, FrameReader, Received};
use super::outbox::{Outbox, Ticket};
use super::shard::Shard;

/// Requests of one connection without an answer.
const REQUESTS_MAX: usize = 256;

/// Operations of one connection half received.
const OPERATIONS_MAX: usize = 64;

/// A payload that was announced must be here after so long: it holds buffers.
const PAYLOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a connection of this role may send this message.
fn may_send(role: Role, message: u16) -> bool {
    match message {
        tag::READ | tag::VERSION | tag::DIGEST | tag::TABLE => true,
        tag::APPEND | tag::WRITE | tag::CLOSE => role == Role::Client,
        tag::FWD | tag::COMMIT | tag::FETCH | tag::CRCS => role == Role::Member,
        tag::CREATE | tag::REOPEN | tag::PREPARE | tag::SEAL | tag::CONFIRM | tag::CONDEMN | tag::FREE => {
            role == Role::Master
        }
        tag::CLONE => role == Role::Master,
        _ => false,
    }
}

impl<R: Runtime> Shard<R> {
    /// Serves a connection that said hello and was answered, until it ends.
    pub(crate) fn serve_connection(&self, stream: TcpStream, hello: Hello) {
        match self.rt.adopt(stream) {
            Ok((reader, writer)) => self.serve_halves(reader, writer, hello),
            Err(error) => tracing::warn!(%error, "cannot take over a connection"),
        }
    }

    /// As [`Shard::serve_connection`], of a connection that this shard's runtime has.
    pub(crate) fn serve_halves(&self, reader: R::Reader, writer: R::Writer, hello: Hello) {
        let outbox = Outbox::new();
        if !self.track(&outbox) {
            self.count(|served| served.bad_connections += 1);
            return tracing::warn!("too many connections on this shard, one refused");
        }
        self.start_pump(&outbox, writer);
        let mut connection = Connection {
            shard: self.clone(),
            reader: FrameReader::new(self.rt.clone(), reader),
            outbox: outbox.clone(),
            role: hello.role,
            slots: Arc::new(Semaphore::new(REQUESTS_MAX)),
            operations: BTreeMap::new(),
        };
        let shard = self.clone();
        self.rt.spawn(async move {
            let ended = outbox.unless_closed(connection.receive()).await;
            if let Some(Err(error)) = ended {
                shard.connection_broke(&error, &hello);
            }
            outbox.close();
        });
    }

    fn connection_broke(&self, error: &Broken, hello: &Hello) {
        if let Broken::Io(error) = error {
            return tracing::debug!(%error, role = ?hello.role, peer = %hello.server, "connection ended");
        }
        self.count(|served| served.bad_connections += 1);
        tracing::warn!(%error, role = ?hello.role, peer = %hello.server, "connection closed for what it sent");
    }
}

struct Connection<R: Runtime> {
    shard: Shard<R>,
    reader: FrameReader<R>,
    outbox: Outbox<R>,
    role: Role,
    slots: Arc<Semaphore>,
    operations: BTreeMap<(ChunkHandle, OpId), (Operation<R>, Ticket<R>)>,
}

/// Starts a task that answers a request.
macro_rules! answer {
    ($self:ident, $frame:ident, |$shard:ident, $request:ident| $work:expr) => {{
        let $request = $frame.open()?;
        let ticket = $self.ticket(&$frame).await;
        let $shard = $self.shard.clone();
        $self.shard.rt.spawn(async move {
            if !ticket.is_expired($shard.rt.now()) {
                ticket.answer($work);
            }
        });
    }};
}

impl<R: Runtime> Connection<R> {
    async fn receive(&mut self) -> Result<(), Broken> {
        while let Some(frame) = self.reader.next().await? {
            self.serve(frame).await?;
        }
        Ok(())
    }

    async fn serve(&mut self, frame: Received) -> Result<(), Broken> {
        let message = frame.header.tag;
        if !may_send(self.role, message) {
            return self.not_allowed(&frame).await;
        }
        match message {
            tag::APPEND => self.append(frame).await?,
            tag::WRITE => self.write(frame).await?,
            tag::FWD => self.forward(frame).await?,
            tag::COMMIT => {
                let Commit { chunk, epoch, committed_seq } = frame.open()?;
                self.shard.committed_ahead(chunk, epoch, committed_seq);
            }
            tag::CLOSE => {
                let Close { chunk, stream, .. } = frame.open()?;
                self.shard.stream_closed(chunk, stream);
            }
            tag::READ => {
                let (read, ticket, shard) = (frame.open()?, self.ticket(&frame).await, self.shard.clone());
                self.shard.rt.spawn(async move { shard.read(read, ticket).await });
            }
            tag::FETCH => {
                let (fetch, ticket, shard) = (frame.open()?, self.ticket(&frame).await, self.shard.clone());
                self.shard.rt.spawn(async move { shard.fetch(fetch, ticket).await });
            }
            tag::VERSION => answer!(self, frame, |shard, request| shard.version(&request)),
            tag::TABLE => answer!(self, frame, |shard, request| shard.table(request)),
            tag::DIGEST => answer!(self, frame, |shard, request| shard.digest(&request).await),
            tag::CREATE => answer!(self, frame, |shard, request| shard.create(request).await),
            tag::REOPEN => answer!(self, frame, |shard, request| shard.reopen(request).await),
            tag::PREPARE => answer!(self, frame, |shard, request| shard.prepare(&request).await),
            tag::SEAL => answer!(self, frame, |shard, request| shard.seal(&request).await),
            tag::CONFIRM => answer!(self, frame, |shard, request| shard.confirm(&request).await),
            tag::CONDEMN => answer!(self, frame, |shard, request| shard.condemn(request).await),
            tag::FREE => answer!(self, frame, |shard, request| shard.free(request).await),
            tag::CLONE => answer!(self, frame, |shard, request| shard.clone_chunk(request).await),
            tag::CRCS => answer!(self, frame, |shard, request| shard.crcs(request).await),
            other => return Err(frame.malformed(Malformed::Tag(other))),
        }
        Ok(())
    }

    async fn not_allowed(&mut self, frame: &Received) -> Result<(), Broken> {
        let Some(name) = tag::name(frame.header.tag) else {
            return Err(frame.malformed(Malformed::Tag(frame.header.tag)));
        };
        self.reader.skip(frame.payload_len()).await?;
        let text = format!("a connection of role {:?} may not send {name}", self.role);
        self.ticket(frame).await.refuse(Fault::new(Kind::Unauthorized, text));
        Ok(())
    }

    /// Waits while the connection has too many requests in flight.
    async fn ticket(&self, frame: &Received) -> Ticket<R> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
        let deadline_ms = frame.header.deadline_ms;
        let wait = Duration::from_millis(u64::from(deadline_ms));
        let deadline = (deadline_ms != 0).then(|| self.shard.rt.now() + wait);
        self.shard.heard.set(self.shard.rt.now());
        Ticket::new(self.outbox.clone(), frame.header.request_id, slot, deadline).counted(&self.shard.in_flight)
    }

    async fn append(&mut self, frame: Received) -> Result<(), Broken> {
        let append: Append = frame.open()?;
        let key = (append.chunk, append.id);
        let begun = if append.part == 0 {
            self.operations.remove(&key);
            let ticket = self.ticket(&frame).await;
            self.begin(&append, ticket).await
        } else {
            // Without its first part it was answered already, and the rest is thrown away.
            self.operations.remove(&key).filter(|(operation, _)| operation.continues_with(&append))
        };
        let Some((mut operation, mut ticket)) = begun else { return self.reader.skip(frame.payload_len()).await };
        ticket.now_for(frame.header.request_id);
        let length = frame.header.payload_len;
        if length > 0 {
            let payload = self.payload(&frame).await?;
            if !checksum::matches(&payload.as_ref()[..length as usize], &append.crcs) {
                self.shard.count(|served| served.bad_payloads += 1);
                ticket.refuse(fault::refusal(Reason::BadCrc, 0));
                return Ok(());
            }
            operation.add(payload, append.crcs, length);
        }
        if operation.is_whole() {
            self.shard.admit(operation, ticket).await;
        } else {
            self.operations.insert(key, (operation, ticket));
        }
        Ok(())
    }

    async fn write(&mut self, frame: Received) -> Result<(), Broken> {
        let write: Write = frame.open()?;
        let ticket = self.ticket(&frame).await;
        let Some(ticket) = self.shard.consider(&Wanted::from(&write), ticket) else {
            return self.reader.skip(frame.payload_len()).await;
        };
        let len = write.len as usize;
        // Waits only while no operation is half received here, as an append does.
        let permit = if self.operations.is_empty() {
            self.shard.budget.take(Use::Head, len).await
        } else {
            self.shard.budget.try_take(Use::Head, len)
        };
        let Some(permit) = permit else {
            ticket.refuse(fault::refusal(Reason::Busy, 0));
            return self.reader.skip(frame.payload_len()).await;
        };
        let payload = self.payload(&frame).await?;
        if !checksum::matches(&payload.as_ref()[..len], &write.crcs) {
            self.shard.count(|served| served.bad_payloads += 1);
            ticket.refuse(fault::refusal(Reason::BadCrc, 0));
            return Ok(());
        }
        self.shard.write(write, payload, permit, ticket).await;
        Ok(())
    }

    /// Takes room for a whole operation, if it is wanted. Waits for it only while this connection has
    /// no other operation half received: two that wait for each other's rest would wait for ever.
    async fn begin(&self, append: &Append, ticket: Ticket<R>) -> Option<(Operation<R>, Ticket<R>)> {
        let ticket = self.shard.consider(&Wanted::from(append), ticket)?;
        let len = append.op_len as usize;
        let permit = if self.operations.is_empty() {
            self.shard.budget.take(Use::Head, len).await
        } else {
            self.shard.budget.try_take(Use::Head, len)
        };
        if permit.is_none() || self.operations.len() >= OPERATIONS_MAX {
            ticket.refuse(fault::refusal(Reason::Busy, 0));
            return None;
        }
        Some((Operation::new(append.clone(), permit), ticket))
    }

    async fn forward(&mut self, frame: Received) -> Result<(), Broken> {
        self.shard.heard.set(self.shard.rt.now());
        let entry: Forward = frame.open()?;
        if !forward::is_known(entry.kind) {
            return Err(frame.malformed(Malformed::Field("kind")));
        }
        if entry.kind == EntryKind::Final {
            self.shard.take_final(entry, &self.outbox);
            return Ok(());
        }
        let len = frame.payload_len();
        match self.shard.acceptance(&entry) {
            Acceptance::Accept => {}
            why => {
                self.reader.skip(len).await?;
                self.shard.not_accepted(&entry, why, &self.outbox);
                return Ok(());
            }
        }
        let permit = self.shard.budget.take(self.shard.use_of(&entry), len).await;
        let payload = self.payload(&frame).await?;
        if !checksum::matches(&payload.as_ref()[..len], &entry.crcs) {
            self.shard.count(|served| served.bad_payloads += 1);
            return Err(Broken::Payload(frame.header.tag));
        }
        self.shard.take(entry, payload, permit, &self.outbox).await;
        Ok(())
    }

    async fn payload(&mut self, frame: &Received) -> Result<R::Buf, Broken> {
        let rt = self.shard.rt.clone();
        tokio::select! {
            biased;
            payload = self.reader.payload(frame.payload_len()) => payload,
            () = rt.sleep(PAYLOAD_TIMEOUT) => Err(Broken::Io(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_master_commands_and_only_members_forward() {
        let all =
            [tag::CREATE, tag::REOPEN, tag::PREPARE, tag::SEAL, tag::CONFIRM, tag::CONDEMN, tag::FREE, tag::CLONE];
        for command in all {
            assert!(may_send(Role::Master, command));
            assert!(!may_send(Role::Client, command) && !may_send(Role::Member, command), "{command}");
        }
        assert!(may_send(Role::Member, tag::FWD) && !may_send(Role::Client, tag::FWD));
        assert!(may_send(Role::Client, tag::WRITE) && !may_send(Role::Member, tag::WRITE));
        assert!(may_send(Role::Client, tag::APPEND) && !may_send(Role::Master, tag::APPEND));
        assert!([Role::Client, Role::Member, Role::Master].iter().all(|role| may_send(*role, tag::READ)));
        assert!(!may_send(Role::Client, tag::HELLO), "hello comes once, and to the control thread");
    }
}

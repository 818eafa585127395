//! The connection to a successor: carries FWD and COMMIT forward, UP and NAK back.
//!
//! One link per (server, shard, use of buffers); all chunks of this shard with that successor share
//! it. A broken one is dialled again and every entry that is not yet durable behind is sent again;
//! that is safe while neither end restarted (rule W11). A refused one, or one that answers from
//! another boot, is reported to the master.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use wire::ChunkHandle;
use wire::forward::{Nak, Up};
use wire::member::Member;
use wire::message::{Malformed, tag};
use wire::report::Trouble;

use super::frames::{Broken, FrameReader};
use super::outbox::{Frame, Outbox};
use super::peer::dial;
use super::shard::Shard;

/// So many connections in a row over which nothing came back are as good as a refusal.
const MUTE_MAX: u32 = 5;

/// Pause before a broken connection is made again.
const DIAL_PAUSE: Duration = Duration::from_millis(50);

/// Which link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkKey {
    /// Address of the successor.
    pub(crate) address: String,
    /// Its shard.
    pub(crate) shard: u32,
    /// Whether the successor is the last of the chain: entries for the last member and for middle
    /// ones travel apart, see [`super::budget`].
    pub(crate) to_tail: bool,
}

/// One link; clones are the same one.
pub(crate) struct Link<R: Runtime>(Rc<Inner<R>>);

impl<R: Runtime> Clone for Link<R> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Inner<R: Runtime> {
    key: LinkKey,
    member: Member,
    outbox: RefCell<Option<Outbox<R>>>,
    chunks: RefCell<BTreeSet<ChunkHandle>>,
    dead: Cell<bool>,
    /// Something came back over the connection there is.
    heard: Cell<bool>,
}

impl<R: Runtime> Link<R> {
    pub(crate) fn new(key: LinkKey, member: Member) -> Self {
        Self(Rc::new(Inner {
            key,
            member,
            outbox: RefCell::new(None),
            chunks: RefCell::default(),
            dead: Cell::new(false),
            heard: Cell::new(false),
        }))
    }

    pub(crate) fn key(&self) -> &LinkKey {
        &self.0.key
    }

    /// Whether it has been given up; the next chunk makes a new one.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.dead.get()
    }

    /// This chunk's entries go here.
    pub(crate) fn join(&self, chunk: ChunkHandle) {
        self.0.chunks.borrow_mut().insert(chunk);
    }

    /// They no longer do.
    pub(crate) fn leave(&self, chunk: ChunkHandle) {
        self.0.chunks.borrow_mut().remove(&chunk);
    }

    /// Sends, if connected; else the entry goes when the connection is made again.
    pub(crate) fn push(&self, frame: Frame<R>) {
        if let Some(outbox) = &*self.0.outbox.borrow() {
            outbox.push(frame);
        }
    }

    fn chunks(&self) -> Vec<ChunkHandle> {
        self.0.chunks.borrow().iter().copied().collect()
    }

    /// Ends the connection; the task sees whether it should dial again.
    pub(crate) fn close(&self) {
        if let Some(outbox) = self.0.outbox.borrow_mut().take() {
            outbox.close();
        }
    }

    /// Keeps the link connected until it is refused. Runs as a task of its own.
    pub(crate) async fn run(self, shard: Shard<R>) {
        let mut boot = None;
        let mut mute_count = 0;
        while mute_count < MUTE_MAX && !shard.is_stopping() {
            match dial(&shard, &self.0.member, self.0.key.shard).await {
                Ok((reader, writer, hello)) if boot.is_none_or(|known| known == hello.boot) => {
                    boot = Some(hello.boot);
                    self.0.heard.set(false);
                    self.serve(&shard, reader, writer).await;
                    mute_count = if self.0.heard.get() { 0 } else { mute_count + 1 };
                    shard.pause(DIAL_PAUSE).await;
                }
                Ok(_) => {
                    tracing::info!(peer = %self.0.member.server, "successor restarted");
                    break;
                }
                Err(error) => {
                    let address = &self.0.key.address;
                    tracing::info!(peer = %self.0.member.server, address, %error, "successor does not answer");
                    break;
                }
            }
        }
        self.0.dead.set(true);
        for chunk in self.chunks() {
            shard.report_chain(chunk, Trouble::NoAnswer, self.0.member.server);
        }
    }

    async fn serve(&self, shard: &Shard<R>, mut reader: FrameReader<R>, writer: R::Writer) {
        let outbox = Outbox::new();
        *self.0.outbox.borrow_mut() = Some(outbox.clone());
        shard.start_pump(&outbox, writer);
        for chunk in self.chunks() {
            shard.resend(chunk, &outbox, None);
        }
        let ended = outbox.unless_closed(self.receive(shard, &mut reader, &outbox)).await;
        if let Some(Err(error)) = ended {
            tracing::debug!(peer = %self.0.member.server, %error, "link to successor broke");
        }
        self.close();
        outbox.close();
    }

    async fn receive(&self, shard: &Shard<R>, reader: &mut FrameReader<R>, outbox: &Outbox<R>) -> Result<(), Broken> {
        while let Some(frame) = reader.next().await? {
            self.0.heard.set(true);
            match frame.header.tag {
                tag::UP => {
                    let up: Up = frame.open()?;
                    shard.durable_behind(up.chunk, up.epoch, up.durable_seq);
                }
                tag::NAK => {
                    let nak: Nak = frame.open()?;
                    shard.refused_behind(&nak, self.0.member.server, outbox);
                }
                other => return Err(frame.malformed(Malformed::Tag(other))),
            }
        }
        Ok(())
    }
}

//! What is enumerated: each kind of operation, in orders that meet each in its right state.

use std::pin::Pin;

use super::super::workload::Worker;
use crate::runtime::Runtime;

/// A step of a chunk's life, and what must have come before it.
pub(super) type Step = (&'static str, fn(&mut Worker) -> Pin<Box<dyn Future<Output = ()> + '_>>);

/// Appends, seals, slots that are used again.
const APPENDS: &[Step] = &[
    ("create", |worker| Box::pin(worker.create())),
    ("append", |worker| Box::pin(worker.append(1))),
    ("append of parts", |worker| Box::pin(worker.append(3))),
    ("mark of an idle journal", |worker| {
        Box::pin(async { worker.rt.sleep(std::time::Duration::from_millis(500)).await })
    }),
    ("append after a mark", |worker| Box::pin(worker.append(1))),
    ("checkpoint", |worker| Box::pin(worker.checkpoint())),
    ("append after a checkpoint", |worker| Box::pin(worker.append(2))),
    ("checkpoint inside an operation", |worker| Box::pin(worker.append_around_a_checkpoint())),
    ("prepare", |worker| Box::pin(worker.prepare())),
    ("fill and seal", |worker| Box::pin(worker.fill_and_seal())),
    ("checkpoint of a filled chunk", |worker| Box::pin(worker.checkpoint())),
    ("seal again, higher", |worker| Box::pin(worker.seal_again_if_filled())),
    ("confirm", |worker| Box::pin(worker.confirm_if_filled())),
    ("checkpoint of a sealed tail", |worker| Box::pin(worker.checkpoint())),
    ("condemn", |worker| Box::pin(worker.condemn())),
    ("free", |worker| Box::pin(worker.free())),
    ("create in a used slot", |worker| Box::pin(worker.create())),
    ("append in a used slot", |worker| Box::pin(worker.append(2))),
    ("finish", |worker| Box::pin(worker.finish())),
    ("confirm of a finished chunk", |worker| Box::pin(worker.confirm())),
    ("churn", |worker| Box::pin(worker.churn())),
];

/// Overwrites and repairs: images, and blocks that they are merged with.
const OVERWRITES: &[Step] = &[
    ("create", |worker| Box::pin(worker.create())),
    ("append", |worker| Box::pin(worker.append(1))),
    ("append parts", |worker| Box::pin(worker.append(3))),
    ("overwrite", |worker| Box::pin(worker.overwrite(1))),
    ("overwrite of the partial block", |worker| Box::pin(worker.overwrite_tail())),
    ("checkpoint with images", |worker| Box::pin(worker.checkpoint())),
    ("overwrite parts", |worker| Box::pin(worker.overwrite(3))),
    ("repair", |worker| Box::pin(worker.repair())),
    ("overwrite across the end", |worker| Box::pin(worker.overwrite_across())),
    ("checkpoint", |worker| Box::pin(worker.checkpoint())),
    ("append after a checkpoint", |worker| Box::pin(worker.append(2))),
    ("prepare", |worker| Box::pin(worker.prepare())),
    ("fill and seal", |worker| Box::pin(worker.fill_and_seal())),
    ("checkpoint of a filled chunk", |worker| Box::pin(worker.checkpoint())),
    ("confirm, if it was sealed", |worker| Box::pin(worker.confirm_if_filled())),
    ("checkpoint of a sealed tail", |worker| Box::pin(worker.checkpoint())),
    ("repair after the restart or the seal", |worker| Box::pin(worker.repair())),
    ("condemn", |worker| Box::pin(worker.condemn())),
    ("free", |worker| Box::pin(worker.free())),
    ("create in a used slot", |worker| Box::pin(worker.create())),
    ("append in a used slot", |worker| Box::pin(worker.append(2))),
];

/// Second lives: first with the partial block in memory, then with it in place.
const REBORN: &[Step] = &[
    ("create", |worker| Box::pin(worker.create())),
    ("append", |worker| Box::pin(worker.append(2))),
    ("forget", |worker| Box::pin(worker.forget())),
    ("append a tail", |worker| Box::pin(worker.append_tail())),
    ("condemn an open chunk", |worker| Box::pin(worker.condemn())),
    ("restore it as restarted", |worker| Box::pin(worker.restore())),
    ("prepare", |worker| Box::pin(worker.prepare())),
    ("seal", |worker| Box::pin(worker.seal())),
    ("confirm", |worker| Box::pin(worker.confirm())),
    ("re-open before the tail is in place", |worker| Box::pin(worker.reopen())),
    ("checkpoint of a re-opened chunk", |worker| Box::pin(worker.checkpoint())),
    ("forget in a re-opened chunk", |worker| Box::pin(worker.forget())),
    ("final of a re-opened chunk", |worker| Box::pin(worker.finish())),
    ("confirm again", |worker| Box::pin(worker.confirm())),
    ("checkpoint of a chunk that was sealed again", |worker| Box::pin(worker.checkpoint())),
    ("re-open with the tail in place", |worker| Box::pin(worker.reopen())),
    ("prepare a re-opened chunk", |worker| Box::pin(worker.prepare())),
    ("seal a re-opened chunk", |worker| Box::pin(worker.seal())),
    ("confirm a third time", |worker| Box::pin(worker.confirm())),
    ("condemn a sealed chunk", |worker| Box::pin(worker.condemn())),
    ("checkpoint of a condemned chunk", |worker| Box::pin(worker.checkpoint())),
    ("restore it as sealed", |worker| Box::pin(worker.restore())),
    ("re-open a restored chunk", |worker| Box::pin(worker.reopen())),
    ("condemn a re-opened chunk", |worker| Box::pin(worker.condemn())),
    ("free", |worker| Box::pin(worker.free())),
    ("create in a used slot", |worker| Box::pin(worker.create())),
];

/// Chunks that come from elsewhere.
const IMPORTS: &[Step] = &[
    ("import", |worker| Box::pin(worker.import_for_sure())),
    ("condemn it", |worker| Box::pin(worker.condemn())),
    ("checkpoint of an imported chunk", |worker| Box::pin(worker.checkpoint())),
    ("free", |worker| Box::pin(worker.free())),
    ("an import that is given up", |worker| Box::pin(worker.give_up_an_import())),
    ("import again", |worker| Box::pin(worker.import_for_sure())),
    ("re-open", |worker| Box::pin(worker.reopen())),
    ("forget", |worker| Box::pin(worker.forget())),
    ("prepare", |worker| Box::pin(worker.prepare())),
    ("seal", |worker| Box::pin(worker.seal())),
    ("confirm", |worker| Box::pin(worker.confirm())),
    ("condemn again", |worker| Box::pin(worker.condemn())),
    ("restore", |worker| Box::pin(worker.restore())),
];

/// Two chunks with one content.
const CLONES: &[Step] = &[
    ("create", |worker| Box::pin(worker.create())),
    ("append", |worker| Box::pin(worker.append(2))),
    ("append a tail", |worker| Box::pin(worker.append_tail())),
    ("prepare", |worker| Box::pin(worker.prepare())),
    ("seal", |worker| Box::pin(worker.seal())),
    ("confirm", |worker| Box::pin(worker.confirm())),
    ("clone with the tail in memory", |worker| Box::pin(worker.clone_chunk())),
    ("condemn the clone", |worker| Box::pin(async { worker.of_clone().condemn().await })),
    ("free the clone", |worker| Box::pin(async { worker.of_clone().free().await })),
    ("clone again", |worker| Box::pin(worker.clone_chunk())),
    ("unshare the source", |worker| Box::pin(worker.unshare())),
    ("re-open the clone", |worker| Box::pin(async { worker.of_clone().reopen().await })),
    ("unshare the clone", |worker| Box::pin(async { worker.of_clone().unshare().await })),
    ("final of the clone", |worker| Box::pin(async { worker.of_clone().finish().await })),
    ("confirm the clone", |worker| Box::pin(async { worker.of_clone().confirm().await })),
    ("checkpoint", |worker| Box::pin(worker.checkpoint())),
    ("condemn the clone again", |worker| Box::pin(async { worker.of_clone().condemn().await })),
    ("free the clone again", |worker| Box::pin(async { worker.of_clone().free().await })),
    ("clone a third time", |worker| Box::pin(worker.clone_chunk())),
    ("condemn the source", |worker| Box::pin(worker.condemn())),
    ("free the source", |worker| Box::pin(worker.free())),
    ("create in a slot that was shared", |worker| Box::pin(worker.create())),
    ("append there", |worker| Box::pin(worker.append(3))),
    ("checkpoint of both", |worker| Box::pin(worker.checkpoint())),
];

/// The scripts, by turns.
pub(super) const SCRIPTS: [&[Step]; 5] = [APPENDS, OVERWRITES, REBORN, IMPORTS, CLONES];

/// In a life after a restart.
pub(super) const LATER: &[Step] = &[
    ("after a restart: any", |worker| Box::pin(worker.step())),
    ("after a restart: any", |worker| Box::pin(worker.step())),
    ("after a restart: checkpoint", |worker| Box::pin(worker.checkpoint())),
    ("after a restart: any", |worker| Box::pin(worker.step())),
];

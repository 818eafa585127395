use std::collections::BTreeSet;
use std::future::pending;

use futures_util::FutureExt;

use super::*;

const SLOT: FileId = FileId::Slot(3);
const RING: FileId = FileId::Ring(0);

fn root() -> PathBuf {
    ROOT.into()
}

fn page(rt: &SimRuntime, byte: u8, blocks: usize) -> SimBuf {
    let mut buf = rt.try_alloc(blocks * PAGE).unwrap();
    buf.as_mut().fill(byte);
    rt.freeze(buf)
}

/// A file of `blocks` durable blocks: *written* zeros, or *unwritten*.
async fn made(rt: &SimRuntime, id: FileId, blocks: usize, written: bool) -> SimFile {
    let file = rt.open(&root(), id, Open::Create).await.unwrap();
    if written {
        assert_eq!(rt.write_at(&file, page(rt, 0, blocks), 0).await.unwrap(), blocks * PAGE);
    } else {
        rt.preallocate(&file, 0, (blocks * PAGE) as u64).await.unwrap();
    }
    rt.sync_file_system(&root()).await.unwrap();
    file
}

/// Writes a block into a slot, syncs the journal alone, and cuts the power keeping nothing more.
fn slot_after_journal_sync(written: bool, sync_slot: bool) -> Vec<u8> {
    let sim = Sim::new(1);
    sim.run(|rt| async move {
        let slot = made(&rt, SLOT, 4, written).await;
        let ring = made(&rt, RING, 4, true).await;
        rt.write_at(&slot, page(&rt, 7, 1), 4096).await.unwrap();
        rt.write_at(&ring, page(&rt, 8, 1), 0).await.unwrap();
        rt.fdatasync(&ring).await.unwrap();
        if sync_slot {
            rt.fdatasync(&slot).await.unwrap();
        }
    });
    sim.disk().power_cut_keeping(|_| false);
    assert_eq!(sim.disk().peek(RING, 0, 1).unwrap(), [8]);
    sim.disk().peek(SLOT, 4096, 4096).unwrap()
}

#[test]
fn a_journal_sync_covers_data_in_written_extents() {
    assert_eq!(slot_after_journal_sync(true, false), [7; 4096]);
}

#[test]
fn a_journal_sync_does_not_cover_data_in_unwritten_extents() {
    assert_eq!(slot_after_journal_sync(false, false), [0; 4096]);
    assert_eq!(slot_after_journal_sync(false, true), [7; 4096]);
}

#[test]
fn a_sync_covers_only_what_completed_before_it() {
    for written in [true, false] {
        let sim = Sim::new(1);
        sim.run(move |rt| async move {
            let slot = made(&rt, SLOT, 2, written).await;
            let write = rt.write_at(&slot, page(&rt, 7, 1), 0);
            let sync = rt.fdatasync(&slot);
            let (done, synced) = futures_util::join!(write, sync);
            assert_eq!((done.unwrap(), synced.unwrap()), (4096, ()));
        });
        assert_eq!(sim.disk().peek(SLOT, 0, 1).unwrap(), [7]);
        // All sectors survive, but not what says that the extent is written.
        sim.disk().power_cut_keeping(|unit| !written && matches!(unit, Unit::Sector(..)));
        assert_eq!(sim.disk().peek(SLOT, 0, 1).unwrap(), [0]);
    }
}

#[test]
fn a_power_cut_keeps_exactly_the_sectors_it_is_told_to() {
    let sim = Sim::new(1);
    sim.run(|rt| async move {
        let slot = made(&rt, SLOT, 2, true).await;
        rt.write_at(&slot, page(&rt, 7, 2), 0).await.unwrap();
    });
    let disk = sim.disk();
    let units = disk.unflushed();
    assert_eq!(units.len(), 16);
    disk.power_cut_keeping(|unit| matches!(unit, Unit::Sector(SLOT, 512 | 4096, _)));
    let bytes = disk.peek(SLOT, 0, 8192).unwrap();
    let kept: Vec<usize> = (0..16).filter(|sector| bytes[sector * 512] == 7).collect();
    assert_eq!(kept, [1, 8]);
    assert!(disk.unflushed().is_empty());
}

#[test]
fn of_two_unflushed_writes_a_sector_keeps_none_the_first_or_the_second() {
    let sim = Sim::new(1);
    sim.run(|rt| async move {
        let slot = made(&rt, SLOT, 1, true).await;
        rt.write_at(&slot, page(&rt, 1, 1), 0).await.unwrap();
        rt.write_at(&slot, page(&rt, 2, 1), 0).await.unwrap();
    });
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = sim.disk().fork();
        disk.power_cut(seed);
        let bytes = disk.peek(SLOT, 0, 4096).unwrap();
        seen.insert((bytes[0], bytes[4095]));
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
}

#[test]
fn a_kept_conversion_keeps_its_data_and_a_dropped_one_reads_as_zeros() {
    let sim = Sim::new(1);
    sim.run(|rt| async move {
        let slot = made(&rt, SLOT, 2, false).await;
        rt.write_at(&slot, page(&rt, 7, 2), 0).await.unwrap();
    });
    let disk = sim.disk();
    assert_eq!(disk.extent(SLOT, 0), Extent::Written);
    disk.power_cut_keeping(|unit| match unit {
        Unit::Conversion(_, offset) => *offset == 0,
        Unit::Sector(_, offset, _) => *offset >= 4096,
        _ => false,
    });
    let bytes = disk.peek(SLOT, 0, 8192).unwrap();
    assert_eq!((bytes[..4096].to_vec(), bytes[4096..].to_vec()), (vec![7; 4096], vec![0; 4096]));
    assert_eq!(disk.extent(SLOT, 4096), Extent::Unwritten);
}

#[test]
fn a_name_is_durable_only_after_its_folder_and_the_folder_s_folder() {
    for (folders, survives) in [
        (vec![], false),
        (vec![Folder::Slots], false),
        (vec![Folder::Root], false),
        (vec![Folder::Slots, Folder::Root], true),
    ] {
        let sim = Sim::new(1);
        sim.run(|rt| async move {
            let file = rt.open(&root(), SLOT, Open::Create).await.unwrap();
            rt.write_at(&file, page(&rt, 7, 1), 0).await.unwrap();
            rt.fsync(&file).await.unwrap();
            for folder in folders {
                rt.sync_folder(&root(), folder).await.unwrap();
            }
        });
        sim.disk().power_cut_keeping(|_| false);
        assert_eq!(sim.disk().files().contains(&SLOT), survives);
        assert_eq!(sim.disk().peek(SLOT, 0, 1), survives.then(|| vec![7]));
    }
}

#[test]
fn after_a_failed_sync_the_next_one_lies() {
    let sim = Sim::new(1);
    sim.disk().inject(Rule::new(Op::Sync, Fault::Error(libc::EIO)).on(RING));
    sim.run(|rt| async move {
        let ring = made(&rt, RING, 2, true).await;
        rt.write_at(&ring, page(&rt, 7, 1), 0).await.unwrap();
        assert_eq!(rt.fdatasync(&ring).await.unwrap_err().raw_os_error(), Some(libc::EIO));
        rt.fdatasync(&ring).await.unwrap();
        rt.write_at(&ring, page(&rt, 8, 1), 4096).await.unwrap();
        rt.fdatasync(&ring).await.unwrap();
    });
    sim.disk().power_cut_keeping(|_| false);
    assert_eq!(sim.disk().peek(RING, 0, 1).unwrap(), [0]);
    assert_eq!(sim.disk().peek(RING, 4096, 1).unwrap(), [8]);
}

#[test]
fn what_a_failed_sync_left_never_comes_back_over_a_newer_write() {
    let sim = Sim::new(1);
    sim.disk().inject(Rule::new(Op::Sync, Fault::Error(libc::EIO)).on(RING));
    sim.run(|rt| async move {
        let ring = made(&rt, RING, 1, true).await;
        rt.write_at(&ring, page(&rt, 7, 1), 0).await.unwrap();
        rt.fdatasync(&ring).await.unwrap_err();
        rt.write_at(&ring, page(&rt, 8, 1), 0).await.unwrap();
        rt.fdatasync(&ring).await.unwrap();
    });
    sim.disk().power_cut_keeping(|_| true);
    assert_eq!(sim.disk().peek(RING, 0, 4096).unwrap(), [8; 4096]);
}

#[test]
fn a_liar_answers_and_keeps_nothing_for_sure() {
    let sim = Sim::new(1);
    sim.run(|rt| async move {
        let ring = made(&rt, RING, 1, true).await;
        rt.world().disk_at(&root()).unwrap().set_liar(true);
        rt.write_at(&ring, page(&rt, 7, 1), 0).await.unwrap();
        rt.fdatasync(&ring).await.unwrap();
    });
    assert_eq!(sim.disk().unflushed().len(), 8);
    sim.disk().power_cut_keeping(|_| false);
    assert_eq!(sim.disk().peek(RING, 0, 1).unwrap(), [0]);
}

#[test]
fn a_full_disk_takes_writes_into_allocated_ranges_only() {
    let sim = Sim::with_disk(1, &SimDisk::new(4 * 4096));
    sim.run(|rt| async move {
        let slot = rt.open(&root(), SLOT, Open::Create).await.unwrap();
        rt.preallocate(&slot, 0, 3 * 4096).await.unwrap();
        assert_eq!(rt.space(&root()).await.unwrap(), DiskSpace { total: 4 * 4096, free: 4096 });
        assert_eq!(rt.write_at(&slot, page(&rt, 7, 2), 3 * 4096).await.unwrap(), 4096);
        let error = rt.write_at(&slot, page(&rt, 7, 1), 4 * 4096).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(rt.preallocate(&slot, 4 * 4096, 4096).await.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(rt.write_at(&slot, page(&rt, 8, 4), 0).await.unwrap(), 4 * 4096);
    });
}

#[test]
fn faults_hit_the_calls_they_are_meant_for() {
    let sim = Sim::new(1);
    let disk = sim.disk();
    disk.inject(Rule::new(Op::Write, Fault::Short(5000)).on(SLOT).skip(1));
    disk.inject(Rule::new(Op::Write, Fault::Lost).on(SLOT).skip(1));
    disk.inject(Rule::new(Op::Write, Fault::Misdirected(4096)).on(SLOT).skip(1));
    disk.inject(Rule::new(Op::Read, Fault::Error(libc::EIO)).on(SLOT));
    disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_secs(5))).on(RING));
    sim.run(|rt| async move {
        let slot = rt.open(&root(), SLOT, Open::Create).await.unwrap();
        assert_eq!(rt.write_at(&slot, page(&rt, 1, 4), 0).await.unwrap(), 4 * 4096);
        assert_eq!(rt.write_at(&slot, page(&rt, 2, 2), 0).await.unwrap(), 4096);
        assert_eq!(rt.write_at(&slot, page(&rt, 3, 1), 0).await.unwrap(), 4096);
        assert_eq!(rt.write_at(&slot, page(&rt, 4, 1), 4096).await.unwrap(), 4096);
        assert_eq!(rt.read_at(&slot, 4096, 0).await.err().unwrap().raw_os_error(), Some(libc::EIO));
        let bytes = rt.read_at(&slot, 4 * 4096, 0).await.unwrap();
        let firsts: Vec<u8> = bytes.as_ref().iter().copied().step_by(4096).collect();
        assert_eq!(firsts, [2, 1, 4, 1]);
        let ring = rt.open(&root(), RING, Open::Create).await.unwrap();
        let before = rt.now();
        assert!(rt.read_at(&ring, 4096, 0).await.unwrap().as_ref().is_empty());
        assert!(rt.now() - before > Duration::from_secs(5));
    });
    assert_eq!(disk.stats().faults, 5);
}

#[test]
fn a_failing_write_lands_in_part() {
    let mut parts = BTreeSet::new();
    for seed in 0..20 {
        let sim = Sim::new(seed);
        sim.disk().inject(Rule::new(Op::Write, Fault::Error(libc::EIO)).skip(1));
        sim.run(|rt| async move {
            let slot = made(&rt, SLOT, 1, true).await;
            rt.write_at(&slot, page(&rt, 7, 1), 0).await.unwrap_err();
        });
        parts.insert(sim.disk().peek(SLOT, 0, 4096).unwrap());
    }
    assert!(parts.len() > 10);
}

#[test]
fn rot_is_read_and_survives_a_power_cut() {
    let sim = Sim::new(1);
    sim.run(|rt| async move { drop(made(&rt, SLOT, 1, true).await) });
    let disk = sim.disk();
    disk.rot(SLOT, 100, &[0xFF, 1]);
    assert_eq!(disk.peek(SLOT, 99, 4).unwrap(), [0, 0xFF, 1, 0]);
    disk.power_cut(1);
    assert_eq!(disk.peek(SLOT, 99, 4).unwrap(), [0, 0xFF, 1, 0]);
}

#[test]
fn a_forgotten_write_happens_all_the_same() {
    let sim = Sim::new(1);
    sim.run(|rt| async move {
        let slot = made(&rt, SLOT, 1, true).await;
        let free = rt.pool.used();
        let write = Box::pin(rt.write_at(&slot, page(&rt, 7, 1), 0)).now_or_never();
        assert!(write.is_none());
        assert_eq!(rt.pool.used(), free);
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(rt.read_at(&slot, 4096, 0).await.unwrap().as_ref(), [7; 4096]);
    });
}

#[test]
fn a_killed_process_loses_its_memory_and_keeps_its_writes() {
    let sim = Sim::new(1);
    let victim = sim.node();
    let rt = sim.start(victim, 1 << 20);
    let alive = Rc::new(());
    let held = Rc::clone(&alive);
    rt.spawn({
        let rt = rt.clone();
        async move {
            let slot = made(&rt, SLOT, 1, true).await;
            rt.write_at(&slot, page(&rt, 7, 1), 0).await.unwrap();
            pending::<()>().await;
            drop(held);
        }
    });
    sim.run(|rt| async move { rt.sleep(Duration::from_secs(1)).await });
    assert_eq!(Rc::strong_count(&alive), 2);
    sim.crash(victim);
    assert_eq!(Rc::strong_count(&alive), 1);
    assert_eq!(sim.disk().peek(SLOT, 0, 1).unwrap(), [7]);
    rt.spawn(async { panic!("the dead do not run") });
    sim.run(|rt| async move { rt.yield_now().await });
}

#[test]
fn a_call_in_flight_when_its_process_dies_happened_or_not_or_in_part() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let sim = Sim::new(seed);
        sim.run(|rt| async move {
            let slot = made(&rt, SLOT, 1, true).await;
            assert!(Box::pin(rt.write_at(&slot, page(&rt, 7, 1), 0)).now_or_never().is_none());
        });
        let disk = sim.disk();
        drop(sim);
        disk.crash(seed);
        let bytes = disk.peek(SLOT, 0, 4096).unwrap();
        seen.insert(bytes.iter().filter(|byte| **byte == 7).count() / 512);
    }
    assert!(seen.contains(&0) && seen.contains(&8) && seen.len() > 3, "{seen:?}");
}

/// Eight tasks race for one order; gives that order and the trace.
fn race(seed: u64) -> (Vec<u64>, u64) {
    let sim = Sim::new(seed);
    let order = sim.run(|rt| async move {
        let slot = made(&rt, SLOT, 8, true).await;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for task in 0..8 {
            let (rt2, slot, sender) = (rt.clone(), slot.clone(), sender.clone());
            rt.spawn(async move {
                rt2.write_at(&slot, page(&rt2, 1, 1), task * 4096).await.unwrap();
                sender.send(task).unwrap();
            });
        }
        drop(sender);
        let mut order = Vec::new();
        while let Some(task) = receiver.recv().await {
            order.push(task);
        }
        order
    });
    (order, sim.trace_hash())
}

#[test]
fn a_seed_repeats_and_another_one_differs() {
    assert_eq!(race(5), race(5));
    let orders: BTreeSet<_> = (0..20).map(|seed| race(seed).0).collect();
    assert!(orders.len() > 15);
}

#[test]
#[should_panic(expected = "seed=0x2a")]
fn a_deadlock_names_its_seed() {
    Sim::new(42).run(|_| pending::<()>());
}

#[test]
fn a_run_can_be_stopped_at_every_change_of_the_disk() {
    let sim = Sim::new(1);
    let disk = sim.disk();
    let mut states = Vec::new();
    let mut changes = 0;
    let stopped = sim.run_until(
        |rt| async move {
            let slot = made(&rt, SLOT, 4, true).await;
            for block in 0..4 {
                rt.write_at(&slot, page(&rt, 7, 1), block * 4096).await.unwrap();
            }
            pending::<()>().await;
        },
        |world| {
            if disk.changes() != changes {
                changes = disk.changes();
                states.push(disk.fork());
            }
            world.now() > Duration::from_secs(1) || changes == 7
        },
    );
    assert_eq!((stopped, states.len()), (None, 7));
    let written = |disk: &SimDisk| disk.peek(SLOT, 0, 4 * 4096).unwrap().iter().filter(|byte| **byte == 7).count();
    assert_eq!(states.iter().map(written).collect::<Vec<_>>(), [0, 0, 0, 4096, 8192, 12288, 16384]);
}

fn address(port: u16) -> SocketAddr {
    ([10, 0, 0, 1], port).into()
}

/// An echo server in a process of its own.
fn echo(world: &World, port: u16) -> NodeId {
    let node = world.node();
    let rt = world.start(node, 1 << 20);
    let listener = rt.listen(address(port)).unwrap();
    rt.clone().spawn(async move {
        loop {
            let (mut reader, mut writer) = listener.accept().await;
            let rt2 = rt.clone();
            rt.spawn(async move {
                while let Ok(bytes) = rt2.recv_some(&mut reader, Vec::new(), 1000).await
                    && !bytes.is_empty()
                {
                    if rt2.send_all(&mut writer, bytes, None).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    node
}

#[test]
fn a_stream_arrives_in_order_and_ends() {
    let sim = Sim::new(9);
    echo(&sim, 1);
    sim.run(|rt| async move {
        let (mut reader, mut writer) = rt.connect(address(1)).await.unwrap();
        let sent: Vec<u8> = (0..600_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut payload = rt.alloc(sent.len() - 10).await;
        payload.as_mut().copy_from_slice(&sent[10..]);
        let head = sent[..10].to_vec();
        let payload = rt.freeze(payload);
        let sending = rt.send_all(&mut writer, head, Some(payload));
        let buf = rt.alloc(sent.len()).await;
        let receiving = rt.recv_exact(&mut reader, buf, 0..600_000);
        let (sending, received) = futures_util::join!(sending, receiving);
        sending.unwrap();
        assert!(received.unwrap().as_ref() == sent);
        assert!(rt.now() > Duration::from_millis(1), "bytes take time");
        assert_eq!(rt.connect(address(2)).await.err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
    });
}

/// What somebody who receives and somebody who then sends sees when the peer dies.
fn death_of_a_peer(seed: u64) -> (Option<io::ErrorKind>, bool) {
    let sim = Sim::new(seed);
    let server = sim.start(sim.node(), 1 << 20);
    let listener = server.listen(address(1)).unwrap();
    server.spawn(async move {
        drop(listener.accept().await);
        let held = listener.accept().await;
        pending::<()>().await;
        drop(held);
    });
    let node = server.node();
    sim.run(move |rt| async move {
        let (mut reader, _writer) = rt.connect(address(1)).await.unwrap();
        let buf = rt.alloc(10).await;
        let error = rt.recv_exact(&mut reader, buf, 0..10).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (mut reader, mut writer) = rt.connect(address(1)).await.unwrap();
        let world = rt.world();
        let killer = async {
            rt.sleep(Duration::from_millis(5)).await;
            world.crash(node);
        };
        let ((), received) = futures_util::join!(killer, rt.recv_some(&mut reader, Vec::new(), 10));
        assert_eq!(received.as_deref().unwrap_or_default(), []);
        let refused = rt.connect(address(1)).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        (received.err().map(|error| error.kind()), rt.send_all(&mut writer, vec![1], None).await.is_err())
    })
}

#[test]
fn a_peer_that_dies_is_an_end_or_a_reset_and_takes_no_more() {
    let deaths: Vec<_> = (0..20).map(death_of_a_peer).collect();
    assert!(deaths.contains(&(None, true)), "{deaths:?}");
    assert!(deaths.contains(&(Some(io::ErrorKind::ConnectionReset), true)), "{deaths:?}");
    assert!(deaths.iter().all(|(_, refused)| *refused));
}

#[test]
fn a_cut_link_holds_bytes_until_it_heals() {
    let sim = Sim::new(9);
    let server = echo(&sim, 1);
    sim.run(|rt| async move {
        let (mut reader, mut writer) = rt.connect(address(1)).await.unwrap();
        rt.world().cut(server, rt.node());
        rt.send_all(&mut writer, vec![1, 2, 3], None).await.unwrap();
        let mut receiving = Box::pin(rt.recv_some(&mut reader, Vec::new(), 10));
        let waited = futures_util::future::select(&mut receiving, Box::pin(rt.sleep(Duration::from_secs(60)))).await;
        assert!(matches!(waited, futures_util::future::Either::Right(_)), "nothing comes through a cut");
        drop(waited);
        rt.world().heal();
        assert!(!receiving.await.unwrap().is_empty());
    });
}

#[test]
fn an_abandoned_receive_loses_the_connection() {
    let sim = Sim::new(9);
    echo(&sim, 1);
    sim.run(|rt| async move {
        let (mut reader, _writer) = rt.connect(address(1)).await.unwrap();
        assert!(Box::pin(rt.recv_some(&mut reader, Vec::new(), 10)).now_or_never().is_none());
        let error = rt.recv_some(&mut reader, Vec::new(), 10).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    });
}

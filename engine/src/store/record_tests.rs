use proptest::prelude::*;

use super::*;
use crate::store::header::tests::sample as header;

fn op() -> Op {
    Op {
        id: OpId { stream: StreamId([0xAB; 16]), op: 2 },
        first_unacked: 1,
        seq: 5,
        committed_seq: 4,
        part: 0,
        parts: 1,
        off: 100,
        len: 8192,
    }
}

fn entry() -> DedupEntry {
    DedupEntry { id: OpId { stream: StreamId([1; 16]), op: 3 }, chunk: ChunkHandle(4), offset: 5, len: 6 }
}

/// One of each type.
pub(crate) fn samples(images: &[u8]) -> Vec<Body<'_>> {
    let two = Images { blocks: vec![(3, 30), (4, 40)], images };
    vec![
        Body::Append(Append {
            op: op(),
            offset: 100,
            length: 8192,
            first_block: 0,
            crcs: Cow::Owned(vec![0x11, 0x22]),
            tail: &images[..100],
        }),
        Body::Overwrite { op: op(), offset: 100, length: 8192, images: two.clone() },
        Body::Repair(two),
        Body::Forget { op: op(), streams: vec![StreamId([5; 16])] },
        Body::Create(Create {
            term: Term(7),
            prev: ChunkHandle(8),
            file: InodeId(9),
            my_position: 1,
            members: Cow::Owned(vec![ServerId(1), ServerId(2)]),
            dedup: Cow::Owned(vec![entry()]),
        }),
        Body::Promise { promised: Epoch(6), term: Term(7) },
        Body::Seal(Seal {
            term: Term(7),
            len: 8292,
            last_seq: 5,
            digest: [3; 16],
            dedup: Cow::Owned(vec![entry(), entry()]),
        }),
        Body::Sealed { term: Term(7), len: 8292, digest: [3; 16] },
        Body::Reopen(Reopen { term: Term(7), len: 8292, digest: [3; 16], my_position: 0, members: vec![ServerId(3)] }),
        Body::Condemn { term: Term(7), reason: 2, authority: 11, now: 12 },
        Body::Restore { term: Term(7), authority: 11 },
        Body::Free { term: Term(7), authority: 11 },
        Body::Install(Box::new(header())),
        Body::Final { op: op(), len: 8292, digest: [3; 16] },
        Body::Mark,
    ]
}

#[test]
fn every_type_comes_back_as_it_was_and_from_no_prefix() {
    let images = vec![9; 2 * PAGE];
    for (index, body) in samples(&images).into_iter().enumerate() {
        assert_eq!(usize::from(body.kind()), index + 1);
        let bytes = body.encode();
        assert_eq!(Body::decode(body.kind(), &bytes), Ok(body.clone()), "type {}", body.kind());
        for len in 0..bytes.len() {
            assert!(Body::decode(body.kind(), &bytes[..len]).is_err(), "type {} cut at {len}", body.kind());
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(Body::decode(body.kind(), &longer).is_err(), "type {} with a byte more", body.kind());
    }
    for kind in [0, 16, 64, 255] {
        assert!(Body::decode(kind, &[]).is_err());
    }
}

/// The layout is a promise to every other build. If this test must change, so must the format number.
#[test]
fn the_layout_is_pinned() {
    let images = vec![9; 2 * PAGE];
    let bytes: Vec<Vec<u8>> = samples(&images).iter().map(Body::encode).collect();
    let append = &bytes[0];
    assert_eq!(append[..16], [0xAB; 16]);
    assert_eq!(append[16..32], [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(append[32..48], [5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(append[48..64], [0, 0, 1, 0, 100, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
    assert_eq!(append[64..80], [100, 0, 0, 0, 0, 0x20, 0, 0, 2, 0, 100, 0, 0, 0, 0, 0]);
    assert_eq!(append[80..88], [0x11, 0, 0, 0, 0x22, 0, 0, 0]);
    assert_eq!(append.len(), 188);
    let overwrite = &bytes[1];
    assert_eq!(overwrite[64..80], [100, 0, 0, 0, 0, 0x20, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(overwrite[80..96], [3, 0, 0, 0, 30, 0, 0, 0, 4, 0, 0, 0, 40, 0, 0, 0]);
    let create = &bytes[4];
    assert_eq!(create[..8], [7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(create[8..32], [8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1, 0, 0, 0, 0, 0]);
    assert_eq!(create[32..44], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(create.len(), 64 + 40);
    assert_eq!(bytes[5], [6, 0, 0, 0, 7, 0, 0, 0]);
    let seal = &bytes[6];
    assert_eq!(seal[..16], [7, 0, 0, 0, 0x64, 0x20, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((&seal[16..32], &seal[32..40]), (&[3; 16][..], &[2, 0, 0, 0, 0, 0, 0, 0][..]));
    assert_eq!((bytes[7].len(), bytes[8].len(), bytes[9].len(), bytes[10].len()), (24, 64, 24, 16));
    assert_eq!(bytes[9][..8], [7, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!((bytes[12].len(), bytes[13].len(), bytes[14].len()), (4096, 88, 0));

    let head = Head {
        crc: 0x0403_0201,
        lsn: 0x10,
        boot_gen: 0x20,
        prev_crc: 0x30,
        body_len: 8,
        span: 128,
        kind: 6,
        flags: FLAG_FIRST,
        durable_upto: 0x0f,
        chunk: ChunkHandle(0x40),
        slot: 0x50,
        epoch: Epoch(0x60),
    };
    let bytes = head.encode();
    assert_eq!(bytes[..16], [b'H', b'R', b'E', b'C', 1, 2, 3, 4, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[16..32], [0x20, 0, 0, 0, 0, 0, 0, 0, 0x30, 0, 0, 0, 8, 0, 0, 0]);
    assert_eq!(bytes[32..48], [128, 0, 0, 0, 6, 2, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[48..64], [0x40, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0x60, 0, 0, 0]);
    assert_eq!(Head::decode(&bytes), Ok(head));
}

#[test]
fn lengths_from_outside_are_bounded_before_they_are_believed() {
    let head = |body_len: u32, span: u32| Head {
        crc: 0,
        lsn: 1,
        boot_gen: 1,
        prev_crc: 0,
        body_len,
        span,
        kind: 1,
        flags: 0,
        durable_upto: 0,
        chunk: ChunkHandle(1),
        slot: 0,
        epoch: Epoch(1),
    };
    let believed = |head: Head| Head::decode(&head.encode()).is_ok();
    assert!(believed(head(8, 128)));
    assert!(!believed(head(8, 64)), "a record cannot end before its body");
    assert!(!believed(head(8, 100)), "records start at multiples of 64");
    assert!(!believed(head(8, 1 << 20)), "padding is less than a page");
    assert!(believed(head(BODY_LEN_MAX, 1_056_768)));
    assert!(!believed(head(BODY_LEN_MAX + 1, 1_056_768)));
    assert!(!believed(head(u32::MAX, !63)));
    assert!(!believed(Head { flags: 4, ..head(8, 128) }));

    let append = samples(&[9; 2 * PAGE])[0].encode();
    let forged = |at: usize, value: u16| {
        let mut bytes = append.clone();
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        Body::decode(1, &bytes).is_ok()
    };
    assert!(forged(48, 0));
    assert!(!forged(48, 1), "a part is below the number of parts");
    assert!(!forged(72, 3), "as many blocks as the range completes");
    assert!(!forged(74, 99), "a tail as long as the range leaves");
    assert!(!forged(76, 1), "the first block follows from the offset");
    assert!(!forged(70, 0x20), "a part is at most 1 MiB");
}

proptest! {
    #[test]
    fn any_append_comes_back(offset in 0_u32..60 << 20, length in 1_u32..=PART_MAX, seq in 1_u64.., parts in 1_u16..17) {
        let end = offset + length;
        let crcs: Vec<u32> = (offset / BLOCK..end / BLOCK).collect();
        let tail = vec![7; (end % BLOCK) as usize];
        let op = Op { seq, part: parts - 1, parts, ..op() };
        let body = Body::Append(Append {
            op, offset, length, first_block: offset / BLOCK, crcs: Cow::Owned(crcs), tail: &tail,
        });
        let bytes = body.encode();
        prop_assert_eq!(Body::decode(1, &bytes), Ok(body));
    }

    #[test]
    fn arbitrary_bytes_never_panic(kind in 0_u8..20, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Body::decode(kind, &bytes);
        if let Some(head) = bytes.first_chunk() {
            let _ = Head::decode(head);
        }
    }
}

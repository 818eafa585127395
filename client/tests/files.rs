//! Uploads, reads, writes and names against a cluster that misbehaves.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod fake;

use std::time::Duration;

use bytes::Bytes;
use client::{Client, UploadOptions};
use fake::{Fake, noise, path, read_all};
use wire::Kind;
use wire::report::Trouble;
use wire::upload::Precondition;

const MIB: usize = 1 << 20;
const CHUNK: usize = 64 * MIB;

async fn put(client: &Client, name: &str, data: &Bytes, piece: usize) -> Result<wire::namespace::Attr, client::Error> {
    let mut upload = client.upload(&path(name), UploadOptions::default()).await?;
    let mut rest = data.clone();
    while !rest.is_empty() {
        upload.write(rest.split_to(piece.min(rest.len()))).await?;
    }
    upload.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_uploaded_in_any_pieces_is_read_back() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    for (number, (len, piece)) in
        [(0, 1), (1, 1), (29, 7), (MIB, MIB), (MIB + 1, 3 * MIB), (3 * MIB + 5, 100_000)].into_iter().enumerate()
    {
        let name = format!("/f{number}");
        let data = noise(number as u64, len);
        let attr = put(&client, &name, &data, piece).await.unwrap();
        assert_eq!(attr.len, len as u64);
        assert!(read_all(&client, &name, 0..u64::MAX).await.unwrap() == data, "{len} bytes in pieces of {piece}");
    }
    fake.check();
    assert_eq!(client.stats().reports, 0, "nothing was wrong");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_filled_exactly_and_any_range_comes_back() {
    let fake = Fake::start(3).await;
    fake.state().finish_late = Duration::from_millis(20);
    let client = fake.client();
    let data = noise(1, CHUNK + 2 * MIB + 77);
    put(&client, "/big", &data, 5 * MIB).await.unwrap();
    assert_eq!(fake.chunk_lens("/big"), [CHUNK, 2 * MIB + 77]);
    assert_eq!(client.stats().reports, 0, "a chunk that ends as planned is no trouble");
    let whole = data.len() as u64;
    let border = CHUNK as u64;
    for range in [0..whole, 0..1, whole - 1..whole, border - 1..border + 1, 4095..4097, 100..5 * MIB as u64, 7..7] {
        let want = &data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert!(read_all(&client, "/big", range.clone()).await.unwrap() == want, "{range:?}");
    }
    assert!(read_all(&client, "/big", whole + 5..whole + 9).await.unwrap().is_empty());
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_survives_a_killed_head_lost_answers_and_overload() {
    let fake = Fake::start(5).await;
    let client = fake.client();
    let data = noise(2, 24 * MIB + 9);
    let mut upload = client.upload(&path("/f"), UploadOptions::default()).await.unwrap();
    for (number, start) in (0..data.len()).step_by(2 * MIB).enumerate() {
        upload.write(data.slice(start..data.len().min(start + 2 * MIB))).await.unwrap();
        while number == 3 && upload.durable() == 0 {
            upload.progressed().await;
        }
        let open = fake.state().chunks.values().rev().find(|chunk| !chunk.sealed).map(|chunk| chunk.members[0]);
        match (number, open) {
            (3, Some(head)) => fake.kill(head),
            (6, Some(head)) => fake.state().faults[head].lose_answers = 2,
            (8, Some(head)) => fake.state().faults[head].busy = 3,
            _ => {}
        }
    }
    let attr = upload.finish().await.unwrap();
    assert_eq!(attr.len, data.len() as u64);
    assert!(fake.content("/f") == data, "every operation once and in order");
    assert!(read_all(&client, "/f", 0..u64::MAX).await.unwrap() == data);
    assert!(client.stats().retries > 0);
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_final_chunk_is_sealed_even_when_its_answer_comes_from_after_a_roll() {
    let fake = Fake::start(4).await;
    let client = fake.client();
    let data = noise(3, 3 * MIB + 1);
    let mut upload = client.upload(&path("/f"), UploadOptions::default()).await.unwrap();
    upload.write(data.clone()).await.unwrap();
    while upload.durable() < 3 * MIB as u64 {
        upload.progressed().await;
    }
    // The final operation takes effect, then its answer is lost and its chunk is rolled: the retry is
    // answered by the next chunk, which stays open.
    fake.state().roll_every = Some(1);
    for faults in &mut fake.state().faults {
        faults.lose_answers = 1;
    }
    upload.finish().await.unwrap();
    assert!(fake.content("/f") == data);
    assert_eq!(fake.chunk_lens("/f"), [3 * MIB + 1, 0]);
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_visible_before_finish_and_an_aborted_upload_leaves_nothing() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    let mut upload = client.upload(&path("/f"), UploadOptions::default()).await.unwrap();
    upload.write(noise(1, 2 * MIB)).await.unwrap();
    assert_eq!(client.stat(&path("/f")).await.unwrap_err().kind(), Kind::NotFound);
    upload.abort().await;
    assert!(fake.state().files.is_empty());
    put(&client, "/f", &noise(2, 10), 10).await.unwrap();
    let options = UploadOptions { precondition: Precondition::Absent, ..UploadOptions::default() };
    let second = client.upload(&path("/f"), options).await.unwrap();
    assert_eq!(second.finish().await.unwrap_err().kind(), Kind::Precondition);
    assert_eq!(read_all(&client, "/f", 0..99).await.unwrap(), noise(2, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sha256_is_computed_on_the_way() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    let options = UploadOptions { sha256: true, ..UploadOptions::default() };
    let mut upload = client.upload(&path("/f"), options).await.unwrap();
    upload.write(Bytes::from_static(b"a")).await.unwrap();
    upload.write(Bytes::from_static(b"bc")).await.unwrap();
    let sha = upload.finish().await.unwrap().sha256.unwrap();
    // FIPS 180-2, appendix B.1.
    assert_eq!(sha[..4], [0xba, 0x78, 0x16, 0xbf]);
    assert_eq!(sha[28..], [0xf2, 0x00, 0x15, 0xad]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_reply_is_counted_reported_and_read_elsewhere() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    let data = noise(4, 3 * MIB);
    put(&client, "/f", &data, MIB).await.unwrap();
    for faults in &mut fake.state().faults {
        faults.corrupt = 1;
    }
    assert!(read_all(&client, "/f", 0..u64::MAX).await.unwrap() == data);
    let stats = client.stats();
    assert!(stats.corrupt_replies >= 1 && stats.failovers >= 1, "{stats:?}");
    let reported = async {
        while !fake.state().reports.iter().any(|report| report.trouble == Trouble::BadBlock) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), reported).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_no_replica_has_right_are_an_error_and_never_a_short_success() {
    let fake = Fake::start(3).await;
    put(&fake.client(), "/f", &noise(4, 3 * MIB), MIB).await.unwrap();
    for faults in &mut fake.state().faults {
        faults.corrupt = u32::MAX;
    }
    let client = fake.client_with(Duration::from_millis(300));
    assert_eq!(read_all(&client, "/f", 0..u64::MAX).await.unwrap_err().kind(), Kind::Corrupt);
    let attr = client.stat(&path("/f")).await.unwrap();
    let mut stream = client.read(&attr, 0..attr.len);
    assert!(stream.next().await.unwrap().is_err());
    assert!(stream.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_on_with_one_of_three_servers_and_say_so_when_none_is_left() {
    let fake = Fake::start(3).await;
    let client = fake.client_with(Duration::from_secs(3));
    let data = noise(5, 5 * MIB + 3);
    put(&client, "/f", &data, MIB).await.unwrap();
    fake.kill(0);
    fake.kill(1);
    assert!(read_all(&client, "/f", 0..u64::MAX).await.unwrap() == data);
    fake.kill(2);
    let client = fake.client_with(Duration::from_millis(300));
    assert_eq!(read_all(&client, "/f", 0..u64::MAX).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_replica_is_passed_over_once_and_then_asked_last() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    let data = noise(6, 6 * MIB);
    put(&client, "/f", &data, MIB).await.unwrap();
    fake.state().faults[1].silent = true;
    for _ in 0..20 {
        assert!(read_all(&client, "/f", 0..u64::MAX).await.unwrap() == data);
    }
    assert!(client.stats().failovers <= 6, "only the first window meets it: {:?}", client.stats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_take_turns_at_the_replicas() {
    let fake = Fake::start(3).await;
    put(&fake.client(), "/f", &noise(7, 10), 10).await.unwrap();
    let client = fake.client();
    for _ in 0..60 {
        read_all(&client, "/f", 0..10).await.unwrap();
    }
    let reads = fake.state().reads.clone();
    assert!(reads.iter().all(|count| *count > 0), "{reads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_tail_is_as_long_as_its_head_says_and_reads_see_own_appends() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    client.create(&path("/log"), true).await.unwrap();
    assert_eq!(client.stat(&path("/log")).await.unwrap().len, 0);
    for number in 0..20_u64 {
        let appended = client.append(&path("/log"), noise(number, 777)).await.unwrap();
        assert_eq!(client.stat(&path("/log")).await.unwrap().len, appended.offset + 777);
        if number % 3 == 0 {
            let head = fake.head("/log");
            fake.state().faults[head].not_committed = 1;
        }
        let read = read_all(&client, "/log", appended.offset..u64::MAX).await.unwrap();
        assert_eq!(read, noise(number, 777));
        assert_eq!(fake.state().min_seq, number + 1, "no member that knows less may answer");
    }
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_head_gone_the_length_is_what_the_seal_says_and_not_what_others_know() {
    let fake = Fake::start(4).await;
    let client = fake.client();
    client.create(&path("/log"), true).await.unwrap();
    client.append(&path("/log"), noise(1, 1000)).await.unwrap();
    fake.kill(fake.head("/log"));
    assert_eq!(client.stat(&path("/log")).await.unwrap().len, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_master_does_not_seal_the_length_is_what_the_furthest_member_knows() {
    let fake = Fake::start(4).await;
    let client = fake.client_with(Duration::from_millis(500));
    client.create(&path("/log"), true).await.unwrap();
    client.append(&path("/log"), noise(1, 1000)).await.unwrap();
    fake.state().deaf = true;
    fake.kill(fake.head("/log"));
    assert_eq!(client.stat(&path("/log")).await.unwrap().len, 500);
    (0..4).for_each(|server| fake.kill(server));
    assert_eq!(client.stat(&path("/log")).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_changes_its_bytes_and_no_others() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    let mut want = noise(1, 3 * MIB + 100).to_vec();
    put(&client, "/f", &Bytes::from(want.clone()), MIB).await.unwrap();
    for (number, (offset, len)) in
        [(100, 50), (0, 1), (MIB - 1, 2), (3 * MIB + 99, 1), (3 * MIB + 90, 4000)].into_iter().enumerate()
    {
        let data = noise(100 + number as u64, len);
        assert_eq!(client.write_at(&path("/f"), offset as u64, data.clone()).await.unwrap(), len as u64);
        want.resize(want.len().max(offset + len), 0);
        want[offset..offset + len].copy_from_slice(&data);
        assert!(read_all(&client, "/f", 0..u64::MAX).await.unwrap() == want, "{len} bytes at {offset}");
    }
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_at_the_end_extends_and_one_past_the_end_is_refused() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    client.create(&path("/f"), true).await.unwrap();
    assert_eq!(client.write_at(&path("/f"), 0, noise(1, 29)).await.unwrap(), 29);
    assert_eq!(client.write_at(&path("/f"), 29, noise(2, 5)).await.unwrap(), 5);
    let error = client.write_at(&path("/f"), 35, noise(3, 5)).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::Invalid, "write offset [35] cannot be greater than the file size")
    );
    assert_eq!(client.write_at(&path("/f"), 34, Bytes::new()).await.unwrap(), 0);
    assert!(client.write_at(&path("/f"), 35, Bytes::new()).await.is_err());
    let want = [noise(1, 29), noise(2, 5)].concat();
    assert_eq!(read_all(&client, "/f", 0..u64::MAX).await.unwrap(), want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_seals_an_open_tail_first_and_appends_go_on_after_it() {
    let fake = Fake::start(3).await;
    fake.state().finish_late = Duration::from_millis(30);
    let client = fake.client();
    client.create(&path("/log"), true).await.unwrap();
    let other = fake.client();
    let record = noise(1, 1000);
    client.append(&path("/log"), record.slice(..400)).await.unwrap();
    other.append(&path("/log"), record.slice(400..)).await.unwrap();
    assert_eq!(client.write_at(&path("/log"), 10, noise(2, 20)).await.unwrap(), 20);
    let appended = client.append(&path("/log"), noise(3, 30)).await.unwrap();
    assert_eq!(appended.offset, 1000);
    other.append(&path("/log"), noise(4, 40)).await.unwrap();
    let mut want = [noise(1, 1000), noise(3, 30), noise(4, 40)].concat();
    want[10..30].copy_from_slice(&noise(2, 20));
    assert_eq!(read_all(&client, "/log", 0..u64::MAX).await.unwrap(), want);
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_lost_a_race_begins_again() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    put(&client, "/f", &noise(1, 1000), 1000).await.unwrap();
    fake.state().conflicts = 2;
    client.write_at(&path("/f"), 998, noise(2, 5)).await.unwrap();
    assert_eq!(read_all(&client, "/f", 998..1003).await.unwrap(), noise(2, 5));
    assert_eq!(fake.state().conflicts, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_asked_for_again_and_made_once() {
    let fake = Fake::start(1).await;
    let client = fake.client();
    put(&client, "/f", &noise(1, 2 * MIB), MIB).await.unwrap();
    {
        let mut state = fake.state();
        (state.faults[0].lose_answers, state.faults[0].busy) = (2, 1);
    }
    let data = noise(2, MIB);
    client.write_at(&path("/f"), (MIB / 2) as u64, data.clone()).await.unwrap();
    assert_eq!(read_all(&client, "/f", (MIB / 2) as u64..(MIB + MIB / 2) as u64).await.unwrap(), data);
    let state = fake.state();
    assert_eq!((state.overwrites, state.repeats, state.closed > 0), (2, 2, true), "two mebibytes of the chunk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_answer_was_lost_is_made_once() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    fake.state().master.lose_answers = 3;
    // Exclusive: made twice, the second would be refused.
    let attr = client.create(&path("/f"), true).await.unwrap();
    assert_eq!(fake.state().names["/f"], attr.inode);
    assert_eq!(fake.state().files.len(), 1);
    assert_eq!(client.stats().retries, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_comes_back_within_the_deadline_was_never_away() {
    let fake = Fake::start(3).await;
    let client = fake.client();
    fake.state().master.down = true;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.create(&path("/f"), true).await }
    });
    while client.stats().retries < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fake.state().master.down = false;
    waiting.await.unwrap().unwrap();
    fake.state().master.down = true;
    let impatient = fake.client_with(Duration::from_millis(200));
    let error = impatient.create(&path("/g"), true).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

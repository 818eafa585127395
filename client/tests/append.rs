//! Record append against a cluster that loses answers, refuses, rolls and dies.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod fake;

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use client::{Appended, Client};
use fake::{Fake, noise, path};
use wire::Kind;
use wire::report::Trouble;

const MIB: usize = 1 << 20;

async fn cluster() -> (Fake, Client) {
    let fake = Fake::start(4).await;
    let client = fake.client();
    client.create(&path("/log"), true).await.unwrap();
    (fake, client)
}

/// Appends `count` records at once; each must be found exactly at the offset that was answered.
async fn append_many(fake: &Fake, client: &Client, count: u64) {
    let appends = (0..count).map(|number| {
        let client = client.clone();
        let len = 100 + usize::try_from(number * 37 % 5000).unwrap();
        tokio::spawn(async move {
            let record = noise(number, len);
            (client.append(&path("/log"), record.clone()).await, record)
        })
    });
    let mut found: Vec<(Appended, Bytes)> = Vec::new();
    for append in appends.collect::<Vec<_>>() {
        let (result, record) = append.await.unwrap();
        found.push((result.unwrap(), record));
    }
    let content = fake.content("/log");
    let mut offsets = HashSet::new();
    for (appended, record) in &found {
        let start = usize::try_from(appended.offset).unwrap();
        assert!(content[start..].starts_with(record), "record of {} bytes at {start}", record.len());
        assert_eq!(appended.len as usize, record.len());
        assert!(offsets.insert(start), "two records at {start}");
    }
    let total: usize = found.iter().map(|(_, record)| record.len()).sum();
    assert_eq!(content.len(), total, "every record is there once");
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_records_are_each_found_once_at_the_offset_returned() {
    let (fake, client) = cluster().await;
    append_many(&fake, &client, 300).await;
    assert_eq!(client.stats().reports, 0, "nothing was wrong");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolls_in_the_middle_of_a_pipeline_neither_lose_nor_repeat_a_record() {
    let (fake, client) = cluster().await;
    fake.state().roll_every = Some(7);
    append_many(&fake, &client, 200).await;
    assert!(fake.chunk_lens("/log").len() >= 200 / 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_lost_requests_and_overload_neither_lose_nor_repeat_a_record() {
    let (fake, client) = cluster().await;
    fake.state().roll_every = Some(40);
    for faults in &mut fake.state().faults {
        (faults.lose_answers, faults.lose_requests, faults.busy) = (2, 1, 2);
    }
    append_many(&fake, &client, 300).await;
    assert!(client.stats().retries > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_answer_was_lost_keeps_its_place_across_a_roll() {
    let (fake, client) = cluster().await;
    let first = client.append(&path("/log"), noise(1, 5000)).await.unwrap();
    let head = fake.head("/log");
    // It takes effect; then the head is gone for good, so the retry meets the next chunk's table.
    fake.state().faults[head].lose_answers = 1;
    fake.state().roll_every = Some(2);
    let second = client.append(&path("/log"), noise(2, 700)).await.unwrap();
    assert_eq!((first.offset, second.offset), (0, 5000));
    let third = client.append(&path("/log"), noise(3, 10)).await.unwrap();
    assert_eq!(third.offset, 5700);
    assert_eq!(fake.content("/log").len(), 5710);
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_does_not_fit_goes_whole_into_the_next_chunk() {
    let (fake, client) = cluster().await;
    let record = noise(5, 15 * MIB + 1);
    for number in 0..5_u64 {
        let appended = client.append(&path("/log"), record.clone()).await.unwrap();
        assert_eq!(appended.offset, number * record.len() as u64);
    }
    assert_eq!(fake.chunk_lens("/log"), [4 * record.len(), record.len()]);
    assert!(fake.content("/log").chunks(record.len()).all(|found| found == record));
    let refused = client.append(&path("/log"), noise(1, 16 * MIB + 1)).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_dies_is_reported_and_writing_goes_on_elsewhere() {
    let (fake, client) = cluster().await;
    client.append(&path("/log"), noise(1, 100)).await.unwrap();
    let head = fake.head("/log");
    fake.kill(head);
    let appended = client.append(&path("/log"), noise(2, 100)).await.unwrap();
    assert_eq!(appended.offset, 100);
    assert_ne!(fake.head("/log"), head);
    assert!(fake.state().reports.iter().any(|report| report.trouble == Trouble::NoAnswer));
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_restarted_is_not_used_again_in_its_epoch() {
    let (fake, client) = cluster().await;
    client.append(&path("/log"), noise(1, 100)).await.unwrap();
    let head = fake.head("/log");
    fake.kill(head);
    fake.restart(head);
    client.append(&path("/log"), noise(2, 100)).await.unwrap();
    assert_eq!(fake.chunk_lens("/log"), [100, 100]);
    assert_eq!(client.stats().restarts_seen, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_broken_by_the_watchdog() {
    let (fake, client) = cluster().await;
    client.append(&path("/log"), noise(1, 100)).await.unwrap();
    let head = fake.head("/log");
    fake.state().faults[head].silent = true;
    let appended = client.append(&path("/log"), noise(2, 100)).await.unwrap();
    // The silent head had taken it: the roll inherits it, and the answer names the old place.
    assert_eq!(appended.offset, 100);
    assert_eq!(fake.content("/log").len(), 200);
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_deadline_sent_means_unknown_and_unsent_means_it_has_not_happened() {
    let fake = Fake::start(1).await;
    let client = fake.client_with(Duration::from_millis(700));
    client.create(&path("/log"), true).await.unwrap();
    client.append(&path("/log"), noise(1, 100)).await.unwrap();
    fake.state().faults[0].silent = true;
    let error = client.append(&path("/log"), noise(2, 100)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unknown, "{error}");
    fake.kill(0);
    let other = fake.client_with(Duration::from_millis(700));
    let error = other.append(&path("/log"), noise(2, 100)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_record_was_given_up_the_next_one_uses_a_new_stream() {
    let fake = Fake::start(3).await;
    let client = fake.client_with(Duration::from_millis(700));
    client.create(&path("/log"), true).await.unwrap();
    client.append(&path("/log"), noise(1, 100)).await.unwrap();
    for faults in &mut fake.state().faults {
        faults.silent = true;
    }
    let lost = client.append(&path("/log"), noise(2, 100)).await;
    assert_eq!(lost.unwrap_err().kind(), Kind::Unknown);
    for faults in &mut fake.state().faults {
        faults.silent = false;
    }
    let appended = client.append(&path("/log"), noise(3, 50)).await.unwrap();
    let content = fake.content("/log");
    assert!(content[usize::try_from(appended.offset).unwrap()..].starts_with(&noise(3, 50)));
    fake.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_does_not_know_the_stream_gets_a_new_one() {
    let (fake, client) = cluster().await;
    client.append(&path("/log"), noise(1, 100)).await.unwrap();
    {
        let mut state = fake.state();
        state.forgetful = true;
        let last = *state.chunks.keys().next_back().unwrap();
        state.seal(last);
    }
    // Refused by the sealed chunk, then by the next one: no attempt can have succeeded.
    let appended = client.append(&path("/log"), noise(2, 50)).await.unwrap();
    assert_eq!(appended.offset, 100);
    assert_eq!(fake.content("/log")[100..], noise(2, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_there_is_not_made() {
    let (_fake, client) = cluster().await;
    let error = client.append(&path("/none"), noise(1, 10)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

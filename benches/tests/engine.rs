//! The engine's benchmark on a small scale: that it measures what it says, not how fast anything is.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot prepare should fail loudly")]

use std::time::Duration;

use benches::engine::{Options, plot, run};
use engine::runtime::Backend;

fn options(only: &str) -> Option<(tempfile::TempDir, Options)> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if let Err(error) = engine::store::DiskLock::acquire(&folder.path().join("probe")) {
        println!("SKIPPED: {error}");
        return None;
    }
    let options = Options {
        dir: folder.path().to_owned(),
        rounds: 2,
        chunks: 1,
        budget: Duration::from_millis(50),
        journal: 8 << 20,
        // The one that runs wherever the tests do.
        backends: vec![Backend::MonoioEpoll],
        only: Some(only.into()),
        lonely: false,
        batched: true,
    };
    Some((folder, options))
}

#[test]
fn recovery_of_a_full_journal_replays_it_in_every_round() {
    let Some((folder, options)) = options("recovery") else { return };
    let report = run(&options, &mut |_| {}).unwrap();
    assert_eq!(report.rows.len(), 1);
    assert_eq!(report.rows[0].columns[0].rounds.len(), 2);
    assert!(report.counts.iter().any(|line| line.starts_with("recovery replayed")), "{report}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["probe"], "nothing is left but what the test made");
}

#[test]
fn the_bare_loop_and_the_store_meet_in_every_round() {
    let Some((_folder, options)) = options("one append") else { return };
    let report = run(&options, &mut |_| {}).unwrap();
    let row = &report.rows[0];
    for who in ["raw", "monoio-epoll"] {
        let column = row.columns.iter().find(|column| column.who == who).unwrap();
        assert!(column.rounds.len() == 2 && column.rounds.iter().all(|value| *value > 0.0), "{report}");
    }
    assert!(plot::svg(&report).contains("monoio-epoll"));
}

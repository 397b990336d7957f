//! The log's everyday life: append, read, vote, cut, purge, restart, close and open again.

use raft_store::log::{Boundary, Cursor, Log, LogOptions, Vote};
use raft_store::position::{LogId, PhysicalOffset};

use super::world::*;

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

async fn fill_with(log: &Log, indexes: std::ops::Range<u64>, bytes: usize) -> Vec<PhysicalOffset> {
    let mut offsets = Vec::new();
    for index in indexes {
        offsets.extend(append(log, vec![entry(1, index, bytes)]).await.expect("appended"));
    }
    offsets
}

async fn fill(log: &Log, term: u64, indexes: std::ops::Range<u64>) -> Vec<PhysicalOffset> {
    let mut offsets = Vec::new();
    for index in indexes {
        offsets
            .extend(append(log, vec![entry(term, index, 100 + (index as usize * 37) % 900)]).await.expect("appended"));
    }
    offsets
}

#[test]
fn what_was_appended_is_read_before_and_after_a_restart() {
    simulate(async {
        let disk = disk(1);
        let log = open(&disk, small()).await.expect("opens");
        assert_eq!((log.last(), log.vote()), (None, None));
        let vote = Vote { term: 1, node_id: Some(7), committed: false };
        log.save_vote(vote).await.expect("saved");
        let offsets = fill(&log, 1, 0..60).await;
        let before = bodies(&log, 1000).await.expect("read");
        assert_eq!(before.len(), 60);
        let tip = log.tip();
        assert_eq!(tip.last, Some(id(1, 59)));
        log.close().await.expect("closes");

        let log = open(&disk, small()).await.expect("opens again");
        assert_eq!((log.tip(), log.vote()), (tip, Some(vote)));
        assert_eq!(bodies(&log, 1000).await.expect("read"), before);
        for (offset, (_, body)) in offsets.iter().zip(&before) {
            let record = PhysicalOffset(offset.0 + 64 + 10);
            assert_eq!(log.record(record, 50).expect("read"), body.slice(10..60));
            assert!(log.in_memory(record), "it was just read");
        }
        fill(&log, 2, 60..70).await;
        assert_eq!(log.first_of_terms(5..70), [id(1, 5), id(2, 60)]);
        assert_eq!(log.id_at(61), Some(id(2, 61)));
        log.close().await.expect("closes");
    });
}

#[test]
fn a_cut_log_forgets_and_goes_on() {
    simulate(async {
        let disk = disk(2);
        let log = open(&disk, small()).await.expect("opens");
        fill(&log, 1, 0..40).await;
        log.truncate_after(Some(11)).await.expect("cut");
        assert_eq!(log.last(), Some(id(1, 11)));
        assert_eq!(log.read(12..40, 1 << 20).await.expect("read"), []);
        let end = log.chain_before(12).await.expect("known");
        assert_eq!(end, log.tip().end);
        fill(&log, 2, 12..14).await;
        log.close().await.expect("closes");

        let log = open(&disk, small()).await.expect("opens again");
        assert_eq!(log.last(), Some(id(2, 13)));
        assert_eq!(bodies(&log, 1).await.expect("read").len(), 14);
        log.truncate_after(None).await.expect("cut to nothing");
        assert_eq!(log.tip().end, Cursor::default());
        fill(&log, 3, 0..3).await;
        drop(log);
        disk.process_kill();
        let log = open(&disk, small()).await.expect("opens again");
        assert_eq!(log.last(), Some(id(3, 2)));
    });
}

#[test]
fn a_purged_log_begins_later_and_gives_back_files() {
    simulate(async {
        let disk = disk(3);
        let log = open(&disk, small()).await.expect("opens");
        let offsets = fill(&log, 1, 0..60).await;
        let files = disk.dump().len();
        log.purge(id(1, 39)).await.expect("purged");
        assert!(disk.dump().len() < files);
        assert_eq!(log.last_purged(), Some(id(1, 39)));
        assert_eq!(log.id_at(39), Some(id(1, 39)));
        assert_eq!(log.id_at(38), None);
        assert!(log.record(PhysicalOffset(offsets[5].0 + 64), 10).is_err());
        log.release_idle_memory();
        assert_eq!(bodies(&log, 500).await.expect("read").len(), 20);
        log.close().await.expect("closes");

        let log = open(&disk, small()).await.expect("opens again");
        assert_eq!(bodies(&log, 500).await.expect("read").len(), 20);
        log.purge(id(1, 59)).await.expect("purged to the end");
        assert_eq!((log.last(), log.last_purged()), (Some(id(1, 59)), Some(id(1, 59))));
        log.close().await.expect("closes");

        let log = open(&disk, small()).await.expect("opens empty");
        assert_eq!(log.last(), Some(id(1, 59)));
        fill(&log, 2, 60..65).await;
        assert_eq!(bodies(&log, 500).await.expect("read").len(), 5);
    });
}

#[test]
fn a_log_begins_anew_behind_an_image() {
    simulate(async {
        let disk = disk(4);
        let log = open(&disk, small()).await.expect("opens");
        fill(&log, 1, 0..20).await;
        let end = Cursor { physical_offset: PhysicalOffset(8192 * 50 + 128), chain: 99 };
        let boundary = Boundary { id: id(4, 500), end };
        log.restart_at(boundary).await.expect("restarted");
        assert_eq!((log.last(), log.last_purged()), (Some(id(4, 500)), Some(id(4, 500))));
        assert_eq!(log.tip().end, end);
        fill(&log, 4, 501..520).await;
        log.close().await.expect("closes");

        let log = open(&disk, small()).await.expect("opens again");
        assert_eq!(log.purged_boundary(), Some(boundary));
        assert_eq!(bodies(&log, 500).await.expect("read").len(), 19);
        // The log holds this boundary: nothing is dropped but what lies before it.
        let end = log.chain_before(511).await.expect("known");
        log.restart_at(Boundary { id: id(4, 510), end }).await.expect("purged");
        assert_eq!(bodies(&log, 500).await.expect("read").len(), 9);
    });
}

/// Reading on from where a read has ended, which was before the padding of a segment that a purge has removed since.
#[test]
fn reading_goes_on_behind_a_purged_segment() {
    simulate(async {
        let options = LogOptions { tail_bytes: 0, ..small() };
        let log = open(&disk(5), options).await.expect("opens");
        // Nine fill the first segment but for a rest that the tenth does not fit into.
        fill_with(&log, 0..9, 800).await;
        log.read(0..9, usize::MAX).await.expect("read to the end, where padding will be");
        let behind = fill_with(&log, 9..30, 800).await[0];
        assert_eq!(behind, PhysicalOffset(8192));
        log.purge(id(1, 9)).await.expect("purged, and the first segment with it");
        let frames = log.read(10..11, 1).await.expect("read on");
        assert_eq!(frames[0].id.index, 10);
    });
}

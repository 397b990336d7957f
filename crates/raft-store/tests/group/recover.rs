//! A majority is lost for good, and one survivor goes on alone. What its log holds must all be there, committed or not; a
//! look must change nothing; and killed or without power at any moment it is either what it was, or alone, or told to be so
//! by a second run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use raft_store::entry::{CoreCommand, Operation};
use raft_store::group::{Group, MembersError, VotersChange};
use raft_store::identity::FlushMode;
use raft_store::log::{Frame, Kind as FrameKind};
use raft_store::offline::{Line, Offline, OfflineError};
use raft_store::position::{LogId, Timestamp};
use raft_store::unsafe_recover::{RecoverError, Remaining, Survivor, go_on_alone, look};

use crate::three::Three;
use crate::world::{Counter, Ledger, Place, QUEUE, free_address, record, until_ready, within};

const DIR: &str = "/data";
const SCRATCH: &str = "/scratch";

async fn looked(env: &Env) -> Result<Survivor, RecoverError> {
    let offline = Offline::open(env, Path::new(DIR)).await?;
    let scratch = Path::new(SCRATCH);
    env.disk.create_dir_all(scratch).await.unwrap();
    let survivor = look(&offline, Some(scratch), &|_, _, _| {}).await;
    env.disk.remove_dir_all(scratch).await.unwrap();
    survivor
}

async fn recovered(env: &Env) -> Result<LogId, RecoverError> {
    let survivor = looked(env).await?;
    go_on_alone(Offline::open(env, Path::new(DIR)).await?, &survivor).await
}

async fn frames(env: &Env) -> Vec<Frame> {
    let offline = Offline::open(env, Path::new(DIR)).await.unwrap();
    let lines = offline.frames(0, usize::MAX).await.unwrap();
    let frame = |line| match line {
        Line::Frame { frame, .. } => frame,
        Line::Gap { .. } => panic!("{line:?}"),
    };
    lines.into_iter().map(frame).collect()
}

/// The survivor's directory, byte by byte.
fn contents(disk: &SimDisk) -> BTreeMap<PathBuf, Bytes> {
    disk.dump().into_iter().filter(|(path, _)| path.starts_with(DIR)).collect()
}

fn disk(place: &Place) -> &SimDisk {
    place.disk.as_ref().expect("a simulated disk")
}

/// The same member on another disk.
fn moved(place: &Place, disk: SimDisk) -> Place {
    Place { env: Env::simulated(9, disk.clone()), disk: Some(disk), ..place.clone() }
}

/// Three members, something acknowledged, two lost for good, and at the third entries that nobody else has: its place,
/// where its log ends.
async fn one_left(places: Vec<Place>, ledger: &mut Ledger) -> (Place, LogId) {
    let mut three = Three::open(places).await;
    let leader = three.leader().await;
    for number in 0..10 {
        ledger.send(three.group(leader), &format!("early-{number}")).await.unwrap();
    }
    three.group(leader).propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    let min_physical = three.group(leader).log().tip().end.physical_offset;
    for number in 0..10 {
        ledger.send(three.group(leader), &format!("late-{number}")).await.unwrap();
    }
    // Retention, so that the log does not reach back to the founding.
    let trim = CoreCommand::Trim { min_physical, cut: Timestamp(i64::MAX) };
    three.group(leader).propose(vec![Operation::Core(trim)]).await.unwrap();
    let env = three.places[leader].env.clone();
    within(&env, 20, "purged", async {
        while three.group(leader).log().last_purged().is_none() {
            env.clock.sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    three.converge().await;
    for lost in [(leader + 1) % 3, (leader + 2) % 3] {
        three.kill(lost).await;
    }
    let before = three.group(leader).log().last().unwrap();
    let group = three.group(leader).clone();
    let alone = tokio::spawn(async move { group.propose(vec![record("uncommitted")]).await });
    within(&env, 20, "appended", async {
        while three.group(leader).log().last() == Some(before) {
            env.clock.sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let last = three.group(leader).log().last().unwrap();
    three.group(leader).log().wait_synced(last.index).await.unwrap();
    three.kill(leader).await;
    assert!(ledger.note(alone.await.unwrap(), "uncommitted").is_err());
    assert_eq!(ledger.unknown, ["uncommitted"]);
    (three.places.swap_remove(leader), last)
}

/// It leads, alone, and holds what was acknowledged and what was only appended.
async fn leads_alone(place: &Place, ledger: &Ledger, last: LogId) -> Group<Counter> {
    let group = within(&place.env, 20, "opening", place.open()).await;
    assert!(!group.status().on_probation);
    within(&place.env, 20, "leading alone", until_ready(&group)).await;
    let status = group.status();
    assert_eq!((status.voters.as_slice(), status.members.len()), ([group.node()].as_slice(), 1));
    assert!(status.committed > Some(last), "the entry behind its old log is committed, and with it all before");
    let held = group.reader().queue(QUEUE).expect("the queue exists").bounds().end.0;
    assert_eq!(held, (ledger.acknowledged.len() + ledger.unknown.len()) as u64, "appended is committed");
    group
}

/// [`Ledger::check`] behind what retention has cut.
async fn check_kept(ledger: &Ledger, group: &Group<Counter>) {
    let first = group.reader().queue(QUEUE).unwrap().bounds().start;
    let acknowledged = ledger.acknowledged.clone().split_off(&first);
    assert!(acknowledged.len() >= 10, "{} are kept", acknowledged.len());
    Ledger { acknowledged, unknown: ledger.unknown.clone() }.check(group).await;
}

#[tokio::test]
async fn a_survivor_goes_on_with_all_that_its_log_holds_and_others_join_it() {
    let mut ledger = Ledger::default();
    let (place, last) = one_left(Three::simulated_places(701), &mut ledger).await;
    let before = contents(disk(&place));
    let survivor = looked(&place.env).await.unwrap();
    assert_eq!(contents(disk(&place)), before, "a look changes nothing");
    assert_eq!((survivor.last, survivor.dropped.len()), (last, 2));
    assert!(survivor.uncertain() >= 1 && survivor.applied.is_some_and(|applied| applied < last), "{survivor:?}");
    assert!(survivor.time > Some(Timestamp(0)), "{survivor:?}");
    assert!(!survivor.dropped.iter().any(|peer| peer.peer_address == place.options.peer_address));
    // Without the keyed rows an image knows the members.
    let offline = Offline::open(&place.env, Path::new(DIR)).await.unwrap();
    let from_image = look(&offline, None, &|_, _, _| {}).await.unwrap();
    assert_eq!((from_image.last, &from_image.dropped), (last, &survivor.dropped));
    assert_eq!(contents(disk(&place)), before);
    drop(offline);

    let alone = recovered(&place.env).await.unwrap();
    assert!(alone.term > last.term && alone.index == last.index + 1, "{alone} behind {last}");
    assert!(matches!(looked(&place.env).await, Err(RecoverError::Alone(_))));
    let group = leads_alone(&place, &ledger, last).await;
    check_kept(&ledger, &group).await;

    let address = free_address();
    let mut joining = Place::simulated(711, address, &[]);
    joining.options.founders = place.options.founders.clone();
    joining.options.join = true;
    let joined = within(&joining.env, 20, "opening", joining.open()).await;
    let added = within(&place.env, 20, "added", group.add_learner(&address.to_string())).await.unwrap();
    let votes = async {
        let change = VotersChange { add: Some(added.id), remove: None };
        while let Err(MembersError::NotCaughtUp { .. }) = group.change_voters(change).await {
            place.env.clock.sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    within(&place.env, 20, "it votes", votes).await;
    ledger.send(&group, "with another").await.unwrap();
    let last = group.status().last.unwrap().index;
    within(&joining.env, 20, "caught up", joined.reader().wait_applied(last)).await.unwrap();
    check_kept(&ledger, &joined).await;
    joined.stop().await.unwrap();
    group.stop().await.unwrap();
}

/// Messages are flushed by a timer, and the machine of the last one went down too: nobody's word counts, but the operator's.
#[tokio::test]
async fn a_survivor_on_probation_goes_on_whether_or_not_it_was_started_since() {
    for is_started in [false, true] {
        let mut ledger = Ledger::default();
        let (place, last) = one_left(by_timer(721), &mut ledger).await;
        // What it had flushed is all that it knows of.
        disk(&place).crash_keeping(|_| true);
        if is_started {
            let group = within(&place.env, 20, "opening", place.open()).await;
            assert!(group.status().on_probation);
            group.kill().await;
        }
        recovered(&place.env).await.unwrap();
        leads_alone(&place, &ledger, last).await.stop().await.unwrap();
    }
}

fn by_timer(seed: u64) -> Vec<Place> {
    let mut places = Three::simulated_places(seed);
    for place in &mut places {
        place.options.flush_mode = FlushMode::AsyncFlush;
        place.options.flush_interval_ms = 50;
    }
    places
}

#[tokio::test]
async fn killed_or_without_power_at_any_call_it_is_what_it_was_or_alone_or_finished_by_a_second_run() {
    let mut ledger = Ledger::default();
    // On probation, so that there are three steps.
    let (place, last) = one_left(by_timer(731), &mut ledger).await;
    disk(&place).crash_keeping(|_| true);
    let group = within(&place.env, 20, "opening", place.open()).await;
    assert!(group.status().on_probation);
    group.kill().await;
    let held = frames(&place.env).await;

    let disk = disk(&place);
    let at = disk.fork();
    disk.record();
    recovered(&place.env).await.unwrap();
    let operations = disk.recorded();
    let rng = Rng::seeded(731);
    let (mut crashes, mut found, mut ends) = (0, BTreeMap::<&str, u64>::new(), BTreeMap::new());
    for operation in std::iter::once(None).chain(operations.iter().map(Some)) {
        if let Some(operation) = operation {
            at.repeat(operation);
        }
        let kill = |disk: &SimDisk| disk.process_kill();
        let lose_all = |disk: &SimDisk| disk.crash_keeping(|_| false);
        let keep_all = |disk: &SimDisk| disk.crash_keeping(|_| true);
        let keep_some = |disk: &SimDisk| drop(disk.crash(&rng));
        for crash in [&kill as &dyn Fn(&SimDisk), &lose_all, &keep_all, &keep_some, &keep_some, &keep_some] {
            let crashed = at.fork();
            crash(&crashed);
            crashes += 1;
            let left = moved(&place, crashed.clone());
            let state = match looked(&left.env).await {
                Ok(Survivor { remaining: Remaining::Everything { term }, last: end, identity, .. }) => {
                    assert_eq!(end, last, "nothing was added yet, and nothing is gone");
                    assert!(identity.on_probation, "in the old group its word does not count");
                    if term == last.term + 1 { "as it was" } else { "voted" }
                }
                Ok(Survivor { remaining: Remaining::Probation, last: end, vote, .. }) => {
                    assert!(vote.is_some_and(|vote| vote.term >= end.term), "{vote:?} with entry {end}");
                    "alone on probation"
                }
                Err(RecoverError::Alone(_)) => "alone",
                Err(error) => panic!("{error}"),
            };
            *found.entry(state).or_default() += 1;
            if state != "alone" {
                recovered(&left.env).await.unwrap();
            }
            let now = frames(&left.env).await;
            let (alone, before) = now.split_last().unwrap();
            assert_eq!((before, alone.kind), (held.as_slice(), FrameKind::Membership), "one frame behind all others");
            ends.entry(alone.id).or_insert(left);
        }
    }
    println!("{crashes} crashes at {} calls: {found:?}; ends {:?}", operations.len(), ends.keys());
    assert_eq!(found.len(), 4, "each step was interrupted: {found:?}");
    for place in ends.values() {
        let group = leads_alone(place, &ledger, last).await;
        check_kept(&ledger, &group).await;
        group.stop().await.unwrap();
    }
}

#[tokio::test]
async fn who_runs_or_was_never_founded_or_has_no_say_or_is_damaged_is_refused_and_left_as_it_is() {
    let address = free_address();
    let place = Place::simulated(741, address, &[address]);
    let none = looked(&place.env).await;
    assert!(matches!(none, Err(RecoverError::Offline(OfflineError::NotOne { .. }))), "{none:?}");
    let group = place.open().await;
    within(&place.env, 20, "leading", until_ready(&group)).await;
    let running = looked(&place.env).await;
    assert!(matches!(running, Err(RecoverError::Offline(OfflineError::Running { .. }))), "{running:?}");
    let mut joining = Place::simulated(742, free_address(), &[]);
    joining.options.founders = place.options.founders.clone();
    joining.options.join = true;
    let joined = within(&joining.env, 20, "opening", joining.open()).await;
    joined.stop().await.unwrap();
    group.stop().await.unwrap();
    let before = contents(disk(&joining));
    let not_founded = looked(&joining.env).await;
    assert!(matches!(not_founded, Err(RecoverError::NeverFounded)), "{not_founded:?}");
    assert_eq!(contents(disk(&joining)), before);
    let alone = looked(&place.env).await;
    assert!(matches!(alone, Err(RecoverError::Alone(_))), "{alone:?}");

    let (place, last) = one_left(Three::simulated_places(743), &mut Ledger::default()).await;
    let Some(frame) = frames(&place.env).await.into_iter().find(|frame| frame.id.index == last.index - 3) else {
        panic!("the log ends at {last}")
    };
    // One segment, of which the first 8 KiB are no log.
    let segment = PathBuf::from(DIR).join(format!("commitlog/{:020}", 0));
    disk(&place).flip_bit(&segment, 8192 + frame.physical_offset.0 + 20, 1);
    let before = contents(disk(&place));
    let damaged = looked(&place.env).await;
    let Err(RecoverError::NeedsPeers(what)) = &damaged else { panic!("{damaged:?}") };
    assert!(what.contains(&frame.physical_offset.to_string()), "{what}");
    assert_eq!(contents(disk(&place)), before);
}

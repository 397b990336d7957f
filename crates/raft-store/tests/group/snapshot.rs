//! A follower that needs what its peers have purged: it gets the image at their boundary, and everything behind it by
//! ordinary replication.

use env::Env;
use raft_store::entry::{CoreCommand, Operation};
use raft_store::log::{Log, LogOptions};

use crate::three::Three;
use crate::world::{QUEUE, record, within};

#[tokio::test]
async fn a_follower_behind_the_purged_log_gets_the_image_and_then_the_log() {
    crate::world::log_if_asked();
    let mut three = Three::open(Three::simulated_places(21)).await;
    let leader = three.leader().await;
    let behind = (leader + 1) % 3;
    three.converge().await;
    three.kill(behind).await;
    let command = || Operation::Tables(bytes::Bytes::from_static(b"seven.."));
    for number in 0..20 {
        three.group(leader).propose(vec![record(&format!("early-{number}")), command()]).await.unwrap();
    }
    three.group(leader).propose(vec![Operation::Core(CoreCommand::Checkpoint)]).await.unwrap();
    let boundary = three.group(leader).log().last().unwrap();
    for number in 0..20 {
        three.group(leader).propose(vec![record(&format!("late-{number}")), command()]).await.unwrap();
    }
    three.converge().await;
    let env = three.places[0].env.clone();
    for group in three.groups.iter_mut().filter_map(Option::take) {
        group.stop().await.unwrap();
    }

    // Two purge up to their image, as retention does, while the third is away.
    for at in [leader, (leader + 2) % 3] {
        let place = &three.places[at];
        let mounted = Env { disk: std::sync::Arc::new(place.disk.as_ref().unwrap().mount()), ..place.env.clone() };
        let options = LogOptions { segment_bytes: place.options.segment_bytes, ..place.options.log.clone() };
        let log = Log::open(mounted, place.options.dir.clone(), options, None).await.unwrap();
        log.purge(boundary).await.unwrap();
        log.close().await.unwrap();
    }

    let three = Three::open(three.places).await;
    three.converge().await;
    let installed = three.group(behind);
    assert_eq!(installed.log().last_purged(), Some(boundary), "its log begins behind the image");
    let leader = three.leader().await;
    assert_ne!(leader, behind, "nobody votes for a log that is behind");
    assert_eq!(installed.reader().tables().total, three.group(leader).reader().tables().total);
    let queues = [installed, three.group(leader)].map(|group| group.reader().queue(QUEUE).unwrap());
    assert_eq!(queues[0].bounds().end, queues[1].bounds().end);
    let from = raft_store::position::QueueOffset(20);
    let units = [queues[0].read_units(from, 20).await.unwrap(), queues[1].read_units(from, 20).await.unwrap()];
    assert_eq!((units[0].len(), &units[0]), (20, &units[1]));
    let last = units[0].last().unwrap();
    let text = installed.reader().record(last.physical_offset, last.size).await.unwrap();
    assert_eq!(text, "late-19");

    // It is a member like any other, also after a restart.
    let mut three = three;
    three.kill(leader).await;
    let next = three.leader().await;
    within(&env, 5, "placed", three.group(next).propose(vec![record("later still")])).await.unwrap();
    three.start(leader).await;
    three.kill(behind).await;
    three.start(behind).await;
    three.converge().await;
    three.stop().await;
}

//! JSON bodies: what can be read can be written, and reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::body::*;
use protocol::json;

fn read<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(text: &[u8]) {
    if let Ok(body) = json::from_slice::<T>(text) {
        assert_eq!(json::from_slice::<T>(&json::to_vec(&body)).as_ref(), Ok(&body));
        assert_eq!(json::from_slice::<T>(&json::to_vec_legacy(&body)).as_ref(), Ok(&body));
    }
}

fuzz_target!(|text: &[u8]| {
    read::<HeartbeatData>(text);
    read::<TopicRouteData>(text);
    read::<ClusterInfo>(text);
    read::<TopicStatsTable>(text);
    read::<ResetOffsetBody>(text);
    read::<ConsumerRunningInfo>(text);
    read::<LockBatchRequest>(text);
    read::<SubscriptionGroupWrapper>(text);
    read::<BatchAckRequest>(text);
    read::<KvTable>(text);
});

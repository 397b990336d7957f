//! What one replica of a broker group says of itself: our own code 60001.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Answer to GET_REPLICA_STATUS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// The newest checkpoint at which a majority of replicas had the same state.
    pub agreed_index: Option<u64>,
    /// Last entry folded into queues and tables here.
    pub applied_index: Option<u64>,
    /// The broker group.
    pub broker_name: String,
    /// Rolling hash of the log up to and with `chain_index`, 16 hexadecimal digits. Equal logs have equal chains.
    pub chain: Option<String>,
    /// The entry that `chain` ends with.
    pub chain_index: Option<u64>,
    /// Last entry known here to be on a quorum.
    pub committed_index: Option<u64>,
    /// Hashes of the state here at its newest checkpoints, by their entries, 16 hexadecimal digits each. Equal states have
    /// equal hashes.
    pub image_hashes: BTreeMap<u64, String>,
    /// Last entry in the log here.
    pub last_index: Option<u64>,
    /// Who leads, as far as this replica knows.
    pub leader: Option<u64>,
    /// All members of the group.
    pub members: Vec<ReplicaMember>,
    /// This replica.
    pub node_id: u64,
    /// What waits where; names end with their unit.
    pub queue_depths: BTreeMap<String, u64>,
    /// Whether it serves clients, itself or by forwarding.
    pub ready: bool,
    /// `leader`, `follower`, `candidate` or `stopped`.
    pub role: String,
    /// Last durable entry here.
    pub synced_index: Option<u64>,
    /// Newest Raft term known here.
    pub term: u64,
}

/// A member of a broker group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicaMember {
    /// Whether it lacks little enough of the log to vote; only the leader knows.
    pub caught_up: Option<bool>,
    /// Where clients reach it.
    pub client_address: String,
    /// Bytes of log that it is not known to hold; only the leader knows.
    pub lag_bytes: Option<u64>,
    /// Entries it is not known to hold; only the leader knows.
    pub lag_entries: Option<u64>,
    /// Its id.
    pub node_id: u64,
    /// Where the other members reach it.
    pub peer_address: String,
    /// Whether it has a vote.
    pub voter: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn a_status_survives_with_all_bits_of_its_ids() {
        let golden = r#"{"agreedIndex":5,"appliedIndex":7,"brokerName":"broker-a","chain":"00ff00ff00ff00ff","chainIndex":7,"committedIndex":8,"imageHashes":{"7":"ff00ff00ff00ff00"},"lastIndex":9,"leader":18446744073709551615,"members":[{"caughtUp":true,"clientAddress":"127.0.0.1:10911","lagBytes":0,"lagEntries":0,"nodeId":18446744073709551615,"peerAddress":"127.0.0.1:10912","voter":true}],"nodeId":18446744073709551615,"queueDepths":{"proposals_bytes":0},"ready":true,"role":"leader","syncedIndex":9,"term":2}"#;
        let status: ReplicaStatus = json::from_slice(golden.as_bytes()).unwrap();
        assert_eq!(status.node_id, u64::MAX);
        assert_eq!(String::from_utf8(json::to_vec(&status)).unwrap(), golden);
    }
}

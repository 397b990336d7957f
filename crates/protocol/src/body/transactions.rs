//! Transactions that wait for their ends: our own code 60005.

use serde::{Deserialize, Serialize};

/// Answer to LIST_TRANSACTIONS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TransactionList {
    /// Whether there are more behind the last one.
    pub more: bool,
    /// Those that are in the state asked for longest come first.
    pub transactions: Vec<WaitingTransaction>,
}

/// A half message whose transaction has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WaitingTransaction {
    /// How often a producer was asked.
    pub asked: u32,
    /// Where it was stored first: its name until it ends.
    pub commit_log_offset: i64,
    /// KEYS.
    pub keys: Option<String>,
    /// The same as the answer to its SEND said it.
    pub offset_msg_id: String,
    /// Whom to ask.
    pub producer_group: String,
    /// Queue that it would become visible in.
    pub queue_id: i32,
    /// Since when it is in its state, ms: stored, asked last, or given up.
    pub since: i64,
    /// `unasked`, `asked` or `discarded`.
    pub state: String,
    /// When it was stored, ms.
    pub store_timestamp: i64,
    /// Topic.
    pub topic: String,
    /// UNIQ_KEY.
    pub unique_key: Option<String>,
}

//! Users and access rules: 3001-3010.

use serde::{Deserialize, Serialize};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UserInfo {
    /// Password.
    pub password: Option<String>,
    /// `enable` or `disable`.
    pub user_status: Option<String>,
    /// `Super` or `Normal`.
    pub user_type: Option<String>,
    /// Name.
    pub username: Option<String>,
}

/// The rules of one subject.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AclInfo {
    /// Rules.
    pub policies: Vec<AclPolicy>,
    /// `User:name`.
    pub subject: Option<String>,
}

/// Rules of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AclPolicy {
    /// Rules.
    pub entries: Vec<AclPolicyEntry>,
    /// `Custom` or `Default`.
    pub policy_type: Option<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AclPolicyEntry {
    /// `Pub`, `Sub`, `Create` and so on.
    pub actions: Vec<String>,
    /// `Allow` or `Deny`.
    pub decision: Option<String>,
    /// `Topic:name` and so on.
    pub resource: Option<String>,
    /// Addresses.
    pub source_ips: Vec<String>,
}

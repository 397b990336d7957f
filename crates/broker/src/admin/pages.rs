//! A table in pages, as tools of 5.3.3 read it: they ask again with the number they have got so far, and begin anew when
//! the table's version is not the one they began with. Older tools ask without fields and get everything.

use protocol::body::DataVersion;
use protocol::json;
use raft_store::group::Role;

use crate::broker::BrokerGroup;
use crate::tables::Version;

/// The part of a table that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Rows to leave out.
    pub skip: usize,
    /// Rows to give.
    pub take: usize,
    /// Whether to say how many rows there are: without it a client stops after this page.
    pub says_total: bool,
}

/// The page that was asked for, of a table of version `version`.
pub fn page(version: DataVersion, first: Option<i32>, seen: Option<&str>, most: Option<i32>) -> Page {
    let Some(take) = most.and_then(|most| usize::try_from(most).ok()).filter(|most| *most > 0) else {
        return Page { skip: 0, take: usize::MAX, says_total: false };
    };
    let is_same = seen.and_then(|seen| json::from_slice(seen.as_bytes()).ok()) == Some(version);
    let first = first.and_then(|first| usize::try_from(first).ok()).unwrap_or(0);
    Page { skip: if is_same { first } else { 0 }, take, says_total: true }
}

/// A table's version as tools compare it.
pub fn data_version(version: Version, role: &Role) -> DataVersion {
    DataVersion { counter: version.counter, state_version: term(role) as i64, timestamp: version.changed_ms }
}

/// The newest term that this replica knows.
pub fn term(role: &Role) -> u64 {
    match role {
        Role::Leader { term, .. } | Role::Isolated { term } => *term,
        Role::Follower { term, .. } | Role::Candidate { term } => *term,
        Role::Stopped { .. } => 0,
    }
}

impl BrokerGroup {
    /// [`data_version`] with this replica's term.
    pub(super) fn data_version(&self, version: Version) -> DataVersion {
        data_version(version, &self.role.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_reads_on_as_long_as_the_table_stays_the_same() {
        let version = data_version(Version { counter: 3, changed_ms: 7 }, &Role::Candidate { term: 2 });
        let text = String::from_utf8(json::to_vec(&version)).expect("JSON");
        assert_eq!(text, r#"{"counter":3,"stateVersion":2,"timestamp":7}"#);
        let everything = Page { skip: 0, take: usize::MAX, says_total: false };
        assert_eq!(page(version, None, None, None), everything);
        assert_eq!(page(version, Some(4), None, Some(0)), everything);
        let paged = |skip| Page { skip, take: 100, says_total: true };
        assert_eq!(page(version, Some(0), Some(""), Some(100)), paged(0));
        assert_eq!(page(version, Some(100), Some(&text), Some(100)), paged(100));
        let changed = DataVersion { counter: 4, ..version };
        assert_eq!(page(changed, Some(100), Some(&text), Some(100)), paged(0), "it begins anew");
        assert_eq!(page(version, Some(-1), Some(&text), Some(100)), paged(0));
    }
}

//! ForwardKey: by what a replica believes that another replica sent a request on, and not a client that says so.
//!
//! - Each process mints one and tells it to the members that it connects to, in its hello; whoever connects to it is
//!   told nothing. A leader connects to every follower before the follower knows that it leads.
//! - Kept nowhere: after a restart it is another one, and the members learn it with the next connection.

use std::collections::BTreeMap;
use std::fmt;

use env::Env;
use parking_lot::Mutex;

use crate::position::NodeId;

/// Groups have a handful of members; more keys than this are none of theirs.
const KEYS_MAX: usize = 64;

/// Minted by the replica that it convinces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ForwardKey(u128);

impl ForwardKey {
    /// A new one, which nobody can guess.
    pub fn mint(env: &Env) -> ForwardKey {
        ForwardKey(env.secret())
    }

    pub(crate) fn from_number(number: u128) -> ForwardKey {
        ForwardKey(number)
    }

    pub(crate) fn to_number(self) -> u128 {
        self.0
    }

    /// As a request carries it.
    pub fn to_text(self) -> String {
        format!("{:032x}", self.0)
    }

    /// Whether `text` is this key. Takes as long wherever the two begin to differ.
    pub fn is(self, text: &str) -> bool {
        let own = self.to_text();
        let differences = own.bytes().zip(text.bytes()).fold(0, |all, (own, other)| all | (own ^ other));
        own.len() == text.len() && differences == 0
    }
}

/// Never in a log.
impl fmt::Debug for ForwardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForwardKey(..)")
    }
}

/// What other members have said is theirs.
#[derive(Debug, Default)]
pub struct ForwardKeys(Mutex<BTreeMap<NodeId, ForwardKey>>);

impl ForwardKeys {
    /// A member has said so.
    pub fn learn(&self, node: NodeId, key: ForwardKey) {
        let mut keys = self.0.lock();
        if keys.len() < KEYS_MAX || keys.contains_key(&node) {
            keys.insert(node, key);
        }
    }

    /// What the member said last.
    pub fn get(&self, node: NodeId) -> Option<ForwardKey> {
        self.0.lock().get(&node).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_whole_text_and_shown_to_nobody() {
        let (key, other) = (ForwardKey::mint(&Env::real()), ForwardKey::mint(&Env::real()));
        assert!(key.is(&key.to_text()) && !key.is(&other.to_text()));
        for wrong in ["", "true", &key.to_text()[..31], &format!("{}0", key.to_text())] {
            assert!(!key.is(wrong), "{wrong:?}");
        }
        assert_eq!(format!("{key:?}"), "ForwardKey(..)");
    }

    #[test]
    fn keys_of_strangers_do_not_pile_up() {
        let keys = ForwardKeys::default();
        for node in 0..1_000 {
            keys.learn(node, ForwardKey::mint(&Env::real()));
        }
        assert_eq!(keys.0.lock().len(), KEYS_MAX);
        let newer = ForwardKey::mint(&Env::real());
        keys.learn(7, newer);
        assert_eq!(keys.get(7), Some(newer));
    }
}

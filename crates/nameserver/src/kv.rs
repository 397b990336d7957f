//! Texts by namespace and key, which tools leave at the NameServer for clients. Soft state: tools write them to every
//! NameServer, and a restart forgets them.

use std::collections::BTreeMap;

/// Most texts kept in all namespaces together: nobody authenticates who adds them.
pub const MAX_ENTRIES: usize = 100_000;

/// The texts.
#[derive(Debug, Default)]
pub struct Kv {
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    entries: usize,
}

/// No more texts are kept. The caller must delete some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_ENTRIES} texts are kept, which is the limit; delete some first")]
pub struct Full;

impl Kv {
    /// Sets a text.
    pub fn put(&mut self, namespace: String, key: String, value: String) -> Result<(), Full> {
        let known = self.get(&namespace, &key).is_some();
        if !known && self.entries == MAX_ENTRIES {
            return Err(Full);
        }
        self.entries += usize::from(!known);
        self.namespaces.entry(namespace).or_default().insert(key, value);
        Ok(())
    }

    /// A text.
    pub fn get(&self, namespace: &str, key: &str) -> Option<&str> {
        self.namespaces.get(namespace)?.get(key).map(String::as_str)
    }

    /// Forgets a text, known or not.
    pub fn delete(&mut self, namespace: &str, key: &str) {
        let Some(texts) = self.namespaces.get_mut(namespace) else { return };
        self.entries -= usize::from(texts.remove(key).is_some());
        if texts.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// All texts of a namespace.
    pub fn list(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_set_listed_and_forgotten() {
        let mut kv = Kv::default();
        for value in ["1", "2"] {
            assert_eq!(kv.put("n".into(), "k".into(), value.into()), Ok(()));
        }
        assert_eq!((kv.get("n", "k"), kv.get("n", "other"), kv.get("other", "k")), (Some("2"), None, None));
        assert_eq!(kv.list("n").map(BTreeMap::len), Some(1));
        kv.delete("n", "other");
        kv.delete("n", "k");
        kv.delete("n", "k");
        assert_eq!((kv.list("n"), kv.entries), (None, 0));
    }

    #[test]
    fn a_flood_is_bounded_and_known_keys_can_still_be_set() {
        let mut kv = Kv::default();
        for key in 0..MAX_ENTRIES {
            assert_eq!(kv.put("n".into(), key.to_string(), String::new()), Ok(()));
        }
        assert_eq!(kv.put("m".into(), "k".into(), String::new()), Err(Full));
        assert_eq!(kv.put("n".into(), "7".into(), "new".into()), Ok(()));
        kv.delete("n", "8");
        assert_eq!(kv.put("m".into(), "k".into(), String::new()), Ok(()));
    }
}

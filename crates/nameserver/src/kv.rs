//! Texts by namespace and key, which tools leave at the NameServer for clients. Soft state: tools write them to every
//! NameServer, and a restart forgets them.

use std::collections::BTreeMap;

/// Most texts kept in all namespaces together: nobody authenticates who adds them.
pub const MAX_ENTRIES: usize = 100_000;

/// Most bytes of texts with their keys and namespaces, added up.
pub const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The texts.
#[derive(Debug, Default)]
pub struct Kv {
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    entries: usize,
    bytes: usize,
}

/// No more texts are kept. The caller must delete some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most {MAX_ENTRIES} texts of {MAX_BYTES} bytes together are kept; delete some first")]
pub struct Full;

impl Kv {
    /// Sets a text.
    pub fn put(&mut self, namespace: String, key: String, value: String) -> Result<(), Full> {
        let known = self.get(&namespace, &key).map(|value| bytes(&namespace, &key, value));
        let bytes = self.bytes - known.unwrap_or(0) + bytes(&namespace, &key, &value);
        // What shrinks is never refused.
        if bytes > MAX_BYTES.max(self.bytes) || (known.is_none() && self.entries == MAX_ENTRIES) {
            return Err(Full);
        }
        self.entries += usize::from(known.is_none());
        self.bytes = bytes;
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
        if let Some(value) = texts.remove(key) {
            self.entries -= 1;
            self.bytes -= bytes(namespace, key, &value);
        }
        if texts.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// All texts of a namespace.
    pub fn list(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(namespace)
    }
}

fn bytes(namespace: &str, key: &str, value: &str) -> usize {
    namespace.len() + key.len() + value.len()
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
        assert_eq!((kv.list("n"), kv.entries, kv.bytes), (None, 0, 0));
    }

    #[test]
    fn a_few_long_texts_are_as_bounded_as_many_short_ones() {
        let mut kv = Kv::default();
        let long = || "v".repeat(512 * 1024 - 4);
        for key in 100..228 {
            assert_eq!(kv.put("n".into(), key.to_string(), long()), Ok(()));
        }
        assert_eq!(kv.bytes, MAX_BYTES);
        assert_eq!(kv.put("n".into(), "one more".into(), "v".into()), Err(Full));
        assert_eq!(kv.put("n".into(), "100".into(), long() + "v"), Err(Full));
        assert_eq!(kv.put("n".into(), "100".into(), "short".into()), Ok(()));
        assert_eq!(kv.put("n".into(), "one more".into(), "v".into()), Ok(()));
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

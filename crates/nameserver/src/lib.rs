//! Who serves which topic; soft state only.

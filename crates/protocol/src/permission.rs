//! Permissions of a topic on a broker.

/// Permission bits as route data and topic configurations carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permission(pub i32);

impl Permission {
    /// A topic created from this one inherits from it.
    pub const INHERIT: i32 = 1;
    /// Producers may send.
    pub const WRITE: i32 = 2;
    /// Consumers may pull.
    pub const READ: i32 = 4;
    /// Priority.
    pub const PRIORITY: i32 = 8;
    /// What a topic has unless told otherwise.
    pub const READ_WRITE: Self = Self(Self::READ | Self::WRITE);

    /// Whether consumers may pull.
    pub fn is_readable(self) -> bool {
        self.0 & Self::READ != 0
    }

    /// Whether producers may send.
    pub fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Whether topics may be created from this one.
    pub fn is_inherited(self) -> bool {
        self.0 & Self::INHERIT != 0
    }

    /// With bits set or cleared.
    #[must_use]
    pub fn with(self, bits: i32, set: bool) -> Self {
        Self(if set { self.0 | bits } else { self.0 & !bits })
    }

    /// Whether only known bits are set; negative and larger numbers come from mistaken tools.
    pub fn is_valid(self) -> bool {
        (0..=15).contains(&self.0)
    }
}

impl Default for Permission {
    fn default() -> Self {
        Self::READ_WRITE
    }
}

/// `RWX`, a dash for what is missing.
impl std::fmt::Display for Permission {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = |has: bool, letter: &'static str| if has { letter } else { "-" };
        let inherited = letter(self.is_inherited(), "X");
        write!(formatter, "{}{}{inherited}", letter(self.is_readable(), "R"), letter(self.is_writable(), "W"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_letters() {
        assert_eq!((Permission(7).to_string(), Permission::READ_WRITE.to_string()), ("RWX".into(), "RW-".into()));
        let wiped = Permission(7).with(Permission::WRITE, false);
        assert_eq!((wiped, wiped.is_writable(), wiped.is_readable()), (Permission(5), false, true));
        assert!(Permission(0).is_valid() && !Permission(16).is_valid() && !Permission(-1).is_valid());
    }
}

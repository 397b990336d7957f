//! Flag words: what a message is (`SysFlag`) and what a pull wants (`PullSysFlag`).

/// Bits of a message's SYSFLAG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct SysFlag(pub i32);

const TRANSACTION_MASK: i32 = 0xC;
const COMPRESSION_MASK: i32 = 0x700;

impl SysFlag {
    /// The body is compressed.
    pub const COMPRESSED: i32 = 0x1;
    /// All that says how the body is compressed.
    pub const COMPRESSION_BITS: i32 = COMPRESSION_MASK | Self::COMPRESSED;
    /// Topic filter type MULTI_TAG.
    pub const MULTI_TAG: i32 = 0x2;
    /// BORNHOST is an IPv6 address.
    pub const BORN_HOST_V6: i32 = 0x10;
    /// STOREHOST is an IPv6 address.
    pub const STORE_HOST_V6: i32 = 0x20;
    /// An inner batch that consumers must unwrap.
    pub const NEED_UNWRAP: i32 = 0x40;
    /// An inner batch.
    pub const INNER_BATCH: i32 = 0x80;

    /// Whether all the bits are set.
    pub fn has(self, bits: i32) -> bool {
        self.0 & bits == bits
    }

    /// With the bits set or cleared.
    #[must_use]
    pub fn with(self, bits: i32, set: bool) -> Self {
        Self(if set { self.0 | bits } else { self.0 & !bits })
    }

    /// What the record is to a transaction.
    pub fn transaction(self) -> TransactionType {
        match self.0 & TRANSACTION_MASK {
            0x4 => TransactionType::Prepared,
            0x8 => TransactionType::Commit,
            0xC => TransactionType::Rollback,
            _ => TransactionType::None,
        }
    }

    /// With the transaction bits replaced.
    #[must_use]
    pub fn with_transaction(self, transaction: TransactionType) -> Self {
        Self(self.0 & !TRANSACTION_MASK | transaction as i32)
    }

    /// How the body is compressed, if it is.
    pub fn compression(self) -> Option<Compression> {
        self.has(Self::COMPRESSED).then_some(match self.0 & COMPRESSION_MASK {
            0x100 => Compression::Lz4,
            0x200 => Compression::Zstd,
            // 0 is what clients before 5.0 leave there.
            _ => Compression::Zlib,
        })
    }

    /// Marks the body as compressed.
    #[must_use]
    pub fn with_compression(self, compression: Compression) -> Self {
        let kind = match compression {
            Compression::Lz4 => 0x100,
            Compression::Zstd => 0x200,
            Compression::Zlib => 0x300,
        };
        Self(self.0 & !COMPRESSION_MASK | kind | Self::COMPRESSED)
    }
}

/// What a record is to a transaction; the values are those of `commitOrRollback` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionType {
    /// An ordinary message; in END_TRANSACTION: unknown yet.
    #[default]
    None = 0,
    /// Half.
    Prepared = 0x4,
    /// Committed.
    Commit = 0x8,
    /// Rolled back.
    Rollback = 0xC,
}

impl TransactionType {
    /// From END_TRANSACTION's `commitOrRollback`; `None` if it is neither commit, nor rollback, nor unknown.
    pub fn from_end(commit_or_rollback: i32) -> Option<Self> {
        match commit_or_rollback {
            0 => Some(Self::None),
            0x8 => Some(Self::Commit),
            0xC => Some(Self::Rollback),
            _ => None,
        }
    }
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 frame format.
    Lz4,
    /// Zstandard.
    Zstd,
    /// RFC 1950; what every client reads.
    Zlib,
}

/// Bits of a pull's sysFlag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct PullSysFlag(pub i32);

impl PullSysFlag {
    /// `commitOffset` is to be stored.
    pub const COMMIT_OFFSET: i32 = 0x1;
    /// The request may be parked.
    pub const SUSPEND: i32 = 0x2;
    /// The request carries its subscription.
    pub const SUBSCRIPTION: i32 = 0x4;
    /// Class filter, dead.
    pub const CLASS_FILTER: i32 = 0x8;
    /// From a lite pull consumer.
    pub const LITE_PULL: i32 = 0x10;

    /// Whether all the bits are set.
    pub fn has(self, bits: i32) -> bool {
        self.0 & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_do_not_disturb_each_other() {
        let flag = SysFlag(SysFlag::MULTI_TAG).with_compression(Compression::Zstd).with(SysFlag::STORE_HOST_V6, true);
        assert_eq!(flag.0, 0x223);
        let committed = flag.with_transaction(TransactionType::Prepared).with_transaction(TransactionType::Commit);
        assert_eq!((committed.0, committed.transaction()), (0x22B, TransactionType::Commit));
        assert_eq!(committed.compression(), Some(Compression::Zstd));
        assert_eq!(
            (SysFlag(1).compression(), SysFlag(0x301).compression()),
            (Some(Compression::Zlib), Some(Compression::Zlib))
        );
        assert_eq!(SysFlag(0x100).compression(), None);
        assert_eq!(
            (TransactionType::from_end(12), TransactionType::from_end(4)),
            (Some(TransactionType::Rollback), None)
        );
    }
}

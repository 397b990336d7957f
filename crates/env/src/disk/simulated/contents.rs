//! The bytes of one simulated file: sparse, in pages shared between copies until one of them writes.
//!
//! A copy costs one reference count per 256 KiB in use, a write the pages it touches: forking a disk for one of a
//! hundred thousand crash states must not cost the size of its files.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// The unit of sharing, and of space.
pub(super) const PAGE_BYTES: u64 = 4096;
const PAGES_PER_CHUNK: u64 = 64;

type Page = [u8; PAGE_BYTES as usize];

/// Prepared segments are written full of zeros; all such pages are this one.
static ZEROS: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES as usize]));

/// Bytes of a file. A page that is absent reads as zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    /// Length of the file. No page holds anything but zeros at or behind it.
    len: u64,
    /// Page p is `chunks[p / PAGES_PER_CHUNK].pages[p % PAGES_PER_CHUNK]`.
    chunks: BTreeMap<u64, Arc<Chunk>>,
    /// Pages below this one are paid for, present or not.
    reserved_pages: u64,
}

#[derive(Clone, Debug)]
struct Chunk {
    pages: [Option<Arc<Page>>; PAGES_PER_CHUNK as usize],
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk { pages: [const { None }; PAGES_PER_CHUNK as usize] }
    }
}

impl Contents {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Up to `len` bytes at `offset`; fewer only at the end of the file.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len as u64).min(self.len);
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        for (page, inside, outside) in pieces(offset, bytes.len()) {
            if let Some(page) = self.page(page) {
                bytes[outside].copy_from_slice(&page[inside]);
            }
        }
        bytes
    }

    /// Writes `bytes` at `offset`; grows the file where needed.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (index, inside, outside) in pieces(offset, bytes.len()) {
            let slot = self.slot(index);
            let part = &bytes[outside];
            if part == &ZEROS[..] {
                *slot = Some(Arc::clone(&ZEROS));
                continue;
            }
            let page = slot.get_or_insert_with(|| Arc::clone(&ZEROS));
            Arc::make_mut(page)[inside].copy_from_slice(part);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len() as u64);
        }
    }

    /// Cuts the file, or extends it with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let first_gone = len.div_ceil(PAGE_BYTES);
            let boundary_chunk = first_gone / PAGES_PER_CHUNK;
            self.chunks.split_off(&(boundary_chunk + 1));
            if let Some(chunk) = self.chunks.get_mut(&boundary_chunk) {
                Arc::make_mut(chunk).pages[(first_gone % PAGES_PER_CHUNK) as usize..].fill(None);
            }
            let kept = (len % PAGE_BYTES) as usize;
            if kept > 0 && self.page(len / PAGE_BYTES).is_some() {
                let page = self.slot(len / PAGE_BYTES).as_mut().expect("the page was there");
                Arc::make_mut(page)[kept..].fill(0);
            }
            self.reserved_pages = self.reserved_pages.min(first_gone);
        }
        self.len = len;
    }

    /// Pays for all pages below `len`, and extends the file to it.
    pub(super) fn reserve(&mut self, len: u64) {
        self.reserved_pages = self.reserved_pages.max(len.div_ceil(PAGE_BYTES));
        self.len = self.len.max(len);
    }

    /// Makes page `index` what it is in `other`, sharing it. Does not change the length.
    pub(super) fn share_page(&mut self, index: u64, other: &Contents) {
        let page = other.page(index).cloned();
        if page.is_some() || self.page(index).is_some() {
            *self.slot(index) = page;
        }
    }

    /// Inverts one bit; nothing behind the end of the file.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        if offset < self.len {
            let byte = self.read(offset, 1)[0];
            self.write(offset, &[byte ^ (1 << bit)]);
        }
    }

    /// Gives the hasher the length, and each page that is not zero with its place: files that read equal hash equal.
    pub(super) fn hash_into(&self, hasher: &mut impl Hasher) {
        hasher.write_u64(self.len);
        for (chunk_index, chunk) in &self.chunks {
            for (index, page) in (chunk_index * PAGES_PER_CHUNK..).zip(&chunk.pages) {
                let Some(page) = page else { continue };
                if !Arc::ptr_eq(page, &ZEROS) && **page != **ZEROS {
                    hasher.write_u64(index);
                    hasher.write(&page[..]);
                }
            }
        }
    }

    /// Pages that this file occupies.
    pub(super) fn occupied_pages(&self) -> u64 {
        let beyond_reserved = self.chunks.iter().map(|(chunk_index, chunk)| {
            let first = chunk_index * PAGES_PER_CHUNK;
            let skip = self.reserved_pages.saturating_sub(first).min(PAGES_PER_CHUNK);
            chunk.pages[skip as usize..].iter().filter(|page| page.is_some()).count() as u64
        });
        self.reserved_pages + beyond_reserved.sum::<u64>()
    }

    /// How many bytes of a write of `len` bytes at `offset` fit if no more than `free_pages` may be newly occupied.
    pub(super) fn fitting(&self, offset: u64, len: usize, mut free_pages: u64) -> usize {
        for (index, _, outside) in pieces(offset, len) {
            if index >= self.reserved_pages && self.page(index).is_none() {
                if free_pages == 0 {
                    return outside.start;
                }
                free_pages -= 1;
            }
        }
        len
    }

    fn page(&self, index: u64) -> Option<&Arc<Page>> {
        self.chunks.get(&(index / PAGES_PER_CHUNK))?.pages[(index % PAGES_PER_CHUNK) as usize].as_ref()
    }

    fn slot(&mut self, index: u64) -> &mut Option<Arc<Page>> {
        let chunk = self.chunks.entry(index / PAGES_PER_CHUNK).or_default();
        &mut Arc::make_mut(chunk).pages[(index % PAGES_PER_CHUNK) as usize]
    }
}

/// Cuts `len` bytes at `offset` at page boundaries: page index, range inside the page, range inside the bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let inside = (at % PAGE_BYTES) as usize;
        let part = (PAGE_BYTES as usize - inside).min(len - done);
        let piece = (at / PAGE_BYTES, inside..inside + part, done..done + part);
        done += part;
        Some(piece)
    })
}

/// Indices of the pages that `len` bytes at `offset` touch.
pub(super) fn touched_pages(offset: u64, len: u64) -> Range<u64> {
    if len == 0 { 0..0 } else { offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, u8, usize),
        SetLen(u64),
        Reserve(u64),
        Fork,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..600_000u64, any::<u8>(), 0..20_000usize).prop_map(|(at, fill, len)| Step::Write(at, fill, len)),
            2 => (0..700_000u64).prop_map(Step::SetLen),
            1 => (0..700_000u64).prop_map(Step::Reserve),
            1 => Just(Step::Fork),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Behaves as a plain vector, and writing to one copy never shows in another.
        #[test]
        fn equals_a_vector(steps in proptest::collection::vec(step(), 1..20)) {
            let (mut contents, mut model) = (Contents::default(), Vec::new());
            let mut forks = Vec::new();
            for step in steps {
                match step {
                    Step::Write(at, fill, len) => {
                        contents.write(at, &vec![fill; len]);
                        if len > 0 {
                            let end = at as usize + len;
                            model.resize(model.len().max(end), 0);
                            model[at as usize..end].fill(fill);
                        }
                    }
                    Step::SetLen(len) => {
                        contents.set_len(len);
                        model.resize(len as usize, 0);
                    }
                    Step::Reserve(len) => {
                        contents.reserve(len);
                        model.resize(model.len().max(len as usize), 0);
                    }
                    Step::Fork => forks.push((contents.clone(), model.clone())),
                }
                prop_assert_eq!(contents.len(), model.len() as u64);
                prop_assert!(contents.read(0, usize::MAX) == model);
                prop_assert!(contents.occupied_pages() * PAGE_BYTES <= 800_000);
            }
            for (contents, model) in forks {
                prop_assert!(contents.read(0, usize::MAX) == model);
            }
        }
    }

    #[test]
    fn a_write_stops_where_space_ends() {
        let mut contents = Contents::default();
        contents.reserve(PAGE_BYTES);
        assert_eq!(contents.fitting(0, 3 * PAGE_BYTES as usize, 0), PAGE_BYTES as usize);
        assert_eq!(contents.fitting(0, 3 * PAGE_BYTES as usize, 1), 2 * PAGE_BYTES as usize);
        contents.write(2 * PAGE_BYTES, &[1]);
        assert_eq!(contents.fitting(0, 3 * PAGE_BYTES as usize, 1), 3 * PAGE_BYTES as usize);
        assert_eq!(contents.occupied_pages(), 2);
    }
}

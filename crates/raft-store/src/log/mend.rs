//! Mending: frames from a peer are written where they lay before. Frames are the same bytes on every replica, so what is
//! written is what was there.
//!
//! Only inside gaps, and never across the end of one: what is whole stays as it is, and nothing is ever cut. Doing it
//! twice, or half and then again, changes nothing more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use env::disk::{Open, PAGE_BYTES, is_unreadable, zeros};
use env::{Env, File};

use super::frame::{Cursor, Frame, HEADER_BYTES, Header, Kind, compose, frame_bytes};
use super::segment::{Layout, Segment};
use crate::position::PhysicalOffset;

/// A frame in its place.
#[derive(Clone, Debug)]
pub struct Placed {
    /// What is to be written: padding, a header, or both.
    headers: Vec<Header>,
    body: Bytes,
    /// The place behind it.
    pub end: Cursor,
    /// The frame is there, and not only the padding before it.
    pub is_whole: bool,
}

impl Placed {
    /// Bytes of its body.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }
}

/// Puts `frame` behind `at`, in a gap that ends at `to`: if the gap is the padding before the frame, that is all there is
/// to write. `None` if it reaches beyond the gap; then this is not what lay there.
pub fn place(at: Cursor, frame: &Frame, layout: Layout, to: PhysicalOffset) -> Option<Placed> {
    let composed = compose(at, layout, frame.kind, frame.id, frame.body.len() as u32, frame.body_crc);
    let padding = composed.padding.filter(|padding| padding.end() <= to);
    if composed.padding.is_some() && padding.is_none() {
        return None;
    }
    match padding {
        Some(padding) if padding.end() == to => {
            Some(Placed { headers: vec![padding], body: Bytes::new(), end: padding.cursor(), is_whole: false })
        }
        _ if composed.header.end() > to => None,
        _ => Some(Placed {
            headers: padding.into_iter().chain([composed.header]).collect(),
            body: frame.body.clone(),
            end: composed.header.cursor(),
            is_whole: true,
        }),
    }
}

/// Writes into the segments of one log, which nobody has open.
#[derive(Debug)]
pub struct Mending {
    env: Env,
    commitlog: PathBuf,
    layout: Layout,
    files: BTreeMap<PhysicalOffset, Arc<dyn File>>,
}

impl Mending {
    /// Of the log under `dir`.
    pub fn new(env: &Env, dir: &Path, layout: Layout) -> Mending {
        Mending { env: env.clone(), commitlog: dir.join("commitlog"), layout, files: BTreeMap::new() }
    }

    /// Writes one into its gap, which ends at `to`. They are written in their order.
    pub async fn write(&mut self, placed: &Placed, to: PhysicalOffset) -> io::Result<()> {
        for header in &placed.headers {
            let mut buffers = vec![Bytes::copy_from_slice(&header.encode())];
            if header.kind != Kind::Padding {
                let body_bytes = placed.body.len() as u64;
                buffers.extend(Some(placed.body.clone()).filter(|body| !body.is_empty()));
                buffers.extend(zeros(frame_bytes(body_bytes) - HEADER_BYTES - body_bytes));
            }
            let at = header.physical_offset;
            let written = buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
            let is_rest_lost = at.0 + written < to.0;
            let offset = self.layout.file_offset(at);
            write_pages(self.file(at).await?, offset, buffers, is_rest_lost).await?;
        }
        Ok(())
    }

    /// The segment's file; made anew if it is gone.
    async fn file(&mut self, at: PhysicalOffset) -> io::Result<&Arc<dyn File>> {
        let first = self.layout.segment_of(at);
        if !self.files.contains_key(&first) {
            let file = self.env.disk.open(&Segment::path(&self.commitlog, first), Open::OrCreate).await?;
            file.allocate(self.layout.file_bytes()).await?;
            self.files.insert(first, file);
        }
        Ok(&self.files[&first])
    }

    /// What was written is durable when this returns.
    pub async fn sync(self) -> io::Result<()> {
        for file in self.files.values() {
            file.sync_data().await?;
        }
        self.env.disk.sync_dir(&self.commitlog).await
    }
}

/// Writes whole pages, with what is beside the buffers in the first and the last: of a page that the disk cannot read, a
/// part cannot be written either. If what lies behind is lost as well, and written next, it need not be readable; what
/// lies before is whole, or was just written.
async fn write_pages(file: &Arc<dyn File>, offset: u64, buffers: Vec<Bytes>, is_rest_lost: bool) -> io::Result<()> {
    let end = offset + buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
    let before = file.read_at(offset - offset % PAGE_BYTES, (offset % PAGE_BYTES) as usize).await?;
    let rest = end.next_multiple_of(PAGE_BYTES) - end;
    let behind = match file.read_at(end, rest as usize).await {
        Err(error) if is_rest_lost && is_unreadable(&error) => zeros(rest),
        read => vec![read?],
    };
    let begin = offset - before.len() as u64;
    let all: Vec<Bytes> = [before].into_iter().chain(buffers).chain(behind).collect();
    file.write_at(begin, &all).await
}

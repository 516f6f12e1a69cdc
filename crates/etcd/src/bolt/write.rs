use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use super::{
    BRANCH, BUCKET_HEADER, ELEMENT, FREE_LIST, IS_BUCKET, LEAF, MAGIC, META, META_BYTES, PAGE_HEADER,
    VERSION, fnv64a,
};

const PAGE: usize = 4096;
/// Metas and the list of free pages come first.
const FIRST_PAGE: u64 = 3;
const FREE_LIST_PAGE: u64 = 2;
/// What both metas say they are the work of; the second counts.
const TRANSACTIONS: [u64; 2] = [0, 1];

/// Writes a file front to back; only the metas, which name the root, are filled in at the end.
pub struct Writer {
    file: BufWriter<File>,
    next_page: u64,
    /// Names of the buckets, and what their value in the root bucket is.
    buckets: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One bucket in the making; keys must ascend.
pub struct Bucket<'a> {
    writer: &'a mut Writer,
    leaf: Page,
    /// First key and page of each leaf.
    leaves: Vec<(Vec<u8>, u64)>,
}

/// A page in the making.
struct Page {
    flags: u16,
    elements: Vec<[u8; ELEMENT]>,
    /// Keys and values, and where each element's begin.
    data: Vec<u8>,
    begins: Vec<usize>,
    first_key: Vec<u8>,
}

impl Page {
    fn new(flags: u16) -> Page {
        Page { flags, elements: Vec::new(), data: Vec::new(), begins: Vec::new(), first_key: Vec::new() }
    }

    fn fits(&self, bytes: usize) -> bool {
        PAGE_HEADER + (self.elements.len() + 1) * ELEMENT + self.data.len() + bytes <= PAGE
    }

    fn note(&mut self, key: &[u8]) {
        if self.elements.is_empty() {
            self.first_key = key.to_vec();
        }
        self.begins.push(self.data.len());
        self.data.extend_from_slice(key);
    }

    fn leaf_element(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        self.note(key);
        self.data.extend_from_slice(value);
        let mut element = [0; ELEMENT];
        element[..4].copy_from_slice(&flags.to_le_bytes());
        element[8..12].copy_from_slice(&(key.len() as u32).to_le_bytes());
        element[12..].copy_from_slice(&(value.len() as u32).to_le_bytes());
        self.elements.push(element);
    }

    fn branch_element(&mut self, key: &[u8], page: u64) {
        self.note(key);
        let mut element = [0; ELEMENT];
        element[4..8].copy_from_slice(&(key.len() as u32).to_le_bytes());
        element[8..].copy_from_slice(&page.to_le_bytes());
        self.elements.push(element);
    }

    /// Offsets count from an element's own begin.
    fn bytes(&self, id: u64, overflow: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(PAGE_HEADER + self.elements.len() * ELEMENT + self.data.len());
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&(self.elements.len() as u16).to_le_bytes());
        out.extend_from_slice(&overflow.to_le_bytes());
        let at = if self.flags == LEAF { 4 } else { 0 };
        for (i, (element, begin)) in self.elements.iter().zip(&self.begins).enumerate() {
            let mut element = *element;
            let position = (self.elements.len() - i) * ELEMENT + begin;
            element[at..at + 4].copy_from_slice(&(position as u32).to_le_bytes());
            out.extend_from_slice(&element);
        }
        out.extend_from_slice(&self.data);
        out
    }
}

impl Writer {
    pub fn new(file: File) -> io::Result<Writer> {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&vec![0; PAGE * FIRST_PAGE as usize])?;
        Ok(Writer { file, next_page: FIRST_PAGE, buckets: Vec::new() })
    }

    pub fn bucket(&mut self) -> Bucket<'_> {
        Bucket { writer: self, leaf: Page::new(LEAF), leaves: Vec::new() }
    }

    fn page(&mut self, page: &Page) -> io::Result<u64> {
        let len = PAGE_HEADER + page.elements.len() * ELEMENT + page.data.len();
        let pages = len.div_ceil(PAGE);
        let id = self.next_page;
        let mut bytes = page.bytes(id, pages as u32 - 1);
        bytes.resize(pages * PAGE, 0);
        self.file.write_all(&bytes)?;
        self.next_page += pages as u64;
        Ok(id)
    }

    /// Writes the branches over `children` and gives the root's page.
    fn branches(&mut self, mut children: Vec<(Vec<u8>, u64)>) -> io::Result<u64> {
        while children.len() > 1 {
            let mut parents = Vec::new();
            let mut page = Page::new(BRANCH);
            for (key, child) in children {
                if !page.fits(key.len()) && page.elements.len() > 1 {
                    parents.push((page.first_key.clone(), self.page(&page)?));
                    page = Page::new(BRANCH);
                }
                page.branch_element(&key, child);
            }
            parents.push((page.first_key.clone(), self.page(&page)?));
            children = parents;
        }
        Ok(children[0].1)
    }

    /// Writes the root bucket and the metas; gives the file back.
    pub fn finish(mut self) -> io::Result<File> {
        self.buckets.sort();
        let mut leaf = Page::new(LEAF);
        for (name, value) in &self.buckets {
            leaf.leaf_element(IS_BUCKET, name, value);
        }
        let root = self.page(&leaf)?;
        let high = self.next_page;
        let mut file = self.file;
        file.flush()?;
        let file = file.into_inner().map_err(|e| io::Error::other(e.to_string()))?;
        for (id, transaction) in TRANSACTIONS.into_iter().enumerate() {
            file.write_all_at(&meta_page(id as u64, root, high, transaction), (id * PAGE) as u64)?;
        }
        let free = Page::new(FREE_LIST);
        file.write_all_at(&free.bytes(FREE_LIST_PAGE, 0), FREE_LIST_PAGE * PAGE as u64)?;
        Ok(file)
    }
}

fn meta_page(id: u64, root: u64, high: u64, transaction: u64) -> Vec<u8> {
    let mut out = Page::new(META).bytes(id, 0);
    for word in [MAGIC, VERSION, PAGE as u32, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    // The root bucket and its sequence, the free list, the first page beyond all.
    for word in [root, 0, FREE_LIST_PAGE, high, transaction] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let sum = fnv64a(&out[PAGE_HEADER..]);
    out.extend_from_slice(&sum.to_le_bytes());
    debug_assert_eq!(out.len(), PAGE_HEADER + META_BYTES);
    out
}

impl Bucket<'_> {
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if !self.leaf.fits(key.len() + value.len()) && !self.leaf.elements.is_empty() {
            let full = std::mem::replace(&mut self.leaf, Page::new(LEAF));
            let id = self.writer.page(&full)?;
            self.leaves.push((full.first_key, id));
        }
        self.leaf.leaf_element(0, key, value);
        Ok(())
    }

    /// Ends the bucket and names it.
    pub fn finish(mut self, name: &[u8]) -> io::Result<()> {
        let mut value = vec![0; BUCKET_HEADER];
        if self.leaves.is_empty() && self.leaf.elements.is_empty() {
            // An empty bucket is a page within its value.
            value.extend_from_slice(&self.leaf.bytes(0, 0));
        } else {
            if !self.leaf.elements.is_empty() {
                let id = self.writer.page(&self.leaf)?;
                self.leaves.push((self.leaf.first_key, id));
            }
            let root = self.writer.branches(self.leaves)?;
            value[..8].copy_from_slice(&root.to_le_bytes());
        }
        self.writer.buckets.push((name.to_vec(), value));
        Ok(())
    }
}

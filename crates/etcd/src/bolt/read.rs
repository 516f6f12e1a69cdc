use std::io;
use std::os::unix::fs::FileExt;

use super::{
    BRANCH, BUCKET_HEADER, ELEMENT, IS_BUCKET, LEAF, MAGIC, META, META_BYTES, PAGE_HEADER, VERSION, fnv64a,
};

const PAGE_SIZES: std::ops::RangeInclusive<u32> = 512..=(1 << 20);
const DEPTH_MAX: usize = 64;
/// Bytes of one page with what overflows it; etcd's largest value is far smaller.
const PAGE_BYTES_MAX: u64 = 1 << 30;

/// A database file, open for reading.
pub struct File {
    file: std::fs::File,
    page_bytes: u64,
    /// The first page that is not in use.
    high: u64,
    root: u64,
}

fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the database file is damaged: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let found = bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    found.ok_or_else(|| corrupt("a page is too short"))
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let found = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    found.ok_or_else(|| corrupt("a page is too short"))
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    let found = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    found.ok_or_else(|| corrupt("a page is too short"))
}

/// What a page holds: branches have children, leaves have values.
enum Element<'a> {
    Child(u64),
    Value { flags: u32, key: &'a [u8], value: &'a [u8] },
}

fn element(page: &[u8], i: usize) -> io::Result<Element<'_>> {
    let at = PAGE_HEADER + i * ELEMENT;
    if u16_at(page, 8)? & BRANCH != 0 {
        return Ok(Element::Child(u64_at(page, at + 8)?));
    }
    let (flags, position) = (u32_at(page, at)?, u32_at(page, at + 4)? as usize);
    let (key_len, value_len) = (u32_at(page, at + 8)? as usize, u32_at(page, at + 12)? as usize);
    let outside = || corrupt("a key or value lies outside of its page");
    let data = page.get(at + position..).ok_or_else(outside)?;
    let key = data.get(..key_len).ok_or_else(outside)?;
    let value = data[key_len..].get(..value_len).ok_or_else(outside)?;
    Ok(Element::Value { flags, key, value })
}

impl File {
    pub fn open(file: std::fs::File) -> io::Result<File> {
        let mut best: Option<(u64, File)> = None;
        // The second meta's place depends on the page size, which the first one tells unless it is damaged.
        let mut sizes = vec![4096, 8192, 16384, 65536, 512, 1024, 2048, 32768];
        let mut first = [0; PAGE_HEADER + META_BYTES];
        if file.read_exact_at(&mut first, 0).is_ok()
            && let Some(meta) = meta(&first)
        {
            sizes = vec![u64::from(meta.0)];
            best = Some((
                meta.4,
                File { file: file.try_clone()?, page_bytes: u64::from(meta.0), root: meta.1, high: meta.3 },
            ));
        }
        for size in sizes {
            let mut second = [0; PAGE_HEADER + META_BYTES];
            if file.read_exact_at(&mut second, size).is_ok()
                && let Some((page_bytes, root, _, high, transaction)) = meta(&second)
                && u64::from(page_bytes) == size
                && best.as_ref().is_none_or(|(other, _)| transaction > *other)
            {
                best = Some((transaction, File { file: file.try_clone()?, page_bytes: size, root, high }));
            }
        }
        let (_, found) = best.ok_or_else(|| corrupt("neither of its heads is valid"))?;
        Ok(found)
    }

    /// A page with all that overflows it.
    fn page(&self, id: u64) -> io::Result<Vec<u8>> {
        if id < 2 || id >= self.high {
            return Err(corrupt("a page refers to one that is not there"));
        }
        let mut page = vec![0; self.page_bytes as usize];
        self.file.read_exact_at(&mut page, id * self.page_bytes)?;
        let overflow = u64::from(u32_at(&page, 12)?);
        let len = (overflow + 1) * self.page_bytes;
        if u64_at(&page, 0)? != id || overflow >= self.high - id || len > PAGE_BYTES_MAX {
            return Err(corrupt("a page is not the one it should be"));
        }
        if overflow > 0 {
            page.resize(len as usize, 0);
            let at = self.page_bytes as usize;
            self.file.read_exact_at(&mut page[at..], (id + 1) * self.page_bytes)?;
        }
        Ok(page)
    }

    /// Calls `visit` with flags, key and value of everything below a page, in order.
    fn walk(
        &self,
        id: u64,
        depth: usize,
        pages_left: &mut u64,
        visit: &mut dyn FnMut(u32, &[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        // Each page is in the tree once, so a longer walk goes in circles.
        if depth > DEPTH_MAX || *pages_left == 0 {
            return Err(corrupt("its pages form no tree"));
        }
        *pages_left -= 1;
        let page = self.page(id)?;
        let flags = u16_at(&page, 8)?;
        if flags & (BRANCH | LEAF) == 0 || flags & META != 0 {
            return Err(corrupt("a page is of the wrong kind"));
        }
        for i in 0..usize::from(u16_at(&page, 10)?) {
            match element(&page, i)? {
                Element::Child(child) => self.walk(child, depth + 1, pages_left, visit)?,
                Element::Value { flags, key, value } => visit(flags, key, value)?,
            }
        }
        Ok(())
    }

    /// The names of the buckets.
    pub fn buckets(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let mut left = self.high;
        self.walk(self.root, 0, &mut left, &mut |flags, key, _| {
            if flags & IS_BUCKET != 0 {
                names.push(key.to_vec());
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// Calls `visit` with each key and value of a bucket, in order; a bucket that is not there is empty.
    pub fn each(
        &self,
        bucket: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut found = None;
        let mut left = self.high;
        self.walk(self.root, 0, &mut left, &mut |flags, key, value| {
            if flags & IS_BUCKET != 0 && key == bucket {
                found = Some(value.to_vec());
            }
            Ok(())
        })?;
        let Some(value) = found else { return Ok(()) };
        let mut visit = |flags: u32, key: &[u8], value: &[u8]| {
            if flags & IS_BUCKET == 0 { visit(key, value) } else { Ok(()) }
        };
        match u64_at(&value, 0)? {
            0 => {
                let page = value.get(BUCKET_HEADER..).ok_or_else(|| corrupt("a bucket is too short"))?;
                if u16_at(page, 8)? != LEAF {
                    return Err(corrupt("a bucket's page is of the wrong kind"));
                }
                for i in 0..usize::from(u16_at(page, 10)?) {
                    if let Element::Value { flags, key, value } = element(page, i)? {
                        visit(flags, key, value)?;
                    }
                }
                Ok(())
            }
            root => {
                let mut left = self.high;
                self.walk(root, 0, &mut left, &mut visit)
            }
        }
    }

    /// The bytes of the file that the database uses.
    pub fn len(&self) -> u64 {
        self.high * self.page_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.high == 0
    }
}

/// Page size, root, free list, first page beyond all, and transaction of a meta page that is whole.
fn meta(page: &[u8]) -> Option<(u32, u64, u64, u64, u64)> {
    let meta = page.get(PAGE_HEADER..PAGE_HEADER + META_BYTES)?;
    let sum = u64::from_le_bytes(meta[56..].try_into().ok()?);
    let word = |at: usize| u32_at(meta, at).ok();
    let long = |at: usize| u64_at(meta, at).ok();
    let page_bytes = word(8)?;
    let whole = word(0)? == MAGIC
        && word(4)? == VERSION
        && PAGE_SIZES.contains(&page_bytes)
        && page_bytes.is_power_of_two()
        && sum == fnv64a(&meta[..56]);
    let high = long(40)?;
    (whole && high < u64::from(u32::MAX) * 64).then_some((page_bytes, long(16)?, long(32)?, high, long(48)?))
}

//! bbolt database files, as etcd's snapshots are: written in one go, and read.
//!
//! A file is pages of equal size. Pages 0 and 1 are metas (the valid one with the higher transaction counts), then come
//! leaves (sorted key-values) and branches (first key and page of each child). A bucket is a key-value of the root bucket whose
//! value is the bucket's root page, or page 0 and the page itself behind it. All numbers are little-endian.

mod read;
mod write;

pub use read::File;
pub use write::Writer;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;
const BUCKET_HEADER: usize = 16;
const META_BYTES: usize = 64;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREE_LIST: u16 = 0x10;

/// Marks a leaf's element as a bucket.
const IS_BUCKET: u32 = 0x01;

/// FNV-1a, which guards the metas.
fn fnv64a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::FileExt;

    type Buckets = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

    fn written(buckets: &Buckets) -> std::fs::File {
        let mut writer = Writer::new(tempfile::tempfile().unwrap()).unwrap();
        for (name, pairs) in buckets {
            let mut bucket = writer.bucket();
            for (key, value) in pairs {
                bucket.put(key, value).unwrap();
            }
            bucket.finish(name).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(file: &File) -> std::io::Result<Buckets> {
        let mut all = Buckets::new();
        for name in file.buckets()? {
            let mut pairs = BTreeMap::new();
            file.each(&name, |key, value| {
                pairs.insert(key.to_vec(), value.to_vec());
                Ok(())
            })?;
            all.insert(name, pairs);
        }
        Ok(all)
    }

    fn buckets() -> impl Strategy<Value = Buckets> {
        let bytes = |max| proptest::collection::vec(any::<u8>(), 1..max);
        let value = prop_oneof![
            9 => proptest::collection::vec(any::<u8>(), 0..200),
            1 => proptest::collection::vec(any::<u8>(), 3000..9000),
        ];
        let pairs = proptest::collection::btree_map(bytes(40), value, 0..300);
        proptest::collection::btree_map(bytes(10), pairs, 0..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_is_written_is_read(buckets in buckets()) {
            let file = written(&buckets);
            prop_assert_eq!(file.metadata().unwrap().len() % 4096, 0);
            let file = File::open(file).unwrap();
            prop_assert_eq!(read(&file).unwrap(), buckets);
        }

        #[test]
        fn damage_is_an_error_or_other_bytes_but_no_panic(buckets in buckets(), at in 0u64..40_000, byte: u8) {
            let file = written(&buckets);
            let len = file.metadata().unwrap().len();
            file.write_all_at(&[byte], at % len).unwrap();
            if let Ok(file) = File::open(file) {
                let _ = read(&file);
            }
        }

        #[test]
        fn junk_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            prop_assert!(File::open(file).is_err());
        }
    }

    #[test]
    fn many_keys_make_a_tall_tree() {
        let pairs: BTreeMap<Vec<u8>, Vec<u8>> =
            (0..60_000u64).map(|i| (i.to_be_bytes().repeat(5), vec![i as u8; 100])).collect();
        let buckets = Buckets::from([(b"key".to_vec(), pairs)]);
        let file = File::open(written(&buckets)).unwrap();
        assert!(read(&file).unwrap() == buckets);
    }
}

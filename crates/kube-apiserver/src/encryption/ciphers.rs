//! The ciphers values are kept under, in upstream's layout: `k8s:enc:<provider>:v1:<key>:` and what the cipher makes.

use std::sync::Arc;

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::consts::U12;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{AesGcm, Nonce};
use anyhow::{Result, bail, ensure};
use crypto_secretbox::XSalsa20Poly1305;

const IV_LEN: usize = 16;
const NONCE_LEN: usize = 12;
const BOX_NONCE_LEN: usize = 24;

/// One key of one provider.
pub struct Key {
    pub name: String,
    cipher: Cipher,
}

type Seal = dyn Fn(&[u8], &[u8], &[u8]) -> Option<Vec<u8>> + Send + Sync;

/// What encrypts and decrypts: nonce, text, context.
struct Cipher {
    nonce_len: usize,
    seal: Box<Seal>,
    open: Box<Seal>,
}

macro_rules! cbc {
    ($aes:ty, $key:expr) => {{
        let key: Arc<[u8]> = $key.into();
        let other = key.clone();
        Cipher {
            nonce_len: IV_LEN,
            seal: Box::new(move |iv, text, _| {
                let cipher = cbc::Encryptor::<$aes>::new_from_slices(&key, iv).ok()?;
                Some(cipher.encrypt_padded_vec_mut::<Pkcs7>(text))
            }),
            open: Box::new(move |iv, text, _| {
                let cipher = cbc::Decryptor::<$aes>::new_from_slices(&other, iv).ok()?;
                cipher.decrypt_padded_vec_mut::<Pkcs7>(text).ok()
            }),
        }
    }};
}

macro_rules! gcm {
    ($aes:ty, $key:expr) => {{
        let cipher = Arc::new(AesGcm::<$aes, U12>::new_from_slice($key)?);
        let other = cipher.clone();
        Cipher {
            nonce_len: NONCE_LEN,
            seal: Box::new(move |nonce, msg, aad| {
                cipher.encrypt(Nonce::from_slice(nonce), Payload { msg, aad }).ok()
            }),
            open: Box::new(move |nonce, msg, aad| {
                other.decrypt(Nonce::from_slice(nonce), Payload { msg, aad }).ok()
            }),
        }
    }};
}

impl Key {
    /// A key of the provider (`aescbc`, `aesgcm` or `secretbox`).
    pub fn new(provider: &str, name: &str, secret: &[u8]) -> Result<Key> {
        let cipher = match (provider, secret.len()) {
            ("aescbc", 16) => cbc!(Aes128, secret),
            ("aescbc", 24) => cbc!(Aes192, secret),
            ("aescbc", 32) => cbc!(Aes256, secret),
            ("aesgcm", 16) => gcm!(Aes128, secret),
            ("aesgcm", 24) => gcm!(Aes192, secret),
            ("aesgcm", 32) => gcm!(Aes256, secret),
            ("secretbox", 32) => {
                let cipher = Arc::new(XSalsa20Poly1305::new_from_slice(secret)?);
                let other = cipher.clone();
                Cipher {
                    nonce_len: BOX_NONCE_LEN,
                    seal: Box::new(move |nonce, text, _| cipher.encrypt(nonce.into(), text).ok()),
                    open: Box::new(move |nonce, text, _| other.decrypt(nonce.into(), text).ok()),
                }
            }
            ("secretbox", n) => bail!("secret is not of the expected length, got {n}, expected one of [32]"),
            (_, n) => bail!("secret is not of the expected length, got {n}, expected one of [16 24 32]"),
        };
        Ok(Key { name: name.to_owned(), cipher })
    }

    /// `context` is where the value is kept, which some ciphers bind it to.
    pub fn seal(&self, text: &[u8], context: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = vec![0; self.cipher.nonce_len];
        let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut nonce);
        ensure!(filled.is_ok(), "no randomness");
        match (self.cipher.seal)(&nonce, text, context) {
            Some(sealed) => Ok([nonce, sealed].concat()),
            None => bail!("the value cannot be encrypted"),
        }
    }

    pub fn open(&self, sealed: &[u8], context: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(self.cipher.nonce_len)?;
        (self.cipher.open)(nonce, sealed, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_round() {
        for provider in ["aescbc", "aesgcm", "secretbox"] {
            for len in [16, 24, 32] {
                let Ok(key) = Key::new(provider, "k", &vec![7; len]) else {
                    assert!(provider == "secretbox" && len != 32);
                    continue;
                };
                for text in [&b""[..], b"x", &[9; 16], &[0; 1000]] {
                    let sealed = key.seal(text, b"/registry/secrets/a/b").unwrap();
                    assert_ne!(sealed, key.seal(text, b"/registry/secrets/a/b").unwrap(), "{provider}");
                    assert_eq!(key.open(&sealed, b"/registry/secrets/a/b").unwrap(), text);
                    assert_eq!(key.open(&sealed[..sealed.len() - 1], b"/registry/secrets/a/b"), None);
                    // Only this one knows where it belongs.
                    assert_eq!(key.open(&sealed, b"/registry/secrets/a/c").is_none(), provider == "aesgcm");
                }
                assert_eq!(key.open(b"short", b""), None);
            }
        }
        assert!(Key::new("aescbc", "k", &[0; 15]).is_err());
    }

    #[test]
    fn reads_what_others_wrote() {
        let key: Vec<u8> = (0..32).collect();
        for (provider, context, sealed) in [
            (
                "aescbc",
                "",
                "000102030405060708090a0b0c0d0e0f39b56d80b76b00e6119507b4b372cc99a24e78d95189f06e2591207458b3a85d",
            ),
            (
                "aesgcm",
                "/registry/secrets/default/a",
                "000102030405060708090a0b2c3aa51be596a778ff24e3abc7881418e6c5e2c4cab5977fb26aca1d82dfff64e8",
            ),
        ] {
            let bytes: Vec<u8> = (0..sealed.len() / 2)
                .map(|i| u8::from_str_radix(&sealed[2 * i..2 * i + 2], 16).unwrap())
                .collect();
            let key = Key::new(provider, "k", &key).unwrap();
            assert_eq!(key.open(&bytes, context.as_bytes()).unwrap(), b"k8s\0 secret value", "{provider}");
        }
    }
}

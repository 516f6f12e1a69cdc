//! Names the server makes up.

use rand::Rng;

/// Longest name `generate` returns.
pub const MAX_GENERATED: usize = 63;
const SUFFIX: usize = 5;
/// No vowels and no digits that look like letters: nothing rude or confusing comes out.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `base` (shortened where it must be) and five random characters, as `generateName` promises.
pub fn generate(base: &str) -> String {
    let mut cut = base.len().min(MAX_GENERATED - SUFFIX);
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = String::with_capacity(cut + SUFFIX);
    name.push_str(&base[..cut]);
    name.push_str(&random(SUFFIX));
    name
}

/// `n` random characters safe in names.
pub fn random(n: usize) -> String {
    let mut rng = rand::rng();
    (0..n).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char).collect()
}

/// Writes a number with the alphabet of generated names, as pod template hashes are.
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| ALPHABET[b as usize % ALPHABET.len()] as char).collect()
}

/// A fresh object UID.
pub fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generates() {
        let name = generate("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(generate(&"x".repeat(100)).len(), MAX_GENERATED);
        assert_ne!(generate("a"), generate("a"));
    }
}

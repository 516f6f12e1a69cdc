//! New inputs from old ones.

/// A source of choices; one seed makes one run.
pub struct Choices(pub u64);

impl Choices {
    pub fn below(&mut self, n: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % (n.max(1) as u64)) as usize
    }

    /// A range of a text of `len` bytes, short ones more often.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let at = self.below(len + 1);
        let longest = if self.below(4) == 0 { len - at } else { (len - at).min(8) };
        at..at + self.below(longest + 1)
    }
}

/// Longer inputs only take longer.
const LEN_MAX: usize = 16 << 10;
const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "255",
    "2147483647",
    "-2147483648",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551616",
    "1e400",
    "-0.0",
    "1e-7",
    "0.1",
    "99999999999999999999999999999999",
];
const BYTES: &[u8] =
    &[0, 1, 0x7f, 0x80, 0xff, b'"', b'\\', b'\n', b'{', b'}', b'[', b']', b'(', b':', b',', b'-'];

/// A few steps away from `input`, with words of `dictionary` and pieces of `other`.
pub fn mutate(input: &[u8], other: &[u8], dictionary: &[&str], choices: &mut Choices) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..=choices.below(5) {
        let at = choices.below(out.len() + 1);
        match choices.below(11) {
            0 if !out.is_empty() => {
                let i = choices.below(out.len());
                out[i] ^= 1 << choices.below(8);
            }
            1 if !out.is_empty() => {
                let i = choices.below(out.len());
                out[i] = choices.below(256) as u8;
            }
            2 => out.insert(at, BYTES[choices.below(BYTES.len())]),
            3 => drop(out.drain(choices.range(out.len()))),
            4 => {
                let piece = out[choices.range(out.len())].to_vec();
                out.splice(at..at, piece);
            }
            5 => {
                let piece = other[choices.range(other.len())].to_vec();
                out.splice(at..at, piece);
            }
            6 | 7 if !dictionary.is_empty() => {
                out.splice(at..at, dictionary[choices.below(dictionary.len())].bytes());
            }
            8 => {
                // A number for another.
                let digits = out[at..].iter().position(u8::is_ascii_digit).map_or(at, |i| at + i);
                let end = digits + out[digits..].iter().take_while(|b| b.is_ascii_digit()).count();
                out.splice(digits..end, NUMBERS[choices.below(NUMBERS.len())].bytes());
            }
            9 if choices.below(8) == 0 => {
                // Deep or long.
                let piece = out[choices.range(out.len())].to_vec();
                let times = 1 << choices.below(12);
                out.splice(at..at, piece.iter().copied().cycle().take(piece.len() * times));
            }
            _ => {
                // One word for another.
                if let (Some(word), false) = (word_at(&out, at), dictionary.is_empty()) {
                    out.splice(word, dictionary[choices.below(dictionary.len())].bytes());
                }
            }
        }
        out.truncate(LEN_MAX);
    }
    out
}

fn word_at(text: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let start = at + text[at..].iter().position(u8::is_ascii_alphabetic)?;
    Some(start..start + text[start..].iter().take_while(|b| b.is_ascii_alphanumeric()).count())
}

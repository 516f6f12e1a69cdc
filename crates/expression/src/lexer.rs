//! Source text to tokens.

use std::sync::Arc;

use crate::syntax::{Literal, Offset, Problem};

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Literal(Literal),
    Ident(String),
    /// Spelled between backticks; only a field may be.
    Quoted(String),
    /// Operators, punctuation and the keyword `in`.
    Sign(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub struct Spanned {
    pub token: Token,
    pub at: Offset,
    /// As it stands in the source, for messages.
    pub text: String,
}

const SIGNS: [&str; 27] = [
    "==", "!=", "<=", ">=", "&&", "||", "[?", "<", ">", "(", ")", "[", "]", "{", "}", ".", ",", "-", "!",
    "?", ":", "+", "*", "/", "%", "=", ";",
];

/// All tokens, ending with [`Token::End`]. What is no token is reported and skipped.
pub fn tokens(source: &str, problems: &mut Vec<Problem>) -> Vec<Spanned> {
    let chars: Vec<char> = source.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_blank();
        let start = lexer.at;
        if start >= chars.len() {
            out.push(Spanned { token: Token::End, at: start as Offset, text: "<EOF>".into() });
            return out;
        }
        let token = lexer.next();
        let text: String = chars[start..lexer.at].iter().collect();
        match token {
            Ok(token) => out.push(Spanned { token, at: start as Offset, text }),
            Err(message) => {
                let message = message.unwrap_or_else(|| {
                    format!("Syntax error: token recognition error at: '{}'", escaped(&text))
                });
                problems.push(Problem::new(start as Offset, message));
            }
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r")
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
}

/// `Err(None)` is text that is no token.
type Lexed = Result<Token, Option<String>>;

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip_blank(&mut self) {
        while let Some(c) = self.peek(0) {
            if matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{c}') {
                self.at += 1;
            } else if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else {
                return;
            }
        }
    }

    fn next(&mut self) -> Lexed {
        let Some(c) = self.peek(0) else { return Ok(Token::End) };
        if let Some(prefix) = self.string_prefix() {
            return self.string(prefix);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|d| d.is_ascii_digit())) {
            return self.number();
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let start = self.at;
            while self.peek(0).is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                self.at += 1;
            }
            let name: String = self.chars[start..self.at].iter().collect();
            return Ok(match name.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                _ => Token::Ident(name),
            });
        }
        if c == '`' {
            return self.quoted();
        }
        for sign in SIGNS {
            if sign.chars().enumerate().all(|(i, s)| self.peek(i) == Some(s)) && !matches!(sign, "=" | ";") {
                // `[?` is one token only where an optional index or element begins; `[` and `?` are told apart later.
                if sign == "[?" {
                    continue;
                }
                self.at += sign.len();
                return Ok(Token::Sign(sign));
            }
        }
        self.at += 1;
        Err(None)
    }

    fn quoted(&mut self) -> Lexed {
        let start = self.at;
        self.at += 1;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' ');
        while self.peek(0).is_some_and(allowed) {
            self.at += 1;
        }
        if self.peek(0) != Some('`') || self.at == start + 1 {
            return Err(None);
        }
        let name = self.chars[start + 1..self.at].iter().collect();
        self.at += 1;
        Ok(Token::Quoted(name))
    }

    fn number(&mut self) -> Lexed {
        let start = self.at;
        let digits = |lexer: &mut Self, radix: u32| {
            let from = lexer.at;
            while lexer.peek(0).is_some_and(|c| c.is_digit(radix)) {
                lexer.at += 1;
            }
            lexer.at - from
        };
        let hex = self.peek(0) == Some('0')
            && matches!(self.peek(1), Some('x' | 'X'))
            && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit());
        if hex {
            self.at += 2;
            digits(self, 16);
            let text: String = self.chars[start + 2..self.at].iter().collect();
            return self.integer(&text, 16);
        }
        digits(self, 10);
        let mut float = false;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            float = true;
            self.at += 1;
            digits(self, 10);
        }
        if matches!(self.peek(0), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                float = true;
                self.at += 1 + sign;
                digits(self, 10);
            }
        }
        let text: String = self.chars[start..self.at].iter().collect();
        if float {
            return match text.parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(Token::Literal(Literal::Double(value))),
                _ => Err(Some("invalid double literal".into())),
            };
        }
        self.integer(&text, 10)
    }

    fn integer(&mut self, text: &str, radix: u32) -> Lexed {
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            let value =
                u64::from_str_radix(text, radix).map_err(|_| Some("invalid uint literal".to_owned()))?;
            return Ok(Token::Literal(Literal::Uint(value)));
        }
        // The smallest integer is spelled with a sign, which the parser sees: it is kept as its bits.
        let value = u64::from_str_radix(text, radix).map_err(|_| Some("invalid int literal".to_owned()))?;
        match i64::try_from(value) {
            Ok(value) => Ok(Token::Literal(Literal::Int(value))),
            Err(_) if value == 1 << 63 => Ok(Token::Literal(Literal::Int(i64::MIN))),
            Err(_) => Err(Some("invalid int literal".into())),
        }
    }

    /// How many characters `r`, `b` and the like take before a quote; (raw, bytes, length).
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes, mut n) = (false, false, 0);
        loop {
            match self.peek(n)? {
                '"' | '\'' => return Some((raw, bytes, n)),
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes && !raw => bytes = true,
                _ => return None,
            }
            n += 1;
        }
    }

    fn string(&mut self, (raw, bytes, prefix): (bool, bool, usize)) -> Lexed {
        self.at += prefix;
        let Some(quote) = self.peek(0) else { return Err(None) };
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if triple { 3 } else { 1 };
        let mut out: Vec<u8> = Vec::new();
        let mut buffer = [0u8; 4];
        loop {
            let Some(c) = self.peek(0) else { return Err(None) };
            if c == quote {
                if !triple {
                    self.at += 1;
                    break;
                }
                if self.peek(1) == Some(quote) && self.peek(2) == Some(quote) {
                    self.at += 3;
                    break;
                }
            }
            if !triple && matches!(c, '\n' | '\r') {
                return Err(None);
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else if c == '\r' {
                if self.peek(0) == Some('\n') {
                    self.at += 1;
                }
                out.push(b'\n');
            } else {
                out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
            }
        }
        if bytes {
            return Ok(Token::Literal(Literal::Bytes(out.into())));
        }
        let text = String::from_utf8(out).map_err(|_| Some("invalid unicode code point".to_owned()))?;
        Ok(Token::Literal(Literal::String(Arc::from(text))))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), Option<String>> {
        let Some(c) = self.peek(0) else { return Err(None) };
        self.at += 1;
        let plain = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '\'' | '"' | '`' | '?' => c as u8,
            'x' | 'X' => return self.code(2, 16, bytes, out),
            'u' if !bytes => return self.code(4, 16, false, out),
            'U' if !bytes => return self.code(8, 16, false, out),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8, bytes, out);
            }
            _ => return Err(None),
        };
        out.push(plain);
        Ok(())
    }

    fn code(
        &mut self,
        length: usize,
        radix: u32,
        byte: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Option<String>> {
        let mut value = 0u32;
        for _ in 0..length {
            let Some(digit) = self.peek(0).and_then(|c| c.to_digit(radix)) else { return Err(None) };
            value = value.wrapping_mul(radix) | digit;
            self.at += 1;
        }
        if byte {
            out.push(value as u8);
            return Ok(());
        }
        let c = char::from_u32(value).ok_or_else(|| Some("invalid unicode code point".to_owned()))?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }
}

//! SPDY/3.1 as the streaming servers of container runtimes speak it, the client's side: a few streams over one
//! connection. Neither end of these connections keeps flow-control windows, and headers of answers carry nothing
//! that is needed, so they are skipped.

use std::collections::HashMap;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// No frame of these servers is longer.
const FRAME_MAX: usize = 1 << 20;

/// The words both ends know beforehand, each preceded by its length; then some text without lengths.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
user-agent vary via warning www-authenticate method get status 200\u{a0}OK version HTTP/1.1 url public set-cookie \
keep-alive origin";
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        // The one word with a blank in it is written with another kind of blank above.
        let word = word.replace('\u{a0}', " ");
        out.put_u32(word.len() as u32);
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TEXT.as_bytes());
    out
}

/// What comes from the other end.
#[derive(Debug, PartialEq)]
pub enum Event {
    Data {
        stream: u32,
        data: Bytes,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    /// Answers owed to the other end: to be written as they are.
    Reply(Bytes),
    Closed,
}

pub struct Reader<S> {
    half: ReadHalf<S>,
    buffer: BytesMut,
}

pub struct Writer<S> {
    half: WriteHalf<S>,
    compress: Compress,
    next: u32,
    open: HashMap<u32, bool>,
}

/// Takes over an upgraded connection.
pub fn client<S: AsyncRead + AsyncWrite>(connection: S) -> io::Result<(Reader<S>, Writer<S>)> {
    let (read, write) = tokio::io::split(connection);
    let mut compress = Compress::new(Compression::fast(), true);
    compress.set_dictionary(&dictionary()).map_err(io::Error::other)?;
    let reader = Reader { half: read, buffer: BytesMut::new() };
    Ok((reader, Writer { half: write, compress, next: 1, open: HashMap::new() }))
}

impl<S: AsyncWrite> Writer<S> {
    fn header_block(&mut self, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name.to_lowercase().as_str(), value] {
                plain.put_u32(text.len() as u32);
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 256);
        let before = self.compress.total_in();
        loop {
            let taken = (self.compress.total_in() - before) as usize;
            self.compress
                .compress_vec(&plain[taken..], &mut out, FlushCompress::Sync)
                .map_err(io::Error::other)?;
            let taken = (self.compress.total_in() - before) as usize;
            // Everything is in and flushed once there is room to spare.
            if taken == plain.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }

    /// Opens a stream; the other end knows what it is for by its headers.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let id = self.next;
        self.next += 2;
        let block = self.header_block(headers)?;
        let mut frame = Vec::with_capacity(18 + block.len());
        frame.put_u16(VERSION);
        frame.put_u16(SYN_STREAM);
        frame.put_u32((10 + block.len()) as u32);
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.extend_from_slice(&block);
        self.open.insert(id, true);
        self.half.write_all(&frame).await?;
        self.half.flush().await?;
        Ok(id)
    }

    pub async fn data(&mut self, stream: u32, data: &[u8], fin: bool) -> io::Result<()> {
        let mut frame = Vec::with_capacity(8 + data.len());
        frame.put_u32(stream);
        frame.put_u32(data.len() as u32 | if fin { u32::from(FLAG_FIN) << 24 } else { 0 });
        frame.extend_from_slice(data);
        self.raw(&frame).await
    }

    pub async fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.half.write_all(bytes).await?;
        self.half.flush().await
    }
}

impl<S: AsyncRead> Reader<S> {
    /// The next thing that matters.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.parse()? {
                return Ok(event);
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Ok(Event::Closed);
            }
        }
    }

    fn parse(&mut self) -> io::Result<Option<Event>> {
        loop {
            if self.buffer.len() < 8 {
                return Ok(None);
            }
            let first = u32::from_be_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]);
            let second = u32::from_be_bytes([self.buffer[4], self.buffer[5], self.buffer[6], self.buffer[7]]);
            let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
            if length > FRAME_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
            }
            if self.buffer.len() < 8 + length {
                self.buffer.reserve(8 + length - self.buffer.len());
                return Ok(None);
            }
            let head = self.buffer.split_to(8).freeze();
            let mut payload = self.buffer.split_to(length).freeze();
            if first & 0x8000_0000 == 0 {
                return Ok(Some(Event::Data { stream: first, data: payload, fin: flags & FLAG_FIN != 0 }));
            }
            match (first & 0xffff) as u16 {
                RST_STREAM if length >= 4 => return Ok(Some(Event::Reset { stream: payload.get_u32() })),
                SYN_REPLY if flags & FLAG_FIN != 0 && length >= 4 => {
                    return Ok(Some(Event::Data {
                        stream: payload.get_u32(),
                        data: Bytes::new(),
                        fin: true,
                    }));
                }
                PING if length >= 4 => {
                    let mut reply = BytesMut::with_capacity(12);
                    reply.extend_from_slice(&head);
                    reply.extend_from_slice(&payload);
                    return Ok(Some(Event::Reply(reply.freeze())));
                }
                GOAWAY => return Ok(Some(Event::Closed)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_known_one() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // Every zlib stream that uses it names its checksum.
        let sum = dictionary.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!(sum.1 << 16 | sum.0, 0xe3c6_a7c2);
    }

    #[tokio::test]
    async fn frames() {
        let (near, far) = tokio::io::duplex(4096);
        let (_, mut writer) = client(near).unwrap();
        let (mut reader, _) = client(far).unwrap();
        let id = writer.open(&[("streamType", "stdin")]).await.unwrap();
        writer.data(id, b"hello", true).await.unwrap();
        assert_eq!(
            reader.next().await.unwrap(),
            Event::Data { stream: 1, data: Bytes::from_static(b"hello"), fin: true }
        );
    }
}

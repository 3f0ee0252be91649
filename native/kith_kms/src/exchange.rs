//! One request and its answer, in HTTP/1.1.

use std::io;

use zeroize::Zeroizing;

use crate::{Failure, connection::Connection, endpoint::Endpoint};

/// The most bytes of an answer, with its fields.
pub const MAX_ANSWER_BYTES: usize = 65_536;

pub(crate) struct Request {
    /// The method and the path below that of the service.
    method: &'static str,
    path: String,
    body: Zeroizing<String>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Request {
    pub(crate) fn get(path: &str, query: &str) -> Self {
        Self {
            method: "GET",
            path: format!("{path}?{query}"),
            body: Zeroizing::default(),
        }
    }

    pub(crate) fn post(path: &str, body: &Zeroizing<String>) -> Self {
        Self {
            method: "POST",
            path: path.to_owned(),
            body: body.clone(),
        }
    }

    pub(crate) fn send(
        &self,
        endpoint: &Endpoint,
        connection: &mut dyn Connection,
    ) -> Result<Answer, Failure> {
        let Self { method, path, body } = self;
        let head = format!(
            "{method} {base}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
            base = endpoint.base(),
            host = endpoint.authority(),
            length = body.len(),
        );
        // In one piece: two would be two packets.
        let mut bytes = Zeroizing::new(Vec::with_capacity(head.len() + body.len()));
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(body.as_bytes());
        let sent = connection
            .write_all(&bytes)
            .and_then(|()| connection.flush());
        match sent {
            Ok(()) => receive(connection),
            // A service that refuses says so before it has read all.
            Err(error) if failure(&error) == Failure::Broken => {
                receive(connection).map_err(|_| Failure::Broken)
            }
            Err(error) => Err(failure(&error)),
        }
    }
}

fn receive(connection: &mut dyn Connection) -> Result<Answer, Failure> {
    // One buffer of full size: a vector that grows would leave what it held in freed memory.
    let mut buffer = Zeroizing::new(vec![0; MAX_ANSWER_BYTES]);
    let mut filled = 0;
    loop {
        let Some(free @ [_, ..]) = buffer.get_mut(filled..) else {
            return Err(Failure::Answer);
        };
        let ended = match connection.read(free) {
            Ok(0) => true,
            Ok(read) => {
                filled += read;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => return Err(failure(&error)),
        };
        let received = buffer.get(..filled).unwrap_or_default();
        match parse(received, ended) {
            Parsed::Answer(answer) => return Ok(answer),
            Parsed::Wrong => return Err(Failure::Answer),
            Parsed::Partial if ended => return Err(Failure::Broken),
            Parsed::Partial => {}
        }
    }
}

enum Parsed {
    Answer(Answer),
    Partial,
    Wrong,
}

enum Length {
    Known(usize),
    Chunked,
    UntilTheEnd,
}

fn parse(received: &[u8], ended: bool) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let head = match response.parse(received) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Wrong,
    };
    let (Some(status @ 200..), Some(length)) = (response.code, length(response.headers)) else {
        return Parsed::Wrong;
    };
    let rest = received.get(head..).unwrap_or_default();
    let body = match length {
        Length::Known(length) if length > MAX_ANSWER_BYTES => return Parsed::Wrong,
        Length::Known(length) => match rest.get(..length) {
            Some(body) => Zeroizing::new(body.to_vec()),
            None => return Parsed::Partial,
        },
        Length::Chunked => match unchunk(rest) {
            Ok(Some(body)) => body,
            Ok(None) => return Parsed::Partial,
            Err(()) => return Parsed::Wrong,
        },
        Length::UntilTheEnd if ended => Zeroizing::new(rest.to_vec()),
        Length::UntilTheEnd => return Parsed::Partial,
    };
    Parsed::Answer(Answer { status, body })
}

fn length(fields: &[httparse::Header<'_>]) -> Option<Length> {
    let mut encodings = values(fields, "transfer-encoding");
    let mut lengths = values(fields, "content-length");
    match (encodings.next(), lengths.next()) {
        (None, None) => Some(Length::UntilTheEnd),
        (Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") => {
            encodings.next().is_none().then_some(Length::Chunked)
        }
        (None, Some(length)) => {
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let length = str::from_utf8(length).ok()?.parse().ok()?;
            (digits && lengths.next().is_none()).then_some(Length::Known(length))
        }
        _ => None,
    }
}

fn values<'a>(
    fields: &'a [httparse::Header<'_>],
    name: &'static str,
) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value.trim_ascii())
}

/// The chunks together, `None` when there are more to come.
fn unchunk(mut rest: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, ()> {
    let mut body = Zeroizing::new(Vec::with_capacity(rest.len()));
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest).map_err(|_| ())? {
            httparse::Status::Complete(found) => found,
            httparse::Status::Partial => return Ok(None),
        };
        let size = usize::try_from(size).map_err(|_| ())?;
        if size > MAX_ANSWER_BYTES {
            return Err(());
        }
        if size == 0 {
            // Fields after the last chunk are nobody's business here.
            return Ok(Some(body));
        }
        let end = start + size;
        let (Some(chunk), Some(after)) = (rest.get(start..end), rest.get(end..)) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        rest = match after {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(()),
        };
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::Timeout,
        // What the library of TLS has to say about the other side.
        io::ErrorKind::InvalidData => Failure::Tls,
        _ => Failure::Broken,
    }
}

/// The most fields of an answer.
const MAX_FIELDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn body(received: &[u8], ended: bool) -> Option<(u16, Vec<u8>)> {
        match parse(received, ended) {
            Parsed::Answer(answer) => Some((answer.status, answer.body.to_vec())),
            _ => None,
        }
    }

    #[test]
    fn an_answer_ends_by_its_length_its_chunks_or_the_connection() {
        let cases: [(&[u8], bool, u16, &[u8]); 5] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false, 200, b"{}"),
            (b"HTTP/1.0 404 \r\n\r\n{}", true, 404, b"{}"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
                false,
                200,
                b"{}",
            ),
            (b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", false, 500, b""),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}", false, 200, b"{"),
        ];
        for (received, ended, status, expected) in cases {
            assert_eq!(body(received, ended), Some((status, expected.to_vec())));
        }
    }

    #[test]
    fn every_cut_of_an_answer_is_partial_and_no_answer() {
        for whole in [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".as_slice(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        ] {
            for end in 0..whole.len() {
                let cut = whole.get(..end).unwrap();
                assert!(matches!(parse(cut, true), Parsed::Partial), "{end}");
            }
        }
    }

    #[test]
    fn what_says_its_length_twice_or_wrongly_is_no_answer() {
        for fields in [
            "Content-Length: 2\r\nContent-Length: 2",
            "Content-Length: 2\r\nTransfer-Encoding: chunked",
            "Content-Length: +2",
            "Content-Length: -2",
            "Content-Length: 99999999999999999999999",
            "Content-Length: 65537",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{{}}");
            assert!(
                matches!(parse(text.as_bytes(), true), Parsed::Wrong),
                "{fields}"
            );
        }
        for text in [
            "SSH-2.0-OpenSSH",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "{\"key_id\":1}",
        ] {
            assert!(
                matches!(parse(text.as_bytes(), false), Parsed::Wrong),
                "{text}"
            );
        }
    }
}

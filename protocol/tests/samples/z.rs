//! Compressed messages: what is in them, and what is refused. Their DEFLATE is written by hand or by another library, so
//! that no vector moves with the one that is used here.

use tidegate_protocol::Code::{self, Malformed, Oversize};
use tidegate_protocol::limits::MESSAGE_BYTES;

pub struct Sample {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    /// The message in it, or the code of its refusal under the default limit.
    pub holds: Result<Vec<u8>, Code>,
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap())
        .collect()
}

/// DEFLATE in one block that is not compressed (RFC 1951, section 3.2.4).
pub fn stored(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap();
    [&[1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), message].concat()
}

/// A `z` of these parts, whatever they are.
pub fn z(size: u32, raw: &[u8]) -> Vec<u8> {
    let len = u32::try_from(raw.len()).unwrap();
    let head = b"\x83\xa1t\xa1z\xa4size\xce";
    [head, &size.to_be_bytes()[..], b"\xa3raw\xc6", &len.to_be_bytes(), raw].concat()
}

/// `ping`, as it is.
pub fn ping() -> Vec<u8> {
    unhex("82 a174 a470696e67 a26174 01")
}

pub fn all() -> Vec<Sample> {
    let mut all = Vec::new();
    let mut add = |name, bytes: Vec<u8>, holds| all.push(Sample { name, bytes, holds });
    let (ping, of_ping) = (ping(), unhex("6b5a58b2a420332f7d5162092300"));
    let auth = unhex(
        "82a174a461757468a5746f6b656ed9786364656964686162696367616261636361616168656165616361616661616c66616a63646169646a676\
         2626161616263616462626562626264616b61646661656263616161696165686962626365616465666169616263686268636262616161647161\
         616d63626163666262616861626661646963656162",
    );
    add(
        "one block that is not compressed",
        z(12, &stored(&ping)),
        Ok(ping.clone()),
    );
    add("fixed codes", z(12, &of_ping), Ok(ping.clone()));
    add(
        "codes of its own",
        z(
            136,
            &unhex(
                "05c1db0dc2500c44c15acfaeedd8090f45ba487cd30912144537ccbcdeebc363f577dd8fbcfd9e8e9c6834de1036d0496228b814bb8389\
                 7d930099905252701045cac0903d9293c862905b6d098813ae162e8946458c13fd01",
            ),
        ),
        Ok(auth.clone()),
    );
    add(
        "blocks between which it was flushed",
        z(
            136,
            &unhex(
                "6a5a58b224b1b4246369497e766adecd8ae494d4cc948cc4a4cce4f4c4a4c4e4e4c4c4c48cd4c4d44420232d3111000000ffff14cbb111\
                 00200c03b159fd388104f6af815aa793ea61957bc223860c01585b4e057f9462155c000000ffff4b4e4d4c494d03f2929233923292c13a\
                 520a131373938126a701b9407bd212533281ea9200",
            ),
        ),
        Ok(auth),
    );
    add(
        "a message that repeats",
        z(216, &unhex("6b5a58b224b1b4246369497e766adecd1315c3040000")),
        Ok([&b"\x82\xa1t\xa4auth\xa5token\xd9\xc8"[..], &[b'x'; 200]].concat()),
    );
    let size_last = [b"\x83\xa1t\xa1z\xa3raw\xc4\x0e", &of_ping[..], b"\xa4size\x0c"].concat();
    add("raw before size", size_last, Ok(ping.clone()));
    let unknown = [b"\x84\xa1t\xa1z\xa1x\xc0\xa4size\x0c\xa3raw\xc4\x0e", &of_ping[..]].concat();
    add("a key that is not known", unknown, Ok(ping));
    let change = [
        &b"\x96\xa1c\x07"[..],
        &[0xcf, 0, 0, 0, 0, 0, 0, 0, 9],
        &[0x01, 0x92, 0x01, 0x01, 0x90],
    ]
    .concat();
    let size = u32::try_from(change.len()).unwrap();
    add("a change", z(size, &stored(&change)), Ok(change));

    let limit = u32::try_from(MESSAGE_BYTES).unwrap();
    add("a size over the limit", z(limit + 1, &of_ping), Err(Oversize));
    let zeros = unhex("edc1010d000000c2a0f74f6d0f0714000000f06e");
    let huge = [
        b"\x83\xa1t\xa1z\xa4size\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xa3raw\xc4\x14",
        &zeros[..],
    ]
    .concat();
    add("a size of 2^64 - 1", huge, Err(Oversize));
    add("a size that raw cannot hold", z(limit, &of_ping), Err(Malformed));
    add("4 KiB that are said to be 12 bytes", z(12, &zeros), Err(Malformed));
    add("a byte more than its size", z(11, &of_ping), Err(Malformed));
    add("a byte less than its size", z(13, &of_ping), Err(Malformed));
    add("nothing, where there is something", z(0, &of_ping), Err(Malformed));
    add(
        "raw that ends early",
        z(12, &of_ping[..of_ping.len() - 1]),
        Err(Malformed),
    );
    add("raw that is empty", z(12, &[]), Err(Malformed));
    let more = [&of_ping[..], &[0]].concat();
    add("a byte behind the end of raw", z(12, &more), Err(Malformed));
    add("raw that is no DEFLATE", z(12, &[0x07; 14]), Err(Malformed));
    let zlib = unhex("789c6b5a58b2a420332f7d516209230026e50562");
    add("zlib, which is not raw DEFLATE", z(12, &zlib), Err(Malformed));
    let inner = z(12, &of_ping);
    let size = u32::try_from(inner.len()).unwrap();
    add("a z in a z", z(size, &stored(&inner)), Err(Malformed));
    add(
        "no size",
        [b"\x82\xa1t\xa1z\xa3raw\xc4\x0e", &of_ping[..]].concat(),
        Err(Malformed),
    );
    add("no raw", b"\x82\xa1t\xa1z\xa4size\x0c".to_vec(), Err(Malformed));
    let text = [b"\x83\xa1t\xa1z\xa4size\x0c\xa3raw\xae", &of_ping[..]].concat();
    add("raw that is text", text, Err(Malformed));
    add(
        "bytes after the message",
        [z(12, &of_ping), vec![0xc0]].concat(),
        Err(Malformed),
    );
    all
}

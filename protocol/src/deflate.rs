//! Compression of large messages: `z {size, raw}`, a message of both directions that holds another one.
//!
//! Only in MessagePack: the text form would spend in base64 most of what it saves. Who receives one bounds what it
//! inflates to before anything is reserved for it, so that a few bytes cannot become many.

use crate::error::{Code, Invalid};
use crate::msgpack;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::borrow::Cow;

/// What a client that takes compressed messages says in `hello.caps`, and a server that will use and take them in
/// `welcome.caps`.
pub const CAP: &str = "z";

/// Messages below this are not worth it, in bytes: it costs some 35 µs to compress one, however small.
pub const THRESHOLD: usize = 4 << 10;

/// The most that DEFLATE can make of a byte: 258 bytes of each two bits.
const EXPANSION: usize = 1_032;

/// The message as a `z`, if that takes at most 7/8 of its bytes: inflating is work for the other side.
///
/// The fastest level. On text it leaves a tenth to a third more bytes than the best, in a third of the time; what does
/// not shrink costs a fifth.
pub fn compress(message: &[u8]) -> Option<Vec<u8>> {
    let most = message.len() / 8 * 7;
    let mut raw = vec![0; most];
    let mut deflate = Compress::new(Compression::fast(), false);
    // A buffer that is full before the end is no error: it does not pay.
    let status = deflate.compress(message, &mut raw, FlushCompress::Finish).ok()?;
    raw.truncate(usize::try_from(deflate.total_out()).ok()?);
    let z = (status == Status::StreamEnd).then(|| msgpack::encode_z(message.len(), &raw));
    z.filter(|z| z.len() <= most)
}

/// The message in a `z`, or the message itself if it is none.
///
/// `bound`: the most bytes of a message. A `z` whose `size` is over it is `oversize`, and is not inflated; one that does
/// not hold exactly `size` bytes, or holds a `z`, is `malformed`. Both end the connection: which message it was cannot
/// be told. Takes memory for `size` bytes at most, and for no more than `raw` can hold.
pub fn expand(message: &[u8], bound: usize) -> Result<Cow<'_, [u8]>, Invalid> {
    let Some((size, raw)) = msgpack::decode_z(message)? else {
        return Ok(Cow::Borrowed(message));
    };
    let size = match usize::try_from(size) {
        Ok(size) if size <= bound => size,
        _ => {
            return Err(Invalid {
                code: Code::Oversize,
                message: format!("z.size is limited to {bound} bytes, found {size}"),
            });
        }
    };
    let message = inflate(raw, size).map_err(|why| Invalid::malformed(&format!("z.raw {why}")))?;
    match msgpack::decode_z(&message) {
        Ok(None) => Ok(Cow::Owned(message)),
        _ => Err(Invalid::malformed("a z in a z")),
    }
}

/// Exactly `size` bytes out of all of `raw`.
fn inflate(raw: &[u8], size: usize) -> Result<Vec<u8>, String> {
    if size > raw.len().saturating_mul(EXPANSION) {
        return Err(format!("cannot hold {size} bytes in {}", raw.len()));
    }
    // One byte of room more than there may be: taken, it shows that there is more.
    let mut message = vec![0; size + 1];
    let mut inflate = Decompress::new(false);
    let status = inflate.decompress(raw, &mut message, FlushDecompress::Finish);
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let (taken, given) = (count(inflate.total_in()), count(inflate.total_out()));
    match status {
        _ if given > size => Err(format!("inflates to more than its size, {size}")),
        Err(_) => Err("is not DEFLATE".to_owned()),
        Ok(Status::StreamEnd) if taken < raw.len() => {
            Err(format!("goes on for {} bytes behind its end", raw.len() - taken))
        }
        Ok(Status::StreamEnd) if given < size => Err(format!("inflates to {given} bytes, not to {size}")),
        Ok(Status::StreamEnd) => {
            message.truncate(size);
            Ok(message)
        }
        Ok(_) => Err("ends early".to_owned()),
    }
}

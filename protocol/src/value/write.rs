//! Writing of canonical MessagePack, over `rmp`. Writing to a `Vec` cannot fail.

use super::Timestamp;
use rmp::encode as mp;

const VEC: &str = "a Vec takes any write";

fn len(n: usize) -> u32 {
    u32::try_from(n).expect("lengths are bounded by the message size")
}

pub(crate) fn nil(out: &mut Vec<u8>) {
    mp::write_nil(out).expect(VEC);
}
pub(crate) fn bool(out: &mut Vec<u8>, b: bool) {
    mp::write_bool(out, b).expect(VEC);
}
pub(crate) fn int(out: &mut Vec<u8>, n: i64) {
    mp::write_sint(out, n).expect(VEC);
}
pub(crate) fn uint(out: &mut Vec<u8>, n: u64) {
    mp::write_uint(out, n).expect(VEC);
}
/// In 9 bytes whatever the number, so that it can be spliced in later.
pub(crate) fn uint_fixed(out: &mut Vec<u8>, n: u64) {
    mp::write_u64(out, n).expect(VEC);
}
pub(crate) fn float(out: &mut Vec<u8>, x: f64) {
    mp::write_f64(out, x).expect(VEC);
}
pub(crate) fn str(out: &mut Vec<u8>, text: &str) {
    mp::write_str(out, text).expect(VEC);
}
pub(crate) fn bin(out: &mut Vec<u8>, bytes: &[u8]) {
    mp::write_bin(out, bytes).expect(VEC);
}
pub(crate) fn array(out: &mut Vec<u8>, n: usize) {
    mp::write_array_len(out, len(n)).expect(VEC);
}
pub(crate) fn map(out: &mut Vec<u8>, n: usize) {
    mp::write_map_len(out, len(n)).expect(VEC);
}
pub(crate) fn ext(out: &mut Vec<u8>, kind: i8, bytes: &[u8]) {
    mp::write_ext_meta(out, len(bytes.len()), kind).expect(VEC);
    out.extend_from_slice(bytes);
}
/// The shortest of the three forms of the MessagePack specification.
pub(crate) fn timestamp(out: &mut Vec<u8>, at: Timestamp) {
    match (u32::try_from(at.secs), u64::try_from(at.secs)) {
        (Ok(secs), _) if at.nanos == 0 => ext(out, -1, &secs.to_be_bytes()),
        (_, Ok(secs)) if secs < 1 << 34 => ext(out, -1, &((u64::from(at.nanos) << 34) | secs).to_be_bytes()),
        _ => {
            let mut body = [0; 12];
            body[..4].copy_from_slice(&at.nanos.to_be_bytes());
            body[4..].copy_from_slice(&at.secs.to_be_bytes());
            ext(out, -1, &body);
        }
    }
}

//! Numbers in as few bytes as they need: seven bits a byte, the lowest first (LEB128).
//!
//! There is one way to write each, and no other is read.

/// Most bytes of a number.
pub const VARINT_BYTES_MAX: usize = 10;

/// Writes a number to the start of `out`, and returns how many bytes it took.
///
/// # Panics
/// If they are more than `out` has; [`VARINT_BYTES_MAX`] always do.
pub fn write(mut value: u64, out: &mut [u8]) -> usize {
    let mut at = 0;
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        at += 1;
        value >>= 7;
    }
    out[at] = value as u8;
    at + 1
}

/// The number at the start of `bytes`, and what follows it.
#[inline]
#[must_use]
pub fn read(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match bytes {
        [byte @ ..0x80, rest @ ..] => Some(((*byte).into(), rest)),
        _ => read_long(bytes),
    }
}

fn read_long(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(VARINT_BYTES_MAX) {
        let bits = u64::from(byte & 0x7f);
        value |= bits << (7 * at);
        if *byte < 0x80 {
            // The last byte says something, and no more than there are bits for.
            let fits = bits != 0 && (at + 1 < VARINT_BYTES_MAX || bits == 1);
            return fits.then_some((value, &bytes[at + 1..]));
        }
    }
    None
}

/// A difference as a number that is small if the difference is: 0, -1, 1, -2 ... as 0, 1, 2, 3 ...
#[must_use]
pub const fn fold(difference: i64) -> u64 {
    (difference << 1 ^ difference >> 63).cast_unsigned()
}

/// Undoes [`fold`].
#[must_use]
pub const fn unfold(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(value: u64) -> Vec<u8> {
        let mut out = [0; VARINT_BYTES_MAX];
        let len = write(value, &mut out);
        out[..len].to_vec()
    }

    #[test]
    fn golden_bytes() {
        for (value, golden) in [
            (0, &[0][..]),
            (127, &[127]),
            (128, &[128, 1]),
            (16_384, &[128, 128, 1]),
            (
                u64::MAX >> 1,
                &[255, 255, 255, 255, 255, 255, 255, 255, 127],
            ),
            (u64::MAX, &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ] {
            assert_eq!(bytes(value), golden);
            assert_eq!(read(golden), Some((value, &[][..])));
        }
    }

    #[test]
    fn what_is_longer_than_need_be_or_larger_than_64_bits_is_refused() {
        for wrong in [
            &[][..],
            &[0x80],
            &[0x80, 0],
            &[0xff, 0x80, 0],
            &[255, 255, 255, 255, 255, 255, 255, 255, 255, 0],
            &[255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            &[255, 255, 255, 255, 255, 255, 255, 255, 255, 0x81, 0],
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn small_differences_are_small_numbers() {
        for (number, difference) in [0, -1, 1, -2, 2].into_iter().enumerate() {
            assert_eq!(fold(difference), number as u64);
        }
        assert_eq!(fold(i64::MIN), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_number_is_read_back(shift in 0..64, value: u64, rest: Vec<u8>) {
            let value = value >> shift;
            let whole = [bytes(value), rest.clone()].concat();
            prop_assert_eq!(read(&whole), Some((value, &rest[..])));
        }

        #[test]
        fn what_is_read_is_what_would_be_written(any: Vec<u8>) {
            if let Some((value, rest)) = read(&any) {
                prop_assert_eq!([&bytes(value)[..], rest].concat(), any);
            }
        }

        #[test]
        fn a_difference_is_read_back(difference: i64) {
            prop_assert_eq!(unfold(fold(difference)), difference);
        }
    }
}

//! Seeded damage of files.

/// Numbers that damage likes, as they are written in binary files: large, negative, of many bytes.
const NUMBERS: [&[u8]; 8] = [
    &[0; 4],
    &[0xff; 4],
    &[0xff; 8],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0, 0, 0, 0x80],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x80, 0x08],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
];

/// The same in texts.
const DIGITS: [&[u8]; 8] =
    [b"0", b"-1", b"1000000000", b"4294967296", b"9223372036854775807", b"18446744073709551616", b"1e308", b"0.5"];

/// The `number`-th damaged file of this seed: one of `files` with one to eight changes.
pub fn of(files: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    let mut draw = Draw(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    let mut bytes = files[draw.below(files.len())].clone();
    for _ in 0..1 << draw.below(4) {
        change(&mut bytes, &mut draw, files);
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") && draw.below(4) > 0 {
        sign(&mut bytes);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, draw: &mut Draw, files: &[Vec<u8>]) {
    let end = bytes.len();
    let at = draw.below(end + 1);
    let most = 1 << draw.below(7);
    let length = draw.below(most).min(end - at);
    // In a text the numbers are what matters.
    let kinds = if bytes.is_ascii() { 14 } else { 9 };
    match draw.below(kinds) {
        0 | 1 if at < end => bytes[at] ^= 1 << draw.below(8),
        2 if at < end => bytes[at] = draw.below(256) as u8,
        3 => drop(bytes.splice(at..(at + 4).min(end), NUMBERS[draw.below(8)].iter().copied())),
        4 | 9.. => drop(bytes.splice(number_after(bytes, at), DIGITS[draw.below(8)].iter().copied())),
        5 => drop(bytes.drain(at..at + length)),
        6 => {
            let again = bytes[at..at + length].to_vec();
            let to = draw.below(end + 1);
            drop(bytes.splice(to..to, again));
        }
        7 => {
            let other = &files[draw.below(files.len())];
            let from = draw.below(other.len() + 1);
            drop(bytes.splice(at..at + length, other[from..(from + length.max(8)).min(other.len())].iter().copied()));
        }
        8 if draw.below(8) == 0 => bytes.truncate(at),
        _ => {}
    }
}

/// Where the next number in a text stands, from `at` on.
fn number_after(bytes: &[u8], at: usize) -> std::ops::Range<usize> {
    let start = at + bytes[at..].iter().take_while(|b| !b.is_ascii_digit()).count();
    start..start + bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count()
}

/// Makes the checksums of a PNG's chunks right, so that the decoder reads what was damaged.
fn sign(png: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4).map(|l| u32::from_be_bytes([l[0], l[1], l[2], l[3]]) as usize) {
        let (from, to) = (at + 4, (at + 8).saturating_add(length));
        let Some(chunk) = png.get(from..to) else { break };
        let sum = crc32fast::hash(chunk).to_be_bytes();
        let Some(place) = png.get_mut(to..to + 4) else { break };
        place.copy_from_slice(&sum);
        at = to + 4;
    }
}

/// Numbers that look random and are the same every time (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n` - 1.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

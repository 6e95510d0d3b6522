//! Single-byte encodings that text is often wrongly decoded with: the characters of bytes 0x80 to 0xff in each. The Windows ones are
//! "sloppy" as in ftfy: an undefined byte is the character of the same number. The tables are those of ftfy 6.3.1 and of Unicode.

/// A single-byte encoding whose lower half is ASCII.
#[derive(Clone, Copy)]
pub(super) struct Charmap {
    /// The characters of bytes 0x80 to 0xff, as far as they are not all [`SAME`].
    high: &'static str,
    /// In sloppy encodings byte 0x1a stands for U+FFFD, which replaced an unknown byte.
    pub sloppy: bool,
    /// Whether a space may have been byte 0xa0: in all of them but MacRoman.
    pub space_may_be_a0: bool,
}

/// All encodings, in the order in which ftfy tries them (CHARMAP_ENCODINGS).
pub(super) const CHARMAPS: [Charmap; 10] = [
    LATIN_1,
    sloppy(WINDOWS_1252),
    sloppy(WINDOWS_1251),
    sloppy(WINDOWS_1250),
    sloppy(WINDOWS_1253),
    sloppy(WINDOWS_1254),
    sloppy(WINDOWS_1257),
    Charmap { high: ISO_8859_2, sloppy: false, space_may_be_a0: true },
    Charmap { high: MACROMAN, sloppy: false, space_may_be_a0: false },
    Charmap { high: CP437, sloppy: false, space_may_be_a0: true },
];

pub(super) const LATIN_1: Charmap = Charmap { high: "", sloppy: false, space_may_be_a0: true };

const fn sloppy(high: &'static str) -> Charmap {
    Charmap { high, sloppy: true, space_may_be_a0: true }
}

impl Charmap {
    /// The bytes that decode to `text`, or `None` if a character is not in this encoding.
    pub fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.byte(c)).collect()
    }

    fn byte(&self, c: char) -> Option<u8> {
        match u32::from(c) {
            0x1a if self.sloppy => None,
            0xfffd if self.sloppy => Some(0x1a),
            code @ 0..0x80 => Some(code as u8),
            code => match self.high.chars().position(|high| high == c && high != SAME) {
                Some(i) => Some(i as u8 + 0x80),
                None => u8::try_from(code).ok().filter(|&byte| decode(self.high, byte) == c),
            },
        }
    }
}

/// The character of a byte in sloppy Windows-1252.
pub(super) fn windows_1252(byte: u8) -> char {
    decode(WINDOWS_1252, byte)
}

fn decode(high: &str, byte: u8) -> char {
    let other = byte.checked_sub(0x80).and_then(|i| high.chars().nth(i.into())).filter(|&c| c != SAME);
    other.unwrap_or(char::from(byte))
}

/// In the tables below: the byte stands for the character of the same number.
const SAME: char = '□';

const WINDOWS_1252: &str = "\
    €□‚ƒ„…†‡ˆ‰Š‹Œ□Ž□□‘’“”•–—˜™š›œ□žŸ□¡¢£¤¥¦§¨©ª«¬□®¯°±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ";
const WINDOWS_1251: &str = "\
    ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—□™љ›њќћџ□ЎўЈ¤Ґ¦§Ё©Є«¬□®Ї°±Ііґµ¶·ё№є»јЅѕї\
    АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдежзийклмнопрстуфхцчшщъыьэюя";
const WINDOWS_1250: &str = "\
    €□‚□„…†‡□‰Š‹ŚŤŽŹ□‘’“”•–—□™š›śťžź□ˇ˘Ł¤Ą¦§¨©Ş«¬□®Ż°±˛ł´µ¶·¸ąş»Ľ˝ľż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
const WINDOWS_1253: &str = "\
    €□‚ƒ„…†‡□‰□‹□□□□□‘’“”•–—□™□›□□□□□΅Ά£¤¥¦§¨©ª«¬□®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏ\
    ΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήίΰαβγδεζηθικλμνξοπρςστυφχψωϊϋόύώÿ";
const WINDOWS_1254: &str = "\
    €□‚ƒ„…†‡ˆ‰Š‹Œ□□□□‘’“”•–—˜™š›œ□□Ÿ□¡¢£¤¥¦§¨©ª«¬□®¯°±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßàáâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ";
const WINDOWS_1257: &str = "\
    €□‚□„…†‡□‰□‹□¨ˇ¸□‘’“”•–—□™□›□¯˛□□¡¢£¤¥¦§Ø©Ŗ«¬□®Æ°±²³´µ¶·ø¹ŗ»¼½¾æ\
    ĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽßąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüżž˙";
const ISO_8859_2: &str = "\
    □□□□□□□□□□□□□□□□□□□□□□□□□□□□□□□□□Ą˘Ł¤ĽŚ§¨ŠŞŤŹ□ŽŻ°ą˛ł´ľśˇ¸šşťź˝žż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
const MACROMAN: &str = "\
    ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø\
    ¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";
const CP437: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

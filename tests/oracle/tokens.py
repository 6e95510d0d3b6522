"""Makes tests/fixtures/tokens.json: tricky prompts and the token ids that the peers give them.

    python tests/oracle/tokens.py tests/fixtures/tokens.json [COUNT [SEED]]

Made with Python 3.11.7, open_clip 3.3.0, ftfy 6.3.1, transformers 5.23.0, tokenizers 0.22. COUNT prompts are drawn beside
the fixed ones: words, emoji, entities, and text that was decoded in a wrong encoding, as scraped captions have it.
"""

import json
import pathlib
import random
import sys
import tempfile

from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from transformers import CLIPTokenizerFast

MERGES = pathlib.Path(__file__).parents[2] / "common/nets/src/tokenizer/clip_merges.txt"

FIXED = [
    "", " ", "\n \n", "a", "A photo of a CAT", "naïve café déjà vu", "cafe\u0301 decomposed", "ß ẞ İstanbul ŉ",
    "日本の城、桜と富士山", "고양이 кошка γάτα ΟΔΥΣΣΕΥΣ", "😀👩\u200d👩\u200d👧 ❤️\u200d🔥 end", "ﬁ ﬀ ½ ² ™ ① Ⅻ ٣٤٥",
    "&amp; &lt;b&gt; &quot;q&quot; &#39;x&#39; &eacute; &EACUTE; &amp;amp; &copy &notit; &#x80; &#0; &#1;",
    "<b>&amp;</b>\n&amp;", "tabs\t\tand\xa0nbsp\u3000wide\u2028line\u2029para\x85next\x1cfile",
    "“smart” ‘quotes’ — dash … ʼn ″", "cafÃ© â€œquotesâ€\x9d â€™s Ã ", "don't I'LL we've they're she'd it's I'm 'ſ",
    "1,000,000 3.14 a1b2 4K!!! ??? ---", "(masterpiece:1.3), [x] {y} <lora:x:0.8> $100 €50", "!", "a!b !! !c! ''", "''''",
    "<|startoftext|> literal <|endoftext|> and <START_OF_TEXT> <end_of_text> !!<start_of_text>", "zero\u200bwidth\ufeffbom\x00\x1b[31mred\x1b[0m",
    "ＬＯＵＤ　ＮＯＩＳＥＳ Ｕﾀｰﾝ", "Ǆ ǅ ǆ Ǉ ĳ", "𝔉𝔞𝔫𝔠𝔶", "x" * 300, "é" * 120, "!" * 200, "漢字" * 60, "word " * 90,
    "a\u0345 alpha\u0345B \u0345",
]

WORDS = (
    "a the of castle Dragon CYBERPUNK owl über façade naïve 1980s 4k (detailed:1.2) portrait, street. don't it's – — … “neon” ‘old’ "
    "東京 🚀 città señor Москва αθήνα Łódź žlutý kůň Ærø às à é ñ È Ç ¿qué? «ici» 20°C €5 ½ × © ® ™ æ œ ﬂag ！ ｗ &amp; &lt; &eacute; "
    "&NBSP; &#8217; &hellip; &quot it&#x27;s ! !! \xa0 \u200b \x85 \x92 \ufffd ? Â Ã ā€ вЂ"
).split(" ")

ENCODINGS = "latin-1 windows-1252 windows-1251 windows-1250 windows-1253 windows-1254 windows-1257 iso-8859-2 macroman cp437".split()


def mojibake(rng, text):
    encoding = rng.choice(ENCODINGS)
    data = text.encode("utf-8")
    if rng.random() < 0.1:  # UTF-16 surrogates, each in UTF-8
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass").encode("utf-8")
        data = b"".join(
            c.encode("utf-8") if ord(c) < 0x10000 else "".join(map(chr, pair(c))).encode("utf-8", "surrogatepass") for c in text
        )
    if encoding.startswith("windows") and rng.random() < 0.7:
        from ftfy import bad_codecs  # noqa: F401

        encoding = "sloppy-" + encoding
    wrong = data.decode(encoding, "replace")
    return wrong.replace("\xa0", " ") if rng.random() < 0.3 else wrong


def pair(c):
    code = ord(c) - 0x10000
    return 0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF)


def draw(rng):
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 14))]
    text = rng.choice([" ", ", ", " ", "\n"]).join(words)
    kind = rng.random()
    if kind < 0.35:
        text = mojibake(rng, text)
        if rng.random() < 0.25:
            text = mojibake(rng, text)
    elif kind < 0.6:
        text = " ".join(mojibake(rng, w) if rng.random() < 0.4 else w for w in words)
    elif kind < 0.7:
        text = text.upper()
    return text


def main(path, count=120, seed=0):
    rng = random.Random(int(seed))
    prompts = FIXED + [draw(rng) for _ in range(int(count))]
    open_clip = SimpleTokenizer()
    singles = list(bytes_to_unicode().values())
    merges = [line.replace(" ", "") for line in MERGES.read_text().splitlines()[1:]]
    tokens = singles + [c + "</w>" for c in singles] + merges + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
        (folder / "merges.txt").write_text(MERGES.read_text())
        fast = CLIPTokenizerFast.from_pretrained(str(folder))
        bang = CLIPTokenizerFast.from_pretrained(str(folder), pad_token="!")
    rows = []
    for prompt in prompts:
        ids = open_clip([prompt])[0].tolist()
        last = len(ids) - ids[::-1].index(49407)
        rows.append({
            "prompt": prompt,
            "open_clip": ids[:last],
            "hf_fast": fast(prompt, max_length=77, truncation=True)["input_ids"],
            "pad_bang_77": bang(prompt, max_length=77, truncation=True, padding="max_length")["input_ids"],
        })
    text = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    pathlib.Path(path).write_text('{"rows": [\n' + text + "\n]}\n", newline="")


if __name__ == "__main__":
    main(*sys.argv[1:])

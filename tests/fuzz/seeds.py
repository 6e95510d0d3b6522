"""Writes the first inputs of the fuzzers, each as small as its kind allows: python tests/fuzz/seeds.py

Needs pyarrow and numpy. The other files in corpus/ are what the fuzzers found. They stay."""
import json
import random
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

warnings.simplefilter("ignore")
HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
MINI = HERE.parent.parent / "pipelines/mini"


def put(target, name, data):
    path = HERE / "corpus" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def sink(write):
    out = pa.BufferOutputStream()
    write(out)
    return out.getvalue().to_pybytes()


def parquet(table, **options):
    return sink(lambda out: pq.write_table(table, out, **{"compression": "none", **options}))


def ipc(table, open_with, **options):
    def write(out):
        with open_with(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table)
    return sink(write)


# Tables: the columns that the tools read, and the types that pandas, polars and Spark make of them.
f32 = lambda *values: pa.array(values, pa.float32())
text = lambda *values: pa.array(values)
origin = {"origin": json.dumps({"tool": "score", "version": "0.1.0", "args": {"seed": 1}, "models": {"hps": "ab"},
                                "inputs": [{"sha256": "cd", "origin": {"tool": "prompts", "version": "0.1.0", "args": {}}}]})}
scores = pa.table({"pair_id": text("a", "b", "c"), "caption": text("a cat", "", "c\u00e9"), "label_0": f32(1, None, 0.5), "hps_0": f32(0.25, None, 0.5),
                   "hps_1": f32(0.5, 0.25, 0.125)}).replace_schema_metadata(origin)
scored = pa.table({"prompt_id": text("a", "a"), "prompt": text("x", "x"), "set": pa.array(["s", "s"]).dictionary_encode(), "k": pa.array([0, 1], pa.uint32()),
                   "seed": pa.array([1, 2**64 - 1], pa.uint64()), "hps": pa.array([0.5, float("nan")], pa.float64())})
image = (FIXTURES / "preprocess/tiny.png").read_bytes()
pairs = pa.table({"caption": text("x"), "jpg_0": pa.array([image]), "jpg_1": pa.array([{"bytes": image, "path": "a"}]), "label_0": pa.array([1], pa.int64())})
odd = pa.table({"caption": pa.array(["x", None, "y"], pa.large_string()), "view": pa.array(["a", "b", "long enough for a view"], pa.string_view()), "b": pa.array([True, None, False]),
                "list": pa.array([[1.0], None, [2.0, 3.0]], pa.list_(pa.float32())), "fixed": pa.array([b"ab", b"cd", None], pa.binary(2)), "half": pa.array(np.float16([1, 2, 3])),
                "time": pa.array([1, 2, 3], pa.timestamp("us")), "dec": pa.array([1, 2, 3], pa.decimal128(9, 2)), "none": pa.nulls(3), "big": pa.array([b"x", b"", None], pa.large_binary())})
for name, table in {"scores": scores, "scored": scored, "pairs": pairs, "odd": odd, "empty": scores.slice(0, 0)}.items():
    put("table", f"{name}.parquet", parquet(table))
    for kind, how in {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}.items():
        put("table", f"{name}.{kind}", ipc(table, how))
        for codec in ("lz4", "zstd") if name in ("scores", "odd") else ():
            put("table", f"{name}.{codec}.{kind}", ipc(table, how, compression=codec))
for codec in ("snappy", "gzip", "lz4", "brotli", "zstd"):
    put("table", f"{codec}.parquet", parquet(scores, compression=codec, row_group_size=2))
put("table", "pages2.parquet", parquet(scores, data_page_version="2.0", use_dictionary=False, write_page_index=True,
                                      column_encoding={"pair_id": "DELTA_BYTE_ARRAY", "caption": "DELTA_LENGTH_BYTE_ARRAY", "hps_0": "BYTE_STREAM_SPLIT"}))
put("table", "packed.parquet", parquet(scored, use_dictionary=False, column_encoding={"k": "DELTA_BINARY_PACKED", "seed": "DELTA_BINARY_PACKED"}))
put("table", "checksums.parquet", parquet(scores, write_page_checksum=True))

# An Arrow file whose footer is said to be long, and one with a batch that is said to be
file = ipc(scores, pa.ipc.new_file)
put("table", "long-footer.file", file[:-10] + struct.pack("<i", 0x7FFFFF00) + file[-6:])
footer = len(file) - 10 - struct.unpack("<i", file[-10:-6])[0]
for at in range(footer, len(file) - 33):
    offset, metadata, padding, body = struct.unpack("<qiiq", file[at:at + 24])
    if 0 < offset < footer and 0 < metadata < footer and padding == 0 and 0 < body < footer:
        put("table", "long-batch.file", file[:at + 16] + struct.pack("<q", 1 << 40) + file[at + 24:])

# Prompts
prompts = pa.table({"prompt": text("a cat", "a cat", "", "b"), "category": text("x", None, "y", "z"), "nsfw_prob": f32(0.5, None, 0, 1)})
put("prompts", "table.parquet", parquet(prompts))
put("prompts", "table.stream", ipc(prompts, pa.ipc.new_stream))
put("prompts", "table.file", ipc(prompts, pa.ipc.new_file))
for name, data in {
    "lines": "a cat\r\na dog\n\n\u00e9t\u00e9\n", "bom": "\ufeffa cat\n", "tsv": "Prompt\tCategory\tChallenge\na cat\tAnimals\t\nb\t\tx\n", "header": "prompt\na cat\n",
    "csv": "prompt,category\n\"a, b\",c\n", "quoted-csv": "\"prompt\",\"b\"\n\"a \"\"cat\"\"\nline\",c\n", "json": '["a cat", {"prompt": "b", "category": "c"}]', "json-lines": '{"prompt": "a"}\n{"caption": "b"}\n',
    "brackets": "[a] cat\n{b} dog\n", "open": '["a', "nested": "[" * 200 + "]" * 200, "latin1": b"caf\xe9\n", "utf16": "a cat".encode("utf-16"), "object": '{"prompts": ["a", "b"]}',
    "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", "nul": b"a\0b\n",
}.items():
    put("prompts", name, data)

# Captions: lines of the mini world's prompts, and what the cleaning has rules for
for name, data in {
    "plain": "a photo of a cat, 4k, trending on artstation", "entities": "a &amp;amp; b &lt;cat&gt; &#233;&#xe9;&#x110000; &notit; &copy", "nested": "&amp;" * 3 + "amp;amp;", "mojibake": "schÃ¶n â€œquotedâ€\x9d Ã©tÃ©",
    "terminal": "\x1b[31mred\x1b[0m \x85 \u2028 \x1c x", "wide": "ＡＢＣ ﬁ ﬂ ĳ ǆ 〇 　 ﾊﾟ", "quotes": "\u2018a\u2019 \u201cb\u201d", "tokens": "<|startoftext|> <start_of_text> !!! it's we'll <|endoftext|>",
    "emoji": "👩‍👩‍👧 🏳️‍🌈 ﷽ \u0345 e\u0301\u0323", "long": "word " * 120, "html": "<b>&amp;</b>\n&amp;", "controls": bytes(range(256)), "hebrew": "\u05d0\u0591 \ufeff\u206a\ufffc", "digits": "1234567890 ١٢٣ ⅷ",
}.items():
    put("caption", name, data)

# Files of a tokenizer, cut small
specials = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}, "unk_token": "<|endoftext|>", "pad_token": "!"}
vocabulary = {token: i for i, token in enumerate(["!", "a", "a</w>", "c", "t</w>", "at</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>"])}
put("tokenizer", "special_tokens_map.json", json.dumps(specials))
put("tokenizer", "tokenizer_config.json", json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **specials}))
put("tokenizer", "vocab.json", json.dumps(vocabulary))
put("tokenizer", "merges.txt", "#version: 0.2\na t</w>\nc at</w>\n")
put("tokenizer", "vocab.txt", (FIXTURES / "safe/vocab.txt").read_bytes())
token = lambda id, content: {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
for name, extra in {"": {}, "-more": {"truncation": {"direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0}, "padding": {"strategy": {"Fixed": 77}, "direction": "Right",
                    "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}}.items():
    put("tokenizer", f"tokenizer{name}.json", json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [token(7, "<|startoftext|>"), token(8, "<|endoftext|>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "'s|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}, "behavior": "Removed", "invert": True},
                                                              {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 8], "cls": ["<|startoftext|>", 7], "trim_offsets": False, "add_prefix_space": False}, "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False,
                  "vocab": vocabulary, "merges": ["a t</w>", "c at</w>"]}, **extra}))


# Weights
def safetensors(tensors, metadata=None):
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


four = np.float32([1, 2, 3, 4]).tobytes()
put("weights", "plain", safetensors({"a": ("F32", [2, 2], four), "b": ("F16", [2], b"\0\x3c\0\x40"), "c": ("BF16", [1], b"\x80\x3f"), "d": ("I64", [1], b"\1" + b"\0" * 7)}))
put("weights", "types", safetensors({t: (t, [8 // n], bytes(range(8))) for t, n in {"F64": 8, "I32": 4, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "U32": 4, "U64": 8}.items()}))
put("weights", "scalar", safetensors({"a": ("F32", [], four[:4]), "empty": ("F32", [0, 3], b"")}))
put("weights", "origin", safetensors({"a": ("F32", [4], four)}, origin))
state = {"counters": {"step": 3, "seed": 0, "effective_batch": 4, "labels": "ab", "reference": "cd", "named": None, "lora": None, "usual": [0.5, 0.25], "skipped": 0},
         "origin": {"tool": "train", "version": "0.1.0", "args": {"seed": 0}}, "merged": False}
put("weights", "state", safetensors({"m.conv_in.weight": ("F32", [4], four), "v.conv_in.weight": ("F32", [2, 2], four)}, {"train": json.dumps(state), "crc32c": "0"}))
peft = {"unet.lora_alpha": 4, "unet.peft_type": "LORA", "unet.r": 1, "unet.target_modules": ["to_q"]}
put("weights", "adapters", safetensors({"unet.a.to_q.lora_A.weight": ("F32", [1, 4], four), "unet.a.to_q.lora_B.weight": ("F32", [4, 1], four)}, {"lora_adapter_metadata": json.dumps(peft)}))
put("weights", "noise", safetensors({"latents": ("F32", [1, 1, 2, 2], four), "step_noise": ("F32", [4, 1, 1, 2, 2], four * 4)}))
put("weights", "nothing", safetensors({}))

# Pickles: the archives of the tests, and the pickles inside them
for file in sorted((FIXTURES / "pickle").glob("*.pt")):
    put("pickle", file.name, file.read_bytes())
    try:
        with zipfile.ZipFile(file) as archive:
            put("pickle", f"{file.stem}.pkl", archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    except (zipfile.BadZipFile, StopIteration):
        pass

# Pictures
for file in sorted((FIXTURES / "preprocess").glob("*.*g")) + sorted((FIXTURES / "preprocess").glob("*.webp")):
    if file.stat().st_size < 2500:
        put("picture", file.name, file.read_bytes())

# Configurations
for part in ("unet", "vae", "text_encoder"):
    for model in ("oracle/base", "sample/sd21", "sample/sdxl"):
        put("config", f"{model.split('/')[1]}-{part}", json.dumps(json.loads((FIXTURES / model / part / "config.json").read_text())))
for model in ("oracle/base", "sample/sd21", "sample/sdxl"):
    put("config", f"{model.split('/')[1]}-scheduler", json.dumps(json.loads((FIXTURES / model / "scheduler/scheduler_config.json").read_text())))
put("config", "safe", json.dumps(json.loads((FIXTURES / "safe/config.json").read_text())))
tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
put("config", "clip", json.dumps({"projection_dim": 4, "text_config": {"vocab_size": 610, "max_position_embeddings": 16, "eos_token_id": 609, **tower},
                                  "vision_config": {"image_size": 8, "patch_size": 4, **tower}}))
put("config", "preprocessor", json.dumps({"do_resize": True, "size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True, "do_normalize": True, "resample": 3,
                                          "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "do_rescale": True, "do_convert_rgb": True}))
put("config", "preprocessor-int", json.dumps({"size": 8, "crop_size": 8}))
put("config", "open_clip", json.dumps({"model_cfg": {"embed_dim": 4, "quick_gelu": True, "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 4, "mlp_ratio": 2.0, "patch_size": 4},
                                       "text_cfg": {"context_length": 16, "vocab_size": 610, "width": 8, "heads": 2, "layers": 1, "mlp_ratio": 2.0}}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
put("config", "index", json.dumps({"metadata": {"total_size": 9}, "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}))
put("config", "index-outside", json.dumps({"weight_map": {"a": "../base/unet/diffusion_pytorch_model.safetensors", "b": "/dev/zero"}}))
put("config", "scheduler-euler", json.dumps({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "use_karras_sigmas": True, "final_sigmas_type": "sigma_min",
                                             "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}))
put("config", "scheduler-betas", '{"trained_betas": [0.1, 0.2, 0.3, 0.4, 0.5], "num_train_timesteps": 5, "steps_offset": 1, "lambda_min_clipped": -Infinity}')

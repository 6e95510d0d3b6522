"""Makes tests/fixtures/pickle: small torch files of every kind, and files that would run code.

    python tests/oracle/torch_pickle.py tests/fixtures/pickle

Made with Python 3.11.7, torch 2.15.0, safetensors. Beside each good `NAME.pt` stands `NAME.safetensors` with the tensors
that `torch.load` gives; `bad_*.pt` must be refused. Torch's own unpickler is never run on those.
"""

import collections
import pathlib
import pickle
import struct
import sys
import zipfile

import torch
from safetensors.torch import save_file


def good():
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    yield "state_dict", module.state_dict()  # OrderedDict with _metadata, i64 counter
    yield "dtypes", {
        "f16": x.half(), "bf16": x.bfloat16(), "f64": x.double(), "i64": torch.arange(-3, 4), "u8": torch.arange(5).byte(),
        "i32": torch.arange(3).int(), "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3),
    }
    yield "views", {
        "whole": x, "transposed": x.t(), "row": x[2], "part": x[1:4, 2:], "steps": x[::2, ::3], "tied": x,
        "ones": x[:1], "permuted": torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
    }
    parameter = torch.nn.Parameter(torch.randn(2, 2))
    yield "nested", {
        "epoch": 3, "name": "run", "loss": 0.5, "big": 2**70, "none": None, "list": [1, "a", (True, b"bytes")],
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "state_dict": collections.OrderedDict([("weight", parameter), ("half", torch.ones(3).half())]),
    }


def archive(path, data, storages=()):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", data)
        for key, body in storages:
            z.writestr(f"archive/data/{key}", body)


class Evil:
    def __init__(self, what):
        self.what = what

    def __reduce__(self):
        return self.what


def tensor_pickle(offset, shape, strides, numel, storage="FloatStorage"):
    """A state dict of one tensor, spelled in opcodes."""

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def number(n):
        return b"\x8a\x08" + struct.pack("<q", n)

    def tuple_of(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    persistent = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text("0") + text("cpu") + number(numel) + b"tQ"
    args = b"(" + persistent + number(offset) + tuple_of(shape) + tuple_of(strides) + b"\x89Nt"
    return b"\x80\x02}" + text("x") + b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"Rs."


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in good():
        torch.save(content, folder / f"{name}.pt")
        loaded = torch.load(folder / f"{name}.pt", weights_only=False)
        tensors = loaded.get("state_dict", loaded)
        tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items() if isinstance(v, torch.Tensor)}
        save_file({k: v.byte() if v.dtype == torch.bool else v for k, v in tensors.items()}, folder / f"{name}.safetensors")
    for protocol in (3, 4, 5):
        torch.save({"x": torch.arange(3.0), "n": 1}, folder / f"protocol{protocol}.pt", pickle_protocol=protocol)
        save_file({"x": torch.arange(3.0)}, folder / f"protocol{protocol}.safetensors")

    evil = {"os.system": Evil((__import__("os").system, ("touch pwned",))), "eval": Evil((eval, ("1",)))}
    for name, thing in evil.items():
        for protocol in (0, 2, 4):
            archive(folder / f"bad_{name}_{protocol}.pt", pickle.dumps({"x": thing}, protocol))
    archive(folder / "bad_instance.pt", b"(S'touch pwned'\nios\nsystem\n.")
    archive(folder / "bad_outside.pt", tensor_pickle(2, [3], [1], 4), [("0", bytes(16))])
    archive(folder / "bad_huge.pt", tensor_pickle(0, [2**40], [0], 4), [("0", bytes(16))])
    archive(folder / "bad_negative.pt", tensor_pickle(0, [-1], [1], 4), [("0", bytes(16))])
    archive(folder / "bad_short.pt", tensor_pickle(0, [2**40], [1], 2**40), [("0", bytes(16))])
    archive(folder / "bad_missing.pt", tensor_pickle(0, [4], [1], 4))
    archive(folder / "bad_type.pt", tensor_pickle(0, [4], [1], 4, "ComplexFloatStorage"), [("0", bytes(32))])
    archive(folder / "bad_deep.pt", b"\x80\x02N" + b"\x85" * 3000 + b".")
    archive(folder / "bad_number.pt", pickle.dumps(3, 2))
    torch.save({"x": torch.zeros(2)}, folder / "bad_before_1.6.pt", _use_new_zipfile_serialization=False)
    (folder / "bad_truncated.pt").write_bytes((folder / "state_dict.pt").read_bytes()[:-300])


if __name__ == "__main__":
    main(*sys.argv[1:])

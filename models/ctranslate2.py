"""Whisper's encoder out of a CTranslate2 model file (`model.bin`), under transformers' names.

The layout is that of CTranslate2's python/ctranslate2/specs/model_spec.py (binary version 6); CTranslate2 itself is not needed.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_variables(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, array) of every variable; raises ValueError where the file is none of these or ends early."""

    def unpack(form: str) -> int:
        size = struct.calcsize(form)
        data = file.read(size)
        if len(data) < size:
            raise ValueError("the file ends early")
        return int(struct.unpack(form, data)[0])

    def name() -> str:
        return file.read(unpack("<H")).rstrip(b"\0").decode()

    if (version := unpack("<I")) != 6:
        raise ValueError(f"a CTranslate2 file of version 6 is wanted, this one says {version}")
    name()
    unpack("<I")  # the specification's revision
    for _ in range(unpack("<I")):
        variable = name()
        shape = [unpack("<I") for _ in range(unpack("<B"))]
        dtype, size = unpack("<B"), unpack("<I")
        data = file.read(size)
        if len(data) < size:
            raise ValueError(f"the file ends within {variable!r}")
        yield variable, np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def whisper_encoder(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of transformers' WhisperEncoder, named `model.encoder.*`; the decoder is passed over.

    CTranslate2 has the query, key and value projections in one matrix, (3 x width, width); Whisper's key projection has no bias, so that
    part of theirs is zero.
    """
    for variable, array in read_variables(file):
        if not variable.startswith("encoder/"):
            continue
        for name, tensor in _renamed(variable.removeprefix("encoder/"), array):
            yield f"model.encoder.{name}", tensor


PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
VALUES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def _renamed(variable: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    where, _, value = variable.rpartition("/")
    if variable == "position_encodings/encodings":
        yield "embed_positions.weight", array
    elif where in ("conv1", "conv2", "layer_norm"):
        yield f"{where}.{VALUES[value]}", array
    elif where.startswith("layer_"):
        layer, _, part = where.partition("/")
        prefix = f"layers.{layer.removeprefix('layer_')}"
        if part != "self_attention/linear_0":
            yield f"{prefix}.{PARTS[part]}.{VALUES[value]}", array
            return
        for letter, piece in zip("qkv", np.split(array, 3), strict=True):
            if (letter, value) != ("k", "bias"):
                yield f"{prefix}.self_attn.{letter}_proj.{VALUES[value]}", piece

"""Checkpoints as other projects write them, small, built here; and two real indexes that TensorFlow 2.15 wrote."""

import math
import re
import struct
import zlib
from pathlib import Path

import google_crc32c
import numpy as np
import torch

from boxwright.interop import tensorbundle
from boxwright.models.replication import Replication, ReplicationConfig

GOLDEN = Path(__file__).parents[1] / "golden"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def formula(name: str, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """The value of a tensor by which stored outputs of the originals were made: a draw seeded by its name."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    f = np.float32
    last = name.rsplit("/", 1)[-1]
    if "moving_variance" in name or name.endswith("running_var"):
        return f(0.5) + f(0.5) * np.abs(x)
    if len(shape) <= 1 and (last == "gamma" or re.search(r"(?:norm|bn|Norm|\.1)s?\.?\d*\.weight$", name)):
        return f(1) + f(0.1) * x
    if len(shape) <= 1 or ("embed" in name and "vocab_embed." not in name) or last == "bias":
        return f(0.1) * x
    return x / f(math.sqrt(fan_in))


def official_index(name: str) -> tuple[bytes, dict[str, np.ndarray], bytes]:
    """A real index, the tensors of the network by the formula, and a data file that holds them where it says."""
    with np.load(GOLDEN / "tensorflow_indexes.npz") as stored:
        index = stored[name].tobytes()
    tensors, places = {}, {}
    for key, entry in tensorbundle._table(index):
        fields = tensorbundle._message(entry)
        if key.startswith(b"model/") and b"OPTIMIZER_SLOT" not in key:
            full = key.decode()
            shape = tuple(tensorbundle._message(dim).get(1, 0) for dim in tensorbundle._repeated(fields[2], 2))
            tensors[full] = formula(full.removesuffix(SUFFIX), shape, _fan_in(full, shape))
            places[full] = fields.get(4, 0), fields[5]
    data = np.zeros(max(start + size for start, size in places.values()), np.uint8)
    for full, (start, size) in places.items():
        data[start : start + size] = np.frombuffer(tensors[full].tobytes(), np.uint8)
    return index, tensors, data.tobytes()


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    if "_output_dense" in name or len(shape) == 4:
        return math.prod(shape[:-1])
    return shape[0] if shape else 1


def write_official(folder: Path, name: str) -> Path:
    """A whole checkpoint with a real index; returns its path without endings."""
    index, _, data = official_index(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ckpt-6.index").write_bytes(index)
    (folder / "ckpt-6.data-00000-of-00001").write_bytes(data)
    return folder / "ckpt-6"


def write_bundle(prefix: Path, tensors: dict[str, np.ndarray], shards: int = 1, compress: bool = False) -> None:
    """A bundle with one block of index, its tensors dealt to several data files; `compress` only marks the index."""
    data, entries = [b""] * shards, {b"": _field(1, shards)}
    for number, (name, values) in enumerate(sorted(tensors.items())):
        shard, content = number % shards, values.tobytes()
        kind = {v: k for k, v in tensorbundle.TYPES.items()}[values.dtype.str]
        shape = b"".join(_bytes(2, _field(1, side)) for side in values.shape)
        place = _field(3, shard) + _field(4, len(data[shard])) + _field(5, len(content))
        checksum = b"\x35" + struct.pack("<I", crc(content))
        entries[name.encode()] = _field(1, kind) + _bytes(2, shape) + place + checksum
        data[shard] += content
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05}-of-{shards:05}").write_bytes(content)
    out = bytearray()
    handle = _add_block(out, entries, compress)
    where = _add_block(out, {b"\xff": handle}, compress)
    out += (_add_block(out, {}, False) + where).ljust(40, b"\0") + struct.pack("<Q", tensorbundle.MAGIC)
    prefix.with_name(prefix.name + ".index").write_bytes(out)


def _add_block(out: bytearray, entries: dict[bytes, bytes], compress: bool) -> bytes:
    """Append a block, keys prefix-compressed; returns its handle."""
    block, before = b"", b""
    for key in sorted(entries):
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(map(len, (key, before)))
        )
        block += varint(shared) + varint(len(key) - shared) + varint(len(entries[key])) + key[shared:] + entries[key]
        before = key
    block += struct.pack("<II", 0, 1)
    start, kind = len(out), bytes([compress])
    out += block + kind + struct.pack("<I", crc(block + kind))
    return varint(start) + varint(len(block))


def crc(content: bytes) -> int:
    """The masked checksum of TensorFlow's files."""
    value = google_crc32c.value(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    """7 bits a byte."""
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def _field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


TO_THEIRS = [
    (r"^backbone\.", "backbone.0.body."),
    (r"^projection\.0\.", "input_proj.0."),
    (r"^projection\.1\.", "input_proj.1."),
    (r"^encoder\.(\d+)\.attention\.", r"transformer.encoder.layers.\1.self_attn."),
    (r"^encoder\.", "transformer.encoder.layers."),
    (r"^decoder\.(layers|norm)\b", r"transformer.decoder.\1"),
    (r"\.self_attention\.", ".self_attn."),
    (r"\.cross_attention\.", ".multihead_attn."),
    (r"\.output\.", ".out_proj."),
    (r"\.mlp\.0\.", ".linear1."),
    (r"\.mlp\.3\.", ".linear2."),
]
PIXELS = [
    (r"^decoder\.head\.0\.", "transformer.vocal_classifier."),
    (r"(decoder\.layers\.\d+\.self_attn)\.out_proj\.", r"\1.proj."),
    (r"(decoder\.layers\.\d+\.self_attn)\.in_proj_", r"\1.qkv."),
]
FRACTIONS = [
    (r"^input_proj\.0\.", "input_proj."),
    (r"^decoder\.head\.([024])\.", lambda m: f"vocab_embed.layers.{int(m[1]) // 2}."),
    (r"^decoder\.input_norm\.", "transformer.embedding.LayerNorm."),
    (r"^decoder\.position_embedding$", "transformer.embedding.position_embeddings.weight"),
    (r"^decoder\.token_embedding$", "transformer.embedding.word_embeddings.weight"),
]
MMDET = [
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^input_proj\.", "bbox_head.input_proj."),
    (r"^transformer\.(vocal_\w+|det_embed)\.", r"bbox_head.\1."),
    (r"^transformer\.decoder\.norm\.", "bbox_head.transformer.decoder.post_norm."),
    (r"^transformer\.", "bbox_head.transformer."),
    (r"\.self_attn\.", ".attentions.0.attn."),
    (r"\.multihead_attn\.", ".attentions.1.attn."),
    (r"\.linear1\.", ".ffns.0.layers.0.0."),
    (r"\.linear2\.", ".ffns.0.layers.1."),
    (r"\.norm([123])\.", lambda m: f".norms.{int(m[1]) - 1}."),
]


def their_shapes(config: ReplicationConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a replication's tensors, as its authors have them."""
    with torch.device("meta"):
        own = Replication(config, ()).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    rules = TO_THEIRS + (FRACTIONS if config.has_positions else PIXELS) + MMDET * (config.variant == "mmdet")
    for name, value in own.items():
        fused = re.sub(r"\.(query|key|value)\.(weight|bias)$", r".in_proj_\2", name)
        rows = value.shape[0] * (3 if fused != name else 1)
        for pattern, theirs in rules:
            fused = re.sub(pattern, theirs, fused)
        shapes[fused] = (rows, *value.shape[1:])
    if not config.has_positions:
        head = "bbox_head." if config.variant == "mmdet" else "transformer."
        rows, dim = shapes.pop("decoder.token_embedding")
        shapes |= {f"{head}vocal_embed.weight": (rows - 1, dim), f"{head}det_embed.weight": (1, dim)}
    return shapes


def their_weights(config: ReplicationConfig) -> dict[str, torch.Tensor]:
    """A replication's tensors by the formula, except that convolutions are one number each, to be quick."""
    weights = {}
    for name, shape in their_shapes(config).items():
        if len(shape) == 4:
            weights[name] = torch.tensor(0.01).expand(shape)
        else:
            weights[name] = torch.from_numpy(np.asarray(formula(name, shape, math.prod(shape[1:]))))
    if config.variant == "mmdet":
        weights["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
        weights["bbox_head.empty_weight"] = torch.ones(config.vocabulary)
    return weights

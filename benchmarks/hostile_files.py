"""Is every damaged or hostile file read, or refused in one line, in bounded time and memory?

    python benchmarks/hostile_files.py --files 1000

Good files of every kind that sagediff reads are mutated: cut, flipped, filled with NULs, made into something else, JSON
with any value replaced by any other, files that unpack to far more than they are. Every one is read in a forked process
of its own, which tells the time it took and by how much its memory grew. Exits with 1 if one raises anything but an
InputError of one line, or is over `--seconds` or `--mebibytes`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401 - imported before it is timed
import torch
from PIL import Image
from safetensors.torch import load_file, save

from sagediff.builtin.scenes import lora_dir, weights_dir
from sagediff.denoiser.lora_adapters import check_lora_weights
from sagediff.errors import InputError
from sagediff.evaluation.search import Measured
from sagediff.evaluation.trials import TrialFile
from sagediff.files.image_input import open_rgb
from sagediff.files.imagefolder import read_imagefolder
from sagediff.files.lora_files import lora_file
from sagediff.files.output_folder import OutputFolder
from sagediff.pipelines.loading import supported_parts
from sagediff.pipelines.lora import RECORD_KEY, sharing_record
from sagediff.pipelines.model_files import check_model_files
from sagediff.pipelines.run_settings import ModelOptions, resolve
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.prompts.image_list import prompt_texts, read_images
from sagediff.sampling.trajectory import Trajectory
from sagediff.scale.disk_groups import load_groups, save_groups
from sagediff.serving.engine.cache_files import (
    CacheKey,
    Entry,
    entry_name,
    entry_path,
    read_entry,
    write_entry,
)
from sagediff.training import checkpoint

# -- files of every kind, and their readers


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the file that holds it, below a folder of its own; readers go by endings.
        good: a whole one.
        read: reads the file, which nothing else lies beside.
    """

    name: str
    good: bytes
    read: Callable[[Path], object]


def kinds() -> dict[str, Kind]:
    """Every kind of file; a row each."""
    plan = SharePlan.from_groups([[0, 2], [1]], 10, share_ratio=[0.4, 0.2], shared_guidance=1.0)
    policy = Sharing(0.35, 0.3, rungs=((0.5, 0.4), (0.7, 0.6))).record() | {"guidance_scale": 3.0}
    rows = [{"prompt": f"a cat {i}", "id": i, "note": None} for i in range(5)]
    asked = {
        "seed": 3,
        "width": 64,
        "height": 32,
        "negative_prompt": "blue",
        "guidance_scale": 2.5,
        "num_images": 2,
    }
    rows = [*rows, asked | {"prompt": "a dog", "id": "x", "note": "\u00fc", "tags": ["a", {"b": 1}]}]
    captions = [{"file_name": f"{i}.png", "text": f"a cat {i}"} for i in range(3)]
    run = {"settings": {"seed": 0, "prompts": "abc"}, "content": {}, "plan": json.loads(plan.to_json())}
    lora = lora_file(lora_dir())
    few = dict(list(load_file(lora).items())[:6])
    record = {"share_ratio": 0.4, "max_share_ratio": 0.5, "max_group_size": 4, "objective": "sage"}
    index = (weights_dir() / "model_index.json").read_bytes()
    shards = {"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
    text = "a large cat\na small dog\n" * 20
    csv = 'id,prompt,seed,num_images,shelf\n1,a cat,,2,A\n2,"a ""red"" dog, small",7,,"B, C"\n'
    tsv = "caption\tWidth\theight\tguidance_scale\na cat\t64\t64.0\t\na dog\t\t\t2.5\n"
    return {
        "policy": Kind("policy.json", _json(policy), Sharing.load),
        "defaults": Kind("sagediff.json", _json(policy | {"scheduler": {"name": "ddim", "least_steps": 5}}), _defaults),
        "share plan": Kind("plan.json", plan.to_json().encode(), lambda file: SharePlan.from_json(_text(file))),
        "run.json": Kind("run.json", _json(run), _resume),
        "model_index.json": Kind("model_index.json", index, lambda file: supported_parts(file.parent)),
        "shard index": Kind("model.safetensors.index.json", _json(shards), partial(_shards, index)),
        "LoRA": Kind("lora.safetensors", save(few, {RECORD_KEY: json.dumps(record)}), _lora),
        "text": Kind("p.txt", text.encode(), prompt_texts),
        "JSONL": Kind("p.jsonl", b"\n".join(map(_json, rows)), _rows),
        "JSON array": Kind("p.json", _json(rows), _rows),
        "CSV": Kind("p.csv", csv.encode(), _rows),
        "TSV": Kind("p.tsv", tsv.encode(), _rows),
        "gzip": Kind("p.txt.gz", gzip.compress(text.encode()), prompt_texts),
        "parquet": Kind("p.parquet", _parquet(rows[:5]), _rows),
        "captions": Kind("metadata.jsonl", b"\n".join(map(_json, captions)), _captions),
        "PNG": Kind("a.png", _image("PNG"), open_rgb),
        "JPEG": Kind("a.jpg", _image("JPEG"), open_rgb),
        "TIFF": Kind("a.tif", _image("TIFF"), open_rgb),
        "WebP": Kind("a.webp", _image("WEBP"), open_rgb),
        "groups": Kind("groups.npz", _groups(), lambda file: load_groups(file, "key")),
        "checkpoint": Kind(*_checkpoint(), lambda file: checkpoint.newest_whole(file.parent.parent)),
        "trials": Kind("trials.jsonl", _trials(), lambda file: TrialFile(file, {"a": 1}).read()),
        "cache entry": Kind(*_entry(), lambda file: read_entry(file, 1 << 20)),
    }  # fmt: skip


def _rows(file: Path) -> object:
    images = read_images((), file)
    return images.digests(), [images.record(i) for i in range(min(len(images), 1000))]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace")


def _defaults(file: Path) -> object:
    (file.parent / "model_index.json").write_text("{}", encoding="utf-8")
    return resolve(ModelOptions(str(file.parent)))


def _resume(file: Path) -> object:
    return OutputFolder(file.parent).check({"seed": 0, "prompts": "abc"}, resume=True)


def _shards(index: bytes, file: Path) -> object:
    part = file.parent / "unet"
    part.mkdir(exist_ok=True)
    (part / file.name).write_bytes(file.read_bytes())
    (part / "model.safetensors").touch()
    (file.parent / "model_index.json").write_bytes(index)
    return check_model_files(file.parent)


def _lora(file: Path) -> object:
    sharing_record(lora_file(file))
    return check_lora_weights(file)


def _captions(file: Path) -> object:
    for i in range(3):
        Image.new("RGB", (4, 4)).save(file.parent / f"{i}.png")
    return read_imagefolder(file.parent)


def _image(kind: str) -> bytes:
    stream = io.BytesIO()
    values = np.random.default_rng(0).integers(256, size=(24, 24, 4), dtype=np.uint8)
    Image.fromarray(values).convert("RGB" if kind == "JPEG" else "RGBA").save(stream, kind)
    return stream.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    """Made in a process of its own: one that has started Arrow's threads could not be forked."""

    def made() -> bytes:
        import pyarrow
        from pyarrow import parquet

        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        return stream.getvalue()

    return _in_a_child(made)


def _groups() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_groups(Path(folder) / "groups.npz", "key", [[0, 2], [1]])
        return (Path(folder) / "groups.npz").read_bytes()


def _checkpoint() -> tuple[str, bytes]:
    weights = {"a": torch.nn.Parameter(torch.ones(3))}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(
            Path(folder), 3, weights, torch.optim.AdamW(weights.values()), {"steps": 9, "rank": 2}, 1
        )
        file = next(Path(folder).rglob("*.safetensors"))
        return str(file.relative_to(folder)), file.read_bytes()


def _trials() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        trials = TrialFile(Path(folder) / "trials.jsonl", {"a": 1})
        for ratio in (0.2, 0.4):
            trials.add(Sharing(0.35, ratio, rungs=((0.5, 0.6),)), Measured((0.9, 0.8), (0.1,)))
        return trials.path.read_bytes()


def _entry() -> tuple[str, bytes]:
    outputs = torch.ones(1, 4, 2, 2)
    trajectory = Trajectory((outputs, outputs + 1), (1, 1), (999.0, 500.0), (4, 2, 2), 1, (0.0, 1.0))
    centroid = np.array([1.0, 0.0], np.float32)
    key = CacheKey("me", "model", "", "DDIM", "{}", 10, 2, 1.0, "{}", 64, 64, "float32")
    entry = Entry(entry_name(key, centroid, 0), key, centroid, 0, trajectory, 2.0)
    with tempfile.TemporaryDirectory() as folder:
        write_entry(Path(folder), entry)
        file = entry_path(Path(folder), entry.name)
        return file.name, file.read_bytes()


# -- mutations

_DEEP, _DIGITS, _WIDE, _LARGEST = 100_000, 5000, 1 << 20, 64 << 20
_VALUES: list[str] = [  # as JSON has them, or nearly
    "null", "true", "-1", "0", "1", "0.5", "1e308", "-1e-308", "1e999", "NaN", "-Infinity", str(2**63), str(2**64),
    "9" * _DIGITS, '""', '"a"', '"same"', r'"\ud800"', r'"\u0000"', r'"\u001b[2J"', '"../../away"', '"/etc/passwd"',
    f'"{"x" * _WIDE}"', "[]", "{}", "[[]]", "[1]", '[null, "a"]', '{"a": 1, "a": 2}', "[" * _DEEP, '{"a":' * _DEEP,
    "[" * 40 + "]" * 40, f"[{'0,' * 100_000}0]", '["diffusers", 3]', "'", "\x00", "\ufeff",
]  # fmt: skip


def mutated(kind: Kind, rng: random.Random) -> bytes:
    """The file with one to three faults."""
    data = kind.good
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_MUTATIONS)(data, rng)
    return data[:_LARGEST]


def _value(data: bytes, rng: random.Random) -> bytes:
    """JSON, or lines of it, with one value or name replaced; other files as they are."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        document = json.loads(lines[at])
    except (ValueError, RecursionError):
        return data
    mark = "\ue000"
    places = list(_places(document))
    if not places:
        return rng.choice(_VALUES).encode()
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        holder[rng.choice(["threshold", "rungs", "prompt", "seed", "\x1b", "", "a" * 5000])] = holder.pop(key)
    else:
        holder[key] = mark
    made = json.dumps(document).replace(json.dumps(mark), rng.choice(_VALUES))
    return b"\n".join([*lines[:at], made.encode("utf-8", "surrogatepass"), *lines[at + 1 :]])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def _header(data: bytes, rng: random.Random) -> bytes:
    """Safetensors with a fault in the header, or in the record that it holds; other files as they are."""
    if len(data) < 10 or data[8:9] != b"{":
        return data
    length = int.from_bytes(data[:8], "little")
    head, rest = data[8 : 8 + length], data[8 + length :]
    try:
        record = json.loads(head).get("__metadata__", {})
    except ValueError:
        return data
    if record and rng.random() < 0.5:
        name = rng.choice(list(record))
        held = _value(record[name].encode(), rng).decode("utf-8", "replace")
        made = json.dumps(json.loads(head) | {"__metadata__": record | {name: held}}).encode()
    else:
        made = _value(head, rng)
    return rng.choice([len(made), len(made), 0, 2**63 - 1]).to_bytes(8, "little") + made + rest


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    marks = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\r", b"\n", b",", b";", b"\x1b[2J", b"\xc3", b"{"]
    piece = rng.choice([*marks, rng.randbytes(8)])
    return data[:at] + piece * rng.choice([1, 1, 2, 500]) + data[at + rng.choice([0, 0, 1, 8]) :]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _swollen(data: bytes, rng: random.Random) -> bytes:
    """Far more of the same."""
    again = data * (_LARGEST // (8 * len(data) + 8))
    line = rng.choice([b"a" * (8 << 20), b"\n" * (2 << 20), again, b"[" * (4 << 20), b'"' * (2 << 20)])
    return gzip.compress(line * rng.choice([1, 8]), 1) if data[:2] == b"\x1f\x8b" else data + line


def _encoded(data: bytes, rng: random.Random) -> bytes:
    encoding = rng.choice(["utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7"])
    return data.decode("utf-8", "replace").encode(encoding, "replace")


def _huge_image(data: bytes, rng: random.Random) -> bytes:
    """An image's header that tells of very many pixels, with its checksum; other files as they are."""
    if data[:4] != b"\x89PNG":
        return data
    side = rng.choice([0, 1, 9_000, 20_000, 2**31 - 1])
    head = b"IHDR" + struct.pack(
        ">IIBBBBB", side, side, rng.choice([1, 8, 16]), rng.choice([0, 2, 3, 6]), 0, 0, 0
    )
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def _other(_: bytes, rng: random.Random) -> bytes:
    """Something else under the name."""
    image, packed = _image("PNG"), gzip.compress(b"a" * (32 << 20), 1)
    return rng.choice(
        [b"", b"\n", b"{}", b"[]", b"null", image, packed, pickle.dumps(os.getcwd), b"PAR1", b"\xff" * 4096]
    )


_MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    _value, _value, _value, _header, _header, _bytes, _flipped, _cut, _swollen, _encoded, _huge_image, _other,
]  # fmt: skip


# -- running


def outcome(kind: Kind, file: Path) -> str:
    """Whether it is "read" or "refused"; else what went wrong."""
    try:
        kind.read(file)
    except InputError as error:
        lines = str(error).splitlines()
        return "refused" if len(lines) == 1 else f"{len(lines)} lines: {str(error)[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"


def _measured(kind: Kind, data: bytes) -> tuple[str, float, float]:
    """The outcome in a process of its own, seconds, and MiB by which its memory grew."""

    def measured() -> bytes:
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w", encoding="utf-8") as nowhere:
            sys.stderr = nowhere
            file = Path(folder) / kind.name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            found = outcome(kind, file)
            seconds = time.process_time() - start
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        return json.dumps([found, seconds, grown]).encode()

    told = _in_a_child(measured)
    return tuple(json.loads(told)) if told else ("ended without a word", 0.0, 0.0)


def _in_a_child(work: Callable[[], bytes]) -> bytes:
    """What it gives back; nothing if its process ends before."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            with os.fdopen(write, "wb") as stream:
                stream.write(work())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time that one file may take")
    parser.add_argument("--mebibytes", type=float, default=500.0, help="memory that one file may take")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table, wrong = kinds(), []
    for name, kind in table.items():  # what is imported on the way is no file's
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / kind.name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(kind.good)
            _ = name == "parquet" or outcome(kind, file)
    print(
        "| kind | files | read | refused | longest, s | most memory, MiB |\n| --- | --- | --- | --- | --- | --- |"
    )
    for place, (name, kind) in enumerate(table.items()):
        count = args.files // len(table) + (place < args.files % len(table))
        results = []
        for number in range(count):
            data = mutated(kind, random.Random(f"{args.seed} {name} {number}"))
            results.append(_measured(kind, data))
            found, seconds, grown = results[-1]
            if found not in ("read", "refused") or seconds > args.seconds or grown > args.mebibytes:
                wrong.append(f"{name} {number}: {found}, {seconds:.2f} s, {grown:.0f} MiB")
        counts = [sum(found == word for found, _, _ in results) for word in ("read", "refused")]
        slowest, largest = max(s for _, s, _ in results), max(m for _, _, m in results)
        print(f"| {name} | {count} | {counts[0]} | {counts[1]} | {slowest:.2f} | {largest:.0f} |", flush=True)
    print("\n".join(wrong) or "none went wrong", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

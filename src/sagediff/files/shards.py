"""Images of a large run: webdataset shards and parquet metadata instead of one file per image.

An image is kept as a file of its own until its shard is full; then the shard is written, and the files are removed. The
plan decides which images belong to a shard: prompts in the order of their groups, `size` per shard. So a killed run can
be resumed with any number of workers. A shard's parquet file is written last; a shard is complete once both files are
whole and hold its images, and only then are the images' own files removed.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagediff.errors import InputError, OutputError
from sagediff.files.atomic import output_errors, sweep, sync_folder, writing
from sagediff.files.json_input import parse_object
from sagediff.files.output_folder import OutputFolder

Record = Mapping[str, Any]
SHARD_COLUMNS = ("key", "bytes")  # of a shard's own, beside a record's


class ShardStore:
    """Images of one run, in shards.

    Args:
        folder: of the run; shards go to `shards/`.
        order: prompt numbers, whole groups one after the other.
        size: images per shard.
        record: a prompt's metadata, with `group` and `evaluations` among it, and no `key` and `bytes`.
        texts: what a prompt's image says of itself, as `OutputFolder.finished` takes it.

    Raises:
        InputError: a size below 1, or pyarrow is not installed.
    """

    def __init__(
        self,
        folder: OutputFolder,
        order: Sequence[int],
        size: int,
        record: Callable[[int], Record],
        texts: Callable[[int], Mapping[str, str]],
    ) -> None:
        check_shard_size(size)
        self._folder, self._record, self._texts = folder, record, texts
        self._members = [list(order[i : i + size]) for i in range(0, len(order), size)]
        self._shard = {index: number for number, part in enumerate(self._members) for index in part}
        self._missing: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._members)

    def tar_path(self, number: int) -> Path:
        return self._folder.path / "shards" / f"{number:06d}.tar"

    def parquet_path(self, number: int) -> Path:
        return self.tar_path(number).with_suffix(".parquet")

    def finished(self) -> list[int]:
        """Prompts whose images are there and whole, in a shard or as files; full shards are written."""
        with output_errors(self._folder.path / "shards") as home:
            home.mkdir(exist_ok=True)
            sweep(home)
        done: list[int] = []
        for number, members in enumerate(self._members):
            if self._is_whole(number):
                with output_errors(self.tar_path(number)):
                    self._drop_files(members)
                done += members
                continue
            there = [i for i in members if self._folder.is_whole(i, self._texts(i))]
            done += there
            self._missing[number] = len(members) - len(there)
            if not self._missing[number]:
                self._write(number)
        return sorted(done)

    def save_image(self, index: int, data: bytes) -> None:
        """Keep one image; write its shard if it was the last one missing."""
        self._folder.save_image(index, data)
        number = self._shard[index]
        self._missing[number] -= 1
        if not self._missing[number]:
            self._write(number)

    def summary(self) -> list[dict[str, Any]]:
        """Each shard's statistics, from its parquet file."""
        from pyarrow.parquet import read_schema

        paths = [self.parquet_path(number) for number in range(len(self))]
        return [
            parse_object((read_schema(path).metadata or {}).get(b"sagediff", b""), str(path))
            for path in paths
        ]

    def _write(self, number: int) -> None:
        members = self._members[number]
        records = [dict(self._record(index)) | {"key": f"{index:06d}"} for index in members]
        target = self.tar_path(number)
        with writing(target) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index, record in zip(members, records, strict=True):
                data = self._folder.image_path(index).read_bytes()
                # its file is removed once it is in here
                if not self._folder.image_format.is_whole(data, self._texts(index)):
                    raise OutputError(
                        f"{self._folder.image_path(index)} was damaged; --resume makes it again"
                    )
                record["bytes"] = len(data)
                text = json.dumps(record, ensure_ascii=False).encode()
                for name, content in ((self._entry(index), data), (f"{index:06d}.json", text)):
                    entry = tarfile.TarInfo(name)  # no time, no owner: equal images give equal shards
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        self._write_metadata(number, records)
        sync_folder(target.parent)
        with output_errors(target):
            self._drop_files(members)

    def _entry(self, index: int) -> str:
        """The name of an image in its shard."""
        return f"{index:06d}{self._folder.image_format.suffix}"

    def _is_whole(self, number: int) -> bool:
        """Whether a shard's two files are there and hold its images; the images' own bytes are not read."""
        from pyarrow.parquet import read_table

        tar_file, parquet_file = self.tar_path(number), self.parquet_path(number)
        if any(file.is_symlink() or not file.is_file() for file in (tar_file, parquet_file)):
            return False
        try:
            rows = read_table(parquet_file, columns=["key", "bytes"]).to_pylist()
            with tarfile.open(tar_file, "r:") as tar:
                held = {entry.name: entry.size for entry in tar if entry.isfile()}
                whole = tar_file.stat().st_size % tarfile.RECORDSIZE == 0
        except Exception:  # pyarrow and tarfile raise many kinds for broken files
            return False
        wanted = {name: held.get(name) for name in map(self._entry, self._members[number])}
        told = {f"{row['key']}{self._folder.image_format.suffix}": row["bytes"] for row in rows}
        return whole and told == wanted and len(held) == 2 * len(wanted)

    def _write_metadata(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        import pyarrow
        from pyarrow import parquet

        statistics = {
            "shard": self.tar_path(number).name,
            "images": len(records),
            "groups": len({record["group"] for record in records}),
            "evaluations": round(sum(record["evaluations"] for record in records), 6),
            "bytes": sum(record["bytes"] for record in records),
        }
        names = list(dict.fromkeys(name for record in records for name in record))
        table = pyarrow.table({name: _column([record.get(name) for record in records]) for name in names})
        table = table.replace_schema_metadata({"sagediff": json.dumps(statistics)})
        with writing(self.parquet_path(number)) as partial:
            parquet.write_table(table, partial)

    def _drop_files(self, members: Iterable[int]) -> None:
        for index in members:
            self._folder.image_path(index).unlink(missing_ok=True)


def _column(values: list[Any]) -> list[Any]:
    """Values of one type, as a table has them: lists, objects and whatever differs in type become JSON."""
    kinds = {type(value) for value in values if value is not None}
    if (len(kinds) <= 1 and kinds <= {str, int, float, bool}) or kinds == {int, float}:
        large = any(type(value) is int and not -(2**63) <= value < 2**63 for value in values)
        if not large:
            return values
    return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]


def check_shard_size(size: int) -> None:
    """Raises InputError for a size below 1, or if pyarrow is not installed."""
    if size < 1:
        raise InputError(f"images per shard must be at least 1, got {size}")
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError("shards need pyarrow: pip install 'sagediff[scale]'") from error

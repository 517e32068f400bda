"""The images that a command is asked for: rows of a prompt file, or prompts as arguments, as one request per image.

`read_images` is the one reader of them, for every command.
"""

from __future__ import annotations

import json
import sys
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sagediff.errors import InputError
from sagediff.files.digest import texts_digest
from sagediff.files.lora_files import Lora, LoraSet
from sagediff.files.prompt_text import text_fault
from sagediff.files.text_input import shortened
from sagediff.options import check, option
from sagediff.printable import printable
from sagediff.prompts.columns import (
    COLUMNS,
    MAX_COPIES,
    WRITTEN,
    Header,
    beside,
    is_blank,
    prompt_name,
    quoted,
    shown,
)
from sagediff.prompts.kept_fields import KeptFields
from sagediff.prompts.prompt_files import RowFile, is_prompt_file, open_rows
from sagediff.prompts.requests import ImageRequest

MAX_IMAGES = 4_000_000  # each with a seed of its own, they take a gigabyte
_PLAIN = 100_000  # prompts whose requests are used again where they are repeated
_HEADERS = 1000  # sets of names that are remembered: objects of JSON may each have their own


@dataclass(frozen=True)
class RequestOptions:
    """What holds for every row that does not say otherwise."""

    prompt_column: str | None = option(
        None,
        "Column of the prompts. [default: `prompt`, or one like it]",
    )
    negative_prompt: str | None = option(None, "What images should not show. [default: nothing]")
    width: int | None = option(None, "Width in pixels. [default: the model's own]", low=1)
    height: int | None = option(None, "Height in pixels. [default: the model's own]", low=1)
    images_per_prompt: int = option(1, "Images per prompt.", low=1, high=MAX_COPIES)
    image: Path | None = option(None, "Image to begin from, of rows that name none. [default: none]")
    mask_image: Path | None = option(None, "Mask of it: what is white is painted anew. [default: none]")
    strength: float | None = option(
        None, "How much of the image is replaced. [default: the model's own]", above=0, high=1
    )
    share_seeded: bool = option(
        False,
        "Let rows with a `seed` share too; they lose the image it gives alone.",
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.width is None) != (self.height is None):
            raise InputError("--width and --height go together; give both")
        if self.negative_prompt and (fault := text_fault(self.negative_prompt)):
            raise InputError(f"--negative-prompt {fault}")


@dataclass(frozen=True)
class ImageList:
    """What images are asked for, in order.

    Attributes:
        requests: of each image; those of a row follow each other.
        starts: the number of each row's first image.
        ids: of each row; None where it has none.
        own: what else each row holds.
        numbers: where each row stands in its file, from 1.
        place: of a row, for messages, before its number: "p.csv, line".
        notes: what a user should know of how the file was read, in sentences.
    """

    requests: list[ImageRequest]
    starts: Sequence[int]
    ids: Sequence[str | int | None]
    own: KeptFields
    numbers: Sequence[int]
    place: str
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.requests)

    @cached_property
    def prompts(self) -> list[str]:
        """The text of each image's prompt."""
        return [request.prompt for request in self.requests]

    @cached_property
    def names_guidance(self) -> bool:
        """Whether any row names a guidance scale."""
        return any(request.guidance_scale is not None for request in self.requests)

    @cached_property
    def lora_sets(self) -> dict[LoraSet, int]:
        """The sets of LoRAs that rows name, each with the number of its first image."""
        found: dict[LoraSet, int] = {}
        for number, request in enumerate(self.requests):
            if request.lora is not None:
                found.setdefault(request.lora, number)
        return found

    def beside_own(self, own: Sequence[Lora]) -> ImageList:
        """The same images where the run's own LoRAs are these: rows that name the very same share with those that name
        none."""
        same = LoraSet.holding(own)
        if same not in self.lora_sets:
            return self
        filled: dict[
            int, ImageRequest
        ] = {}  # rows that ask for several images of one request hold it several times
        requests = [
            each if each.lora is not None else filled.setdefault(id(each), replace(each, lora=same))
            for each in self.requests
        ]
        return replace(self, requests=requests)

    def row(self, image: int) -> int:
        """The number of an image's row, from 0."""
        return bisect_right(self.starts, image) - 1

    def copy(self, image: int) -> int:
        """How many images of its row come before it."""
        return image - self.starts[self.row(image)]

    def where(self, image: int) -> str:
        """Where an image's row stands, for messages."""
        return f"{self.place} {self.numbers[self.row(image)]}"

    def record(self, image: int) -> dict[str, Any]:
        """What its row holds beside prompt and seed, for the metadata: first what was obeyed, then the user's own."""
        request, row = self.requests[image], self.row(image)
        found: dict[str, Any] = {} if self.ids[row] is None else {"id": self.ids[row]}
        said = {name: _written(getattr(request, name)) for name in _SET if name != "seed"}
        return found | {name: value for name, value in said.items() if value is not None} | self.own[row]

    def digests(self) -> dict[str, str]:
        """What a run that goes on must find again: the prompts, what else is asked for, and the user's own columns."""
        said = (
            f"{number} {json.dumps(asked)}"
            for number, request in enumerate(self.requests)
            if (asked := _asked(request))
        )
        ids = (f"{row} {json.dumps(each)}" for row, each in enumerate(self.ids) if each is not None)
        return {
            "prompts": texts_digest(self.prompts),
            "requests": texts_digest(said),
            "columns": texts_digest([self.own.digest, *ids]),
        }


_NOT_PROMPT = [each.name for each in fields(ImageRequest) if each.name != "prompt"]
_SET = [column.sets for column in COLUMNS if column.sets is not None]


def _asked(request: ImageRequest) -> dict[str, Any]:
    """The fields of a request that say something, but for the prompt."""
    values = vars(request)
    return {name: _content(values[name]) for name in _NOT_PROMPT if values[name] is not None}


def _content(value: Any) -> Any:
    """A field of a request as JSON has it; of images what they show."""
    if isinstance(value, tuple):
        return [_content(each) for each in value]
    return getattr(value, "digest", value)


def _written(value: Any) -> Any:
    """A field of a request as its row had it; of images their paths."""
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    return getattr(value, "said", value)


def read_images(
    given: Sequence[str],
    file: Path | None,
    options: RequestOptions = RequestOptions(),
    *,
    with_own: bool = True,
) -> ImageList:
    """The images of prompts given as arguments, or of a file's rows; never both.

    Args:
        with_own: whether columns that are the user's own are kept.

    Raises:
        InputError: none or both given, or a prompt, a row or a file that cannot be read or obeyed; its place is named.
    """
    if file is not None and str(file).startswith("--"):
        raise InputError(f"--prompts needs a file, got the option {shortened(file)}")
    if given and file is not None:
        raise InputError("give prompts as arguments or --prompts FILE, not both")
    if file is None:
        return _Reader(_arguments(given), options, Path()).images()
    notes: list[str] = []
    rows = open_rows(file, options.prompt_column, with_own=with_own, tell=notes.append)
    return _Reader(rows, options, file.parent, with_own, notes).images()


def prompt_texts(path: Path, prompt_column: str | None = None) -> list[str]:
    """The prompts of a file, in order, each as often as its row asks for images of it; rows that ask for more than a
    prompt are refused. Notes, and the names of columns that are left alone, are printed to stderr once.

    Raises:
        InputError: as `read_images`, or a row that says what only `generate` obeys.
    """
    notes: list[str] = []
    rows = open_rows(path, prompt_column, with_own=False, tell=notes.append)
    reader = _Reader(rows, RequestOptions(prompt_column=prompt_column), path.parent, False, notes)
    images = reader.images()
    for number, request in enumerate(images.requests):
        if asked := _asked(request):
            raise InputError(
                f"{images.where(number)}: `{next(iter(asked))}` of a single prompt is not supported here: remove it, "
                "or give it for the whole run with the command's own option, if there is one"
            )
    if reader.own_names:
        names = [printable(shortened(name, 40)) for name in reader.own_names]
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        notes.append(f"{rows.name}: columns that are not used: {', '.join(names[:12])}{more}")
    for words in notes:
        print(f"note: {printable(words)}"[:600], file=sys.stderr)
    return images.prompts


def _arguments(given: Sequence[str]) -> RowFile:
    if not given:
        raise InputError("no prompts: give some as arguments, or a file with --prompts FILE")
    for number, prompt in enumerate(given, 1):
        if fault := text_fault(prompt) if prompt.strip() else "is empty":
            raise InputError(f"prompt {number} {fault}")
        if is_prompt_file(prompt):
            raise InputError(
                f"prompt {number} is the name of a file: to take the prompts in it, give --prompts {shortened(prompt)}"
            )
    return RowFile("", "prompt", ((number, {"prompt": text}) for number, text in enumerate(given, 1)), False)


class _Reader:
    """Rows, one by one, to requests; `home` is the folder that paths in them are seen from."""

    def __init__(
        self,
        source: RowFile,
        options: RequestOptions,
        home: Path,
        with_own: bool = True,
        notes: list[str] | None = None,
    ) -> None:
        self._source, self._options, self._home, self._with_own = source, options, home, with_own
        self._notes = [] if notes is None else notes
        self._place = f"{source.name}, {source.unit}" if source.name else source.unit
        self._headers: dict[tuple[str, ...], Header] = {}
        self._prompt: str | None = None  # the field that holds it
        self._plain: dict[str, list[ImageRequest]] = {}  # by prompts of rows that say nothing else
        self._lora_sets: dict[str, LoraSet] = {}  # by what cells say
        self.own_names: dict[str, None] = {}

    def images(self) -> ImageList:
        requests: list[ImageRequest] = []
        ids: list[str | int | None] = []
        starts, numbers, own = array("q"), array("q"), KeptFields()
        for number, fields_ in self._source.rows:
            where = f"{self._place} {number}"
            header = self._header(fields_, where)
            said = _values(header, fields_, where)
            starts.append(len(requests))
            numbers.append(number)
            ids.append(said.pop("id", None))
            requests += self._requests(_prompt(header, fields_, where), said, where)
            if len(requests) > MAX_IMAGES:
                raise InputError(f"{where}: more than {MAX_IMAGES:,} images; divide the file")
            if self._with_own:
                own.add({name: fields_[name] for name in header.own})
        if not requests:
            raise InputError(f"{self._source.name} holds no prompts")
        return ImageList(requests, starts, ids, own, numbers, self._place, self._notes)

    def _header(self, row: Mapping[str, Any], where: str) -> Header:
        names = tuple(row)
        header = self._headers.get(names)
        if header is not None:
            return header
        prompt = prompt_name(names, self._options.prompt_column, where)
        if prompt is None:
            wanted = self._prompt or self._options.prompt_column or "prompt"
            raise InputError(f"{where}: no text under {quoted(wanted)}")
        if prompt != self._prompt is not None:
            raise InputError(
                f"{where}: prompts stand under {quoted(prompt)} here and under {quoted(self._prompt)} before; name "
                "the column with --prompt-column"
            )
        header = Header.of(names, prompt)
        if not self._headers and self._source.has_columns:
            self._notes += header.told(self._source.name)
        for name in header.own:
            if name in WRITTEN and beside(name) in row:
                raise InputError(
                    f"{where}: both {quoted(name)} and {quoted(beside(name))}; rename one, metadata needs both names"
                )
            if len(self.own_names) < _HEADERS:
                self.own_names[name] = None
        if len(self._headers) < _HEADERS:
            self._headers[names] = header
        self._prompt = prompt
        return header

    def _requests(self, prompt: str, said: dict[str, Any], where: str) -> list[ImageRequest]:
        if not said and prompt in self._plain:
            return self._plain[prompt]
        options, is_plain = self._options, not said
        count = said.pop("num_images", options.images_per_prompt)
        said.setdefault("negative_prompt", options.negative_prompt or None)
        said.setdefault("width", options.width)
        said.setdefault("height", options.height)
        if (said["width"] is None) != (said["height"] is None):
            raise InputError(
                f"{where}: width and height go together; give both, or --width and --height for all"
            )
        if options.strength is not None:
            said.setdefault("strength", options.strength)
        seed = said.get("seed")
        try:
            self._open_images(said)
            if "lora" in said:
                said["lora"] = self._lora_set(said["lora"])
            first = ImageRequest(
                prompt, share=True if options.share_seeded and seed is not None else None, **said
            )
            if seed is None:
                found = [first] * count
                if is_plain and len(self._plain) < _PLAIN:
                    self._plain[prompt] = found
                return found
            return [first, *(replace(first, seed=seed + i) for i in range(1, count))]
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def _lora_set(self, said: str | list[str]) -> LoraSet:
        """Seen from the file's folder, else from where the user is."""
        key = json.dumps(said)
        if key not in self._lora_sets:
            found = LoraSet.of(said, (self._home, Path()))
            if len(self._lora_sets) >= _HEADERS:
                return found
            self._lora_sets[key] = found
        return self._lora_sets[key]

    def _open_images(self, said: dict[str, Any]) -> None:
        """Images by what they show, in place of their paths: a row's own, seen from its file's folder, or those of all
        rows."""
        if (
            not {"image", "mask_image"} & set(said)
            and not self._options.image
            and not self._options.mask_image
        ):
            return
        from sagediff.files.input_image import InputImage  # most files name none

        def opened(value: Any, home: Path, kind: Any) -> Any:
            if isinstance(value, list):
                return tuple(opened(each, home, kind) for each in value)
            return replace(InputImage.of(home / value, kind), said=str(value))

        for name, kind in (("image", "image"), ("mask_image", "mask")):
            of_all = getattr(self._options, name)
            if name in said:
                said[name] = opened(said[name], self._home, kind)
            elif of_all is not None:
                said[name] = opened(of_all, Path(), kind)


def _prompt(header: Header, row: Mapping[str, Any], where: str) -> str:
    prompt = row[header.prompt]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where}: no text under {quoted(header.prompt)}")
    if fault := text_fault(prompt):
        raise InputError(f"{where}: the prompt {fault}")
    return prompt.strip()


def _values(header: Header, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the cells say that are obeyed, by the names of their columns.

    Raises:
        InputError: a cell that its column does not take, two that say the same thing, or one that is not obeyed.
    """
    for name in header.refused:
        if not is_blank(row[name]):
            raise InputError(
                f"{where}: {quoted(name)} of a single prompt is not supported: remove it, or give it for the whole run "
                "with the command's own option, if there is one"
            )
    said: dict[str, Any] = {}
    for name, column in header.known.items():
        value = row[name]
        if is_blank(value):
            continue
        if column.name in said:
            raise InputError(
                f"{where}: {quoted(name)} and another column both say `{column.name}`; leave one"
            )
        try:
            said[column.name] = column.read(value)
        except ValueError as error:
            raise InputError(f"{where}: {quoted(name)} {error}, got {shown(value)}") from error
    return said

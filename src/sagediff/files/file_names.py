"""Names of images' files from a template such as "{id}-{index}"; refused where one cannot be or two are equal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter

from sagediff.errors import InputError
from sagediff.files.image_formats import SUFFIXES

FIELDS = {
    "index": "number of the image in the run, from 0",
    "row": "number of its row, from 0",
    "copy": "number of the image among those of its row, from 0",
    "id": "`id` of its row",
    "seed": "seed of its noise",
    "prompt": "the first letters and digits of its prompt",
}
_NUMBERS = {"index", "row", "copy", "seed"}
_WIDTH = re.compile(r"(0?[1-9]?[0-9])?d?")  # 06d
_LONGEST = 255 - len(".0123456789ab.partial")  # bytes of a name; a file is written under a longer one first
_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SLUG = 60  # characters of a prompt


class NameTemplate:
    """What images' files are called, without the ending.

    Raises:
        InputError: another field than `FIELDS`, one spelled otherwise than {name} or {name:06d}, or a folder.
    """

    def __init__(self, template: str, suffix: str) -> None:
        self._shown = f"--file-name {template!r}"
        ending = template[template.rfind(".") :].lower() if "." in template else ""
        if ending == suffix or (ending == ".jpeg" and suffix == ".jpg"):
            template = template[: -len(ending)]
        elif ending in (*SUFFIXES.values(), ".jpeg"):
            raise InputError(
                f"{self._shown}: files of this run end in {suffix}; give another --format, or no ending"
            )
        try:
            self._parts = list(Formatter().parse(template))
        except ValueError as error:
            raise InputError(
                f"{self._shown}: {error}; write braces that are none of a field twice"
            ) from error
        for text, field, spec, conversion in self._parts:
            if _NOT_IN_NAMES.search(text):
                raise InputError(f"{self._shown}: a name may hold no slash or control character")
            if field is None:
                continue
            if field not in FIELDS:
                raise InputError(f"{self._shown}: no field {{{field}}}; there are {', '.join(FIELDS)}")
            if conversion or (spec and not (field in _NUMBERS and _WIDTH.fullmatch(spec))):
                raise InputError(
                    f"{self._shown}: fields are spelled {{index}} or, numbers only, {{index:06d}}"
                )
        self._longest = _LONGEST - len(suffix)

    @property
    def fields(self) -> set[str]:
        return {field for _, field, _, _ in self._parts if field is not None}

    def name(self, values: Mapping[str, str | int | None], where: str) -> str:
        """The name of one image.

        Args:
            values: of the fields.
            where: its row, for messages.

        Raises:
            InputError: the row has no `id`, or the name can be none of a file in the folder.
        """
        parts = []
        for text, field, spec, _ in self._parts:
            parts.append(text)
            if field is None:
                continue
            value = values[field]
            if value is None:
                raise InputError(f"{where}: no `{field}`, which {self._shown} needs")
            parts.append(slug(str(value)) if field == "prompt" else format(value, spec or ""))
        name = unicodedata.normalize("NFC", "".join(parts))
        if _NOT_IN_NAMES.search(name):
            raise InputError(
                f"{where}: {name[:60]!r} cannot be a file's name: it holds a slash or a control character"
            )
        if not name.strip() or name.startswith(".") or name != name.strip():
            raise InputError(
                f"{where}: {name[:60]!r} cannot be a file's name: it is empty, or begins with a dot or begins or ends "
                "with a space"
            )
        if len(name.encode()) > self._longest:
            raise InputError(
                f"{where}: a file's name of {len(name.encode())} bytes; at most {self._longest} are taken"
            )
        return name

    def check_distinct(self, names: Sequence[str], where: Iterable[str]) -> None:
        """No two are the same file, on a disk that does not tell capitals apart either.

        Raises:
            InputError: two are; both rows are named.
        """
        seen: dict[str, str] = {}
        for name, place in zip(names, where, strict=True):
            key = unicodedata.normalize("NFC", name.casefold())
            if key in seen:
                raise InputError(
                    f"{self._shown}: {seen[key]} and {place} would both be {name!r}; add {{index}}, which differs for "
                    "each image"
                )
            seen[key] = place


def slug(text: str) -> str:
    """Letters and digits of a text with hyphens between them, cut to a length that a name has room for."""
    found = re.sub(r"[\W_]+", "-", text[: 10 * _SLUG].lower()).strip("-")[:_SLUG]
    while len(found.encode()) > 2 * _SLUG:
        found = found[:-1]
    return found.rstrip("-") or "prompt"

"""What a training run is made of, by content: a run that goes on must find the same model and the same data."""

from __future__ import annotations

from typing import Any

from sagediff.files.digest import bytes_digest, file_digest, object_digest, texts_digest
from sagediff.pipelines.content import files_digest
from sagediff.pipelines.placement import weights_digest
from sagediff.training.captioned_images import CaptionedImages


def model_identity(pipe: Any) -> str:
    """Digest of a pipeline's weights and of its schedule of noise, whatever folder it came from."""
    scheduler = pipe.scheduler
    about = {key: str(value) for key, value in scheduler.config.items() if not key.startswith("_")}
    return texts_digest([weights_digest(pipe), type(scheduler).__name__, object_digest(about)])


def data_identity(data: CaptionedImages) -> str:
    """Digest of the captions and of the images' files, in their order.

    Raises:
        InputError: a file that cannot be read.
    """
    images = files_digest(data.files) if data.rows is None else _rows_digest(data.rows)
    return texts_digest([texts_digest(data.captions), images])


def _rows_digest(rows: Any) -> str:
    """Of a data set's images as they are stored, not decoded."""
    import datasets

    column = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    digests = []
    for row in column:
        stored = row["image"]
        content = stored["bytes"]
        digests.append(file_digest(stored["path"]) if content is None else bytes_digest(content))
    return texts_digest(digests)

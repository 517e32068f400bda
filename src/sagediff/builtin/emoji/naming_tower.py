"""The naming judge: an image tower and projected sentence vectors in one space, and the captions it chooses among.

It shares nothing with the denoiser but the frozen sentence encoder, and was trained on all artwork, held out or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sagediff.builtin.image_towers import ImageEncoder
from sagediff.errors import InputError, first_line
from sagediff.files.json_input import parse_object
from sagediff.pipelines.sentence_encoder import TEXT_WIDTH

WIDTHS, DIM = (32, 64, 128, 256), 256
FILE = "naming.safetensors"


class NamingTower(nn.Module):
    """Images and sentence vectors to vectors of one space, not normalised.

    Args:
        mean, deviation: (D,) of the captions' sentence vectors, which lie close together.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor | None = None, deviation: Tensor | None = None) -> None:
        super().__init__()
        self.image = ImageEncoder(DIM, WIDTHS)
        self.text = nn.Linear(TEXT_WIDTH, DIM)  # a vendor's captions can all be told apart by it
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("mean", torch.zeros(TEXT_WIDTH) if mean is None else mean)
        self.register_buffer("deviation", torch.ones(TEXT_WIDTH) if deviation is None else deviation)

    def texts(self, sentences: Tensor) -> Tensor:
        """(N, 384) mean token states of captions -> (N, DIM)."""
        out: Tensor = self.text((sentences - self.mean) / self.deviation)
        return out


@dataclass(frozen=True)
class CaptionTable:
    """All captions of the world that the judge chooses among.

    Attributes:
        captions: the plain one of each (name, vendor), on white.
        names, vendors: of each.
        vectors: (N, DIM) unit vectors.
    """

    captions: list[str]
    names: list[str]
    vendors: list[str]
    vectors: Tensor

    def places(self, prompts: Sequence[str]) -> list[int] | None:
        """The number of each prompt; None if one of them is no caption of the table."""
        place = {caption: i for i, caption in enumerate(self.captions)}
        found = [place.get(prompt.strip(), -1) for prompt in prompts]
        return None if -1 in found else found

    def right(self, images: Tensor, which: Sequence[int]) -> Tensor:
        """Whether each image's own caption is the nearest among all captions of its vendor, bools (N,).

        Args:
            images: (N, DIM) vectors of the tower.
            which: number of each image's caption.
        """
        numbers = {vendor: number for number, vendor in enumerate(dict.fromkeys(self.vendors))}
        of_vendor = torch.tensor([numbers[vendor] for vendor in self.vendors])
        own = torch.tensor(which)
        cosines = F.normalize(images.float(), dim=1) @ self.vectors.T  # (N, captions)
        cosines[of_vendor[own][:, None] != of_vendor[None]] = -torch.inf
        return cosines.argmax(1) == own


def load_naming(folder: Path) -> tuple[NamingTower, CaptionTable]:
    """What the stage `naming` wrote, float32, in eval mode.

    Raises:
        InputError: it is not there, or not what it should be.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"this installation holds no judge of the built-in model 'emoji' ({path}); train it: "
            "python -m sagediff.builtin.emoji.training naming"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            words = parse_object((file.metadata() or {})["table"], str(path))
        vectors = F.normalize(tensors.pop("vectors"), dim=1)
        tower = NamingTower()
        tower.load_state_dict(tensors)
        return tower.eval(), CaptionTable(words["captions"], words["names"], words["vendors"], vectors)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is not the judge's file: {first_line(error)}") from error

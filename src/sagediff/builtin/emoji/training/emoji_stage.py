"""What the stages of the emoji world are told, and the one that draws their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagediff.builtin.emoji.artwork import SPLITS, read_artwork
from sagediff.builtin.emoji.artwork_folder import ArtworkRow, read_rows, write_artwork
from sagediff.builtin.emoji.npm_packages import FLAT_VENDORS, VENDORS
from sagediff.builtin.training.stage_command import StageConfig


@dataclass(frozen=True)
class EmojiStageConfig(StageConfig):
    """Options of the command line; None takes the stage's own default.

    Attributes:
        vendors: all in `data` and `naming`, those whose drawings are flat in `latents` and `unet`.
        splits: that `data` draws.
        backgrounds: images of each drawing, the first on white: 3 in `data`, 2 in `latents` and `unet`.
        captions: numbers of the files of captions that `latents` writes.
        only_captions: leave the latents as they are.
        start: folder of the autoencoder to start from.
        cooldown: last steps of `unet`, in which the learning rate falls.
        sheet_every: steps of `unet` between sheets of samples, a multiple of those between figures.
    """

    vendors: Sequence[str] | None = None
    splits: Sequence[str] = SPLITS
    backgrounds: int | None = None
    captions: Sequence[int] = (0,)
    only_captions: bool = False
    start: Path | None = None
    cooldown: int = 0
    report_every: int = 1000
    sheet_every: int = 1000

    @property
    def data(self) -> Path:
        return self.out / "data"

    def rows(self, splits: Sequence[str] | None = None) -> list[ArtworkRow]:
        """The images that the denoiser is trained and judged on."""
        return read_rows(self.data, self.vendors or FLAT_VENDORS, splits, self.backgrounds or 2)


def draw_data(config: EmojiStageConfig) -> Path:
    """The artwork as an imagefolder, OUT/data; npm packages that OUT/packages lacks are downloaded."""
    vendors = config.vendors or list(VENDORS)
    artwork = [
        one
        for one in read_artwork(config.out / "packages")
        if one.vendor.key in vendors and one.split in config.splits
    ]
    return write_artwork(config.data, artwork, config.backgrounds or 3)

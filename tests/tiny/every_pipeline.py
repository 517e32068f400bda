"""Tiny pipelines of every class that shares, by the name of the class; a variant of one is named after a comma.

The families of `tiny.RECIPES` are tested in depth; each pipeline here by the properties that hold for all.
"""

from __future__ import annotations

from tiny import families, more_families
from tiny.every_modular import MODULAR
from tiny.parts import Recipe

EVERY: dict[str, Recipe] = {
    "SanaPipeline": families.RECIPES["sana"],
    "WanPipeline, 2.2": more_families.RECIPES["wan2.2"],
    **MODULAR,
}

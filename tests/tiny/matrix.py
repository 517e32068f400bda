"""The lists in `docs/families.md`, of recipes and tables: `PYTHONPATH=tests python -m tiny.matrix`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import diffusers

from sagediff.denoiser.family import Family
from sagediff.denoiser.guidance import ways_of
from sagediff.denoiser.refused import NOT_TEXT_SAMPLERS, REFUSED
from sagediff.denoiser.table import FAMILIES
from sagediff.errors import UnsupportedPipelineError
from sagediff.training.trainable import check_trainable
from tiny import RECIPES, census
from tiny.every_pipeline import EVERY
from tiny.parts import SCHEDULERS, Recipe

PAGE = Path(__file__).parent.parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- made by tests/tiny/matrix.py -->", "<!-- until here -->"

REMARKS: dict[str, str] = {
    "CogVideoXVideoToVideoPipeline": "with strength 1",
    "GlmImagePipeline": "without an image",
    "ConsisIDPipeline": "without face embeddings",
    "HunyuanImagePipeline": "also distilled",
    "LTXConditionPipeline": "with an image: `image_cond_noise_scale=0`",
    "OmniGenPipeline": "without an image",
    "PRXPipeline": "without guidance: diffusers guides one prompt per call",
    "PRXPixelPipeline": "without guidance: diffusers guides one prompt per call",
    "QwenImage21Pipeline": "its KV cache is left out",
    "WanImageToVideoPipeline": "Wan 2.1 and both of 2.2",
    "WanPipeline": "also with two transformers or a timestep per token (Wan 2.2)",
    "WanVideoToVideoPipeline": "with strength 1",
}


def lists() -> str:
    """The page's part between `BEGIN` and `END`."""
    current = census.current_pipelines()
    exact = census.exact()
    asked = {name for name, cls in current.items() if census.takes_prompts(cls)} - NOT_TEXT_SAMPLERS.keys()
    of_denoiser: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for name in sorted(asked):
        for denoiser in census.denoisers(current[name]):
            of_denoiser.setdefault(denoiser, []).append(name)
    run = {denoiser: [name for name in names if name in exact] for denoiser, names in of_denoiser.items()}
    without = {name: names for name, names in of_denoiser.items() if name not in FAMILIES}
    no_row = sorted({name for names in without.values() for name in names} - exact - REFUSED.keys())
    untold = [name for name in census.untold() if name not in no_row]
    denoisers = [name for name, names in of_denoiser.items() if names]
    lines = [
        f"diffusers {diffusers.__version__} has {len(asked)} current pipeline classes that sample from texts, on "
        f"{len(denoisers)} classes of denoisers. {len(exact & asked)} of those pipelines, on "
        f"{sum(bool(run[name]) for name in denoisers)} denoisers, are **exact** (first table), "
        f"{len(REFUSED.keys() & asked)} are **refused** with a reason of their own (second table)"
        + (f", {len(no_row)} because their denoiser has no row yet (third table)" if no_row else "")
        + (f", and {len(untold)} are tried and untested" if untold else "")
        + ".",
        "",
        "| denoiser | pipelines tested | guidance | solvers tested | training |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| `{name}` | {_named(run[name])} | {guidance(family)} | {', '.join(solvers(run[name]))} | "
            f"{'yes' if _trains(name) else ''} |"
            for name, family in FAMILIES.items()
        ),
        "",
        "| refused | because |",
        "| --- | --- |",
        *(f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())),
    ]
    if no_row:
        lines += ["", "| denoiser without a row | pipelines |", "| --- | --- |"]
        lines += [
            f"| `{name}` | {_named(names)} |"
            for name, names in sorted(without.items())
            if set(names) & set(no_row)
        ]
    if untold:
        lines += ["", f"Untested on known denoisers: {_named(untold)}."]
    lines += ["", "| samples nothing from texts | what it does |", "| --- | --- |"]
    lines += [f"| `{name}` | {what} |" for name, what in sorted(NOT_TEXT_SAMPLERS.items())]
    return "\n".join(lines) + "\n"


def guidance(family: Family) -> str:
    """How a denoiser is called when guided."""
    if family.guidance == "two calls":
        return "a second call" + (f", by `{family.scale}`" if family.scale != "guidance_scale" else "")
    return "one batch" + (", conditional rows first" if family.first == "conditional" else "")


def _trains(denoiser: str) -> bool:
    try:
        check_trainable(denoiser)
    except UnsupportedPipelineError:
        return False
    return True


def solvers(pipelines: Iterable[str]) -> list[str]:
    """The scheduler classes that these pipelines are tested with."""
    names = {name for recipe in _recipes(set(pipelines)) for name in recipe.schedulers}
    classes = (type(SCHEDULERS[name]()).__name__ for name in SCHEDULERS if name in names)
    return list(dict.fromkeys(name.removesuffix("Scheduler") for name in classes))


def _recipes(pipelines: set[str]) -> list[Recipe]:
    found = [recipe for name, recipe in EVERY.items() if name.partition(",")[0] in pipelines]
    return found + [RECIPES[family] for family, name in census.IN_DEPTH.items() if name in pipelines]


def _named(pipelines: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" + "".join(f" ({remark})" for remark in _remarks(name)) for name in pipelines)


def _remarks(pipeline: str) -> list[str]:
    cls = census.current_pipelines()[pipeline]
    family = next((FAMILIES[name] for name in census.denoisers(cls) if name in FAMILIES), None)
    parts = 0 if family is None else max(way.rows_per_prompt for way in ways_of(cls, family))
    told = [REMARKS[pipeline]] if pipeline in REMARKS else []
    return [*told, f"guidance of {parts} parts"] if parts > 2 else told


def renewed(page: str) -> str:
    """A page with its lists made anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{lists()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""What a run is: model, sampling and sharing, after defaults are filled in and checked, before any model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from sagediff.denoiser.scheduler import SCHEDULERS
from sagediff.errors import InputError
from sagediff.files.json_input import SMALL, read_object
from sagediff.files.lora_files import Lora, check_distinct, loras_digest, parse_lora
from sagediff.files.text_input import is_file
from sagediff.options import check, check_value, option
from sagediff.pipelines.lora import sharing_record
from sagediff.pipelines.model_source import BUILT_IN, DEFAULTS_FILE, ModelSource, built_in_folder
from sagediff.pipelines.quantized import check_quantize
from sagediff.pipelines.step_caches import parse_cache
from sagediff.pipelines.variants import vae_files
from sagediff.plan.sharing import CAUTIOUS, Layer, Sharing, for_guidance

OFFLOADS = ("model", "group", "sequential")  # from the fastest to the one that needs least memory


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs, and on what."""

    name: str = option(
        "demo",
        "'demo', 'emoji', a folder, a .safetensors file, or a hub id.",
        flag="model",
    )
    lora: tuple[str, ...] = option(
        (),
        "LoRA, PATH or PATH:WEIGHT; again for another. [default: the demo's own]",
    )
    no_lora: bool = option(False, "Run the demo without the LoRA that comes with it.")
    scheduler: str | None = option(
        None, f"Solver: {', '.join(SCHEDULERS)}. [default: the model's own]", choices=tuple(SCHEDULERS)
    )
    device: str = option("auto", "'auto', 'cpu', 'cuda', 'mps' and so on.")
    dtype: str = option(
        "auto",
        "float32, float16, bfloat16, or 'auto' by device and model.",
        choices=("auto", "float32", "float16", "bfloat16"),
    )

    variant: str | None = option(None, "Variant of the weights, such as 'fp16'. [default: the plain ones]")
    revision: str | None = option(None, "Branch, tag or commit of a hub id. [default: its main branch]")
    config: str | None = option(
        None,
        "Of a single file: its pipeline's folder or hub id. [default: found]",
    )
    vae: Path | None = option(
        None, "Another autoencoder of the same latents: folder or file. [default: the model's]"
    )
    quantize: str | None = option(
        None, "Fewer bits: torchao:int8wo, :int4wo and others, or a JSON file. [default: no]"
    )
    cache: str | None = option(
        None, "Reuse between steps: first-block, taylorseer, pyramid, faster; :N. [default: no]"
    )
    offload: str | None = option(
        None, "Keep weights in main memory: model, group or sequential. [default: no]", choices=OFFLOADS
    )
    compile: bool = option(False, "Compile the denoiser: a slow start, then faster steps.")

    def __post_init__(self) -> None:
        check(self)
        if self.lora and self.no_lora:
            raise InputError("give --lora or --no-lora, not both")
        if self.cache is not None:
            parse_cache(self.cache)
        if self.quantize is not None:
            check_quantize(self.quantize)
        if self.vae is not None:
            vae_files(self.vae)
        if self.compile and self.offload == "sequential":
            raise InputError("--compile and --offload sequential do not go together; take --offload group")

    @property
    def source(self) -> ModelSource:
        """Where the model itself is."""
        return ModelSource(self.name, self.variant, self.revision, self.config)

    def variations(self) -> dict[str, str]:
        """The options, those that are given, by which other images come out of the same model and LoRAs."""
        values = {name: getattr(self, name) for name in _IMAGES}
        return {name: str(value) for name, value in values.items() if value is not None}

    def loras(self) -> tuple[Lora, ...]:
        """The LoRAs of a run: those named, else the one that comes with a built-in model.

        Raises:
            InputError: one that is not there, whose weight is no number, or that is named twice.
        """
        if not self.lora and not self.no_lora and self.name in BUILT_IN:
            own = built_in_folder(self.name) / "lora"
            return (Lora(own),) if own.is_dir() else ()
        found = tuple(map(parse_lora, self.lora))
        check_distinct(found)
        return found


_IMAGES = (
    "variant",
    "revision",
    "config",
    "vae",
    "quantize",
    "cache",
)  # further options of a model that decide which images come out


@dataclass(frozen=True)
class SamplingOptions:
    """How images are sampled, whatever is shared."""

    num_inference_steps: int = option(30, "Sampling steps.", low=1, high=10_000, flag="steps")
    guidance_scale: float | None = option(
        None, "Guidance scale. [default: the model's own]", low=0, flag="guidance"
    )
    encoder: str | None = option(
        None,
        "A sentence-transformers model to group by. [default: the model's text encoder]",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides which images come out, the prompts and the seed excepted.

    Attributes:
        model: with the solver and the LoRAs' files that are really used.
        sampling: guidance_scale None is the pipeline's own default.
        measured: whether `sagediff tune` measured this sharing with these LoRAs and as many steps.
        cautious: options of sharing that are those of `CAUTIOUS`, as nothing is known of the model.
    """

    model: ModelOptions
    sampling: SamplingOptions
    sharing: Sharing
    measured: bool = False
    cautious: tuple[str, ...] = ()

    def note(self) -> str:
        """That nothing is known of how the model shares, and what follows; empty where it is known."""
        sharing = self.sharing
        if not self.cautious or not sharing.share_ratio:
            return ""
        words = {
            "threshold": f"threshold {sharing.threshold:g}",
            "share_ratio": f"share ratio {sharing.share_ratio:g}",
            "max_group_size": f"groups of at most {sharing.max_group_size}",
            "shared_guidance": "guidance in every step",
        }
        return (
            f"nobody has measured how well this model shares, so this is cautious: "
            f"{', '.join(words[name] for name in self.cautious)}; `sagediff tune` finds how much it tolerates, "
            "`sagediff train` makes it bear more"
        )

    def record(self) -> dict[str, Any]:
        """What a run that goes on must repeat, as JSON has it."""
        loras = list(self.model.lora)
        model = {
            "model": self.model.name,
            "lora": loras[0] if len(loras) == 1 else loras or None,
            "scheduler": self.model.scheduler,
        }
        return model | self.model.variations() | asdict(self.sampling) | self.sharing.record()


def resolve(
    model: ModelOptions,
    sampling: SamplingOptions = SamplingOptions(),
    given: Mapping[str, Any] | None = None,
    policy: Path | None = None,
    *,
    cautious: bool = False,
) -> RunSettings:
    """Fill in what is left out.

    An option of sharing comes from `given`, else from the policy file, else from `sagediff.json` in the LoRA's folder,
    else from the LoRA's own record, which knows the share ratio that it was trained for, else from `sagediff.json` in
    the model's folder, which is for sharing without one. Of several LoRAs each says what it knows; where two say
    different things of an option that neither `given` nor the policy has, they are refused. Who names a guidance scale
    gets it on every step of a prompt of its own: options for sampling without guidance are then taken from nowhere but
    `given`.

    Args:
        given: options of `Sharing` by name, as the user named them.
        policy: a file as `Sharing.save` writes it; it may name a `guidance_scale` as well.
        cautious: where no policy is given, and neither the model nor a LoRA says anything of sharing, what `given`
            leaves out is that of `CAUTIOUS`; else the defaults.

    Raises:
        InputError: a value out of range, an unknown model, or a file that is not there or not what it should be.
    """
    own = model.source.defaults_file()
    layers = [_file_layer(own)]
    loras = model.loras()
    said = [(each, _lora_layer(each)) for each in loras]  # refuses what is no safetensors file
    named = [Sharing.layer(given or {}), {} if policy is None else _layer(policy)]
    scale = sampling.guidance_scale
    if scale is not None:
        said = [(each, for_guidance(layer)) for each, layer in said]
        named.append({"guidance_scale": scale})
    layers += [_agreed(said, {name for layer in named for name in layer})]
    if policy is not None:
        layers.append(_layer(policy))
    known = (
        policy is not None
        or model.name in BUILT_IN
        or any(layer.keys() - {"guidance_scale"} for layer in layers)
    )
    base: Layer = CAUTIOUS if cautious and not known else {}
    if scale is not None:
        layers = [for_guidance(layer) for layer in layers]
    else:
        scale = next((layer["guidance_scale"] for layer in layers[::-1] if "guidance_scale" in layer), None)
    sharing = Sharing.merged(
        base,
        *({k: v for k, v in layer.items() if k != "guidance_scale"} for layer in layers),
        Sharing.layer(given or {}),
    )
    scheduler = model.scheduler
    if scheduler is None and not loras:
        scheduler = _preferred_scheduler(own, sampling.num_inference_steps)
    source, quantize = model.source.absolute(), model.quantize
    if quantize is not None and is_file(Path(quantize)):
        quantize = str(Path(quantize).resolve())
    used = replace(model, name=source.name, config=source.config, vae=model.vae and model.vae.resolve())
    return RunSettings(
        replace(used, quantize=quantize, lora=resolved(loras), no_lora=not loras, scheduler=scheduler),
        replace(sampling, guidance_scale=scale),
        sharing,
        policy is not None and _measured(policy, sharing, loras, sampling.num_inference_steps),
        tuple(name for name in base if name not in named[0]),
    )


def resolved(loras: Sequence[Lora]) -> tuple[str, ...]:
    """LoRAs as options again, by their files' real places."""
    return tuple(str(replace(each, path=each.file.resolve())) for each in loras)


def _lora_layer(lora: Lora) -> dict[str, Any]:
    """What a LoRA says of how it is best sampled: its record, then the file in its folder; nothing at weight 0."""
    record = sharing_record(lora.file)
    if lora.weight == 0:
        return {}
    return _trained_layer(record) | _file_layer(lora.path / DEFAULTS_FILE if lora.path.is_dir() else None)


def _agreed(said: Sequence[tuple[Lora, Layer]], named: Collection[str]) -> dict[str, Any]:
    """What several LoRAs say together, but for the options that are named elsewhere.

    Raises:
        InputError: two that say something say different things.
    """
    speaking = [(lora, layer) for lora, layer in said if layer]
    for (first, one), (second, other) in combinations(speaking, 2):
        for name in sorted(one.keys() & other.keys() - set(named)):
            if one[name] != other[name]:
                raise InputError(
                    f"the LoRAs {first.path} and {second.path} were made for different sharing (`{name}` "
                    f"{one[name]} and {other[name]}): name it, or give a --policy"
                )
    return {name: value for _, layer in speaking for name, value in layer.items()}


def _measured(policy: Path, sharing: Sharing, loras: Sequence[Lora], steps: int) -> bool:
    found = read_object(policy)
    tuned = found.get("tuned")
    if not isinstance(tuned, dict) or tuned.get("num_steps") != steps:
        return False
    if tuned.get("by", "quality") != "quality":  # predicted, and no image was looked at
        return False
    if sharing != Sharing.merged(Sharing.layer(found, str(policy))):  # options named beside it
        return False
    return bool(tuned.get("lora") == loras_digest(loras))


def own_sharing(folder: Path | None) -> Sharing:
    """The sharing that a model's folder is for, without a LoRA; the defaults where it does not say.

    Raises:
        InputError: its `sagediff.json` is not what it should be.
    """
    layer = _file_layer(None if folder is None else folder / DEFAULTS_FILE)
    return Sharing.merged({k: v for k, v in layer.items() if k != "guidance_scale"})


def _file_layer(file: Path | None) -> dict[str, Any]:
    """What the file beside a model or a LoRA says; nothing where there is none."""
    return {} if file is None or not file.is_file() else _layer(file)


def _layer(file: Path) -> dict[str, Any]:
    found = read_object(file, max_bytes=SMALL)
    layer = Sharing.layer(found, str(file))
    if "guidance_scale" in found:
        check_value(SamplingOptions, "guidance_scale", found["guidance_scale"], f"{file}: `guidance_scale`")
        layer["guidance_scale"] = found["guidance_scale"]
    return layer


def _trained_layer(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The share ratio in the middle of those that a LoRA was trained for, if its record tells."""
    ratio = (record or {}).get("share_ratio")
    told = isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 < ratio <= 1
    return Sharing.layer({"share_ratio": ratio}) if told else {}


def _preferred_scheduler(file: Path | None, steps: int) -> str | None:
    """The solver that a model's `sagediff.json` names for sharing without a LoRA, if the run has enough steps for it.

    It may hold `"scheduler": {"name": ..., "least_steps": ...}`. None: the model's own.

    Raises:
        InputError: the entry is not of that form.
    """
    entry = None if file is None else read_object(file, max_bytes=SMALL).get("scheduler")
    if entry is None:
        return None
    name, least = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "least_steps"))
    if name not in SCHEDULERS or isinstance(least, bool) or not isinstance(least, int):
        raise InputError(
            f"{file}: `scheduler` should hold a `name` ({', '.join(SCHEDULERS)}) and a whole number `least_steps`, got "
            f"{entry!r}"
        )
    return str(name) if steps >= least else None

"""`sagediff tune`: the sharing that saves most within a quality budget, written as a policy file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import sagediff
from sagediff.cli.bench import first_of, numbers, open_perception
from sagediff.cli.settings import RunSettings, quiet_libraries
from sagediff.errors import InputError, OutputError
from sagediff.evaluation.comparison import as_tensor
from sagediff.evaluation.diversity import group_diversity
from sagediff.evaluation.perception import Judging, Perception
from sagediff.evaluation.search import Measured, Search, Trial, Tuned, tune
from sagediff.files.digest import texts_digest
from sagediff.pipelines.lora import lora_file
from sagediff.pipelines.placement import open_pipeline, placement
from sagediff.plan.sharing import Sharing
from sagediff.prompts.embeddings import Encoder, embed_prompts
from sagediff.prompts.prompt_files import read_prompts
from sagediff.sampling.plan_prompts import default_guidance
from sagediff.sampling.sampler import SharedSampler

METRICS = ("accuracy", "clip")
EQUAL = 0.99  # least cosine that, but for rounding, none but equal prompts have


@dataclass(frozen=True)
class TuneRequest:
    """The options of the command line; `settings` holds what is not searched."""

    settings: RunSettings
    prompts: list[str]
    search: Search
    seeds: tuple[int, ...]
    metric: str | None
    out: Path
    features: str | None
    clip: str | None
    device: str
    dtype: str


@dataclass(frozen=True)
class Trials:
    """Finished trials beside the policy file, so that a stopped search goes on where it was."""

    path: Path
    about: str

    def read(self) -> dict[str, Measured]:
        """What came out by policy, of trials with the same model, prompts and settings."""
        found: dict[str, Measured] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    if entry["about"] == self.about:
                        found[entry["policy"]] = Measured(tuple(entry["quality"]), tuple(entry["apart"]))
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a kill
        return found

    def add(self, policy: str, measured: Measured) -> None:
        line = json.dumps({"about": self.about, "policy": policy} | asdict(measured))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class TuneGrid:
    """What is searched, as it was given."""

    thresholds: Sequence[str]
    ratios: Sequence[str]
    families: str
    budget: float
    sizes: Sequence[str] = ()
    apart: float = 0.25


def tune_request(
    settings: RunSettings,
    prompts: Path | None,
    captions: int | None,
    grid: TuneGrid,
    seeds: Sequence[str],
    metric: str | None,
    out: Path,
    features: str | None,
    clip: str | None,
    device: str,
    dtype: str,
) -> TuneRequest:
    """The options checked and their defaults filled in.

    Raises:
        InputError: a value out of range, or no prompts.
    """
    if metric is not None and metric not in METRICS:
        raise InputError(f"--metric must be one of {', '.join(METRICS)}, got {metric!r}")
    demo = settings.model == "demo"
    if prompts is not None:
        texts = first_of(read_prompts(prompts), captions)
    elif demo:
        from sagediff.builtin.scenes.scene_perception import held_out_captions

        texts = held_out_captions(128 if captions is None else captions)
    else:
        raise InputError("--model of your own needs --prompts FILE")
    thresholds = numbers("--threshold", grid.thresholds, float)
    ratios = numbers("--share-ratio", grid.ratios, float) or tuple(k / 10 for k in range(1, 9))
    likenesses: tuple[float, ...] = (-1.0, 0.0, 0.2, 0.35, 0.5) if demo else (0.6, 0.7, 0.8, 0.9)
    if equal_prompts(texts):
        likenesses += (EQUAL,)
    search = Search(
        settings.policy,
        thresholds or likenesses,
        ratios,
        grid.budget,
        tuple(grid.families.split(",")),  # type: ignore[arg-type]  # Search checks them
        sizes=numbers("--max-group-size", grid.sizes, int) or (8, 32),
        apart=grid.apart,
    )
    chosen = numbers("--seeds", seeds, int) or (0,)
    if len(set(chosen)) != len(chosen):
        raise InputError(f"every --seeds must be given once; got {', '.join(map(str, chosen))}")
    return TuneRequest(settings, texts, search, chosen, metric, out, features, clip, device, dtype)


def run_tune(request: TuneRequest) -> None:
    """Search, write the policy file; what was found goes to stdout as JSON, trials to stderr as they end.

    Raises:
        InputError: a metric that these prompts or this model do not have.
        OutputError: the file cannot be written.
    """
    quiet_libraries()
    settings = request.settings
    device, _ = placement(request.device, request.dtype)
    if request.out.is_dir():
        raise InputError(f"--out {request.out} is a folder; name the policy file")
    if not request.out.parent.is_dir():
        raise InputError(f"--out {request.out}: there is no folder {request.out.parent}")
    perception = open_perception(settings.model, request.features, request.clip, device)
    metric = request.metric or ("accuracy" if _judges(perception, request.prompts) else "clip")
    if metric == "accuracy" and not _judges(perception, request.prompts):
        raise InputError("--metric accuracy needs the built-in model and captions of its world; use clip")
    pipe = open_pipeline(settings.model, settings.scheduler, request.device, request.dtype, settings.lora)
    vectors = embed_prompts(request.prompts, pipe, settings.encoder).vectors
    trials = Trials(request.out.with_name(request.out.name + ".trials.jsonl"), _about(request, metric))
    known = trials.read()
    measure = _measurer(request, pipe, vectors, perception, metric)
    bar = Progress(
        TextColumn("policies tried"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)

        def measured(policy: Sharing) -> Measured:
            name = json.dumps(asdict(policy), sort_keys=True)
            if name not in known:
                known[name] = measure(policy)
                trials.add(name, known[name])
            return known[name]

        def told(trial: Trial) -> None:
            bar.advance(task)
            apart = "" if trial.apart is None else f", equal prompts {trial.apart:.4f} apart"
            bar.console.print(
                f"{trial.cost_saving:.1%} saved, {metric} {trial.mean:.4f}{apart}: {in_words(trial.policy)}",
                highlight=False,
            )

        found = tune(request.search, _saver(request, pipe, vectors), measured, told)
    _write(request, found, metric)


def _judges(perception: Perception, prompts: Sequence[str]) -> bool:
    import torch

    if not isinstance(perception, Judging):
        return False
    return "all" in perception.accuracy(torch.zeros(1, 3, 64, 64), prompts[:1])


def _saver(request: TuneRequest, pipe: Any, vectors: npt.NDArray[np.float32]) -> Callable[[Sharing], float]:
    """Cost saving of a policy on these prompts, from the plan alone."""
    sampler = SharedSampler(pipe, encoder=_known(request.prompts, vectors))
    settings = request.settings
    rows = sampler.plan(request.prompts, settings.num_steps, settings.guidance_scale).rows_per_prompt
    return lambda policy: policy.plan(vectors, settings.num_steps, rows).cost_saving


def _measurer(
    request: TuneRequest,
    pipe: Any,
    vectors: npt.NDArray[np.float32],
    perception: Perception,
    metric: str,
) -> Callable[[Sharing], Measured]:
    settings, prompts = request.settings, request.prompts
    guidance = default_guidance(type(pipe)) if settings.guidance_scale is None else settings.guidance_scale

    encoder = _known(prompts, vectors)
    copies = equal_prompts(prompts)

    def measure(policy: Sharing) -> Measured:
        sampler = SharedSampler(
            pipe, policy.threshold, policy.share_ratio, policy.max_group_size,
            shared_guidance=policy.shared_guidance, unguided=policy.unguided,
            handover_noise=settings.handover_noise, encoder=encoder,
            rungs=policy.rungs, parting=policy.parting,
        )  # fmt: skip
        out, apart = [], []
        for seed in request.seeds:
            images = as_tensor(sampler(prompts, settings.num_steps, guidance, seed).images)
            if metric == "accuracy":
                assert isinstance(perception, Judging)
                out.append(float(perception.accuracy(images, prompts)["all"].float().mean()))
            else:
                out.append(float(perception.alignment(images, prompts).mean()))
            if copies:
                apart.append(group_diversity(perception.features(images), copies) or 0.0)
        return Measured(tuple(out), tuple(apart))

    return measure


def equal_prompts(prompts: Sequence[str]) -> list[list[int]]:
    """The numbers of every prompt that is there more than once."""
    places: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(number)
    return [numbers for numbers in places.values() if len(numbers) > 1]


def _known(prompts: Sequence[str], vectors: npt.NDArray[np.float32]) -> Encoder:
    """The embeddings that are there already, for any of the prompts."""
    rows = dict(zip(prompts, vectors, strict=True))
    return lambda texts: np.stack([rows[text] for text in texts])


def _about(request: TuneRequest, metric: str) -> str:
    """What all trials of a search have in common, as a short name."""
    settings = request.settings
    lora = None if settings.lora is None else lora_file(settings.lora).read_bytes()
    facts = [
        sagediff.__version__, settings.model, None if lora is None else hashlib.blake2b(lora).hexdigest(),
        settings.num_steps, settings.guidance_scale, settings.scheduler, settings.encoder, settings.handover_noise,
        texts_digest(request.prompts), list(request.seeds), metric, request.features, request.clip, request.dtype,
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def policy_record(policy: Sharing) -> dict[str, Any]:
    """The keys of a policy file that say how to share."""
    record: dict[str, Any] = {
        "threshold": policy.threshold,
        "share_ratio": policy.share_ratio,
        "max_group_size": policy.max_group_size,
    }
    if policy.rungs:
        record |= {"rungs": [list(rung) for rung in policy.rungs], "parting": policy.parting}
    return record


def in_words(policy: Sharing) -> str:
    """The ladder of a policy for a person."""
    if policy.share_ratio == 0:
        return "nothing shared"
    rungs = ", ".join(f"{rung.share_ratio:.0%} from {rung.threshold:g} on" for rung in policy.ladder)
    return f"{rungs}, groups of up to {policy.max_group_size}" + (
        ", which part together" if policy.parting == "together" and policy.rungs else ""
    )


def _write(request: TuneRequest, found: Tuned, metric: str) -> None:
    settings, best = request.settings, found.best
    apart = {} if best.apart is None else {"apart": best.apart, "apart_independent": found.trials[0].apart}
    record = policy_record(best.policy) | {
        "tuned": {
            "model": Path(settings.model).name,
            "num_steps": settings.num_steps,
            "scheduler": settings.scheduler,
            "metric": metric,
            "budget": request.search.budget,
            "quality": best.mean,
            "quality_independent": found.trials[0].mean,
            **apart,
            "cost_saving": best.cost_saving,
            "num_prompts": len(request.prompts),
            "seeds": list(request.seeds),
            "trials": len(found.trials),
        }
    }
    text = json.dumps(record, indent=2) + "\n"
    partial = request.out.with_name(request.out.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(request.out)
    except OSError as error:
        raise OutputError(f"cannot write {request.out}: {error.strerror or error}") from error
    print(json.dumps(record))
    print(
        f"{best.cost_saving:.1%} saved with {metric} {best.mean:.4f} (independent {found.trials[0].mean:.4f}): "
        f"{in_words(best.policy)}; in {request.out}, for --policy",
        file=sys.stderr,
    )

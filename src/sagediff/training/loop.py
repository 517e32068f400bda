"""`train`: from a pipeline and captioned images to weights that share well."""

from __future__ import annotations

import copy
import inspect
import json
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sagediff.denoiser.condition import mean_condition
from sagediff.errors import InputError, ModelError
from sagediff.files.atomic import at_work, output_errors, sweep, write_text, writing
from sagediff.options import OptionError
from sagediff.pipelines.loading import load_for_planning, supported_parts
from sagediff.pipelines.model_source import ModelSource
from sagediff.pipelines.run_settings import own_sharing
from sagediff.progress import stderr_progress
from sagediff.prompts.embeddings import embed_prompts
from sagediff.training import checkpoint
from sagediff.training.adapter import adapter_off, add_adapter, check_adapter, save_adapter
from sagediff.training.batches import GroupCounts, GroupSchedule, schedule_warnings
from sagediff.training.captioned_images import CaptionedImages
from sagediff.training.card import model_card
from sagediff.training.encoding import EncodedExamples
from sagediff.training.forward_process import ForwardProcess
from sagediff.training.identity import data_identity, model_identity
from sagediff.training.objective import GroupBatch, sage_terms, standard_terms
from sagediff.training.oracle import prove
from sagediff.training.run_folder import CHECKPOINTS, LOG, check_output
from sagediff.training.train_config import WARMUP, TrainConfig
from sagediff.training.trainable import TrainableDenoiser, check_trainable
from sagediff.training.trained import NOT_TERMS, Trained, counts_record
from sagediff.training.validation import draw_validation


def train(pipe: Any, data: CaptionedImages, config: TrainConfig, base: str = "") -> Path:
    """Train the pipeline's denoiser and write the weights into `config.out`; returns their path.

    Args:
        base: the model's name for the card; the pipeline's own if left out.

    Afterwards the pipeline carries the trained weights (the running mean, if there is one).

    Raises:
        InputError: an output folder in use, a checkpoint of another run, or no images.
        OutputError: the disk refused, or an image cannot be read; checkpoints are kept.
        ModelError: the loss, its gradient or the weights are not finite. The last checkpoint is kept, no weights are
            written.
    """
    if not len(data):
        raise InputError("there are no images to train on")
    folder = getattr(pipe, "name_or_path", None)  # nothing for a pipeline out of a single file
    own = own_sharing(Path(str(folder)) if folder else None)
    run = _Run(pipe, data, config.with_threshold(own.threshold), base)
    with at_work(), output_errors(config.out):
        return run.go()


class _Run:
    def __init__(self, pipe: Any, data: CaptionedImages, config: TrainConfig, base: str) -> None:
        from accelerate import Accelerator
        from diffusers.optimization import get_cosine_schedule_with_warmup
        from diffusers.training_utils import EMAModel

        self.config, self.pipe, self.data = config, pipe, data
        self.base = base or str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
        self.checkpoints = config.out / CHECKPOINTS
        check_output(config)
        self.record = config.record() | {"data": data_identity(data), "model": model_identity(pipe)}
        found = _checkpoint(config, self.checkpoints, self.record)
        try:
            self.accelerator = Accelerator(
                mixed_precision=config.mixed_precision,
                log_with=None if config.report_to == "none" else config.report_to,
                project_dir=str(config.out / "logs"),
            )
        except ValueError as error:  # a precision that this machine has not
            raise OptionError(
                "mixed_precision",
                f"{config.mixed_precision} does not work here: {str(error).splitlines()[0]}",
            ) from error
        device = self.accelerator.device
        pipe.to(device)
        size = _size(pipe, config.resolution)
        self.denoiser = TrainableDenoiser(pipe, *size, schedule_steps=config.schedule_steps)
        check_adapter(pipe, config.rank)
        self.process = self.denoiser.process
        if config.snr_gamma is not None:
            self.process.min_snr_weights(self.process.timesteps(torch.tensor([0.5])), config.snr_gamma)
        prove(self.denoiser)
        module = self.denoiser.module
        self.captions = list(dict.fromkeys(data.captions))
        numbers = {caption: i for i, caption in enumerate(self.captions)}
        self.caption_of = [numbers[caption] for caption in data.captions]
        self.examples = EncodedExamples(self.denoiser, data, self.captions, size, config.cache_limit * 1e9)
        self.empty = self.denoiser.empty_condition() if config.caption_dropout else None
        images: list[list[int]] = [[] for _ in self.captions]
        for image, caption in enumerate(self.caption_of):
            images[caption].append(image)
        self.schedule = GroupSchedule(
            embed_prompts(self.captions, pipe).vectors, images, config.grouped_at, config.group_size,
            config.pool_size, config.train_batch_size, config.seed,
        )  # fmt: skip
        if self.accelerator.is_main_process:
            for words in schedule_warnings(self.schedule, config, len(data)):
                print(f"warning: {words}", file=sys.stderr)
            if config.lr_warmup_steps is None and config.warmup_steps < WARMUP:
                print(
                    f"the learning rate warms up over {config.warmup_steps} of {config.steps} steps",
                    file=sys.stderr,
                )

        torch.manual_seed(config.seed)
        if config.rank:
            add_adapter(module, config.rank, config.lora_layers)
            self.teacher = module
            self.teacher_context: Any = lambda: adapter_off(module)
        else:
            self.teacher = copy.deepcopy(module).requires_grad_(False)
            self.teacher_context = nullcontext
            module.requires_grad_(True)
        module.train()
        if device.type == "cpu" and config.mixed_precision != "no":
            module.to(memory_format=torch.contiguous_format)  # a fifth faster in bf16, slower in float32
        if hasattr(module, "enable_gradient_checkpointing") and device.type != "cpu":
            module.enable_gradient_checkpointing()
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            list(self.trained.values()), lr=config.learning_rate, weight_decay=config.adam_weight_decay
        )
        self.average = EMAModel(list(self.trained.values()), decay=config.ema_decay or 0.0)
        self.average.to(device)
        self.weights = {f"parameter.{name}": p for name, p in self.trained.items()} | {
            f"average.{name}": p for name, p in zip(self.trained, self.average.shadow_params, strict=True)
        }
        self.start = 0
        if found is not None:
            found.restore(self.weights, optimizer)
            self.start = found.step
            self.average.optimization_step = self.start
        for group in optimizer.param_groups:
            group["initial_lr"] = config.learning_rate  # torch asks for it to begin at a later step
        self.lr_scheduler = get_cosine_schedule_with_warmup(
            optimizer, config.warmup_steps, config.steps, last_epoch=self.start - 1
        )
        self.model, self.optimizer = self.accelerator.prepare(module, optimizer)

    # -- one step

    def _batch(self, number: int, rng: np.random.Generator) -> GroupBatch:
        groups = self.schedule.batch(number)
        members = [i for group in groups for i in group]
        device = self.accelerator.device
        conditions, empty = self.denoiser.padded(
            [self.examples.conditions([self.caption_of[i] for i in members]), self.empty or {}]
        )
        conditions = {
            k: v.to(device, torch.float32 if v.is_floating_point() else v.dtype)
            for k, v in conditions.items()
        }
        merged, first = [], 0
        for group in groups:
            merged.append(self.denoiser.merge(conditions, range(first, first + len(group)), mean_condition))
            first += len(group)
        dropped = rng.random(len(members)) < (self.config.caption_dropout if self.empty is not None else 0.0)
        return GroupBatch(
            latents=self.examples.latents(members),
            conditions=conditions,
            group_conditions={k: torch.cat([m[k] for m in merged]) for k in conditions},
            empty={k: v.to(device, conditions[k].dtype) for k, v in empty.items()},
            dropped=torch.from_numpy(dropped).to(device),
            node=torch.tensor([n for n, group in enumerate(groups) for _ in group], device=device),
        )

    def _predict(self, model: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> Any:
        def predict(states: Tensor, timesteps: Tensor, conditions: Any) -> Tensor:
            with context(), self.accelerator.autocast():
                return self.denoiser(states, self.process.told(timesteps), dict(conditions), model)

        return predict

    def _terms(self, number: int) -> tuple[dict[str, Tensor], list[int]]:
        """The weighted terms of a batch, and the sizes of its groups."""
        config = self.config
        rng = np.random.default_rng([config.seed, 3, number])
        generator = torch.Generator(self.accelerator.device).manual_seed(int(rng.integers(2**62)))
        batch = self._batch(number, rng)
        sizes = torch.bincount(batch.node).tolist()
        student = self._predict(self.model, nullcontext)
        if config.objective == "standard":
            return standard_terms(student, self.process, batch, generator, config.snr_gamma), sizes
        terms = sage_terms(
            student, self._predict(self.teacher, self.teacher_context), self.process, batch, config.weights,
            config.branch_range, generator, config.snr_gamma,
        )  # fmt: skip
        return terms, sizes

    def _step(self, step: int) -> tuple[dict[str, float], GroupCounts]:
        """The terms of a step, and what it was trained on.

        Raises:
            ModelError: a loss or a gradient that is not finite; the weights are as they were.
        """
        config, accelerator = self.config, self.accelerator
        sums: dict[str, float] = {}
        sizes: list[int] = []
        for part in range(config.gradient_accumulation_steps):
            number = (step * config.gradient_accumulation_steps + part) * accelerator.num_processes
            terms, more = self._terms(number + accelerator.process_index)
            sizes += more
            accelerator.backward(torch.stack(list(terms.values())).sum() / config.gradient_accumulation_steps)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / config.gradient_accumulation_steps
        if not all(map(math.isfinite, sums.values())):
            found = ", ".join(f"{name} {value:g}" for name, value in sums.items())
            raise self._diverged(f"the loss is not finite at step {step + 1} ({found})")
        norm = accelerator.clip_grad_norm_(list(self.trained.values()), config.max_grad_norm)
        # in fp16 that happens now and then: the scaler leaves the step out and scales less
        if config.mixed_precision != "fp16" and norm is not None and not math.isfinite(float(norm)):
            raise self._diverged(f"the gradient is not finite at step {step + 1}")
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if config.ema_decay:
            self.average.step(list(self.trained.values()))
        return sums, GroupCounts.of(sizes)

    def _diverged(self, what: str) -> ModelError:
        """The error of a run that cannot go on."""
        kept = checkpoint.latest(self.checkpoints)
        weights = "there is no checkpoint yet" if kept is None else f"the last checkpoint, {kept}, is kept"
        return ModelError(
            f"{what}; {weights}. Train again into another folder with a lower --learning-rate, or with "
            "--mixed-precision no"
        )

    def _check_weights(self, step: int) -> None:
        """Before they are written.

        Raises:
            ModelError: some are not finite.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in self.weights.values()):
            raise self._diverged(f"the weights are not finite after step {step}")

    # -- the whole

    def go(self) -> Path:
        config, accelerator = self.config, self.accelerator
        config.out.mkdir(parents=True, exist_ok=True)  # not earlier: what can be refused has been by now
        if accelerator.is_main_process:
            for folder in (config.out, config.out / "validation"):
                sweep(folder)
        log = _Log(config.out / LOG, self.start)
        if config.report_to != "none":
            accelerator.init_trackers("sagediff")
        with stderr_progress(
            f"training ({config.objective})", note="{task.fields[terms]}", shown=accelerator.is_main_process
        ) as progress:
            task = progress.add_task("", total=config.steps, completed=self.start, terms="")
            for step in range(self.start, config.steps):
                rate = self.lr_scheduler.get_last_lr()[0]
                terms, counts = self._step(step)
                if accelerator.is_main_process:
                    log.write({"step": step + 1, "learning_rate": rate, **terms, **counts_record(counts)})
                accelerator.log(terms | {"learning_rate": rate}, step=step + 1)
                progress.update(task, advance=1, terms=log.words())
                last = step + 1 == config.steps
                if config.validation_steps and (step + 1) % config.validation_steps == 0 and not last:
                    self._validate(step + 1)
                if accelerator.is_main_process and ((step + 1) % config.checkpointing_steps == 0 or last):
                    self._check_weights(step + 1)
                    checkpoint.save(
                        self.checkpoints, step + 1, self.weights, self.optimizer, self.record,
                        config.checkpoints_total_limit,
                    )  # fmt: skip
                    if not progress.console.is_terminal:
                        progress.console.print(
                            f"step {step + 1}/{config.steps} {log.words()}", highlight=False
                        )
        accelerator.wait_for_everyone()
        if config.report_to != "none":
            accelerator.end_training()
        return self._finish()

    def _validate(self, step: int) -> None:
        """Images of some training groups, with the running mean of the weights."""
        if not self.accelerator.is_main_process:
            return
        config, module = self.config, self.denoiser.module
        parameters = list(self.trained.values())
        prompts = [self.data.captions[i] for group in self.schedule.batch(0) for i in group]
        if config.ema_decay:
            self.average.store(parameters)
            self.average.copy_to(parameters)
        module.eval()
        try:
            draw_validation(
                self.pipe, prompts[:8], config.shared_as(), config.out / "validation" / f"step-{step:07d}.png",
                config.validation_guidance, config.seed, config.schedule_steps, self.denoiser.size,
            )  # fmt: skip
        finally:
            module.train()
            if config.ema_decay:
                self.average.restore(parameters)

    def _finish(self) -> Path:
        config, module = self.config, self.denoiser.module
        self._check_weights(config.steps)  # a run that goes on after its last step has not looked
        self._validate(config.steps)
        trained = Trained.read(config.out / LOG)
        if config.ema_decay:
            self.average.copy_to(list(self.trained.values()))
        module.eval()
        if config.rank:
            path = save_adapter(self.pipe, module, config.out, config.sharing(trained.counts.largest))
        else:
            path = config.out / ("unet" if module is getattr(self.pipe, "unet", None) else "transformer")
            with writing(path) as partial:
                module.save_pretrained(partial, safe_serialization=True)
        card = model_card(self.base, len(self.data), len(self.captions), config, path.name, trained)
        write_text(config.out / "README.md", card)
        return path


class _Log:
    """One JSON object per step; a resumed run cuts what lies behind its checkpoint."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        with output_errors(path):
            before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() and start else ""
        write_text(path, "".join(line + "\n" for line in before.split("\n")[:start] if line))
        self._running: dict[str, float] = {}

    def write(self, record: dict[str, Any]) -> None:
        with output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in NOT_TERMS:
                before = self._running.get(name, value)
                self._running[name] = 0.95 * before + 0.05 * value

    def words(self) -> str:
        return " ".join(f"{name} {value:.4f}" for name, value in self._running.items())


def _checkpoint(config: TrainConfig, folder: Path, record: dict[str, Any]) -> checkpoint.Checkpoint | None:
    """What a run goes on from; broken checkpoints that are passed over are named on stderr.

    Raises:
        InputError: none is whole, or it is of another run.
    """
    if not config.resume:
        return None
    found, broken = checkpoint.newest_whole(folder)
    if found is not None:
        found.check(record)
        for words in broken:
            print(f"warning: {words}; going on from {found.path.name} before it", file=sys.stderr)
    return found


def check_model(name: str | ModelSource, config: TrainConfig) -> None:
    """Refuse a model that cannot be trained so, before its weights are read.

    Raises:
        InputError: no such model. UnsupportedPipelineError: a denoiser, a prediction or a weighting that training does
            not know.
    """
    check_trainable(supported_parts(name)[1])
    pipe, _ = load_for_planning(name, text_encoders=False)
    check_adapter(pipe, config.rank)
    process = ForwardProcess.of(pipe.scheduler, image_tokens=4096)
    if config.snr_gamma is not None:
        process.min_snr_weights(process.timesteps(torch.tensor([0.5])), config.snr_gamma)


def _size(pipe: Any, resolution: int | None) -> tuple[int, int]:
    """(height, width) in pixels.

    Raises:
        InputError: a resolution that the autoencoder cannot divide, or none for a pipeline that has no size of its own.
    """
    factor = next(
        (int(getattr(pipe, name)) for name in _FACTORS if isinstance(getattr(pipe, name, None), int)), 1
    )
    if resolution is None:
        unet = getattr(getattr(pipe, "unet", None), "config", None)
        side = getattr(pipe, "default_sample_size", None) or getattr(unet, "sample_size", None)
        if isinstance(side, int):
            return side * factor, side * factor
        call = inspect.signature(type(pipe).__call__).parameters
        own = [getattr(call.get(name), "default", None) for name in ("height", "width")]
        if isinstance(own[0], int) and isinstance(own[1], int):
            return own[0], own[1]
        raise InputError(f"{type(pipe).__name__} has no size of its own; give --resolution")
    if resolution < 1 or resolution % factor:
        raise InputError(f"resolution must be a multiple of {factor} for this model, got {resolution}")
    return resolution, resolution


# pixels per latent, as pipelines name it
_FACTORS = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")

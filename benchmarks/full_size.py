"""Time and peak memory of shared and independent sampling, on denoisers of full size with random weights.

    python benchmarks/full_size.py --device cuda --repeats 3
    python benchmarks/full_size.py --device cuda --models flux --micro-batch 8 --prompts 64
    python benchmarks/full_size.py --device meta                            # peak memory only, on any machine
    python benchmarks/full_size.py --device meta --decode                   # with the autoencoder, to images
    python benchmarks/full_size.py --device cpu --models sd15 --resolution 256 --steps 6 --prompts 8 --repeats 2
    python benchmarks/full_size.py --tiny                                   # does it run? seconds

Stable Diffusion 1.5, SDXL, SD3 medium and FLUX.1-dev, as their pipelines run them, from embeddings to latents. The
weights are random, so the images are noise, but shapes, speed and memory are those of the real models. With `--decode`
their autoencoder makes images of the latents, those of shared waves as `SharedSampler` decodes them. "Independent" is
the untouched pipeline, called for as many prompts at once as give its denoiser `--micro-batch` rows; "shared" is the
same pipeline inside `shared_sampling`, whole groups per call, its denoiser running at most as many rows at once, with
guidance off in the shared steps. What that leaves out is counted as saved too. Both get the same noise and embeddings,
and are timed in pairs, each first in turn. Rows are counted inside the denoiser. If others use the same cores, look at
the processor's time instead of the clock's.

Peak memory is what the allocator held at most on CUDA, the resident set of the process on the CPU, and on the meta
device, where nothing is computed or timed, a count of bytes (`live_bytes.py`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from live_bytes import LiveBytes, computing_nothing

import sagediff
from sagediff.sampling.decoding import decoding_in_parts

MIB = 1 << 20
INDEPENDENT, SHARED = "independent", "shared"
ALIKE = 0.8  # cosine of embeddings within a group
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Size:
    """The denoiser's configuration, and what goes with it: pixels per side, tokens per prompt, widths of embeddings."""

    config: dict[str, Any]
    pixels: int
    tokens: int
    width: int
    pooled: int = 0


@dataclass(frozen=True)
class Model:
    """A pipeline of diffusers.

    Attributes:
        parts: its arguments besides the denoiser and the scheduler; None for each.
        counted: the submodule of the denoiser that gets one row for each denoiser row.
        rows: denoiser rows per prompt, with the guidance scale given.
    """

    pipeline: str
    denoiser: str
    scheduler: Callable[[], Any]
    parts: str
    counted: str
    guidance: float
    rows: int
    full: Size
    tiny: Size


TINY_UNET = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True, "addition_embed_type": "text_time",
}  # fmt: skip
MODELS = {
    "sd15": Model(
        "StableDiffusionPipeline", "UNet2DConditionModel",
        lambda: diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False),
        "vae text_encoder tokenizer safety_checker feature_extractor", "conv_in", 7.5, 2,
        Size({
            "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8,
            "cross_attention_dim": 768,
        }, 512, 77, 768),
        Size(TINY_UNET | {"block_out_channels": (8, 8, 16, 16), "attention_head_dim": 2}, 64, 7, 16),
    ),
    "sdxl": Model(
        "StableDiffusionXLPipeline", "UNet2DConditionModel",
        lambda: diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        "vae text_encoder text_encoder_2 tokenizer tokenizer_2", "conv_in", 5.0, 2,
        Size(SDXL | {
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        }, 1024, 77, 2048, 1280),
        Size(SDXL | TINY_UNET | {
            "block_out_channels": (8, 16, 16), "attention_head_dim": (2, 4, 4), "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
        }, 64, 7, 16, 16),
    ),
    "sd3": Model(
        "StableDiffusion3Pipeline", "SD3Transformer2DModel",
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae text_encoder text_encoder_2 text_encoder_3 tokenizer tokenizer_2 tokenizer_3", "pos_embed", 7.0, 2,
        Size({
            "sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        }, 1024, 333, 4096, 2048),
        Size({
            "sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
            "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        }, 64, 7, 16, 16),
    ),
    "flux": Model(
        "FluxPipeline", "FluxTransformer2DModel",
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae text_encoder text_encoder_2 tokenizer tokenizer_2", "x_embedder", 3.5, 1,
        Size({
            "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24,
            "attention_head_dim": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "guidance_embeds": True,
        }, 1024, 512, 4096, 768),
        Size({
            "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2,
            "attention_head_dim": 16, "joint_attention_dim": 16, "pooled_projection_dim": 16,
            "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
        }, 64, 7, 16, 16),
    ),
}  # fmt: skip


def make_denoiser(model: Model, size: Size, device: str, dtype: torch.dtype) -> Any:
    """With weights as its layers draw them."""
    return make_module(model.denoiser, size.config, device, dtype)


def make_autoencoder(model: Model, size: Size, tiny: bool, device: str, dtype: torch.dtype) -> Any:
    """Of all four models; they differ in the channels of a latent, and in layers of 1 x 1 around them."""
    is_unet = model.denoiser == "UNet2DConditionModel"
    packed = size.config.get("in_channels")  # FLUX's: 2 x 2 latents
    config = {
        "block_out_channels": (4, 4, 8, 8) if tiny else (128, 256, 512, 512), "norm_num_groups": 4 if tiny else 32,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2, "latent_channels": packed // 4 if packed else 4 if is_unet else 16,
        "use_quant_conv": is_unet, "use_post_quant_conv": is_unet, "shift_factor": None if is_unet else 0.0,
    }  # fmt: skip
    return make_module("AutoencoderKL", config, device, dtype)


def make_module(name: str, config: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """Made where and as it stays: 12 B weights have no room for a copy."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = getattr(diffusers, name)(**config)
    finally:
        torch.set_default_dtype(before)
    torch.nn.Module.to(module, device=device, dtype=dtype)  # buffers that it made elsewhere or wider
    return module.eval().requires_grad_(False)


def make_pipeline(
    model: Model, size: Size, device: str, dtype: torch.dtype, vae: Any = None
) -> tuple[Any, Any]:
    """(pipeline, its denoiser)."""
    torch.manual_seed(0)
    denoiser = make_denoiser(model, size, device, dtype)
    name = "unet" if model.denoiser == "UNet2DConditionModel" else "transformer"
    options = {"requires_safety_checker": False} if "safety_checker" in model.parts else {}
    pipe = getattr(diffusers, model.pipeline)(
        **(dict.fromkeys(model.parts.split()) | {"vae": vae}),
        **options,
        **{name: denoiser},
        scheduler=model.scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, denoiser


def embeddings(size: Size, groups: list[list[int]], dtype: torch.dtype, guided: bool) -> dict[str, Any]:
    """What the pipeline takes for each prompt, (N, ...), alike within a group; on the CPU, as a queue would be."""
    noise = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        own, common = (1 - ALIKE) ** 0.5, ALIKE**0.5
        rows = []
        for group in groups:
            center = torch.randn(shape, generator=noise)
            rows += [common * center + own * torch.randn(shape, generator=noise) for _ in group]
        return torch.stack(rows).to(dtype)

    shapes = {"prompt_embeds": (size.tokens, size.width), "pooled_prompt_embeds": (size.pooled,)}
    drawn = {name: draw(*shape) for name, shape in shapes.items() if min(shape)}
    if guided:
        drawn |= {f"negative_{name}": rows[:1].expand_as(rows) * 0.5 for name, rows in drawn.items()}
    return drawn


class Counted:
    """Counts the rows that the denoiser runs, and the most at once; inside it, where the hook has chosen them."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.rows = self.most = 0
        module.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.rows += len(args[0])
        self.most = max(self.most, len(args[0]))


def weights_of(parts: Sequence[Any]) -> list[torch.Tensor]:
    return [weight for part in parts for weight in (*part.parameters(), *part.buffers())]


@contextmanager
def peak_memory(parts: Sequence[Any], device: str) -> Iterator[Callable[[], int]]:
    """What it yields tells the bytes held at most since the context was entered."""
    gc.collect()
    if device == "meta":
        with LiveBytes(weights_of(parts)) as live:
            yield lambda: live.most
    elif device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the run before left in the heap is not this one's
        Path("/proc/self/clear_refs").write_text("5")  # the mark goes back to what is resident now
        yield lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10


@dataclass(frozen=True)
class Sampled:
    """One run over all prompts: its seconds, those of the processor, its peak in bytes, rows run, rows planned."""

    seconds: float
    processor: float
    peak: int
    rows: int
    planned: tuple[int, int]


class Bench:
    """One model, and both ways to sample the same prompts on it.

    Attributes:
        plan: of all prompts; with guidance off while sharing, as `SharedSampler` has it.
        at_once: prompts per call of the pipeline, for both ways.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        model = MODELS[name]
        size = model.tiny if args.tiny else model.full
        self.device, self.micro_batch = args.device, args.micro_batch
        guidance = model.guidance if args.guidance is None else args.guidance
        rows = model.rows if guidance > 1 else 1
        if args.micro_batch < rows or args.micro_batch % rows:
            raise SystemExit(
                f"{name} runs {rows} rows per prompt: --micro-batch {args.micro_batch} should be a multiple"
            )
        numbers = list(range(args.prompts))
        self.groups = [numbers[first : first + args.group_size] for first in numbers[:: args.group_size]]
        self.plan = sagediff.SharePlan.from_groups(
            self.groups, args.steps, args.share_ratio, 1.0, rows_per_prompt=rows
        )
        wave = args.wave_size or args.micro_batch * args.group_size  # shared steps fill a micro-batch too
        self.at_once = {
            INDEPENDENT: args.micro_batch // rows,
            SHARED: max(1, wave // args.group_size) * args.group_size,
        }
        dtype = getattr(torch, args.dtype)
        vae = make_autoencoder(model, size, args.tiny, self.device, dtype) if args.decode else None
        self.pipe, self.denoiser = make_pipeline(model, size, self.device, dtype, vae)
        self.parts = [self.denoiser, *filter(None, [vae])]
        self.counted = Counted(self.denoiser.get_submodule(model.counted))
        self._inputs = embeddings(size, self.groups, dtype, guided=rows == 2)
        self.pixels = size.pixels if args.tiny else args.resolution or size.pixels
        self._options = {"guidance_scale": guidance, "height": self.pixels, "width": self.pixels}

    def sample(self, way: str, plan: sagediff.SharePlan, prompts: int) -> tuple[int, int]:
        """The plan's first prompts, a call of the pipeline after another.

        Returns:
            Denoiser rows of sharing and of independent sampling, as the runs planned them; zeros unless shared.
        """
        planned, noise, device = [0, 0], plan.generators(0), self.pipe._execution_device
        for first in range(0, prompts, self.at_once[way]):
            part = slice(first, min(first + self.at_once[way], plan.num_prompts))
            with ExitStack() as stack:
                if way == SHARED:
                    wave = plan.subset(range(plan.num_prompts)[part])
                    stack.enter_context(decoding_in_parts(self.pipe))
                    run = stack.enter_context(
                        sagediff.shared_sampling(self.pipe, wave, micro_batch_size=self.micro_batch)
                    )
                made = self.pipe(
                    **{name: rows[part].to(device, copy=True) for name, rows in self._inputs.items()},
                    **self._options, num_inference_steps=plan.num_steps, generator=noise[part],
                    output_type="latent" if self.pipe.vae is None else "pt",
                ).images.cpu()  # fmt: skip
            if not made.isfinite().all():
                raise FloatingPointError(
                    f"{way} sampling from prompt {first} on gave {'latents' if self.pipe.vae is None else 'images'} "
                    f"that are not finite"
                )
            if way == SHARED:
                planned = [planned[0] + run.plan.evaluations, planned[1] + run.plan.evaluations_independent]
        return planned[0], planned[1]

    def warm_up(self) -> None:
        """One call of each way, two steps long, the first of them shared."""
        short = sagediff.SharePlan.from_groups(
            self.groups, 2, 0.5, 1.0, rows_per_prompt=self.plan.rows_per_prompt
        )
        for way in self.at_once:
            self.sample(way, short, prompts=1)

    def timed(self, way: str) -> Sampled:
        """All prompts, one way."""
        self.counted.rows = self.counted.most = 0
        with peak_memory(self.parts, self.device) as peak:
            start, processor = time.perf_counter(), time.process_time()
            planned = self.sample(way, self.plan, self.plan.num_prompts)
            if self.device.startswith("cuda"):
                torch.cuda.synchronize(self.device)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
        if self.counted.most > self.micro_batch:
            raise AssertionError(f"{way}: {self.counted.most} rows at once, micro-batch {self.micro_batch}")
        return Sampled(seconds, processor, peak(), self.counted.rows, planned)


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One model's row of the report."""
    bench = Bench(name, args)
    weights = sum(weight.nbytes for weight in weights_of(bench.parts))
    nothing = computing_nothing(bench.pipe, bench.parts) if args.device == "meta" else nullcontext()
    runs: dict[str, list[Sampled]] = {INDEPENDENT: [], SHARED: []}
    with nothing:
        if args.device != "meta":
            bench.warm_up()
        for repeat in range(1 if args.device == "meta" else args.repeats):
            for way in sorted(runs, reverse=repeat % 2 == 1):
                runs[way].append(bench.timed(way))
    planned = dict(zip((SHARED, INDEPENDENT), runs[SHARED][0].planned, strict=True))
    for way, each in runs.items():
        if any(run.rows != planned[way] for run in each):
            raise AssertionError(
                f"{name}, {way}: {[run.rows for run in each]} rows run, {planned[way]} planned"
            )
    saving = 1 - planned[SHARED] / planned[INDEPENDENT]
    peaks = {way: max(run.peak for run in each) for way, each in runs.items()}
    row: dict[str, Any] = {
        "model": name,
        "parameters": sum(w.numel() for w in bench.denoiser.parameters()),
        "device": torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else args.device,
        "dtype": args.dtype, "pixels": bench.pixels, "steps": args.steps, "prompts": args.prompts,
        "group_size": args.group_size, "share_ratio": args.share_ratio, "micro_batch": args.micro_batch,
        "prompts_a_call": bench.at_once, "evaluations": planned, "evaluations_saved": saving,
        "weights_mib": weights / MIB, "peak_mib": {way: peak / MIB for way, peak in peaks.items()},
        "peak_not_above": peaks[SHARED] <= peaks[INDEPENDENT],
    }  # fmt: skip
    if args.device != "meta":
        pairs = list(zip(runs[SHARED], runs[INDEPENDENT], strict=True))
        saved = [1 - ours.seconds / theirs.seconds for ours, theirs in pairs]
        spread = statistics.stdev(saved) if len(saved) > 1 else None
        row |= {
            "seconds": {way: [run.seconds for run in each] for way, each in runs.items()},
            "processor_saved": [1 - ours.processor / theirs.processor for ours, theirs in pairs],
            "wall_clock_saved": {"mean": statistics.mean(saved), "spread": spread, "each": saved},
            "ratio": statistics.mean(saved) / saving if saving else None,
        }  # fmt: skip
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The report in Markdown."""
    lines = [
        "| model | evaluations | saved | wall clock saved | wall clock / evaluations | peak MiB | peak not above |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        saved, peak, made = row.get("wall_clock_saved"), row["peak_mib"], row["evaluations"]
        clock = "" if saved is None else f"{saved['mean']:.1%}"
        if saved is not None and saved["spread"] is not None:
            clock += f" ± {saved['spread']:.1%}"
        ratio = "" if row.get("ratio") is None else f"{row['ratio']:.3f}"
        lines.append(
            f"| {row['model']} | {made[INDEPENDENT]} -> {made[SHARED]} | {row['evaluations_saved']:.1%} | {clock} "
            f"| {ratio} | {peak[INDEPENDENT]:.1f} -> {peak[SHARED]:.1f} | {'yes' if row['peak_not_above'] else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    on_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", default="cuda" if on_cuda else "cpu", help="cuda, cuda:1, cpu or meta")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--resolution", type=int, help="pixels per side; default: the model's own")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--share-ratio", type=float, default=0.4)
    parser.add_argument("--micro-batch", type=int, default=4, help="denoiser rows run at once, both ways")
    parser.add_argument(
        "--wave-size", type=int, help="most prompts shared in a call; default: micro-batch x group size"
    )
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--guidance", type=float, help="default: the model's own; 1 runs no negative rows")
    parser.add_argument("--decode", action="store_true", help="with the autoencoder, to images")
    parser.add_argument("--tiny", action="store_true", help="shrunk models of 64 pixels")
    parser.add_argument("--out", type=Path, help="also write the rows there as JSON")
    args = parser.parse_args()
    rows = []
    for name in args.models:
        rows.append(compare(name, args))
        print(json.dumps(rows[-1]), flush=True)
    print("\n" + table(rows))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

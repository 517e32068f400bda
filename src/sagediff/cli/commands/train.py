"""`sagediff train`: options to a run; what it trains and how is in `sagediff.training`."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from sagediff.cli import options
from sagediff.collector import importing
from sagediff.errors import InputError
from sagediff.files.claim import claimed_output
from sagediff.pipelines.loading import check_local_model
from sagediff.pipelines.lora import sharing_record
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.training.captioned_images import load_images
from sagediff.training.run_folder import check_output
from sagediff.training.train_config import SageWeights, TrainConfig

options.FLAGS.update(options.renamed(SageWeights))
if TYPE_CHECKING:
    GivenModel = Any
    GivenData = Any
    GivenAdapter = Any
    GivenOptimization = Any
    GivenObjective = Any
    GivenWeights = Any
    GivenOutput = Any
else:
    GivenModel = options.given(ModelOptions, only=("name", "variant", "revision", "config"))
    GivenData = options.given(TrainConfig, ("resolution", "caption_dropout", "pool_size"))
    GivenAdapter = options.given(TrainConfig, ("rank", "lora_layers"))
    GivenOptimization = options.given(
        TrainConfig,
        (
            "steps",
            "learning_rate",
            "train_batch_size",
            "gradient_accumulation_steps",
            "lr_warmup_steps",
            "snr_gamma",
            "ema_decay",
            "mixed_precision",
            "seed",
        ),
    )
    GivenObjective = options.given(TrainConfig, ("objective", "threshold", "branch_range"))
    GivenWeights = options.given(SageWeights)
    GivenOutput = options.given(
        TrainConfig,
        (
            "out",
            "resume",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "validation_steps",
            "validation_guidance",
            "report_to",
        ),
    )


def train(
    *,
    data: Annotated[
        str,
        options.of(
            "Data",
            help="Folder with metadata.jsonl, a `datasets` folder, or a hub name.",
        ),
    ],
    model: Annotated[GivenModel | None, options.flattened("Model")] = None,
    adapter: Annotated[GivenAdapter | None, options.flattened("Model")] = None,
    full: Annotated[bool, options.of("Model", help="Train all weights, not a LoRA.")] = False,
    of_data: Annotated[GivenData | None, options.flattened("Data")] = None,
    optimization: Annotated[GivenOptimization | None, options.flattened("Optimization")] = None,
    objective: Annotated[GivenObjective | None, options.flattened("Objective")] = None,
    max_group_size: Annotated[
        int | None, options.of("Objective", help="Most members of a training group. [default: 8]")
    ] = None,
    weights: Annotated[GivenWeights | None, options.flattened("Objective")] = None,
    output: Annotated[GivenOutput | None, options.flattened("Output")] = None,
) -> None:
    """Teach a model to share."""
    chosen = {
        name: value
        for part in (adapter, of_data, optimization, objective, output)
        for name, value in options.named(part).items()
    }
    if "out" not in chosen:
        raise InputError("--out is missing: name the folder for the weights, the log and the checkpoints")
    if full:
        if chosen.get("rank") or "lora_layers" in chosen:
            raise InputError(
                "--full trains all weights: leave out --rank and --lora-layers, which are of a LoRA"
            )
        chosen["rank"] = 0
    if max_group_size is not None:
        chosen["group_size"] = (1, max_group_size)
    config = TrainConfig(**chosen, weights=SageWeights(**options.named(weights)))
    report = () if config.report_to == "none" else (config.report_to,)
    for module in ("accelerate", "peft", *report):
        if find_spec(module) is None:
            instead = ", or --report-to none" if module in report else ""
            raise InputError(f"training needs {module}: pip install 'sagediff[train]'{instead}")
    source = ModelOptions(**options.named(model)).source
    check_local_model(source)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` starts, one writes
    with claimed_output(config.out) if first else nullcontext():
        check_output(config)
        images = load_images(data)
        with importing():
            from sagediff.pipelines.loading import load_source, quiet_libraries
            from sagediff.training.loop import check_model, train

        quiet_libraries()
        check_model(source, config)
        pipe = load_source(source)
        pipe.set_progress_bar_config(disable=True)
        path = train(pipe, images, config, source.name)
    record = sharing_record(path) if config.rank else None
    print(json.dumps({"weights": str(path), "steps": config.steps, **(record or config.sharing())}))

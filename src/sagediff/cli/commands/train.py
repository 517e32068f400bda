"""`sagediff train`: options to a run; what it trains and how is in `sagediff.training`."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from sagediff.cli import options
from sagediff.errors import InputError
from sagediff.files.claim import claimed_output
from sagediff.pipelines.lora import sharing_record
from sagediff.pipelines.run_settings import ModelOptions
from sagediff.training.run_folder import check_output
from sagediff.training.train_config import SageWeights, TrainConfig

options.FLAGS.update(options.renamed(SageWeights))
if TYPE_CHECKING:
    GivenModel = Any
    GivenTraining = Any
    GivenWeights = Any
else:
    GivenModel = options.given(ModelOptions, only=("name", "variant", "revision", "config"))
    GivenTraining, GivenWeights = options.given(TrainConfig), options.given(SageWeights)


def train(
    *,
    data: Annotated[
        str,
        options.of(
            "Training",
            help="Folder with metadata.jsonl (file_name, text), a `datasets` folder, or a hub name.",
        ),
    ],
    model: Annotated[GivenModel | None, options.flattened("Model")] = None,
    full: Annotated[bool, options.of("Training", help="Train all weights, not a LoRA.")] = False,
    max_group_size: Annotated[
        int | None, options.of("Training", help="Most members of a training group [default: 8].")
    ] = None,
    training: Annotated[GivenTraining | None, options.flattened("Training")] = None,
    weights: Annotated[GivenWeights | None, options.flattened("Training")] = None,
) -> None:
    """Teach a model to share: train a LoRA on groups of captioned images.

    Examples:
        sagediff train --data captioned-images --out my-lora
        sagediff train --data captioned-images --out my-lora --steps 2000 --rank 32 --resume
    """
    chosen = options.named(training)
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
    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` starts, one writes
    with claimed_output(config.out) if first else nullcontext():
        check_output(config)
        from sagediff.pipelines.loading import load_source, quiet_libraries
        from sagediff.training.captioned_images import load_images
        from sagediff.training.loop import check_model, train

        quiet_libraries()
        check_model(source, config)
        images = load_images(data)
        pipe = load_source(source)
        pipe.set_progress_bar_config(disable=True)
        path = train(pipe, images, config, source.name)
    record = sharing_record(path) if config.rank else None
    print(json.dumps({"weights": str(path), "steps": config.steps, **(record or config.sharing())}))

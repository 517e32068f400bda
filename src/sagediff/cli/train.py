"""`sagediff train`: options to a run; what it trains and how is in `sagediff.training`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sagediff.cli.settings import quiet_libraries
from sagediff.errors import InputError


@dataclass(frozen=True)
class TrainRequest:
    """The options of the command line; those left out (None) take `TrainConfig`'s defaults."""

    model: str
    data: str
    options: dict[str, object]
    weights: dict[str, float]


def run_train(request: TrainRequest) -> None:
    """Check everything, train, and print where the weights are; progress goes to stderr."""
    for module in ("accelerate", "peft"):
        try:
            __import__(module)
        except ImportError as error:
            raise InputError(f"training needs {module}: pip install 'sagediff[train]'") from error
    quiet_libraries()
    from sagediff.pipelines.loading import load_pipeline
    from sagediff.training.captioned_images import load_images
    from sagediff.training.loop import check_output, train
    from sagediff.training.objective import SageWeights
    from sagediff.training.train_config import TrainConfig

    chosen = {k: v for k, v in request.options.items() if v is not None}
    config = TrainConfig(**chosen, weights=SageWeights(**request.weights))  # type: ignore[arg-type]
    check_output(config)
    data = load_images(request.data)
    pipe = load_pipeline(request.model)
    pipe.set_progress_bar_config(disable=True)
    path = train(pipe, data, config, request.model)
    print(json.dumps({"weights": str(path), "steps": config.steps, **config.sharing()}))

"""Options that several commands take, declared once so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompts = Annotated[list[str] | None, typer.Argument(help="Prompts, each in quotes.", show_default=False)]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="File of prompts: .txt (one per line), .jsonl (key `prompt`), .csv (column `prompt`), each also as .gz, "
        "or .parquet.",
    ),
]
Model = Annotated[str, typer.Option(help="'demo' (built in), a local diffusers folder, or a hub id.")]
Lora = Annotated[
    Path | None,
    typer.Option(
        help="LoRA weights: a .safetensors file, or a folder that holds one [default: the demo's own]",
        show_default=False,
    ),
]
NoLora = Annotated[
    bool, typer.Option("--no-lora", help="The demo without the LoRA that comes with it.", show_default=False)
]
Steps = Annotated[int, typer.Option(help="Sampling steps.")]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance scale [default: the model's own]", show_default=False)
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Least cosine between any two prompts of a group [default: the model's own, else 0.8]. "
        "Higher: smaller groups, safer images.",
        show_default=False,
    ),
]
ShareRatio = Annotated[
    float | None,
    typer.Option(
        help="Part of the steps that a group takes together, 0 to 1 [default: the model's own, else 0.4]. "
        "Higher: cheaper, less faithful.",
        show_default=False,
    ),
]
SharedGuidance = Annotated[
    str | None,
    typer.Option(
        help="Guidance scale of the shared steps; at 1.0 their negative rows are not run; 'same' for --guidance "
        "[default: the model's own, else 1.0]",
        show_default=False,
    ),
]
EarlyGuidanceOff = Annotated[
    float | None,
    typer.Option(
        "--unguided",
        help="Part of the steps, the first ones, without guidance for every prompt: fewer evaluations "
        "[default: the LoRA's own unless --guidance is given, else 0]",
        show_default=False,
    ),
]
_HANDOVER_NOISE = (
    "Part, 0 to 1, of what is not yet a prompt's own image that is drawn anew after its first step past "
    "the branch point. 1 with weights trained to share and --unguided 1"
)
HandoverNoise = Annotated[
    float | None,
    typer.Option(
        help=f"{_HANDOVER_NOISE} [default: the LoRA's own unless --guidance is given, else 0]",
        show_default=False,
    ),
]
BenchHandoverNoise = Annotated[
    float | None,
    typer.Option(help=f"{_HANDOVER_NOISE} [default: the policy file's, else 0]", show_default=False),
]
MaxGroupSize = Annotated[
    int | None,
    typer.Option(help="Most prompts in a group [default: the model's own, else 8]", show_default=False),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="File of sharing options, as `sagediff tune` writes it; options given beside it win.",
        show_default=False,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="dpm++, dpm++-beta, dpm++-sde, ddim, euler, euler-a, heun, unipc, pndm or flow-euler "
        "[default: the model's own]",
        show_default=False,
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="A sentence-transformers model to group prompts by [default: the model's own text encoder]",
        show_default=False,
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        help="Plan in this folder, for very many prompts: embeddings and groups are kept there and taken over by later "
        "runs [default: plan in memory]",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(help="Processes that group, with --work [default: one per core]", show_default=False),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Make the images on Ray workers: 'local' starts Ray on this machine for the run, 'auto' takes the "
        "cluster that it belongs to, else the address of one [default: this process makes them]",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Workers, one pipeline each, with --ray [default: 1]", show_default=False)
]
WorkerCpus = Annotated[
    float | None,
    typer.Option(
        help="Cores of a worker [default: an even part of this machine's with --ray local, else 1]",
        show_default=False,
    ),
]
WorkerGpus = Annotated[float, typer.Option(help="GPUs of a worker; by a fraction several workers share one.")]
ServeRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Make the images on Ray, in replicas of the model: 'local' starts Ray on this machine, 'auto' takes the "
        "cluster that it belongs to, else the address of one [default: this process makes them]",
        show_default=False,
    ),
]
Replicas = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX",
        help="Replicas of the model, with --ray; from MIN to MAX by how much is asked for [default: 1]",
        show_default=False,
    ),
]
ReplicaCpus = Annotated[
    float | None,
    typer.Option(
        help="Cores of a replica [default: an even part of this machine's with --ray local, else 1]",
        show_default=False,
    ),
]
ReplicaGpus = Annotated[float, typer.Option(help="GPUs of a replica; by a fraction several share one.")]
ShardSize = Annotated[
    int | None,
    typer.Option(
        help="Beyond so many prompts write webdataset shards of so many images, with parquet metadata "
        "[default: a file each]",
        show_default=False,
    ),
]
Ratios = Annotated[
    list[str] | None,
    typer.Option(
        "--share-ratio",
        help="Parts of the steps to share, with commas [default: the model's own]",
        show_default=False,
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        help="Least cosines of a group, with commas [default: the model's own]",
        show_default=False,
    ),
]
StepCounts = Annotated[
    list[str] | None,
    typer.Option("--steps", help="Step counts, with commas [default: 6,8,10,12,16,20]", show_default=False),
]
Unguided = Annotated[
    list[str] | None,
    typer.Option(
        "--unguided",
        help="Baseline with guidance off early: parts of the steps, with commas [default: left out]",
        show_default=False,
    ),
]
Seeds = Annotated[
    list[str] | None,
    typer.Option("--seeds", help="Seeds, with commas [default: 0,1,2]", show_default=False),
]

"""`sagediff generate`: prompts in, a folder of images out, that a kill at any moment leaves resumable."""

from __future__ import annotations

from typing import Annotated

from sagediff.cli import options
from sagediff.cli.asked_run import asked_run
from sagediff.cli.job_options import (
    Generation,
    OutputOptions,
    ScaleOptions,
    VideoOptions,
    WorkerOptions,
)
from sagediff.collector import importing
from sagediff.files.claim import claimed_output
from sagediff.files.output_folder import OutputFolder
from sagediff.files.shards import check_shard_size
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions
from sagediff.prompts.image_list import read_images


def generate(
    *prompts: options.Prompts,
    prompt_file: options.PromptFile = None,
    requested: options.Requested = options.ShortRequestOptions(),  # noqa: B008 - frozen, as the others
    model: options.Model = ModelOptions(),  # noqa: B008
    sampling: options.Sampling = SamplingOptions(),  # noqa: B008
    sharing: options.SharingOptions = None,
    policy: options.Policy = None,
    video: Annotated[VideoOptions, options.flattened("Sampling")] = VideoOptions(),  # noqa: B008
    output: Annotated[OutputOptions, options.flattened("Output")] = OutputOptions(),  # noqa: B008
    scale: Annotated[ScaleOptions, options.flattened("Scale")] = ScaleOptions(),  # noqa: B008
    workers: Annotated[WorkerOptions, options.flattened("Scale")] = WorkerOptions(),  # noqa: B008
) -> None:
    """Generate one image, or one video, per prompt."""
    asked = read_images(prompts, prompt_file, requested)
    images, settings, guided = asked_run(asked, model, sampling, options.named(sharing), policy, scale.work)
    micro_batch, pool = options.whole("--micro-batch", output.micro_batch), workers.pool()
    job = Generation(images, settings, guided, output, micro_batch, scale, pool, video)
    folder, manifest = OutputFolder(output.out, output.image_format), job.manifest()
    job.file_names()  # refused before anything heavy is imported
    if output.shard_size is not None:
        check_shard_size(output.shard_size)
    with claimed_output(output.out):
        folder.check(manifest, output.resume)
        with importing():  # what takes seconds
            from sagediff.cli.generation import run_generation

        run_generation(job, folder, manifest)

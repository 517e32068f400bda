"""`sagediff generate`: prompts in, a folder of images out, that a kill at any moment leaves resumable."""

from __future__ import annotations

from typing import Annotated

from sagediff.cli import options
from sagediff.cli.early_checks import check_row_loras, check_settings, check_work
from sagediff.cli.job_options import (
    Generation,
    OutputOptions,
    ScaleOptions,
    VideoOptions,
    WorkerOptions,
    guided_sharing,
)
from sagediff.collector import importing
from sagediff.files.claim import claimed_output
from sagediff.files.output_folder import OutputFolder
from sagediff.files.shards import check_shard_size
from sagediff.pipelines.run_settings import ModelOptions, SamplingOptions, resolve
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
    images = read_images(prompts, prompt_file, requested)
    given = options.named(sharing)
    settings = resolve(model, sampling, given, policy, cautious=True)
    check_settings(settings)
    check_row_loras(images, settings.model)
    images = images.beside_own(settings.model.loras())
    check_work(scale.work)
    guided = guided_sharing(images, settings, model, sampling, given, policy)
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

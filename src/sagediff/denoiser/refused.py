"""Pipeline classes of diffusers that cannot share, each with its reason: told before anything heavy is loaded.

Tables by class name.  Every other current pipeline class is run by a test (`tests/denoiser/test_census.py`
derives them from diffusers, so that a new release shows what is new).  A class that is in no table and has a known
denoiser, such as one of the user's own, is tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sagediff.errors import UnsupportedPipelineError

_ONE_PROMPT = "it takes one prompt per call"
_FRAMES = "its motion U-Net reads a prompt once for every frame, and has no row in the table of denoisers"
_SOUND = "it denoises video and sound together, and its denoiser has no row in the table"

_UNTRIED = "no test runs it yet, so that it is not known to be exact"
_CHUNKS = (
    "it makes a video chunk by chunk, each of which goes on from the one before, which the members of a group no "
    "longer have in common"
)

REFUSED: Mapping[str, str] = {
    "AnimateDiffControlNetPipeline": _FRAMES,
    "AnimateDiffPAGPipeline": _FRAMES,
    "AnimateDiffPipeline": _FRAMES,
    "AnimateDiffSDXLPipeline": _FRAMES,
    "AnimateDiffSparseControlNetPipeline": _FRAMES,
    "AnimateDiffVideoToVideoControlNetPipeline": _FRAMES,
    "AnimateDiffVideoToVideoPipeline": _FRAMES,
    "Kandinsky6TI2VAPipeline": _SOUND,
    "LTX2ConditionPipeline": _SOUND,
    "LTX2DFRPipeline": _SOUND,
    "LTX2DFRTemporalRefinePipeline": _SOUND,
    "LTX2HDRPipeline": _SOUND,
    "LTX2ImageToVideoPipeline": _SOUND,
    "LTX2InContextPipeline": _SOUND,
    "LTX2Pipeline": _SOUND,
    "DreamLiteMobilePipeline": _ONE_PROMPT,
    "DreamLitePipeline": _ONE_PROMPT,
    "LongCatImageEditPipeline": "diffusers reads the first prompt of a list only",
    **dict.fromkeys(
        (
            "EasyAnimateControlPipeline",
            "EasyAnimateInpaintPipeline",
            "KandinskyV22PriorEmb2EmbPipeline",
            "QwenImageControlNetInpaintPipeline",
            "SanaSprintImg2ImgPipeline",
            "SanaWMLTX2Refiner",
            "ShapEPipeline",
            "StableAudio3AudioToAudioPipeline",
            "StableAudio3InpaintPipeline",
            "VisualClozeGenerationPipeline",
            "VisualClozePipeline",
            "ZImageControlNetInpaintPipeline",
            "ZImageControlNetPipeline",
        ),
        _UNTRIED,
    ),
    "ZImageOmniPipeline": "its images are lists within lists, without a row for each prompt",
    "Cosmos3OmniPipeline": "it makes a video of the first prompt of a list only",
    "CosmosTextToWorldPipeline": "it calls its solver twice per step, first for the prediction alone",
    "CosmosVideoToWorldPipeline": "it calls its solver twice per step, first for the prediction alone",
    "MotifVideoImage2VideoPipeline": _ONE_PROMPT,
    "SanaWMPipeline": _ONE_PROMPT,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": "each frame has a solver of its own",
    "SkyReelsV2DiffusionForcingPipeline": "each frame has a solver of its own",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "each frame has a solver of its own",
    "WanVACEPipeline": _ONE_PROMPT,
    **dict.fromkeys(
        (
            "AnyFlowFARPipeline",
            "Cosmos2_5_TransferPipeline",
            "HeliosPipeline",
            "HeliosPyramidPipeline",
            "HunyuanVideoFramepackPipeline",
            "LTXI2VLongMultiPromptPipeline",
            "WanAnimatePipeline",
        ),
        _CHUNKS,
    ),
    "Flux2KleinKVPipeline": "it keeps the keys of its input images from the first step for all later ones, with a row "
    "for each prompt; take Flux2KleinPipeline, which does without",
    "CogView4ControlPipeline": "it draws the latents of its control image without the prompts' generators",
    "LEditsPPPipelineStableDiffusion": "it edits one image by several concepts together, not by prompts of their own",
    "LEditsPPPipelineStableDiffusionXL": "it edits one image by several concepts together, not by prompts of their own",
    "QwenImageEditPlusPipeline": "diffusers runs it for one prompt per call only",
    "QwenImageLayeredPipeline": "diffusers mixes up its layers where a call has several prompts",
}
"""Samplers of texts that cannot share steps, and why: each a clause that goes on from "cannot share steps:"."""

MODULAR_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "Cosmos3DistilledModularPipeline",
            "Cosmos3OmniModularPipeline",
            "MiniMaxH3ModularPipeline",
            "MiniMaxMusic3ModularPipeline",
            "WanAnimate2DistilledModularPipeline",
            "WanAnimate2ModularPipeline",
        ),
        "it takes one prompt per call, and its latents have no row for each of several",
    ),
    **dict.fromkeys(
        (
            "HeliosModularPipeline",
            "HeliosPyramidDistilledModularPipeline",
            "HeliosPyramidModularPipeline",
        ),
        _CHUNKS,
    ),
    "LTX25ModularPipeline": _SOUND,
    "LTX2ModularPipeline": _SOUND,
    "Wan22VaceModularPipeline": _ONE_PROMPT,
    **dict.fromkeys(
        (
            "AnimaModularPipeline",
            "EchoModularPipeline",
            "ErnieImageModularPipeline",
            "Ideogram4ModularPipeline",
            "QwenImageLayeredModularPipeline",
        ),
        _UNTRIED,
    ),
}
"""Modular pipelines that cannot share steps, and why, as in `REFUSED`."""

NOT_TEXT_SAMPLERS: Mapping[str, str] = {
    "ConsistencyModelPipeline": "samples without a prompt",
    "DDIMPipeline": "samples without a prompt",
    "DDPMPipeline": "samples without a prompt",
    "DiTPipeline": "samples from class labels",
    "DiffusionGemmaPipeline": "writes text",
    "FluxPriorReduxPipeline": "embeds an image in one call",
    "Kandinsky6SRPipeline": "enlarges a video",
    "LDMSuperResolutionPipeline": "enlarges an image",
    "LLaDA2Pipeline": "writes text",
    "LTX2LatentUpsamplePipeline": "enlarges a video in one call",
    "LTX2VideoDiffusionDecodePipeline": "decodes a video",
    "LTXLatentUpsamplePipeline": "enlarges a video in one call",
    "MarigoldDepthPipeline": "estimates the depth of an image",
    "MarigoldIntrinsicsPipeline": "estimates the materials and the light of an image",
    "MarigoldNormalsPipeline": "estimates the surface normals of an image",
    "RFD4ProteinaPipeline": "designs proteins",
    "ShapEImg2ImgPipeline": "makes a 3D object of an image",
    "StableDiffusionImageVariationPipeline": "varies an image without a prompt",
    "StableVideoDiffusionPipeline": "makes a video of an image without a prompt",
}
"""Pipelines that do not sample images, videos or audio from texts, and what they do instead."""


def refusal(class_names: Iterable[str]) -> str | None:
    """Why the first of these pipeline classes that is in a table cannot share, in one sentence; None if none is."""
    for name in class_names:
        if name in REFUSED or name in MODULAR_REFUSED:
            return f"{name} cannot share steps: {REFUSED.get(name) or MODULAR_REFUSED[name]}"
        if name in NOT_TEXT_SAMPLERS:
            return f"{name} {NOT_TEXT_SAMPLERS[name]}: there are no prompts whose steps could be shared"
    return None


def check_pipeline_class(*class_names: str) -> None:
    """Refuse a pipeline by its class.

    Args:
        class_names: that of the class, then those of its base classes.

    Raises:
        UnsupportedPipelineError: one of them is in a table above.
    """
    if sentence := refusal(class_names):
        raise UnsupportedPipelineError(sentence)

"""The table of denoiser classes: the one place that knows a model's particulars.

How to add a model family: put one `Family` under the denoiser's class name into `image_families.py`,
`newer_image_families.py` or `video_families.py`.  Go through the parameters of its `forward` and name every tensor:

    row        one entry per sample (latents, timesteps, sizes); equal among members, the first's is taken
    condition  what differs between prompts; merged over the members by the group condition
    discrete   a condition without a mean (tokens, codes): one member stands for all, in all conditions
    mask       belongs to a condition; merged with it
    length     the number of a condition's words; merged with it
    neither    has no row for each sample, even if its size equals the batch's by chance (FLUX: `txt_ids`)

Entries of a dictionary argument are named with a dot (`added_cond_kwargs.text_embeds`).  Nothing is guessed
from shapes: a tensor, a list or an object that is not named here is refused.  Then read the loop of its pipeline:
how guidance runs, what comes first, how prompts of different length are padded, and in its documented example which
half precision it runs in.  Last, add a tiny pipeline of it to the tests (`tests/tiny/every_image.py`): the exactness
tests do the rest.
"""

from __future__ import annotations

from sagediff.denoiser.audio_families import AUDIO_FAMILIES
from sagediff.denoiser.family import Family
from sagediff.denoiser.image_families import IMAGE_FAMILIES
from sagediff.denoiser.newer_image_families import NEWER_IMAGE_FAMILIES
from sagediff.denoiser.video_families import VIDEO_FAMILIES

FAMILIES: dict[str, Family] = {**IMAGE_FAMILIES, **NEWER_IMAGE_FAMILIES, **VIDEO_FAMILIES, **AUDIO_FAMILIES}

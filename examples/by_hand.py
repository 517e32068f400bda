"""Shared sampling by hand: the whole method as one plain loop, on the built-in model.

Similar prompts go through nearly the same early denoising steps. So in those steps the denoiser runs once per group, on
the mean of the members' text embeddings; from the branch point on it runs once per prompt.

    python examples/by_hand.py [FOLDER]    # saves FOLDER/sheet.png, a row of images per group
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import sagediff

STEPS, SHARE_RATIO, THRESHOLD, GUIDANCE = 20, 0.4, 0.45, 4.0
PROMPTS = [  # N = 6
    "a large apple at the top on a blue background",
    "a large apple at the top on a gray background",
    "a small cat at the left on a yellow background",
    "a small tiger at the left on a yellow background",
    "a small lion at the left on a yellow background",
    "a large castle at the bottom on a pink background",
]
pipe = sagediff.load_pipeline("demo")  # Stable Diffusion; the loop below uses its parts and never calls it
unet, vae, scheduler = pipe.unet.requires_grad_(False), pipe.vae.requires_grad_(False), pipe.scheduler

# 1. Encode the prompts, and the empty text, which guidance leads away from.
tokens = pipe.tokenizer([*PROMPTS, ""], padding="max_length", return_tensors="pt").input_ids  # (N + 1, L)
encoded = pipe.text_encoder.requires_grad_(False)(tokens)
texts, empty = encoded.last_hidden_state.split([len(PROMPTS), 1])  # (N, L, D) and (1, L, D)

# 2. Group similar prompts, and plan which of them the denoiser takes together at each step.
groups = sagediff.group_prompts(encoded.pooler_output[:-1], THRESHOLD)  # [[0, 1], [2, 3, 4], [5]]
plan = sagediff.SharePlan.from_groups(groups, STEPS, SHARE_RATIO)

# 3. Sample. The state of every prompt is carried from start to end; in a group all start from the same noise.
size = (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
states = torch.cat([torch.randn(size, generator=noise) for noise in plan.generators(seed=0)])  # (N, C, H, W)
scheduler.set_timesteps(STEPS)
evaluations = 0
for step, timestep in enumerate(scheduler.timesteps):
    node = torch.from_numpy(plan.partition(step))  # (N,) 0 0 1 1 1 2 while shared, 0 1 2 3 4 5 afterwards
    members = [(node == k).nonzero().flatten() for k in range(int(node.max()) + 1)]  # of each of K nodes
    rows = torch.stack([states[prompts[0]] for prompts in members])  # (K, C, H, W), as members' are equal
    condition = torch.stack([texts[prompts].mean(dim=0) for prompts in members])  # (K, L, D)
    # Guidance, as in any sampling loop: negative and conditional rows in one call, 2 K of them and not 2 N.
    conditions = torch.cat([empty.expand_as(condition), condition])  # (2 K, L, D)
    negative, positive = unet(torch.cat([rows, rows]), timestep, conditions).sample.chunk(2)  # (K, C, H, W)
    prediction = negative + GUIDANCE * (positive - negative)  # (K, C, H, W)
    # Each member takes its node's prediction. While members share, their states therefore stay equal; from the branch
    # point on they differ, and the solver's memory of earlier steps is already in every row.
    states = scheduler.step(prediction[node], timestep, states).prev_sample  # (N, C, H, W)
    evaluations += len(conditions)

# 4. Decode, and save one row of images per group.
images = (vae.decode(states / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)  # (N, 3, 64, 64)
sheet = Image.new("RGB", (max(map(len, groups)) * 64, len(groups) * 64), "white")
for place, group in enumerate(groups):
    for column, prompt in enumerate(group):
        pixels = (images[prompt] * 255).round().byte().permute(1, 2, 0).numpy()  # (64, 64, 3)
        sheet.paste(Image.fromarray(pixels), (column * 64, place * 64))
out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/by-hand")
out.mkdir(parents=True, exist_ok=True)
sheet.save(out / "sheet.png")
print(f"{out / 'sheet.png'}: {evaluations} evaluations, without sharing {2 * len(PROMPTS) * STEPS}")

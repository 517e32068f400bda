"""Waves: who runs together, in what order, and from which seeds."""

from __future__ import annotations

from itertools import groupby, product
from pathlib import Path

from sagediff.files.lora_files import Lora, LoraSet
from sagediff.plan.share_plan import SharePlan
from sagediff.plan.waves import Waves, own_seeds
from sagediff.prompts.requests import ImageRequest

A = Path("/a.safetensors")
SETS = [None, LoraSet(()), LoraSet((Lora(A),)), LoraSet((Lora(A, 0.5),))]


def test_each_set_of_loras_is_run_in_one_go_and_decides_no_noise() -> None:
    requests = [
        ImageRequest(prompt, lora=lora, guidance_scale=scale)
        for prompt, scale, lora in product(("a", "b", "a"), (1.0, 3.0), SETS)
    ]
    plan = SharePlan.from_groups([[i] for i in range(len(requests))], num_steps=4, share_ratio=0.0)
    waves = Waves(requests, plan, seed=0, wave_size=2)
    loras = [{requests[i].lora for i in members} for members in waves.members]
    assert all(len(each) == 1 for each in loras)
    assert [next(iter(each)) for each, _ in groupby(loras)] == SETS
    alone = own_seeds([ImageRequest(each.prompt) for each in requests[:: len(SETS)]], 0)
    assert own_seeds(requests, 0) == [seed for seed in alone for _ in SETS]

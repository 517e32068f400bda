"""Prompts that the text encoder reads as one come out as different images, as equal texts do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from engines import CAT, SETTINGS, SHARING, results, running, wanted

from sagediff.serving.engine.batcher import BatchPolicy

ALIKE = [CAT, CAT.upper(), CAT.replace(" ", "  "), CAT + " and" * 30 + " one", CAT + " and" * 30 + " two"]


def test_requests_that_read_alike_come_out_different(small_demo: Any) -> None:
    plain = replace(SHARING, handover_noise=0.0, repeats="share")
    settings = replace(SETTINGS, sharing=plain, guided=plain)
    with running(small_demo, settings, BatchPolicy(window=30.0, max_batch=len(ALIKE))) as (engine, reports):
        made = results(engine.submit([wanted(str(i), text) for i, text in enumerate(ALIKE)]))
    images = [np.asarray(each.image, dtype=int) for each in made]
    assert sum(reports[0].group_sizes) == len(ALIKE)  # one wave, in whatever groups
    for i in range(len(images)):
        for j in range(i):
            assert np.abs(images[i] - images[j]).mean() > 1

"""Planning a million prompts: time and memory of `sagediff plan --work`, embeddings included.

    python benchmarks/million.py --prompts genai_bench.txt style_variations.txt --count 1000000 --folder DIR
    python benchmarks/million.py --synthetic --count 1000000 --folder DIR     # 512 dimensions, grouping alone
    python benchmarks/million.py --synthetic --count 50000 --folder DIR --exact   # against `group_prompts`

Prompts are made from those of the files by templates: an opening, a prompt, a style, in all
openings x prompts x styles, drawn without repetition in a fixed random order, one in fifty an exact repeat of an
earlier one. `--synthetic` takes `grouping.synthetic`'s embeddings, which imitate a prompt log, in blocks.

Memory is the proportional set size (shared pages counted once) summed over the command and its processes, read every
half second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grouping import check, peak_mib, synthetic

from sagediff.plan.grouping import group_prompts
from sagediff.prompts.embeddings import TextEncoder
from sagediff.prompts.image_list import prompt_texts
from sagediff.scale.cover import CoverOptions, group_on_disk
from sagediff.scale.disk_vectors import embed_to_disk

BAR_MINUTES, BAR_GIB = 20.0, 4.0
BLOCK = 50_000  # synthetic vectors made at once

OPENINGS = [
    "", "a photo of ", "a painting of ", "a close-up of ", "a wide shot of ", "at night: ", "in winter: ", "at dawn: ",
    "seen from above, ", "a child's drawing of ", "a poster of ", "an old postcard of ", "in the rain: ",
]  # fmt: skip
STYLES = [
    "", "black and white photograph", "comic style", "line art", "pixelated", "watercolor", "cubism", "impressionism",
    "pop art", "surrealism", "minimalist", "cyanotype", "steampunk", "collage", "graffiti art", "oil painting",
    "charcoal sketch", "stained glass", "origami", "claymation", "low poly", "woodcut", "pastel", "ink wash", "mosaic",
    "neon", "film noir", "fresco", "isometric", "blueprint", "embroidery", "chalk", "double exposure", "infrared",
    "polaroid", "vintage poster", "art nouveau", "art deco", "bauhaus", "ukiyo-e", "gouache", "crayon", "linocut",
    "vaporwave", "storybook illustration", "concept art", "matte painting", "tilt-shift", "long exposure", "macro",
]  # fmt: skip


def templated(prompts: Sequence[str], count: int, seed: int) -> Iterator[str]:
    """`count` prompts, as the module's docstring tells."""
    rng = np.random.default_rng(seed)
    number = len(OPENINGS) * len(prompts) * len(STYLES)
    if number < count:
        raise SystemExit(f"{len(prompts)} prompts give {number} by these templates, fewer than {count}")
    order = rng.permutation(number)[:count]
    repeats = np.arange(50, count, 50)
    order[repeats] = order[rng.integers(repeats)]
    for choice in order.tolist():
        choice, style = divmod(choice, len(STYLES))
        opening, prompt = divmod(choice, len(prompts))
        text = OPENINGS[opening] + prompts[prompt].rstrip(".")
        yield f"{text}, {STYLES[style]}" if STYLES[style] else text


def tree_mib(root: int) -> float:
    """Proportional set size of a process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total, stack = 0, [root]
    while stack:
        pid = stack.pop()
        stack += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measured(command: Sequence[str]) -> tuple[float, float, str]:
    """(seconds, peak MiB, stdout) of a command and its processes."""
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, tree_mib(process.pid))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    assert process.stdout is not None
    return time.perf_counter() - start, peak, process.stdout.read()


def planned(args: argparse.Namespace) -> dict[str, Any]:
    """Run `sagediff plan --work` on templated prompts, then once more on what it left behind."""
    file = args.folder / "prompts.txt"
    prompts = [prompt for source in args.prompts for prompt in prompt_texts(source)]
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{prompt}\n" for prompt in templated(prompts, args.count, args.seed))
    command = [
        sys.executable, "-m", "sagediff", "plan", "--prompts", str(file), "--json",
        "--work", str(args.folder / "work"), "--jobs", str(args.jobs),
    ]  # fmt: skip
    if args.threshold is not None:
        command += ["--threshold", str(args.threshold)]
    seconds, peak, stdout = measured(command)
    again, _, second = measured(command)
    figures = json.loads(stdout)
    if json.loads(second) != figures:
        raise SystemExit("the second run, from what the first left, says something else")
    return {
        "prompts": args.count, "threshold": figures["threshold"], "seconds": seconds, "peak_mib": peak,
        "seconds_again": again, "groups": figures["num_groups"], "cost_saving": figures["cost_saving"],
        "within_bar": seconds < 60 * BAR_MINUTES and peak < 1024 * BAR_GIB,
    }  # fmt: skip


def grouped(args: argparse.Namespace) -> dict[str, Any]:
    """Group synthetic embeddings of 512 dimensions, in this process and its helpers."""
    held: dict[int, Any] = {}

    def block(texts: list[str]) -> Any:  # the "texts" are numbers; a block is made once and cut
        number, offset = divmod(int(texts[0]), BLOCK)
        if number not in held:
            held.clear()
            held[number] = synthetic(min(BLOCK, args.count - number * BLOCK), 512, args.seed + number)
        return held[number][offset : offset + len(texts)]

    texts = [str(i) for i in range(args.count)]
    vectors = embed_to_disk(
        texts, TextEncoder(block, "synthetic"), args.folder / "synthetic", batch_size=2000
    )
    held.clear()
    threshold = 0.8 if args.threshold is None else args.threshold
    options = CoverOptions(threshold, 8, jobs=args.jobs, passes=args.passes)
    start = time.perf_counter()
    groups = group_on_disk(vectors, np.arange(args.count), options)
    seconds = time.perf_counter() - start
    if sorted(i for group in groups for i in group) != list(range(args.count)):
        raise SystemExit("a prompt is missing or stands in two groups")
    record = {
        "embeddings": args.count, "threshold": threshold, "passes": args.passes, "seconds": seconds,
        "groups": len(groups), "peak_mib_of_this_process": peak_mib(),
    }  # fmt: skip
    if args.exact:
        every = vectors.take(np.arange(args.count))
        check(every, groups, threshold, 8)
        start = time.perf_counter()
        exact = len(group_prompts(every, threshold, 8))
        record |= {
            "exact_groups": exact,
            "exact_seconds": time.perf_counter() - start,
            "more": len(groups) / exact - 1,
        }
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=Path, nargs="+", default=[], help="prompt files to make the prompts from"
    )
    parser.add_argument("--synthetic", action="store_true", help="synthetic embeddings instead of prompts")
    parser.add_argument("--exact", action="store_true", help="with --synthetic: compare with group_prompts")
    parser.add_argument(
        "--passes", type=int, default=CoverOptions.passes, help="with --synthetic: looks across borders"
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="for the prompts and what planning keeps")
    parser.add_argument("--threshold", type=float, help="[default: the model's own; 0.8 for synthetic ones]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.prompts) == args.synthetic:
        parser.error("give --prompts FILE ..., or --synthetic")
    args.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(grouped(args) if args.synthetic else planned(args), indent=2))


if __name__ == "__main__":
    main()

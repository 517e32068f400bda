"""Grouping: time and memory at 100,000 embeddings, against complete linkage, and against the exact optimum.

    python benchmarks/grouping.py --markdown
    python benchmarks/grouping.py --prompts FILE --encoder NAME       # real prompts, embedded

Synthetic embeddings imitate a prompt log: four prompts in ten have no similar one, the others come in small clusters
whose sizes fall off geometrically (mean 6, at most 80), one prompt in fifty repeats an earlier one. A vector is

    sqrt(0.3) common + sqrt(0.15) topic + sqrt(c - 0.45) cluster + sqrt(1 - c) own

of random unit directions, so cosines are about 0.3 between any two (text encoders point one way), 0.45 within
one of 200 topics and c within a cluster, c drawn between 0.7 and 0.95 for each. Rows are shuffled.

Every time and peak is measured in a separate process. CPU seconds count all threads. The peak is `ru_maxrss`,
embeddings and libraries included; "added" is how much of it lies above the resident size before the call, when the
embeddings are already there.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import sagediff

Floats = npt.NDArray[np.float32]

BAR_SECONDS, BAR_GIB = 120.0, 2.0
TOLERANCE = 2e-6  # of a cosine of float32 unit vectors


def synthetic(count: int, dim: int, seed: int) -> Floats:
    """(count, dim), as the module's docstring tells; made block by block, to leave no peak behind."""
    rng = np.random.default_rng(seed)
    cluster = np.arange(count)  # loners keep a cluster of their own
    place = int(0.4 * count)
    number = count
    while place < count:
        size = min(2 + int(rng.geometric(0.2)) - 1, 80, count - place)
        cluster[place : place + size] = number
        place, number = place + size, number + 1
    _, cluster = np.unique(cluster, return_inverse=True)
    clusters = int(cluster.max()) + 1
    common = _directions(rng, 1, dim)
    topics = _directions(rng, 200, dim)
    centres = _directions(rng, clusters, dim)
    topic = rng.integers(len(topics), size=clusters)
    closeness = rng.uniform(0.7, 0.95, size=clusters).astype(np.float32)[:, None]
    order = rng.permutation(count)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, 4096):
        rows = order[start : start + 4096]
        of = cluster[rows]
        near = closeness[of]
        block = math.sqrt(0.3) * common + math.sqrt(0.15) * topics[topic[of]]
        block += np.sqrt(near - 0.45) * centres[of] + np.sqrt(1 - near) * _directions(rng, len(rows), dim)
        vectors[start : start + 4096] = block
    for row in range(50, count, 50):
        vectors[row] = vectors[rng.integers(row)]
    return vectors


def _directions(rng: np.random.Generator, count: int, dim: int) -> Floats:
    rows = rng.standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def check(vectors: Floats, groups: Sequence[Sequence[int]], threshold: float, size: int) -> None:
    """Every prompt once, no group too large, every pair of members alike enough."""
    if sorted(i for group in groups for i in group) != list(range(len(vectors))):
        raise SystemExit("a prompt is missing or stands in two groups")
    for group in groups:
        rows = vectors[list(group)].astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        if len(group) > size or (rows @ rows.T).min() < threshold - TOLERANCE:
            raise SystemExit(f"not a group at {threshold}: {group}")


def linkage_groups(vectors: Floats, threshold: float, size: int) -> list[list[int]]:
    """Complete linkage cut at 1 - threshold, whose clusters are cliques; too large ones are cut in pieces."""
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage(vectors, method="complete", metric="cosine")
    labels = fcluster(tree, 1 - threshold + 1e-6, criterion="distance")
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [part.tolist() for c in clusters for part in np.split(c, range(size, len(c), size))]


METHODS: dict[str, Callable[[Floats, float, int], list[list[int]]]] = {
    "sagediff": sagediff.group_prompts,
    "linkage": linkage_groups,
}


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def resident_mib() -> float:
    """Resident size of this process now; where it cannot be read, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_mib()
    return pages * resource.getpagesize() / 2**20


def worker(method: str, count: int, args: argparse.Namespace) -> None:
    """In a process of its own: make the embeddings, group them, print what it took."""
    import scipy.cluster.hierarchy  # noqa: F401  loaded before the memory is read

    vectors = synthetic(count, args.dim, args.seed)
    before = resident_mib()
    start, cpu_start = time.perf_counter(), time.process_time()
    groups = METHODS[method](vectors, args.threshold, args.max_group_size)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = peak_mib()
    check(vectors, groups, args.threshold, args.max_group_size)
    record = {
        "method": method, "embeddings": count, "seconds": seconds, "cpu_seconds": cpu_seconds,
        "peak_mib": peak, "added_mib": peak - before,
        "groups": len(groups), "groups_of_one": sum(len(group) == 1 for group in groups),
    }  # fmt: skip
    print(json.dumps(record))


def measure(method: str, count: int, args: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--worker", method, "--count", str(count), "--dim", str(args.dim),
        "--seed", str(args.seed), "--threshold", str(args.threshold),
        "--max-group-size", str(args.max_group_size),
    ]  # fmt: skip
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(result.stdout)
    print(result.stdout.strip(), file=sys.stderr)
    return record


def fewest_groups(vectors: Floats, threshold: float, size: int) -> int:
    """The exact least number of cliques of at most `size`, over all ways to place the first prompt left."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = unit @ unit.T >= threshold - 1e-6
    near = [sum(1 << int(j) for j in np.flatnonzero(row)) for row in alike]

    @cache
    def fewest(left: int) -> int:
        if not left:
            return 0
        first = (left & -left).bit_length() - 1
        left &= ~(1 << first)
        return 1 + grow(left, left & near[first], size - 1)

    def grow(left: int, candidates: int, room: int) -> int:
        """Fewest groups for what is left once the group being built is complete."""
        best = fewest(left)
        while room and candidates:
            member = candidates & -candidates
            candidates &= ~member
            best = min(best, grow(left & ~member, candidates & near[member.bit_length() - 1], room - 1))
        return best

    return fewest((1 << len(vectors)) - 1)


def against_optimum(cases: int, count: int) -> dict[str, Any]:
    """Small random clouds in 3 dimensions, where cliques overlap most."""
    excess, total, optimum = [], 0, 0
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(3, 3))
        vectors = (centres[rng.integers(3, size=count)] + 0.6 * rng.normal(size=(count, 3))).astype(
            np.float32
        )
        for threshold, size in ((0.3, 3), (0.5, 4), (0.8, 8), (0.9, 8)):
            found = len(sagediff.group_prompts(vectors, threshold, size))
            best = fewest_groups(vectors, threshold, size)
            excess.append(found - best)
            total, optimum = total + found, optimum + best
    return {
        "cases": len(excess), "prompts_a_case": count, "groups": total, "optimum": optimum,
        "mean_excess": total / optimum - 1, "cases_above_optimum": sum(e > 0 for e in excess),
        "worst_excess_groups": max(excess),
    }  # fmt: skip


def real_prompts(file: Path, encoder: str, size: int) -> dict[str, Any]:
    """Groups of a prompt file at several thresholds."""
    from sagediff.prompts.image_list import prompt_texts

    prompts = prompt_texts(file)
    if encoder == "demo":
        embeddings = sagediff.embed_prompts(prompts, sagediff.load_pipeline("demo"))
    else:
        embeddings = sagediff.embed_prompts(prompts, encoder=encoder)
    rows = []
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        start = time.perf_counter()
        groups = sagediff.group_prompts(embeddings.vectors, threshold, size)
        seconds = time.perf_counter() - start
        check(embeddings.vectors, groups, threshold, size)
        rows.append(
            {"threshold": threshold, "groups": len(groups), "prompts_a_group": len(prompts) / len(groups),
             "seconds": seconds}
        )  # fmt: skip
    return {"prompts": len(prompts), "encoder": embeddings.encoder, "thresholds": rows}


def markdown(results: dict[str, Any]) -> str:
    lines = []
    if "large" in results:
        lines += [
            "| method | embeddings | seconds | peak MiB | added MiB | groups |",
            "| --- |" + " ---: |" * 5,
        ]
        lines += [
            f"| {row['method']} | {row['embeddings']:,} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} "
            f"| {row['peak_mib']:,.0f} "
            f"| {row['added_mib']:,.0f} | {row['groups']:,} |"
            for row in [*results["against_linkage"], results["large"]]
        ]
    if "against_optimum" in results:
        exact = results["against_optimum"]
        lines += [
            "",
            f"Against the exact optimum, {exact['cases']} cases of {exact['prompts_a_case']} prompts: "
            f"{exact['groups']} groups, the optimum {exact['optimum']} (+{exact['mean_excess']:.2%}); "
            f"{exact['cases_above_optimum']} cases above it, the worst by {exact['worst_excess_groups']}.",
        ]
    if "prompts" in results:
        real = results["prompts"]
        lines += [
            f"{real['prompts']} prompts, embedded by {real['encoder']}", "",
            "| threshold | groups | prompts per group | seconds |", "|" + " ---: |" * 4,
        ]  # fmt: skip
        lines += [
            f"| {row['threshold']} | {row['groups']} | {row['prompts_a_group']:.2f} | {row['seconds']:.3f} |"
            for row in real["thresholds"]
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--max-group-size", type=int, default=8)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1000, 2000, 5000, 10_000], help="for linkage"
    )
    parser.add_argument("--cases", type=int, default=100, help="clouds for the exact optimum, 4 cases each")
    parser.add_argument("--prompts", type=Path, help="group this file's prompts instead; needs --encoder")
    parser.add_argument(
        "--encoder", help="a sentence-transformers model, or 'demo' for the built-in model's own"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables instead of JSON")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.count, args)
        return
    if (args.prompts is None) != (args.encoder is None):
        parser.error("--prompts and --encoder go together")
    results: dict[str, Any] = {"threshold": args.threshold, "max_group_size": args.max_group_size}
    if args.prompts is not None:
        results["prompts"] = real_prompts(args.prompts, args.encoder, args.max_group_size)
    else:
        results["large"] = large = measure("sagediff", args.count, args)
        large["within_bar"] = large["seconds"] < BAR_SECONDS and large["peak_mib"] < BAR_GIB * 1024
        results["against_linkage"] = [measure(name, n, args) for n in args.sizes for name in METHODS]
        results["against_optimum"] = against_optimum(args.cases, 12)
    print(markdown(results) if args.markdown else json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

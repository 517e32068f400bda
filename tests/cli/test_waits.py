"""What a user waits for: mistakes and help are told before torch, diffusers or transformers are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "diffusers", "transformers", "datasets", "ray", "matplotlib.pyplot", "fastapi")


def test_mistakes_and_help_import_nothing_heavy(tmp_path: Path) -> None:
    """In one real process, as this one has imported everything."""
    for name, content in (
        ("in-use/notes.txt", "mine"),
        (
            "other/model_index.json",
            json.dumps({"_class_name": "APipeline", "unet": ["diffusers", "OtherModel"]}),
        ),
        (
            "video/model_index.json",
            json.dumps({"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}),
        ),
        ("good.txt", "a cat\na dog\n"),
        ("last-row.jsonl", '{"prompt": "a cat"}\n' * 500 + '{"prompt": 3}\n'),
        ("captions/metadata.jsonl", '{"file_name": "missing.png", "text": "a cat"}\n'),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    train = ["train", "--report-to", "none", "--out", "o"]
    refused = [
        ["generate", "a cat", "--dtype", "float8"],
        ["generate", "a cat", "--device", "gpu"],
        ["generate", "a cat", "--scheduler", "flow-euler"],
        ["generate", "a cat", "--out", "in-use"],
        ["generate", "a cat", "--model", "other"],
        ["generate", "a cat", "--lora", "missing.safetensors"],
        ["generate", "a cat", "--work", "good.txt"],
        ["generate", "good.txt"],
        ["generate", "--prompts", "missing.txt"],
        ["generate", "--prompts", "last-row.jsonl"],
        ["plan", "--prompts", "last-row.jsonl"],
        ["plan", "a cat", "--model", "other"],
        ["plan", "a cat", "--model", "in-use"],
        ["plan", "a cat", "--size", "64"],
        ["plan", "a cat", "--html", "in-use"],
        ["serve", "--model", "other"],
        ["serve", "--port", "70000"],
        ["serve", "--micro-batch", "0"],
        ["serve", "--steps", "5000"],
        ["serve", "--replicas", "2"],
        [*train, "--data", "missing"],
        [*train, "--data", "captions"],
        [*train, "--data", "captions", "--rank", "-1"],
        [*train, "--data", "captions", "--model", "other"],
        [*train[:-1], "in-use", "--data", "captions"],
        ["bench", "--steps", "two"],
        ["bench", "--seeds", "1,1"],
        ["bench", "--share-ratio", "2"],
        ["bench", "--out", "in-use"],
        ["bench", "--data", "missing"],
        ["bench", "--prompts", "good.txt", "--captions", "5"],
        ["bench", "--prompts", "good.txt", "--model", "other"],
        ["tune", "--budget", "-4"],
        ["tune", "--families", "none"],
        ["tune", "--out", "in-use"],
        ["tune", "--prompts", "good.txt", "--model", "other"],
        ["tune", "--prompts", "good.txt", "--model", "video"],
        ["bench", "--prompts", "good.txt", "--model", "video"],
        ["serve", "--model", "video"],
        ["nonsense"],
    ]
    told = [["--help"], ["--version"], ["version"]]
    told += [[name, "--help"] for name in ("generate", "plan", "tune", "train", "bench", "serve")]
    code = (
        "import sys; from sagediff.cli import main\n"
        f"for run in {[*told, *refused]!r}:\n"
        f"    print(main(run), [name for name in {HEAVY!r} if name in sys.modules], run, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line[:1].isdecimal()]
    assert lines == [f"{0 if run in told else 2} [] {run}" for run in [*told, *refused]], done.stderr

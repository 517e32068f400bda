"""The public face: exactly these names, cheap to import, and nothing read from outside the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sagediff

PACKAGE = Path(sagediff.__file__).parent
NAMES = [
    "ImageRequest",
    "InputError",
    "ModelError",
    "OutputError",
    "PlanError",
    "SagediffError",
    "SharePlan",
    "SharedResult",
    "SharedSampler",
    "Sharing",
    "StoppedError",
    "Trajectory",
    "UnsupportedPipelineError",
    "__version__",
    "embed_prompts",
    "group_prompts",
    "load_pipeline",
    "shared_sampling",
]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "cyclopts", "rich")


def test_the_public_names_are_these_and_sorted() -> None:
    assert sagediff.__all__ == NAMES == sorted(NAMES)
    assert dir(sagediff) == NAMES
    for name in NAMES:
        assert getattr(sagediff, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sagediff.no_such_name


def test_every_error_is_of_the_tree() -> None:
    assert issubclass(sagediff.PlanError, sagediff.InputError)
    assert issubclass(sagediff.UnsupportedPipelineError, sagediff.InputError)
    assert issubclass(sagediff.InputError, (sagediff.SagediffError, ValueError))
    assert issubclass(sagediff.OutputError, sagediff.SagediffError)
    assert not issubclass(sagediff.OutputError, sagediff.InputError)


@pytest.mark.parametrize(
    "code",
    [
        "import sagediff",
        "from sagediff import SharePlan, group_prompts",
        "import sagediff; groups = sagediff.group_prompts([[1, 0], [1, 0.1], [0, 1]]); "
        "print(sagediff.SharePlan.from_groups(groups).to_json())",
        "from sagediff import PlanError, InputError",
        "from sagediff import ImageRequest, Sharing; Sharing.merged({'threshold': 0.5}).plan([[1, 0], [0, 1]], 4)",
    ],
)
def test_planning_imports_neither_torch_nor_diffusers(code: str) -> None:
    seen = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{seen}"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_module_reads_outside_the_package() -> None:
    """No text in the code names a folder above it, nor this project's notes."""
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 20
    for module in modules:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = [part for part in ("../", "shared/") if part in node.value]
                assert not found and node.value != "..", f"{module}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                assert node.attr != "parents", f"{module}:{node.lineno}"

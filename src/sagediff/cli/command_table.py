"""The commands as `--help` lists them: each with what it does, where it is, and two examples that run as they stand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        help: what it does, in one sentence; further paragraphs are on its own page only.
        examples: command lines for a shell; none is wider than 76 columns, so that it is never broken.
        module: the one in `cli.commands` that is imported when the command is called.
        after_stop: what Ctrl-C leaves.
    """

    help: str
    examples: tuple[str, str]
    module: str
    after_stop: str = "nothing was changed"

    @property
    def epilogue(self) -> str:
        """The examples as the last part of a page."""
        return "\n".join(["Examples", *(f"  {example}" for example in self.examples)])


_RESUMABLE = "what was finished is kept, --resume goes on"

COMMANDS = {
    "generate": Command(
        "Generate one image per prompt; similar prompts share their early steps.",
        (
            'sagediff generate "a red cat" "a red dog" "a blue car" --out images',
            'sagediff generate "a red cat" "a red dog" -n 4 --steps 20 --out pets',
        ),
        "generate",
        _RESUMABLE,
    ),
    "plan": Command(
        "Show how prompts would be grouped and what that saves; runs no denoiser.",
        (
            'sagediff plan "a red cat" "a red dog" "a blue car"',
            'sagediff plan "a red cat" "a red dog" --threshold 0.7 --json',
        ),
        "show_plan",  # `plan` is a package
    ),
    "tune": Command(
        "Find the sharing that saves most within a quality budget.\n\nIt is written as a file for --policy. Trials are "
        "kept beside that file: the same command goes on after a stop.",
        (
            "sagediff tune --captions 64 --steps 12 --budget 0.05 --out policy.json",
            "sagediff tune --budget 0.01 --share-ratio 0.3,0.4,0.5 --out best.json",
        ),
        "tune",
        "what was finished is kept, the same command goes on",
    ),
    "train": Command(
        "Teach a model to share: train a LoRA on groups of captioned images.",
        (
            "sagediff train --data captioned-images --out my-lora --report-to none",
            "sagediff train --data captioned-images --out lora --rank 32 --report-to none",
        ),
        "train",
        _RESUMABLE,
    ),
    "bench": Command(
        "Compare independent and shared sampling, before and after training.",
        (
            "sagediff bench --captions 32 --steps 8,12 --share-ratio 0.3,0.5 --out bench",
            "sagediff bench --captions 32 --steps 8 --unguided 0.3 --out guidance",
        ),
        "bench",
        _RESUMABLE,
    ),
    "serve": Command(
        "Serve the model as an OpenAI-compatible images server.\n\nAPI keys come from SAGEDIFF_API_KEYS, with commas "
        "between them.",
        (
            "sagediff serve --port 8000",
            "sagediff serve --host 0.0.0.0 --max-batch 32 --window-ms 100",
        ),
        "serve",
        "requests under way were not answered",
    ),
}
EPILOGUE = (
    "Options of a command: sagediff COMMAND --help\n\nExamples\n"
    '  sagediff plan "a red cat" "a red dog" "a blue car"\n'
    '  sagediff generate "a red cat" "a red dog" "a blue car" --out images'
)

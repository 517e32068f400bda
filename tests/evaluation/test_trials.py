"""Trials are kept whole: every option of sharing, of this search alone, whatever a kill left behind."""

from __future__ import annotations

from pathlib import Path

from sagediff.evaluation.search import Measured
from sagediff.evaluation.trials import TrialFile, equal_prompts
from sagediff.plan.sharing import Sharing

ONE = Sharing(threshold=0.1, share_ratio=0.25, rungs=((0.4, 0.5),), parting="together", shared_guidance=None)
TWO = Sharing(unguided=0.5, handover_noise=0.25, fresh_noise=0.5)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    file, asked = TrialFile(tmp_path / "trials.jsonl", {"seeds": (0, 1)}), []

    def measure(sharing: Sharing) -> Measured:
        asked.append(sharing)
        return Measured((sharing.share_ratio, 0.5), (0.25,), (0.5, 0.75))

    before = [file.remembered(measure)(sharing) for sharing in (ONE, TWO)]
    with file.path.open("a") as lines:
        lines.write('{"about": "cut sh')
        lines.write('\n{"about": 1}\n[]\n' + "[" * 5000 + "\n")
        whole = file.path.read_text().splitlines()[0]
        lines.write(
            "".join(
                whole.replace("[0.25, 0.5]", wrong) + "\n" for wrong in ('["high"]', "[]", "{}", "[true]")
            )
        )
        lines.write(whole[:-20])
    with file.path.open("ab") as lines:
        lines.write(b"\xff")
    again = TrialFile(file.path, {"seeds": (0, 1)})
    assert again.read() == dict(zip((ONE, TWO), before, strict=True))
    assert [again.remembered(measure)(sharing) for sharing in (ONE, TWO, ONE)] == [*before, before[0]]
    assert asked == [ONE, TWO]
    third = Sharing(share_ratio=0.75)
    later = again.remembered(measure)(third)  # behind a line that was cut short, on one of its own
    assert TrialFile(file.path, {"seeds": (0, 1)}).read() == dict(
        zip((ONE, TWO, third), [*before, later], strict=True)
    )
    assert TrialFile(file.path, {"seeds": (0,)}).read() == {}


def test_equal_prompts_are_found_wherever_they_stand() -> None:
    assert equal_prompts(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]

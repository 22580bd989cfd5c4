"""What is held out of training, the evaluation tasks, and evaluating a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from emoji_captions import TONES, with_tone
from emoji_packages import Emoji
from PIL import Image

import powerclip
from powerclip.config.values import Score
from powerclip.evaluate import evaluate_tasks, write_evaluation
from powerclip.tasks import Classification, Grounding, Retrieval, Task

PROFESSIONS = (
    "farmer", "cook", "student", "singer", "artist", "teacher", "factory worker", "technologist",
    "office worker", "mechanic", "scientist", "astronaut", "firefighter", "health worker", "judge", "pilot",
    "police officer", "construction worker", "guard", "detective",
)  # fmt: skip
"""Professions with a woman, a man and a person, each in five skin tones."""

TONE_NAMES = tuple(TONES.values())

HELD_OUT = {profession: TONE_NAMES[i % len(TONE_NAMES)] for i, profession in enumerate(PROFESSIONS)}
"""One skin tone of each profession, for woman, man and person alike; each tone is held out of four
professions and seen in the other sixteen, each profession is seen in four tones."""


def profession(emoji: Emoji) -> str | None:
    """The profession an emoji shows, None for any other emoji."""
    name = "guard" if emoji.name == "GUARDSMAN" else emoji.name.lower()
    name = name.removeprefix("woman ").removeprefix("man ")
    return name if name in HELD_OUT else None


def is_held_out(emoji: Emoji) -> bool:
    """Whether an emoji is kept from training."""
    work = profession(emoji)
    return work is not None and emoji.tones == (HELD_OUT[work],)


def evaluation_tasks(emoji: Sequence[Emoji], images: Mapping[str, Mapping[str, Image.Image]]) -> list[Task]:
    """Retrieval among all emoji of each style, and zero-shot classification of the held-out combinations.

    Args:
        emoji: all of them, held out or not.
        images: by style and key.
    """
    tasks: list[Task] = []
    held = [one for one in emoji if is_held_out(one)]
    works = [profession(one) or "" for one in held]
    tones = [one.tones[0] for one in held]
    combinations = [f"{work} with {tone} skin tone" for work in PROFESSIONS for tone in TONE_NAMES]
    labelled = {
        "tone": ([TONE_NAMES.index(tone) for tone in tones], TONE_NAMES, ("a person with {c} skin tone",)),
        "profession": ([PROFESSIONS.index(work) for work in works], PROFESSIONS, _by_person("{c}")),
        "combination": (
            [combinations.index(f"{w} with {t} skin tone") for w, t in zip(works, tones, strict=True)],
            combinations,
            _by_person("{c}"),
        ),
    }
    for style, of_style in images.items():
        tasks.append(
            Retrieval(
                name=f"{style}_retrieval",
                images=[of_style[one.key] for one in emoji],
                captions=[[with_tone(one.base, one.tones)] for one in emoji],
            )
        )
        for name, (labels, classes, templates) in labelled.items():
            tasks.append(
                Classification(
                    name=f"{style}_heldout_{name}",
                    images=[of_style[one.key] for one in held],
                    labels=labels,
                    class_names=classes,
                    templates=templates,
                )
            )
    return tasks


def _by_person(text: str) -> tuple[str, ...]:
    """Prompts for a woman, a man and a person."""
    return (f"a woman {text}", f"a man {text}", f"the {text}")


def evaluate(
    run: Path,
    tasks: Sequence[Task],
    *,
    suite: str = "emoji",
    output: Path | None = None,
    scores: Sequence[Score] = ("global",),
) -> None:
    """Evaluate a run on tasks and write ``evaluation.json`` into the run's folder, or into ``output``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, preprocess, tokenizer = powerclip.load(run)
    results: dict[str, dict[str, float]] = {}
    for score in scores:
        some = [task for task in tasks if score == "global" or not isinstance(task, Grounding)]
        results |= evaluate_tasks(
            model.to(device), preprocess, tokenizer, some, device=device, batch_size=256, score=score
        )
    write_evaluation(output or run, results, tasks=tasks, suite=suite)

"""The figures of a model's answers: each by its name, unit and direction, and most by one function of an answer.

Validation, suite, screen, tables and report read them from here. One more is a `Figure` by its import path in
`suite.figures` or `callbacks.validation.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hydra.utils import get_object

from minillm.common.errors import check
from minillm.evaluation.metrics.texts import exact_match, rouge_l


class Answered(Protocol):
    """An answer as text and as `tokens`, its end token among them; `truncated`: it reached the limit on its length."""

    answer: str
    tokens: Sequence[int]
    truncated: bool


@dataclass(frozen=True)
class Figure:
    """`of` measures an answer against its references; the figure is the mean over the answers. Where `of` gives None
    for one of them, because it does not apply, there is no figure. Without `of` it is computed elsewhere (a KL, a
    judge). `name` has the unit; `heading` is short, for the screen; `better`: 1 where more is better, -1 where less is,
    0 where neither."""

    key: str
    name: str
    digits: int = 1
    better: int = 0
    of: Callable[[Answered, Sequence[str]], float | None] | None = None
    heading: str = ""

    def facts(self) -> dict[str, Any]:
        """For JSON: all but the function."""
        return {name: value for name, value in vars(self).items() if name != "of"}


def _if_any(score: Callable[[str, Sequence[str]], float]) -> Callable[[Answered, Sequence[str]], float | None]:
    """Needs references."""
    return lambda answer, references: score(answer.answer, references) if references else None


FIGURES = (
    Figure("rouge_l", "Rouge-L", 1, 1, _if_any(rouge_l), "Rouge-L"),
    Figure("exact_match", "Exact match", 1, 1, _if_any(exact_match), "exact"),
    Figure("judge", "Judge, % of the reference", 1, 1, heading="judge"),
    Figure("reverse_kl", "Reverse KL, nats a token", 3, -1, heading="KL\nq to p"),
    Figure("reverse_kl_sampled", "Reverse KL of sampled tokens, nats a token", 3, -1),
    Figure("forward_kl", "Forward KL, nats a token", 3, -1, heading="KL\np to q"),
    Figure("entropy", "Entropy, nats a token", 3),
    Figure("teacher_entropy", "Entropy of the teacher, nats a token", 3),
    Figure("overlap", "Top 16 tokens shared with the teacher, share", 3, 1),
    Figure("overlap_mass", "Probability of the shared ones", 3, 1),
    Figure("reference_loss", "Loss on references, nats a token", 3, -1),
    Figure("length", "Length, tokens", 1, 0, lambda answer, _: len(answer.tokens), "length"),
    Figure("truncated", "Cut off, share", 3, 0, lambda answer, _: float(answer.truncated), "cut\noff"),
    Figure("empty", "Empty, share", 3, 0, lambda answer, _: float(len(answer.tokens) == 1 and not answer.truncated)),
    *(Figure(f"distinct_{n}", f"Distinct-{n}", 3, 1, heading="dist.\n4" * (n == 4)) for n in range(1, 5)),
)


def figures_at(paths: Sequence[str]) -> tuple[Figure, ...]:
    """The figures at these import paths, such as `examples.extend.words.WORDS`.

    Raises:
        ConfigError: there is none, or it has the name of another.
    """
    found = []
    for path in paths:
        try:
            each = get_object(path)
        except (ImportError, ValueError, AttributeError) as error:
            each = error
        usable = isinstance(each, Figure) and each.of is not None
        check((usable, f"figures: {path}: wanted the import path of a Figure with `of`, got {each!r}"))
        taken = {"tokens", "loss", *(figure.key for figure in (*FIGURES, *found))}
        check((each.key not in taken, f"figures: {path}: {each.key} is the name of another figure"))
        found.append(each)
    return tuple(found)

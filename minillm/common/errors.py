"""Errors that a user can act on: each says what, got, wanted and where to change it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MinillmError(Exception):
    """Base of every error this package raises on purpose; shown without a traceback. `status`: exit code."""

    status = 1


class ConfigError(MinillmError, ValueError):
    """One or several wrong settings.

    `problems` are complete sentences such as "gamma=1.5: wanted a number in [0, 1]". A constructor names its own
    argument; whoever knows the group puts it in front with `prefixed`.
    """

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        many = len(self.problems) > 1
        text = "\n".join(f"  - {problem}" for problem in self.problems) if many else self.problems[0]
        super().__init__(f"{len(self.problems)} problems in the configuration:\n{text}" if many else text)

    def prefixed(self, group: str) -> list[str]:
        return [f"{group}.{problem}" for problem in self.problems]


class DataError(MinillmError, ValueError):
    """A file, line or key of the data that cannot be used."""


class ModelError(MinillmError, RuntimeError):
    """A model or tokenizer that cannot be loaded, or a pair that cannot be distilled."""


class NonFiniteError(MinillmError, FloatingPointError):
    """A NaN or infinity in a quantity that must be finite."""


class StorageError(MinillmError, OSError):
    """A file that cannot be written (a full disk, a quota, no permission), or not be read at this moment."""


class JudgeError(MinillmError, RuntimeError):
    """A judge's endpoint that refuses the work, or that no longer answers."""


class Interrupted(MinillmError):
    """A signal asked the run to stop; raised only where its state can be saved whole."""

    status = 75  # EX_TEMPFAIL of sysexits.h: not done, the same command goes on

    def __init__(self, signal: str = "a signal", then: str = "the same command with resume=auto goes on"):
        self.signal = signal
        super().__init__(f"interrupted by {signal}; {then}")


class Unanswered(Interrupted):
    """A server of teacher or sampler gave no answer: nothing is wrong with the run, which goes on once it does."""


def check(*rules: tuple[bool, str]) -> None:
    """Raise one ConfigError with every message whose condition is false."""
    problems = [message for holds, message in rules if not holds]
    if problems:
        raise ConfigError(problems)


def first_line(error: BaseException) -> str:
    """Of its message; its type where it has none. torch's advice to load what it refuses all the same is left out."""
    text = str(error).strip() or type(error).__name__
    return "it holds more than plain tensors" if "weights_only" in text else text.splitlines()[0]


_LISTED = 40  # names in a message


def nearest(name: str, names: Iterable[str], most: int = 1) -> str:
    """The clause that points from an unknown name to the nearest right ones: those of its group or others with the same
    last part (`lr` stands for `learning_rate`), else those that are written alike."""
    names, (group, _, last) = sorted(map(str, names)), str(name).rpartition(".")
    last = {"lr": "learning_rate"}.get(last, last)
    ends = [each for each in names if each.endswith(f".{last}")]
    close = [each for each in ends if each == f"{group}.{last}"]
    close = close or [each for each in ends if each.count(".") == min(end.count(".") for end in ends)][:3]
    close = close or difflib.get_close_matches(str(name), names, n=most, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from: {', '.join(names)}" if len(names) <= _LISTED else "docs/settings.md has all of them"

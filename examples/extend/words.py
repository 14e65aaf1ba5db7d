"""A figure that is not in the package: words an answer says twice in a row, in percent of its words.

python evaluate.py models=[DIR] 'suite.figures=[examples.extend.words.STUTTER]'
python train.py experiment=demo 'callbacks.validation.figures=[examples.extend.words.STUTTER]'
"""

from itertools import pairwise

from minillm.evaluation.metrics import Figure


def stutter(answer, references) -> float:
    """0 where there is no second word."""
    words = answer.answer.split()
    pairs = list(pairwise(words))
    return 100 * sum(one == other for one, other in pairs) / len(pairs) if pairs else 0.0


STUTTER = Figure("stutter", "Words said twice, %", digits=1, better=-1, of=stutter, heading="twice")

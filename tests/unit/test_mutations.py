"""The list of mistakes fits the code; `python -m tests.mutations` makes them."""

import pytest

from tests.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_mistake_can_be_made_at_one_place(mutation):
    assert (ROOT / "minillm" / mutation.file).read_text().count(mutation.right) == 1
    assert (ROOT / "tests" / mutation.tests).exists()

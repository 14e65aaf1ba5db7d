"""What the page before the first step says of the template."""

import pytest

from minillm.models import solo
from tests.tiny import make_model
from tests.tokenizers import byte_level
from tests.unit.test_preflight import gathered


@pytest.mark.parametrize(
    ("sources", "line"),
    [
        ({"template": "paper"}, "the paper's, with <bos> in front (data.bos)"),
        ({"template": "paper", "bos": False}, "the paper's, with nothing in front (data.bos)"),
        ({"date": "2024-02-29"}, "the student's own chat template, dated 2024-02-29 (data.date)"),
    ],
)
def test_the_page_shows_what_is_in_front_of_a_prompt_and_its_date(sources, line, tmp_path):
    tokenizer = byte_level(begins_with_bos=True)
    alone = solo(make_model(vocabulary=260), tokenizer)
    gathered(alone, max_prompt_tokens=900, **sources)[0].write(tmp_path)
    assert line in (tmp_path / "preflight.md").read_text().replace("&lt;", "<")

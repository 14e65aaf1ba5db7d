"""Numbers as a person reads them."""

import pytest

from minillm.common.numbers import count, duration
from minillm.train.callbacks.progress import _figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.01234, "0.0123"), (1.5, "1.5"), (12.345, "12.3"), (999.4, "999"), (999.6, "1,000"),
        (1500.0, "1,500"), (-1500.2, "-1,500"), (123456789.0, "123,456,789"), (3e-6, "3e-06"),
    ],
)  # fmt: skip
def test_counts(value, text):
    assert count(value) == text


def test_more_digits():
    assert (count(1234.5, 4), count(9999.7, 4), count(0.123456, 4)) == ("1,234", "10,000", "0.1235")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.314, "0.314 s"), (59.94, "59.9 s"), (59.96, "1 min"), (822.7, "13.7 min"), (3599, "1 h"),
        (5.25 * 3600, "5.25 h"), (86399, "1 day"), (3 * 86400, "3 days"), (1.5 * 86400, "1.5 days"),
        (1234 * 86400, "1,234 days"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_progress_shows_no_power_of_ten():
    figures = {"train/loss": 12345.0, "time/tokens_per_second": 1500.4, "rollout/length": 17.25, "memory/peak_gb": 0.5}
    assert _figures(figures) == "loss 12,345  length 17.2  tok/s 1,500  GB 0.5"

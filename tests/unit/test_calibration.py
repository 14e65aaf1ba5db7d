"""Calibration against torchmetrics and against bins filled by hand."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from minillm.common.errors import DataError
from minillm.evaluation.metrics import calibration_figures, label_probabilities

FEW = dict(resamples=50)


def random_case(seed, n=300, labels=2, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, labels, generator=draw, dtype=torch.float64)
    return logits.softmax(-1).to(dtype), torch.randint(labels, (n,), generator=draw)


def edge_case(dtype):
    """Confidences on edges of bins, ties, and certainty, right and wrong."""
    first = torch.tensor([0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0, 0.0, 1.0, 0.95, 0.2, 0.5, 1 - 1e-9], dtype=dtype)
    return torch.stack([first, 1 - first], dim=1), torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0])


CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(4)},
    "float32": random_case(9, dtype=torch.float32),
    "three labels": random_case(10, labels=3),
    "one record": random_case(11, n=1),
    "edges": edge_case(torch.float64),
    "edges, float32": edge_case(torch.float32),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n_bins", [10, 15, 1])
def test_error_and_accuracy_are_those_of_torchmetrics(name, n_bins):
    probabilities, labels = CASES[name]
    n_labels = probabilities.shape[1]
    found = calibration_figures(probabilities, labels, n_bins=n_bins, **FEW)
    error = MulticlassCalibrationError(num_classes=n_labels, n_bins=n_bins, norm="l1")
    accuracy = MulticlassAccuracy(num_classes=n_labels, average="micro")
    assert found.ece == pytest.approx(error(probabilities, labels).item(), abs=1e-6)  # it sums in float32
    # torchmetrics' accuracy chooses by argmax, the first of equals, as ours.
    assert found.accuracy == pytest.approx(accuracy(probabilities, labels).item(), abs=1e-6)


def test_bins_are_those_filled_by_hand():
    probabilities, labels = random_case(3)
    found = calibration_figures(probabilities, labels, **FEW)
    records = [
        (max(row), row.index(max(row)) == label)
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
    ]
    total = 0.0
    for number, each in enumerate(found.bins):
        inside = [(sure, right) for sure, right in records if number / 10 <= sure < (number + 1) / 10]
        assert (each["low"], each["high"]) == pytest.approx((number / 10, (number + 1) / 10))
        assert each["count"] == len(inside)
        if not inside:
            assert each["confidence"] is None and each["accuracy"] is None
            continue
        assert each["confidence"] == pytest.approx(sum(sure for sure, _ in inside) / len(inside))
        assert each["accuracy"] == pytest.approx(sum(right for _, right in inside) / len(inside))
        total += len(inside) * abs(each["accuracy"] - each["confidence"])
    assert len(found.bins) == 10 and found.n == 300
    assert found.ece == pytest.approx(total / 300) and found.ece > 0.1
    assert [each["count"] for each in found.bins[:5]] == [0] * 5  # the larger of two is at least a half


def test_certainty_is_a_bin_of_its_own_where_there_is_any():
    found = calibration_figures(*edge_case(torch.float64), **FEW)
    assert len(found.bins) == 11
    assert (found.bins[10]["low"], found.bins[10]["high"], found.bins[10]["count"]) == (1.0, 1.0, 4)
    assert (
        found.bins[10]["accuracy"] == pytest.approx(2 / 4)
        and sum(each["count"] for each in found.bins) == found.n == 13
    )


def test_intervals_hold_the_figures_and_accuracys_is_the_binomial_one():
    probabilities, labels = random_case(5, n=400)
    found = calibration_figures(probabilities, labels)
    half = 1.96 * (found.accuracy * (1 - found.accuracy) / 400) ** 0.5
    assert found.accuracy_interval == pytest.approx((found.accuracy - half, found.accuracy + half), abs=0.005)
    low, high = found.ece_interval
    assert 0 < low < found.ece < high < 1


def drawn(seed, n, slope):
    """n records of a model whose logits are too large for slope < 1, too small for slope > 1."""
    draw = np.random.default_rng(seed)
    logits = np.abs(draw.normal(0, 1.5, n))
    confidence_N, true_N = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-slope * logits))
    return np.stack([confidence_N, 1 - confidence_N], 1), (draw.random(n) > true_N).astype(int), true_N


@pytest.mark.some(1)
@pytest.mark.parametrize("slope", [1.0, 0.9, 0.7, 0.4, 1.6])
def test_the_interval_of_the_error_holds_the_true_one_95_times_in_100(slope):
    """The percentile interval holds 0 in no case at slope 1, and the true error of slope 0.9 in none of them."""
    probabilities_NK, _, true_N = drawn(999, 1_000_000, slope)
    bins_N = (probabilities_NK[:, 0] * 10).astype(int).clip(max=9)
    truth = np.abs(np.bincount(bins_N, true_N - probabilities_NK[:, 0], 10)).sum() / 1e6
    truth = 0.0 if slope == 1 else truth
    held = 0
    for seed in range(200):
        low, high = calibration_figures(*drawn(seed, 200, slope)[:2], resamples=200).ece_interval
        held += low <= truth <= high
    assert 0.92 <= held / 200 <= (0.99 if truth > 0.02 else 1)  # one next to 0 is hardly missed from above


def test_the_interval_of_certain_and_of_faultless_records():
    assert calibration_figures([[0.8, 0.2]], [1], **FEW).ece_interval == pytest.approx((0.8, 0.8))
    assert calibration_figures([[1.0, 0.0]] * 9, [0] * 9, **FEW).ece_interval == (0.0, 0.0)
    low, high = calibration_figures([[0.5, 0.5]] * 8, [0, 1] * 4, **FEW).ece_interval
    assert low == 0 and 0.2 < high < 0.5


def test_probabilities_are_renormalised_over_the_words():
    logprobs = torch.tensor([[0.3, 0.1], [0.02, 0.06]]).log()
    expected = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(label_probabilities(logprobs), expected, rtol=0, atol=1e-7)
    far = label_probabilities(torch.tensor([[-1000.0, -1001.0]]))  # nothing underflows
    assert far[0, 0].item() == pytest.approx(1 / (1 + np.exp(-1)))


def test_lists_are_welcome():
    assert calibration_figures([[0.25, 0.75], [1.0, 0.0]], [1, 1], **FEW).accuracy == 0.5


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
        (torch.ones(2) / 2, torch.tensor([0, 1])),
        (torch.ones(2, 2) / 2, torch.tensor([0])),
        (torch.ones(1, 2) / 2, torch.tensor([2])),
        (torch.ones(1, 2) / 2, torch.tensor([0.0])),
        (torch.tensor([[0.5, 0.5], [0.5, 0.2]]), torch.tensor([0, 0])),
        (torch.tensor([[torch.nan, 0.5]]), torch.tensor([0])),
        (torch.tensor([[1.5, -0.5]]), torch.tensor([0])),
    ],
)
def test_what_is_no_prediction_is_refused(probabilities, labels):
    with pytest.raises(DataError, match="wanted N > 0 distributions"):
        calibration_figures(probabilities, labels)

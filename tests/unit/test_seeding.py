"""Seeds are the same everywhere and different for every purpose and place."""

import torch

from minillm.seeding import row_uniforms, seed_for


def test_seeds_are_fixed_numbers():
    assert seed_for(0, "rollout", 1, 2) == 2033603465601641280
    assert len({seed_for(base, purpose, place) for base in (0, 1) for purpose in ("a", "b") for place in range(5)}) == 20
    assert all(0 <= seed_for(seed, "x") < 2**63 for seed in range(100))


def test_a_rows_stream_does_not_depend_on_its_batch():
    both, one = row_uniforms([3, 4], 5), row_uniforms([4], 5)
    assert torch.equal(both[1], one[0]) and not torch.equal(both[0], both[1])
    assert both.dtype == torch.float64 and row_uniforms([], 5).shape == (0, 5)

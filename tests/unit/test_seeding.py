"""Seeds are the same everywhere and different for every purpose and place."""

import hashlib

import torch

from minillm.common.seeding import row_uniforms, seed_for


def test_seeds_are_fixed_numbers():
    assert seed_for(0, "rollout", 1, 2) == 2033603465601641280
    assert (
        len({seed_for(base, purpose, place) for base in (0, 1) for purpose in ("a", "b") for place in range(5)}) == 20
    )
    assert all(0 <= seed_for(seed, "x") < 2**63 for seed in range(100))


def test_a_rows_stream_does_not_depend_on_its_batch():
    both, one = row_uniforms([3, 4], 5), row_uniforms([4], 5)
    assert torch.equal(both[1], one[0]) and not torch.equal(both[0], both[1])
    assert both.dtype == torch.float64 and row_uniforms([], 5).shape == (0, 5)


def test_a_second_fixed_number_and_the_hash_by_hand():
    assert seed_for(42, "order", 0) == 5807841735191177143
    assert seed_for(42, "order", 0) == int(hashlib.blake2b(b"42:order:0", digest_size=8).hexdigest(), 16) // 2


def test_places_are_not_run_together():
    places = [(), (0,), (1, 2), (2, 1), (12,)]
    assert len({seed_for(1, "a", *place) for place in places}) == 5


def test_rows_keep_their_streams_in_any_order_of_the_batch():
    seeds = [seed_for(0, "rollout", row) for row in range(6)]
    order = [4, 0, 5, 2, 1, 3]
    draws = row_uniforms(seeds, 40)
    assert torch.equal(row_uniforms([seeds[row] for row in order], 40), draws[order])
    assert draws.unique().numel() == draws.numel() and draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / draws.numel()) ** 0.5  # four standard errors


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    row_uniforms([1, 2], 3)
    assert torch.equal(torch.get_rng_state(), before)

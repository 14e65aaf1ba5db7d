"""The parts of a profile add up to the phases, and the picture is one."""

from minillm.train.callbacks.profile import draw_times, parts_of


def test_parts_and_what_is_left_add_up_to_each_phase():
    phases = {"rollout": 4.0, "score": 1.0, "update": 5.0}
    ranges = {
        "rollout: student": 1.5,
        "rollout: heads": 0.5,
        "update: backward": 3.0,
        "rollout": 4.0,
        "Optimizer.step": 9.0,
    }
    parts = parts_of(phases, ranges)
    assert parts["rollout"] == {"student": 1.5, "heads": 0.5, "other": 2.0}
    assert parts["score"] == {"all": 1.0} and parts["update"] == {"backward": 3.0, "other": 2.0}


def test_the_picture_is_a_png(tmp_path):
    draw_times({"rollout": {"student": 1.0, "other": 0.2}, "update": {"all": 2.0}}, tmp_path / "time.png", "Rollout 2")
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")

"""A model that was trained with another template than the evaluation's is named, with what to type."""

import pytest

from minillm.evaluation.suite.early import template_notes

CHAT = {"template": "chat", "system": None, "template_arguments": {}, "files": ["x.jsonl"]}


@pytest.mark.parametrize(
    ("trained", "evaluated", "said"),
    [
        ("template: paper", {}, ["trained with data.template='paper'", "measured with data.template='chat'"]),
        ("template: chat\n  system: Be brief.", {}, ["data.system='Be brief.'", "measured with data.system=null"]),
        (
            "template: chat\n  template_arguments: {enable_thinking: false}",
            {"template_arguments": {"enable_thinking": True}},
            ["give data.template_arguments={'enable_thinking':false}"],
        ),
        ("template: chat\n  template_arguments: {a: 1}", {}, ["data.template_arguments={'a':1}"]),
        ("template: chat", {"template_arguments": {"a": 1}}, None),  # an older run without the key
        ("template: chat\n  system: null\n  template_arguments: {}\n  max_prompt_tokens: 9", {}, None),
        ("template: [", {}, None),
    ],
)
def test_a_run_with_other_template_keys_is_named_with_both(tmp_path, trained, evaluated, said):
    (tmp_path / "config.yaml").write_text(f"data:\n  {trained}\n")
    names = [f"{tmp_path}/student", f"{tmp_path}/start/student", f"{tmp_path}/a/b/student", "owner/name"]
    notes = template_notes(names, CHAT | evaluated)
    assert len(notes) == 2 * (said is not None)
    assert all(part in notes[0] for part in said or ())
    assert not notes or notes[0].startswith(f"{tmp_path}/student was trained")

"""Several teachers: names and settings that cannot be, in model.teachers and in the records."""

import json

import pytest

from minillm.common.errors import ConfigError, DataError
from minillm.data import read_records
from minillm.models import Checkpoint, ModelPair


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (dict(teacher="b", teachers={"x": "c"}), "teacher, teachers: both are given; wanted teacher=null"),
        (dict(teachers={}), "teachers={}: wanted names and checkpoints"),
        (dict(reference=Checkpoint("c", offload=True)), "reference: url, bits and offload are for a teacher only"),
        (dict(teachers={"math_raw": "c"}), "and none that ends with _raw or _start"),
        (dict(teachers={"a b": "c"}), "teachers.a b: wanted a name of letters, digits, - and _"),
        (dict(teachers={"raw": "c"}), "teachers.raw: wanted a name"),
        (dict(teachers={"x": {"sourc": "c"}}), "teachers.x.sourc: no such key; did you mean source?"),
        (dict(teachers={"x": {"source": "c", "bits": 5}}), "teachers.x.bits=5: wanted one of 4, 8 or null"),
        (dict(teachers={"x": 3, "y": None}), "teachers.x.source=3: wanted text or null"),
        (dict(teachers={"x": 3, "y": None}), "teachers.y.source=None: wanted a hub id"),
        (dict(teachers={"x": "http://h:1"}), "teachers.x=http://h:1: a server, offload and the student"),
        (dict(teachers={"x": {"url": "http://h:1"}}), "teachers.x=served at http://h:1: a server, offload and"),
        (dict(teachers={"x": {"source": "c", "offload": True}}), "teachers.x=c: a server, offload and"),
        (
            dict(teachers={"x": "ema"}),
            "teachers.x=ema: a server, offload and the student itself are for model.teacher only",
        ),
    ],
)
def test_settings_that_cannot_be(given, text):
    with pytest.raises(ConfigError) as caught:
        ModelPair("a", **given)
    assert text in str(caught.value)


def test_each_record_names_a_teacher_and_up_to_ten_that_do_not_are_shown(tmp_path):
    rows = [{"instruction": f"w {n}"} | ({} if n % 2 else {"teacher": "nobody"}) for n in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        read_records(str(file), ("code", "math"))
    lines, wanted = str(caught.value).splitlines(), "wanted a name in model.teachers (code, math)"
    assert lines[0].startswith(f"{file}: 12 unusable rows") and lines[-1].strip() == "... and 2 more"
    assert lines[1].strip() == f"{file}:1: key teacher: {wanted}, got 'nobody'"
    assert lines[2].strip() == f"{file}:2: key teacher: {wanted}, got no such key"
    with pytest.raises(DataError, match=r"6 unusable rows(.|\n)*:1: key teacher: wanted none without model"):
        read_records(str(file), ())
    assert all(record.teacher is None for record in read_records(str(file)))

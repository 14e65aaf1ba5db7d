"""Settings on disk: what is written is read again, and nothing else is."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from minillm.common.errors import ConfigError
from minillm.common.overrides import override
from minillm.common.stored import read_config, write_config

TEXTS = [
    *["${x}", "a\\${x}", "a\\\\${x} \\", "${", "1e-6", "1.", ".5", "2026-01-01", "1:30", "1_000", "0x1f", "true"],
    *["yes", "null", "~", "", "<<", "=", "a: b", "# c", "\x00\x07", "\x85\u2028", "é", "-", "line\n  two\n", "\ttab"],
    *["*a", "!!x", "[1"],
]  # fmt: skip
VALUES = [1, -1, 1e-6, 5e-6, 1 / 3, math.inf, True, None, [], {}, [[1, [2]]], {"a": {"b": [1, {"c": "${"}]}}]


@pytest.mark.parametrize("value", [*TEXTS, *VALUES])
def test_a_setting_comes_back_as_it_was(tmp_path, value):
    write_config(tmp_path / "config.yaml", {"a": value})
    found = read_config(tmp_path / "config.yaml")
    assert found == {"a": value} and type(found["a"]) is type(value)


@pytest.mark.parametrize("text", [text for text in TEXTS if "\x00" not in text])
def test_an_override_gives_the_text_back(text):
    (parsed,) = OverridesParser.create().parse_overrides([override("a", text)])
    assert OmegaConf.to_container(OmegaConf.create({"a": parsed.value()}), resolve=True) == {"a": text}


def test_a_number_is_what_the_settings_take_for_one(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1e-6\nb: 1.0e-06\nc: 2026-01-01\nd: ${oc.env:HOME}\n")
    assert read_config(tmp_path / "config.yaml") == {"a": 1e-6, "b": 1e-6, "c": "2026-01-01", "d": "${oc.env:HOME}"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "expected ',' or ']', line 2"),
        ("b: 1\na: &x [1]\nc: *x", "an alias (*name) is not read, line 3"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("[" * 5000, "nesting depth"),
        ("a: !!int x", "invalid literal"),
        ("a: !!int ''", "index"),
        ("a: !!map [1]", "cannot unpack"),
        ("", "no settings by name"),
        ("- 1", "no settings by name"),
        ("a: \x00", "unacceptable character"),
        (None, "Is a directory"),
    ],
)
def test_what_is_not_plain_settings_is_one_message(tmp_path, text, reason):
    file = tmp_path / "config.yaml"
    file.mkdir() if text is None else file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: cannot be read (") and reason in str(caught.value)

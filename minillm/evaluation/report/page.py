"""The page: a template with its style, its script and its data inside. No text of a model is ever markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent
_SURROGATE = re.compile("[\ud800-\udfff]")


def page_of(**values: Any) -> str:
    """page.html filled in; `data` and `samples` are embedded for the script, all other text is escaped."""
    script = "\n".join(
        (HERE / name).read_text(encoding="utf-8") for name in ("page.js", "plots.js", "tokens.js", "samples.js")
    )
    # The browser runs this script alone, even if a text were to become markup.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((HERE / "page.html").read_text(encoding="utf-8"))
    page = template.render(
        **values | {"samples": Markup(embedded(values["samples"])), "data_json": Markup(embedded(values["data"]))},
        data_has_table="table" in values["data"],
        style=Markup("\n".join((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "samples.css"))),
        script=Markup(script),
        digest=digest,
    ).lstrip()
    return _SURROGATE.sub("\ufffd", page)


def embedded(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element, open a comment, or be half a
    character."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return _SURROGATE.sub("\ufffd", text)

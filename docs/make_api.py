"""Write docs/api.md from the docstrings of the public functions: `python -m docs.make_api`."""

import inspect
import re
import textwrap
from pathlib import Path

import minillm
from minillm import divergences, losses, testing

PAGE = Path(__file__).parent / "api.md"
HEAD = """# Python API

Made by `python -m docs.make_api` from the docstrings. Tensors are named by their axes: B answers, R
response tokens, N tokens of a micro-batch, V vocabulary, H hidden width. Log-probs and divergences
are in nats.
"""
SECTIONS = {
    "Train, answer, measure": ("load_pair", "distill", "finetune", "generate", "evaluate", "Run", "Student", "Pair"),
    "Your own loop": ("rollouts", "backward", "prepare", "Rollout", "LinearLoss"),
    "Objectives": ("MiniLLM", "CrossEntropy", "PretrainLoss"),
    "Sampling, regimes, optimizer": ("Sampler", "OnPolicy", "Supervised", "SupervisedStart", "Reward", "Optim", "Lora"),
}


def entry(name: str, value: object) -> str:
    """A heading, the signature and the docstring as Markdown."""
    kind = "class " if inspect.isclass(value) else ""
    signature, text = _signature(kind + name, value), _markdown(inspect.getdoc(value) or "")
    return f"### `{name}`\n\n```python\n{signature}\n```\n\n{text}\n"


def _signature(name: str, value: object) -> str:
    """The signature as it is written, an argument a line where it is long."""
    signature = inspect.signature(value)
    arguments, kinds = [], [each.kind for each in signature.parameters.values()]
    for at, each in enumerate(signature.parameters.values()):
        if each.kind == each.KEYWORD_ONLY and each.KEYWORD_ONLY not in kinds[:at]:
            arguments.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        annotation = "" if each.annotation is each.empty else f": {each.annotation}"
        default = "" if each.default is each.empty else f" = {each.default!r}"
        arguments.append(f"{stars}{each.name}{annotation}{default}")
    result = "" if inspect.isclass(value) else f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(arguments)}){result}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(arguments) + f",\n){result}"


def _markdown(text: str) -> str:
    """Paragraphs are wrapped; the items of a section such as `Args:` become a list."""
    parts = []
    for block in text.split("\n\n"):
        head, _, rest = block.partition("\n")
        if re.fullmatch(r"[A-Z][^.]*:", head) and rest.startswith("    "):
            items = re.sub(r"\n {5,}", " ", rest).splitlines()
            lines = (textwrap.fill(f"- {each.strip()}", 100, subsequent_indent="  ") for each in items)
            parts.append(f"**{head}**\n\n" + "\n".join(lines))
        else:
            indented = any(line.startswith((" ", "- ")) for line in block.splitlines())
            parts.append(block if indented else textwrap.fill(block, 100, break_on_hyphens=False))
    return "\n\n".join(parts)


def page() -> str:
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [entry(f"minillm.{name}", getattr(minillm, name)) for name in names]
    for title, module in (("Losses", losses), ("Divergences", divergences), ("Checks of your own", testing)):
        parts.append(f"## {title}\n\n{_markdown(inspect.getdoc(module))}\n")
        public = {name: each for name, each in vars(module).items() if not name.startswith("_")}
        parts += [entry(f"{module.__name__}.{name}", each) for name, each in public.items()
                  if inspect.isfunction(each) and each.__module__ == module.__name__]  # fmt: skip
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())

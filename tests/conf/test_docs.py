"""The pages of docs/: the API page is that of the code, links lead somewhere, tests that are named are there."""

import re
from pathlib import Path

import pytest

from docs.make_api import PAGE, page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(file):
    titles = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_api_page_is_that_of_the_code():
    assert PAGE.read_text() == page(), "run python -m docs.make_api"


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", file.read_text()):
        other = (file.parent / target).resolve() if target else file
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{target}#{anchor}"


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_files_that_are_named_are_there(file):
    named = re.findall(r"`((?:tests|minillm|conf|examples|benchmarks)/[\w./]+)`", file.read_text())
    assert [each for each in named if not (ROOT / each).exists()] in ([], ["conf/pair/mine.yaml"])  # one's own


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    assert [file.name for file in PAGES[2:] if f"({file.name})" not in index] == ["index.md"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130

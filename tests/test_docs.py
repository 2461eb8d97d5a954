"""What README and the guides say is there, is there."""

import re
from pathlib import Path

import pytest

from launch.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist(page: Path):
    shown = set(re.findall(r"(?:^|`|\$ )\s*equivox ([a-z_]+)", page.read_text(), re.M))
    assert shown <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    named = re.findall(
        r"`((?:launch|accelerate_configs|requirements|tests|reasoning|rewards|data_builders)/[\w./]+)`",
        page.read_text(),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_file_tree_in_the_readme_is_the_repositorys():
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    folder = None
    missing = []
    for line in tree.strip().splitlines():
        if not line.startswith(" "):
            folder = line.split()[0]
            missing += [folder] if not (ROOT / folder).is_dir() else []
        else:
            names = re.findall(r"(?<![\w/])[\w]+(?:\.py|\.sh|\.yaml|\.lock|\.txt|/)(?!\w)", line)
            inside = ROOT / str(folder)
            missing += [
                name
                for name in names
                if not any((p / name).exists() for p in (inside, inside / "configs", inside / "models"))
            ]
    assert missing == []


def test_the_results_section_can_be_written():
    text = (ROOT / "README.md").read_text()
    assert (text.count("<!-- results -->\n"), text.count("<!-- end -->")) == (1, 1)

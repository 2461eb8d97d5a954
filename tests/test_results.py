"""README's table and docs/results.md are what `equivox score` and `equivox compare` make of the answers in
docs/results/, on the corpus as it is."""

from __future__ import annotations

import re
from pathlib import Path

from launch.cli import dispatch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "crema_d"
STAGES = ROOT / "docs" / "results" / "compare_crema_d"


def section(path: Path) -> str:
    return path.read_text().split("<!-- results -->")[1].split("<!-- end -->")[0]


def unpacked(packs: Path, shared_crema_d: Path, folder: Path) -> tuple[str, list[str]]:
    """(the corpus, the runs that were packed)."""
    data, runs = folder / "data", folder / "runs"
    assert dispatch(["prepare", "crema_d", "--root", str(shared_crema_d), "--out", str(data)]) == 0
    files = sorted(packs.glob("*.parquet"))
    assert dispatch(["unpack", *map(str, files), "--data", str(data), "--out", str(runs)]) == 0
    return str(data), [str(run) for run in sorted(runs.glob("*/*"))]


def test_the_published_answers_make_the_table_of_the_readme(shared_crema_d, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- results -->\n<!-- end -->\n")
    _, folders = unpacked(RESULTS, shared_crema_d, tmp_path)
    assert dispatch(["score", *folders, "--out", str(tmp_path / "report"), "--markdown", str(page)]) == 0
    assert section(page) == section(ROOT / "README.md")


def test_the_published_answers_of_three_seeds_make_the_page_of_results(shared_crema_d, tmp_path):
    page, published = tmp_path / "results.md", ROOT / "docs" / "results.md"
    data, folders = unpacked(STAGES, shared_crema_d, tmp_path)
    assert dispatch(["seed", "--out", str(tmp_path / "seed")]) == 0, "its tokenizer counts the tokens"
    swaps = [str(file) for file in sorted(STAGES.glob("*.swaps.json"))]
    made_by = re.search("Made by `(.*?)`", published.read_text())
    assert made_by
    # fmt: off
    assert dispatch([
        "compare", *folders, "--data", data, "--swaps", *swaps, "--tokenizer", str(tmp_path / "seed"),
        "--made-by", made_by[1], "--out", str(tmp_path / "comparison"), "--markdown", str(page),
    ]) == 0
    # fmt: on
    assert page.read_text() == published.read_text()

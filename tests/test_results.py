"""README's table is what `equivox score` makes of the answers in docs/results/, on the corpus as it is."""

from __future__ import annotations

from pathlib import Path

from launch.cli import dispatch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "crema_d"


def section(path: Path) -> str:
    return path.read_text().split("<!-- results -->")[1].split("<!-- end -->")[0]


def test_the_published_answers_make_the_table_of_the_readme(shared_crema_d, tmp_path):
    data, runs, page = tmp_path / "data", tmp_path / "runs", tmp_path / "page.md"
    page.write_text("<!-- results -->\n<!-- end -->\n")
    assert dispatch(["prepare", "crema_d", "--root", str(shared_crema_d), "--out", str(data)]) == 0
    files = sorted(RESULTS.glob("*.parquet"))
    assert dispatch(["unpack", *map(str, files), "--data", str(data), "--out", str(runs)]) == 0
    folders = [str(run) for run in sorted(runs.glob("*/*"))]
    assert dispatch(["score", *folders, "--out", str(tmp_path / "report"), "--markdown", str(page)]) == 0
    assert section(page) == section(ROOT / "README.md")

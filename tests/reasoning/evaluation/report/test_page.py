"""The page: one file, nothing from outside, no string that acts, every number that was scored."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from data_builders.crema_d import prepare
from reasoning.errors import AudioError, EvaluationError
from reasoning.evaluation.predictions import Prediction
from reasoning.evaluation.report import write_report

HOSTILE = "</script></pre><img src=x onerror=alert(1)>\"'{{ 7*7 }}<!--&amp;"


class Page(HTMLParser):
    """Elements as (tag, attributes), and the text of every element by tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def write(tmp_path):
    def written(material, **options) -> str:
        out = tmp_path / "out" / "report.html"
        write_report(out, material.scores, material.predictions, material.root, **options)
        return out.read_text(encoding="utf-8")

    return written


def test_the_page_asks_nothing_of_any_server(make_material, write):
    html = write(make_material())
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:audio/")), (tag, name)
    assert "@import" not in html
    assert "url(" not in html
    assert not re.search(r"https?://", html)


def test_only_the_pages_own_script_may_run(make_material, write):
    html = write(make_material())
    policy = next(m["content"] for m in Page(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def hostile(line: Prediction) -> Prediction:
    about = {"id": line.id + HOSTILE, "speaker": line.speaker + HOSTILE, "transcript": HOSTILE}
    if line.readout == "none":
        return replace(line, **about)
    answered = {"system": "sft" + HOSTILE, "problems": (HOSTILE,)}
    return replace(line, **about, **answered, text=HOSTILE if line.readout == "verbalized" else None)


def test_hostile_strings_are_shown_and_do_nothing(make_material, write):
    material = make_material(hostile, corpus="corpus" + HOSTILE, statement=HOSTILE, rater_task=HOSTILE)
    html = write(material)
    page = Page(html)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "49" not in page.texts["h1"][0]
    assert page.texts["h1"][0].endswith("corpus" + HOSTILE)
    assert page.texts["pre"] == [HOSTILE] * len(page.all("pre"))
    assert f"“{HOSTILE}”" in page.texts["p"]
    assert any(f"verbalized: {HOSTILE}" in text for text in page.texts["p"])
    assert any(text == f"sft{HOSTILE} · label" for text in page.texts["bdi"])
    assert any(text == f"speaker0{HOSTILE}" for text in page.texts["bdi"])


@pytest.mark.parametrize("text", ["\ud800 half a pair", "\x00\x1b[31m", "‮reversed", "\u2028" * 3])
def test_strings_that_are_no_proper_text_still_make_a_page(make_material, write, text):
    html = write(make_material(lambda line: replace(line, transcript=text)))
    assert html.endswith("</html>")


def test_the_models_words_stand_there_verbatim(make_material, write):
    material = make_material()
    page = Page(write(material))
    said = {line["text"] for line in material.predictions if line["text"] is not None}
    assert set(page.texts["pre"]) == said
    assert any("no usable answer, scored as 1 bit" in text for text in page.texts["p"])


def test_every_system_stands_in_the_table_with_its_score_and_interval(make_material, write):
    material = make_material()
    rows = [re.sub(r"\s+", " ", text) for text in Page(write(material)).texts["tr"]]
    titles = ["sft · label", "sft · verbalized", "sft · label · shuffled audio", "Training prior", "Uniform"]
    keys = [
        "sft/label/none",
        "sft/verbalized/none",
        "sft/label/shuffled",
        "training_prior/none/none",
        "uniform/none/none",
    ]
    systems = {s["key"]: s for s in material.scores["systems"]}
    for title, key in zip(titles, keys, strict=True):
        jsd = systems[key]["metrics"]["jsd_bits"]
        interval = f"[{jsd['low']:.3f}, {jsd['high']:.3f}]".replace("-", "−")
        assert any(row.startswith(title) and f"{jsd['estimate']:.3f}" in row and interval in row for row in rows), title


def test_charts_have_a_text_beside_them(make_material, write):
    page = Page(write(make_material()))
    drawn = [a for a in page.all("svg") if a.get("class") == "square"]
    assert len(drawn) == 4  # uncertainty and calibration of two readouts
    assert all(a["role"] == "img" and a["aria-label"] for a in drawn)
    assert page.texts["summary"].count("As a table") == len(drawn)
    assert all(a.get("aria-hidden") == "true" for a in page.all("td") if a.get("class") == "plot")
    assert all(a["aria-label"] for a in page.all("audio"))
    assert page.all("html")[0]["lang"] == "en"


def test_no_number_is_printed_as_nan(make_material, write):
    html = write(make_material(lambda line: replace(line, speaker="one")))
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html).lower()
    assert "Only 1 speakers" in html


def test_few_speakers_are_named_beside_the_intervals(make_material, write):
    material = make_material()
    assert write(material).count(material.scores["few_speakers"]) >= 2


def test_baselines_alone_make_a_page_without_clips(make_material, write):
    page = Page(write(make_material(lambda line: line if line.readout == "none" else None)))
    assert not page.all("audio")
    assert "No model was scored here: the page shows baselines only." in page.texts["p"]


def test_the_number_of_clips_is_limited(make_material, write):
    assert len(Page(write(make_material(), max_clips=4)).all("audio")) <= 4
    assert not Page(write(make_material(), max_clips=0)).all("audio")


def test_missing_audio_stops_the_report_and_leaves_nothing(make_material, tmp_path):
    material = make_material()
    (material.root / "tone3.wav").unlink()
    with pytest.raises(AudioError, match=r"clip3.*does not exist"):
        write_report(tmp_path / "new" / "r.html", material.scores, material.predictions, material.root)
    assert not (tmp_path / "new").exists()


def test_audio_outside_the_corpus_is_refused(make_material, tmp_path):
    material = make_material(lambda line: replace(line, audio="../secret.wav"))
    with pytest.raises(EvaluationError, match="leads out of the corpus root"):
        write_report(tmp_path / "r.html", material.scores, material.predictions, material.root)


def test_a_report_on_real_clips_plays_forty_and_can_be_mailed(shared_crema_d, tmp_path, make_material, write):
    corpus, _ = prepare(shared_crema_d, tmp_path / "crema_d")
    clips = corpus.clips
    mean = np.mean([np.array(clip.votes) / clip.n_votes for clip in clips], axis=0)
    plain = make_material().predictions[0]  # the fields that stay the same

    def about(clip, system, readout, probabilities):
        known = {"id": clip.id, "speaker": clip.speaker, "transcript": clip.transcript, "votes": clip.votes}
        shares = tuple(float(p) for p in probabilities / np.sum(probabilities))
        heard = {"audio": clip.audio, "system": system, "readout": readout, "probabilities": shares, "split": "test"}
        return Prediction(**plain | known | heard)

    lines = [about(clip, "prior", "label", mean) for clip in clips]
    lines += [about(clip, "uniform", "none", np.ones(6)) for clip in clips]
    material = make_material(other=lines, corpus="crema_d")
    material.root = corpus.root
    html = write(material)
    assert 30 <= len(Page(html).all("audio")) <= 40
    assert len(html) < 10_000_000

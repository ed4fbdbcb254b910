"""The page of many nights: what it finds below a folder, and how a reader meets it in a browser."""

import dataclasses
import datetime
import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import batchverify
from batchverify.cli.main import main
from batchverify.evaluation.drift import RunStatistics, population_stability_index
from batchverify.evaluation.summary_version import SUMMARY_VERSION
from batchverify.report.nights import Figures, Night, State, read_nights
from batchverify.report.nights_page import Place, render_nights
from tests.support.contrast import CONTRAST
from tests.support.manifests import write_pairs
from tests.support.nights import FIRST, draw_summary, gate, write_night

ONE_DAY = datetime.timedelta(1)
SCRIPT = "<script>alert(1)</script>"


def days(count: int) -> list[datetime.date]:
    return [FIRST + number * ONE_DAY for number in range(count)]


def figures(night: Night) -> Figures:
    assert night.figures
    return night.figures


@pytest.fixture
def month(tmp_path) -> Path:
    """Thirty nights: three are missing, one left nothing, one was killed, two summaries cannot be read, the model changes."""
    rng, folder = np.random.default_rng(8), tmp_path / "scores"
    for number, day in enumerate(days(30)):
        summary = draw_summary(rng, day, "a" if number < 20 else "b")
        if number == 12:
            summary["identity"]["outscored"] = 7
            summary["gates"] = [gate("--max-identity-faults", "0", 7, summary["rows"]["scored"], False)]
        if number in (4, 5, 17):
            continue
        if number == 7:
            (folder / f"dt={day}").mkdir()
        elif number == 8:
            (folder / f"dt={day}").mkdir()
            (folder / f"dt={day}" / "_RUNNING").write_text("run")
        else:
            text = json.dumps(summary)
            text = text[:500] if number == 14 else text
            write_night(
                folder / f"dt={day}", text.replace('"summary_version": ', '"summary_version": 99') if number == 15 else text
            )
    return folder


def test_nights_that_are_missing_failed_or_unreadable_are_found(month):
    nights = {night.day: night for night in read_nights(str(month)) if night.day}
    assert sorted(nights) == days(30)
    found = {state: [(day - FIRST).days for day, night in nights.items() if night.state is state] for state in State}
    assert found[State.MISSING] == [4, 5, 17] and found[State.UNFINISHED] == [7, 8] and found[State.UNREADABLE] == [14, 15]
    assert nights[days(30)[7]].problem == "The folder is empty: the run failed."
    assert nights[days(30)[8]].problem == "A run is under way, or was killed."
    assert f"it has version 99{SUMMARY_VERSION}, and this program reads {SUMMARY_VERSION}" in nights[days(30)[15]].problem
    assert all(night.level == "bad" for night in nights.values() if night.state is not State.FINISHED)


@pytest.mark.slow
def test_the_measures_are_those_that_pandas_finds(small_model, pictures, tmp_path, read_scores):
    manifest = write_pairs(tmp_path, pictures)
    with manifest.open("a") as file:
        file.write(f"none.png,{pictures.name}/p1.png\n")
    config = batchverify.VerificationConfig(
        manifests=(str(manifest),), output=str(tmp_path / "s" / "dt=2026-03-01"), model=small_model
    )
    first = batchverify.run(config).summary
    config = dataclasses.replace(
        config, output=str(tmp_path / "s" / "dt=2026-03-02"), limit=40, baseline=config.output, max_drift=0.25,
        embeddings=str(tmp_path / "store"), max_failed_rows=batchverify.Limit.parse("2"),
    )  # fmt: skip
    second = batchverify.run(config).summary
    nights = read_nights(str(tmp_path / "s"))
    assert [night.name for night in nights] == ["dt=2026-03-01", "dt=2026-03-02"] and all(night.has_report for night in nights)
    for night, summary in zip(nights, (first, second), strict=True):
        scores = read_scores(tmp_path / "s" / night.name)
        found = figures(night).measures
        assert found["rows"] == len(scores)
        assert found["match_rate"] == scores["match"].dropna().mean()
        assert found["failed_rows"] == scores["score"].isna().mean()
        assert found["identity_faults"] == (~scores.dropna(subset="score")["identity_check"].isin(["sane"])).mean()
        assert found["stranger_rate"] == summary["strangers"]["match_rate"]
        assert found["seconds"] == summary["profile"]["wall_seconds"]
        images = pd.concat([scores["left"], scores["right"]]).nunique()
        assert found["encoded"] + found["reused"] + found["failed_images"] == images
    assert figures(nights[0]).failures == {"missing": 1 / summary_images(first)}
    assert figures(nights[1]).measures["psi"] == second["baseline"]["psi"]
    assert figures(nights[1]).limits == {"psi": 0.25, "failed_rows": 2 / 40, "stranger_rate": 0.1}
    baseline = RunStatistics.from_summary(second)
    against = read_nights(str(tmp_path / "s"), baseline)
    by_hand = population_stability_index(baseline.scores, RunStatistics.from_summary(first).scores)
    assert figures(against[0]).measures["psi"] == by_hand > 0 and figures(against[1]).measures["psi"] == 0


def summary_images(summary: dict) -> int:
    return summary["images"]["total"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda summary: summary.pop("rows"), "it lacks 'rows'"),
        (lambda summary: summary["rows"].update(matches="many"), "'many' is not a number"),
        (lambda summary: summary.update(images=[1]), "no attribute 'get'"),
        (lambda summary: summary.update(gates=[{"option": "--max-drift"}]), "it lacks"),
        (lambda summary: summary.pop("summary_version"), "batchverify did not write it"),
    ],
)
def test_a_summary_that_is_none_is_a_night_with_the_reason(change, reason, tmp_path):
    summary = draw_summary(np.random.default_rng(1), FIRST)
    change(summary)
    write_night(tmp_path / f"dt={FIRST}", summary)
    write_night(tmp_path / f"dt={FIRST + ONE_DAY}", draw_summary(np.random.default_rng(2), FIRST))
    broken, whole = read_nights(str(tmp_path))
    assert broken.state is State.UNREADABLE and reason in broken.problem and whole.state is State.FINISHED
    assert reason.split("'")[0] in render_nights([broken, whole], Place(str(tmp_path), str(tmp_path / "n.html")))


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000, '{"summary_version": [2]}', "\ufeff{}", "NaN"])
def test_any_text_in_the_place_of_a_summary_is_a_reason(text, tmp_path):
    write_night(tmp_path / f"dt={FIRST}", text)
    (night,) = read_nights(str(tmp_path))
    assert night.state is State.UNREADABLE and night.problem.endswith(".")


def test_keys_that_are_not_known_do_no_harm(tmp_path):
    summary = draw_summary(np.random.default_rng(1), FIRST)
    summary["gates"] = [
        gate("--max-drift", "0.25", 0.1, 5, True) | {"new": 1},
        gate("--max-new", "3", 9, 5, False) | {"new": 1},
    ]
    write_night(tmp_path / f"dt={FIRST}", summary | {"not_known": {"a": 1}, "calibration": None})
    (night,) = read_nights(str(tmp_path))
    assert figures(night).limits == {"psi": 0.25} and figures(night).unmet == ("9 of 5 rows, where --max-new allows 3.",)


def test_weekly_nights_are_missing_by_weeks(tmp_path):
    rng = np.random.default_rng(3)
    for week in (0, 1, 2, 5, 6):
        write_night(tmp_path / f"dt={FIRST + 7 * week * ONE_DAY}", draw_summary(rng, FIRST))
    missing = [night.day for night in read_nights(str(tmp_path)) if night.state is State.MISSING]
    assert missing == [FIRST + 7 * week * ONE_DAY for week in (3, 4)]


def test_tonight_is_missing_where_it_was_due(month):
    last = days(30)[-1]
    assert read_nights(str(month), until=last)[-1].day == last
    assert read_nights(str(month), until=last - ONE_DAY)[-1].state is State.FINISHED
    late = read_nights(str(month), until=last + 2 * ONE_DAY)[-2:]
    assert [(night.day, night.state) for night in late] == [(last + day * ONE_DAY, State.MISSING) for day in (1, 2)]


def test_folders_of_any_name_and_depth_are_nights(tmp_path):
    rng = np.random.default_rng(3)
    for name in ("eu/dt=2026-03-01", "eu/dt=2026-03-02", "us/nightly/second try", "dt=0001-01-01", "dt=2026-99-99"):
        write_night(tmp_path / name, draw_summary(rng, FIRST + 3 * ONE_DAY))
    write_night(tmp_path / "eu" / "dt=2026-03-01" / "_replacement-1", draw_summary(rng, FIRST))
    write_night(tmp_path / ".cache" / "dt=2026-03-03", draw_summary(rng, FIRST))
    (tmp_path / "eu" / "latest").symlink_to(tmp_path / "eu" / "dt=2026-03-02")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    nights = [(night.name, str(night.day)) for night in read_nights(str(tmp_path))]
    assert nights == [
        ("eu/dt=2026-03-01", "2026-03-01"), ("eu/dt=2026-03-02", "2026-03-02"), ("dt=0001-01-01", "2026-03-04"),
        ("dt=2026-99-99", "2026-03-04"), ("us/nightly/second try", "2026-03-04"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda folder: None, lambda folder: (folder / "x").mkdir(parents=True), lambda folder: write_night(folder, "{}")]
)
def test_a_folder_without_nights_is_refused(make, tmp_path, capsys):
    make(tmp_path / "scores")
    assert main(["nights", str(tmp_path / "scores")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and re.search("cannot be listed|holds no run directories|is itself a run directory", err)
    assert not list(tmp_path.rglob("*nights.html"))


def test_mistakes_are_sentences(month, tmp_path, capsys):
    for arguments, told in (
        (["--until", "yesterday"], "'yesterday' is no day"),
        (["--baseline", str(tmp_path / "none")], "does not exist; name an earlier run"),
        (["--baseline", str(month / f"dt={days(30)[8]}")], "holds no finished run"),
        (["--gates"], "there is no option --gates"),
    ):
        assert main(["nights", str(month), *arguments]) == 2
        err = capsys.readouterr().err
        assert told in err and len(err.splitlines()) == 1
    (tmp_path / "file").touch()
    assert main(["nights", str(month), "--output", str(tmp_path / "file" / "x.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_page_lies_where_no_reader_of_the_scores_sees_it(month, tmp_path, capsys):
    assert main(["nights", str(month)]) == 0
    assert capsys.readouterr().out.strip() == str(month / "_nights.html")
    before = (month / "_nights.html").read_text()
    assert main(["nights", f"{month}/", "--output", str(month / "_nights.html"), "--until", str(days(30)[-1])]) == 0
    assert (month / "_nights.html").read_text() == before.replace(f"{month}<br>", f"{month}/<br>")
    assert [path.name for path in month.iterdir() if path.is_file()] == ["_nights.html"]


@pytest.mark.parametrize("output", [".", "{}", "{}/", "{}/new/"])
def test_a_folder_is_no_place_for_the_page_and_stays_as_it_is(output, month, monkeypatch, capsys):
    monkeypatch.chdir(month)
    before = sorted(month.rglob("*"))
    assert main(["nights", ".", "--output", output.format(month)]) == 2
    err = capsys.readouterr().err
    assert "is a folder, and a file is to be written; name a file." in err and len(err.splitlines()) == 1
    assert sorted(month.rglob("*")) == before and Path.cwd() == month


@pytest.mark.slow
def test_a_thousand_nights_take_seconds(tmp_path):
    rng = np.random.default_rng(5)
    for day in days(1000):
        write_night(tmp_path / f"dt={day}", draw_summary(rng, day, bins=4000))
    started = time.monotonic()
    assert main(["nights", str(tmp_path), "--baseline", str(tmp_path / f"dt={FIRST}")]) == 0
    assert time.monotonic() - started < 60  # 5 s where nothing else runs
    page = (tmp_path / "_nights.html").read_text()
    assert len(page) < 3e6 and page.count('href="dt=') >= 2000


@pytest.fixture
def page(month) -> Path:
    assert main(["nights", str(month)]) == 0
    return month / "_nights.html"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_is_readable_on_a_phone_and_in_the_dark(width, scheme, page, visit):
    browser = visit(page, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    contrast, where = browser.execute_script(CONTRAST)
    assert contrast >= 4.5, where
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.slow
def test_it_loads_nothing_and_each_night_leads_to_its_report(page, month, visit):
    browser = visit(page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()} and browser.get_log("browser") == []
    reports = {path.as_uri().replace("%3D", "=") for path in month.glob("*/_report.html")}
    for part in (".calendar a", ".all a"):
        links = browser.execute_script(f"return [...document.querySelectorAll('{part}')].map(a => a.href)")
        assert len(links) == len(reports) == 25 and set(links) == reports
    kinds = browser.execute_script("return [...document.querySelectorAll('.month a, .month span')].map(e => e.className)")
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "warn": 22, "bad": 1, "unreadable": 2, "unfinished": 2, "missing": 3,
    }  # fmt: skip


@pytest.mark.slow
def test_what_is_drawn_is_told_in_words(page, visit):
    browser = visit(page)
    labels = browser.execute_script("return [...document.querySelectorAll('svg')].map(s => s.ariaLabel)")
    assert len(labels) == 7  # no run has a baseline or strangers
    assert any(
        re.match(r"Match rate\. match rate in 23 nights: from \S+% to \S+%, \S+% in the last night\.", label)
        for label in labels
    )
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    anchors = browser.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))")
    assert len(ids) == len(set(ids)) and len(anchors) >= 8 and set(anchors) <= set(ids)
    text = browser.execute_script("return document.body.innerText")
    assert "sha256:bbbbbbbbbbbb" in text and "7 of" in text and "--max-identity-faults allows 0" in text
    assert f"{FIRST + 20 * ONE_DAY}" in browser.execute_script("return document.querySelector('#models + table').innerText")


@pytest.mark.slow
def test_names_of_strangers_show_as_text(tmp_path, visit):
    rng = np.random.default_rng(6)
    names = ["javascript:alert(1)", "a b#c?d%41&e", "<script>alert(1)<", '"><img src=x onerror=alert(1)>', "\u202eb"]
    for number, name in enumerate(names):
        summary = draw_summary(rng, days(9)[number])
        summary["run"] |= {"model": SCRIPT, "model_digest": f"{number}{SCRIPT}"}
        summary["images"][SCRIPT] = 5
        summary["gates"] = [gate(SCRIPT, SCRIPT, 1, 1, False)]
        write_night(tmp_path / "s" / name, summary)
    assert main(["nights", str(tmp_path / "s"), "--output", str(tmp_path / "out" / "page.html")]) == 0
    browser = visit(tmp_path / "out" / "page.html")
    assert browser.execute_script("return [document.scripts.length, document.querySelectorAll('[onerror]').length]") == [0, 0]
    assert browser.get_log("browser") == []
    text = browser.execute_script("return document.body.innerText")
    assert "\\u202eb" in text and "\u202e" not in text and text.count(SCRIPT) > 10
    links = browser.execute_script("return [...document.querySelectorAll('.all a')].map(a => [a.href, a.innerText])")
    assert len(links) == 5
    for link, name in links:
        browser.get(link)
        assert browser.title == "report", name


@pytest.mark.parametrize(
    ("nights", "page", "link"),
    [
        ("scores", "scores/_nights.html", "dt=1%23/_report.html"),
        ("scores", "pages/x.html", "../scores/dt=1%23/_report.html"),
        ("gs://b/s", "gs://b/s/_nights.html", "dt=1%23/_report.html"),
        ("gs://b/s", "/tmp/x.html", "https://storage.cloud.google.com/b/s/dt=1%23/_report.html"),
        ("s3://b/s", "/tmp/x.html", "s3://b/s/dt=1%23/_report.html"),
        ("scores", "gs://b/x.html", ""),
    ],
)
def test_links_lead_from_the_page_to_the_report(nights, page, link, tmp_path):
    write_night(tmp_path / "dt=1#", draw_summary(np.random.default_rng(1), FIRST))
    (night,) = read_nights(str(tmp_path))
    assert Place(nights, page).link(night) == link
    assert Place(nights, page).link(dataclasses.replace(night, has_report=False)) == ""

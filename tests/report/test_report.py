"""The report as a reader meets it: in a browser, against the rows that it speaks of."""

import dataclasses
import itertools
import json
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import batchverify
from batchverify.cli.job import parse
from batchverify.cli.main import main
from batchverify.errors import printable
from batchverify.evaluation.summary_version import SUMMARY_VERSION
from batchverify.report import command, plots, render, verdict
from tests.support.contrast import CONTRAST

pytestmark = pytest.mark.slow

SCRIPT = "<script>alert(1)</script>"
FAULTY = str(Path(batchverify.__file__).parent / "demo" / "faulty.keras")


@pytest.fixture(scope="module")
def folds(demo, tmp_path_factory) -> Path:
    """The demo manifest with five folds."""
    path = tmp_path_factory.mktemp("folds") / "pairs.csv"
    manifest = pd.read_csv(demo / "demo.csv", dtype=str, keep_default_na=False)
    manifest.assign(fold=np.arange(len(manifest)) % 5).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def sane(demo, folds, tmp_path_factory) -> Path:
    """The run directory of the demo, with folds."""
    output = tmp_path_factory.mktemp("sane") / "out"
    batchverify.run(batchverify.VerificationConfig(manifests=(str(folds),), output=str(output), image_root=str(demo)))
    return output


@pytest.fixture(scope="module")
def faulty(demo, tmp_path_factory) -> Path:
    """The run directory of the faulty model, with a gate that it does not meet."""
    output = tmp_path_factory.mktemp("faulty") / "out"
    config = batchverify.VerificationConfig(
        manifests=(str(demo / "demo.csv"),), output=str(output), model=FAULTY, max_identity_faults=batchverify.Limit.parse("1%")
    )
    batchverify.run(config)
    return output


def text_of(browser, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def rows_of(browser, selector: str) -> list[list[str]]:
    script = "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    return browser.execute_script(script, selector)


def test_the_figures_are_those_of_the_rows(sane, visit, read_scores):
    page, scores = visit(sane), read_scores(sane)
    assert int(text_of(page, "#tile-rows")) == len(scores) == 125
    assert int(text_of(page, "#tile-scored")) == scores["score"].notna().sum()
    assert int(text_of(page, "#tile-matches")) == (scores["match"] == True).sum()  # noqa: E712  null is no match
    assert int(text_of(page, "#tile-images")) == len({*scores["left"], *scores["right"]} - {""})
    known = scores.dropna(subset="score")
    genuine, match = known["genuine"] == "1", known["score"] >= 0.5
    rates = {row[0]: row[1] for row in rows_of(page, "#rates")}
    assert rates["Accuracy"] == f"{(genuine == match).mean():.2%}"
    assert rates["FMR"] == f"{match[~genuine].mean():.2%}"
    assert rates["FNMR"] == f"{1 - match[genuine].mean():.2%}"
    assert rates["EER"] == text_of(page, "#tile-eer")
    threshold = float(rows_of(page, "#rates")[3][3].split()[-1])
    fmr, fnmr = (known["score"][~genuine] >= threshold).mean(), (known["score"][genuine] < threshold).mean()
    assert rates["EER"] == f"{(fmr + fnmr) / 2:.2%}"
    all_genuine = scores[scores["genuine"] == "1"]["score"]
    assert rows_of(page, "#generalised")[1][2] == f"{1 - (all_genuine >= 0.5).mean():.2%}"
    assert [row[0] for row in rows_of(page, "#suggestions")] == ["1%", "0.1%", "0.01%"]
    found = json.loads((sane / "_summary.json").read_text())["error_rates"]["folds"]
    each = f"{found['accuracy_mean']:.4f} ± {found['accuracy_standard_error']:.4f}"
    assert text_of(page, "#fold-accuracy") == each and 0.9 < found["accuracy_mean"] < 1
    assert (len(found["each"]), sum(fold["pairs"] for fold in found["each"])) == (5, len(known))


def test_every_line_of_pandas_lists_as_many_rows_as_it_says(sane, visit, read_scores):
    page, scores = visit(sane), read_scores(sane)
    listed = [(row[0], int(row[1]), row[2]) for row in rows_of(page, "table.cards") if row[2].startswith("scores")]
    assert len(listed) == 9
    for title, count, code in listed:
        assert len(eval(code, {"scores": scores})) == count, title
    for status, _, left, right, code in rows_of(page, "#images-by-status"):
        if status != "ok":
            assert len(eval(code, {"scores": scores})) == int(left) + int(right) == 1


def test_nothing_is_loaded_and_the_console_is_clean(sane, faulty, visit):
    for output in (sane, faulty):
        page = visit(output)
        messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
        asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
        assert {url for url in asked if not url.startswith("data:")} == {(output / "_report.html").as_uri()}
        assert page.get_log("browser") == []


def test_the_verdict_stands_first(sane, faulty, visit):
    first = "return document.querySelector('main').firstElementChild.innerText"
    good = visit(sane).execute_script(first)
    assert "The model is sane, and the run is complete, but 3 rows have no score." in good
    assert "Rows in = rows out: 125 read, 125 written." in good and "No gates were set" in good
    bad = visit(faulty).execute_script(first)
    assert "Don’t trust these scores: the model fails the identity check." in bad
    assert "48 of 122 pairs score higher than an image against itself" in bad
    assert "Gate not met: --max-identity-faults 1%: found 48 of 122 rows." in bad
    assert "44 of them positive" in text_of(visit(faulty), "main") and "Holds: no pair" in text_of(visit(sane), "main")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_is_readable_on_a_phone_and_in_the_dark(width, scheme, sane, faulty, visit):
    for output in (sane, faulty):
        page = visit(output, width, scheme)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        contrast, where = page.execute_script(CONTRAST)
        assert contrast >= 4.5, where
        background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_it_can_be_heard_and_walked_through(faulty, visit):
    page = visit(faulty)
    assert page.execute_script("return document.documentElement.lang") == "en"
    assert page.execute_script("return [...document.images].every(image => image.alt && image.naturalWidth == 128)")
    labels = page.execute_script("return [...document.querySelectorAll('svg')].map(s => [s.getAttribute('role'), s.ariaLabel])")
    assert len(labels) == 5 and all(role == "img" and len(label) > 20 for role, label in labels)
    levels = page.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    anchors = page.execute_script("return [...document.querySelectorAll('a')].map(a => a.getAttribute('href').slice(1))")
    assert len(ids) == len(set(ids)) and len(anchors) >= 7 and set(anchors) <= set(ids)


def test_strings_of_strangers_show_as_text(small_model, pictures, tmp_path, visit):
    folder = tmp_path / "<script>alert(1)<"  # with the file's name it makes the tag
    folder.mkdir()
    shutil.copy(small_model, folder / "script>.keras")
    left = [str(pictures / f"p{number}.png") for number in range(6)] + [SCRIPT, f'"><img src=x onerror=alert(1)>{SCRIPT}']
    columns = {"left": left, "right": left[::-1], SCRIPT: ["1", "0"] * 4, f"fold {SCRIPT}": [SCRIPT, "\u202eb"] * 4}
    pd.DataFrame(columns).to_csv(folder / "script>.csv", index=False)
    config = batchverify.VerificationConfig(
        manifests=(str(folder / "script>.csv"),), output=str(tmp_path / "out"), model=str(folder / "script>.keras"),
        label_column=SCRIPT, fold_column=f"fold {SCRIPT}",
    )  # fmt: skip
    batchverify.run(config)
    page = visit(tmp_path / "out")
    assert page.execute_script("return [document.scripts.length, document.querySelectorAll('[onerror]').length]") == [0, 0]
    assert page.get_log("browser") == []
    shown = page.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = true); return document.body.innerText"
    )
    assert shown.count(SCRIPT) > 10 and "onerror=alert(1)" in shown
    assert "\\u202eb" in shown and "\u202e" not in shown  # what turns the direction of writing is written out
    assert [row[0] for row in rows_of(page, "details")] == [SCRIPT, "\\u202eb"]


def test_the_command_in_it_makes_the_same_run(sane, faulty):
    for output in (sane, faulty):
        told = command.format_command(json.loads((output / "_summary.json").read_text())["run"])
        there, _, words = told.partition("\n")
        assert shlex.split(there) == ["cd", str(Path.cwd())]
        arguments = parse(shlex.split(words.replace("\\\n", ""))[1:])
        config, others = arguments.config, arguments.beam_args
        said = json.loads((output / "_summary.json").read_text())["run"]["options"]
        assert others == [] and config.output == str(output) == said["output"]
        assert dataclasses.asdict(config)["model"] == said.get("model") and config.manifests == tuple(said["manifests"])


def test_the_command_repeats_options_that_may_be_given_several_times():
    words = ["--manifest", "a.csv", "--manifest", "b.csv", "--output", "out", "--group-column", "x", "--group-column=-y",
             "--group-columns", "l", "r", "--group-columns", "l2", "it's", "--subject-columns", "s", "t", "--fmr", "1e-5",
             "--fmr", "1e-6", "--review", "0.4", "0.6", "--max-stranger-matches", "5%", "--lambda", "a=l1"]  # fmt: skip
    given = parse(words).config
    options = {name: value for name, value in json.loads(json.dumps(dataclasses.asdict(given), default=str)).items() if value}
    options["max_stranger_matches"] = str(given.max_stranger_matches)
    _, _, told = command.format_command({"options": options, "working_directory": "/"}).partition("\n")
    assert parse(shlex.split(told.replace("\\\n", ""))[1:]).config == given


def test_it_is_made_again_from_anywhere(faulty, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(faulty), "--output", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == (faulty / "_report.html").read_text()


def test_an_image_that_is_gone_is_a_word_in_its_place(small_model, pictures, tmp_path):
    names = ["p0.png", "p1.png", "p2.png"]
    pd.DataFrame({"left": names, "right": names[1:] + names[:1]}).to_csv(pictures / "pairs.csv", index=False)
    config = batchverify.VerificationConfig(
        manifests=(str(pictures / "pairs.csv"),), output=str(tmp_path / "out"), model=small_model, image_root=str(pictures)
    )
    batchverify.run(config)
    page = tmp_path / "out" / "_report.html"
    assert page.read_text().count("<img ") == 12  # three pairs, among the highest and among the lowest
    (pictures / "p0.png").unlink()
    (pictures / "p1.png").write_bytes(b"no image")
    (pictures / "p2.png").unlink()
    (pictures / "p2.png").symlink_to(page)  # outside of the root
    assert main(["report", str(tmp_path / "out")]) == 0
    for status in ("missing", "unreadable", "outside root"):
        assert page.read_text().count(f'<span class="gone">{status}</span>') == 4
    assert "<img " not in page.read_text()


def test_sections_that_other_runs_have(sane):
    summary = json.loads((sane / "_summary.json").read_text())
    summary["profile"] = {
        "seconds": {"fetch": 1.5, "decode": 2.25, "encode": 30.0}, "images_per_second": 12.3, "device_idle_share": None,
    }  # fmt: skip
    summary["baseline"] = {
        "path": "/runs/yesterday", "psi": 0.3, "ks": 0.2, "match_rate": [0.5, 0.54], "score_mean": [0.4, None],
        "failures": {"missing": [0, 1]}, "identity": {"sane": [125, 122]}, "model_changed": True,
    }  # fmt: skip
    page = render.render(summary)
    for words in (
        "encode 30.0",
        "images per second",
        "12.3",
        "/runs/yesterday",
        "another model",
        "have moved a lot (PSI 0.300)",
        "failed: missing",
    ):
        assert words in page
    assert verdict.judge_run(summary).level == "warn"
    assert "Where the time went" not in render.render(summary | {"profile": None})


def test_the_summary_of_another_version_is_refused(sane, tmp_path, capsys):
    shutil.copytree(sane, tmp_path / "run")
    summary = json.loads((sane / "_summary.json").read_text())
    for version, remedy in ((summary["summary_version"] - 1, "run the job again"), (99, "update batchverify"), ("<b>", "run")):
        (tmp_path / "run" / "_summary.json").write_text(json.dumps(summary | {"summary_version": version}))
        assert main(["report", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert f"has version {version!r}, and this program reads" in said and remedy in said and len(said.splitlines()) == 1


def test_a_directory_without_a_finished_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    (tmp_path / "_SUCCESS").touch()
    for text, told in (("{", "cannot be read"), ("[]", "is not one that batchverify wrote")):
        (tmp_path / "_summary.json").write_text(text)
        assert main(["report", str(tmp_path)]) == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "_report.html").exists()


@pytest.mark.broken_report
def test_a_report_that_cannot_be_made_says_so_and_fails_no_run(caplog):
    page = render.make_report({"summary_version": SUMMARY_VERSION, "<b>": 1})
    assert "This report could not be made" in page and "The scores are whole" in page
    assert "the report could not be made (KeyError" in caplog.text


def test_a_run_without_rows_or_images_has_a_report(small_model, tmp_path):
    (tmp_path / "pairs.csv").write_text("left,right,genuine\n")
    config = batchverify.VerificationConfig(
        manifests=(str(tmp_path / "pairs.csv"),), output=str(tmp_path / "out"), model=small_model
    )
    batchverify.run(config)
    assert "nothing to judge" in (tmp_path / "out" / "_report.html").read_text()
    (tmp_path / "pairs.csv").write_text("left,right,genuine\nnone.png,,1\n")
    batchverify.run(dataclasses.replace(config, overwrite=True))
    page = (tmp_path / "out" / "_report.html").read_text()
    assert "Nothing could be judged: no image could be read." in page and "100.00%" in page


@pytest.mark.parametrize("name", ["a\x1bb", r"$\x$", "$25k-$50k", "\u202eb", "line\nbreak", '<b>&"'])
def test_a_plot_shows_names_of_the_users_as_text(name):
    rates = {"fmr": 0.1, "fnmr": 0.2, "fmr_interval": (0.05, 0.2), "fnmr_interval": (0.1, 0.3)}
    group = {"value": name, "kind": "value", "impostor": 10, "genuine": 10, **rates}
    for svg, count in ((plots.group_plot(name, [group], 0), 2), (plots.time_plot({name: 1.0}), 1)):
        root = ElementTree.fromstring(svg)
        assert "".join(root.itertext()).count(printable(name)) == count
        assert printable(name) in root.attrib["aria-label"]


def test_an_eer_of_0_stands_at_the_end_of_both_axes():
    def drawn(eer: float) -> str:
        return plots.det_plot(np.array([1.0, 0.0]), np.array([0.0, 1.0]), (1_000, 100), eer, (0.1, 0.1))

    assert drawn(0.0) == drawn(1e-7) != drawn(0.5).replace("50.00%", "0.00%")

"""The page of many nights in stores: it is the local one, and nothing is fetched but summaries."""

import datetime
import re

import numpy as np
import pytest

from batchverify.cli.main import main
from tests.support.nights import FIRST, draw_summary, write_night
from tests.support.object_stores import gs_store, s3_store

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("make", [gs_store, s3_store])
def test_nights_in_a_store_are_those_on_this_machine(make, tmp_path, monkeypatch, capsys):
    rng, local = np.random.default_rng(4), tmp_path / "scores"
    for number in (*range(9), 11):
        day = FIRST + datetime.timedelta(number)
        write_night(local / f"dt={day}", draw_summary(rng, day))
    (local / f"dt={FIRST}" / "_SUCCESS").unlink()
    (tmp_path / "account").mkdir()
    with make(tmp_path / "account") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        store.upload(local, "scores")
        store.proxy.clear()
        assert main(["nights", f"{store.scheme}://bucket/scores/", *store.arguments]) == 0, capsys.readouterr().err
        asked = [one.path for one in store.proxy.asked if one.method == "GET"]
        fetched = {name for path in asked for name in re.findall(r"dt=[\d-]+/[^?&]+", path)}
        assert fetched == {f"dt={FIRST + datetime.timedelta(number)}/_summary.json" for number in (*range(1, 9), 11)}
        page = store.get("scores/_nights.html").decode()
    assert main(["nights", str(local)]) == 0
    here = (local / "_nights.html").read_text()
    assert page == here.replace(f"{local}<br>", f"{store.scheme}://bucket/scores/<br>")

"""The summary of a run as a notebook shows it."""

from __future__ import annotations

import html
from typing import Any

from batchverify.report.verdict import Verdict, judge_run
from batchverify.words import counted_of

# Colours that can be read on white and on black.
_COLOURS = {"good": "#23935a", "warn": "#b97700", "bad": "#d9463d", "plain": "#7d7d7d"}


class RunSummary(dict[str, Any]):
    """The content of a run's `_summary.json`: a dictionary that Jupyter shows as the verdict on the run.

    It can be copied, compared, pickled and written as JSON as every dictionary can, so pandas keeps it in `attrs`.

    Examples:
        >>> import batchverify, pandas
        >>> scored = batchverify.score_frame(pandas.read_csv("pairs.csv"), model="model.keras")
        >>> scored.attrs["batchverify"]
        <RunSummary: The model is sane, and the run is complete, but 3 rows have no score. 122 of 125 rows scored, 66 matches.>
    """

    @property
    def verdict(self) -> Verdict:
        """The verdict: its `level` is good, warn or bad, and it has a `headline` and `findings`."""
        return judge_run(self)

    def __repr__(self) -> str:
        return f"<RunSummary: {self.verdict.headline} {_describe_rows(self)}>"

    def _repr_html_(self) -> str:
        """Returns the verdict as HTML, which Jupyter shows."""
        verdict = self.verdict
        findings = "".join(
            f'<li style="margin:.2em 0"><span style="color:{_COLOURS[finding.level]};display:inline-block;width:1.4em">'
            f"{finding.mark}</span>{html.escape(finding.text)}</li>"
            for finding in verdict.findings
        )
        return (
            f'<div style="border-left:.3em solid {_COLOURS[verdict.level]};padding:.2em 0 .2em 1em;max-width:60em">'
            f'<p style="margin:.2em 0"><strong><span style="color:{_COLOURS[verdict.level]}">{verdict.mark}</span> '
            f"{html.escape(verdict.headline)}</strong></p>"
            f'<p style="margin:.2em 0">{html.escape(_describe_rows(self))}</p>'
            f'<ul style="list-style:none;padding:0;margin:.2em 0">{findings}</ul></div>'
        )


def _describe_rows(summary: dict[str, Any]) -> str:
    rows = summary["rows"]
    matches = rows.get("matches", 0)
    scored = counted_of(rows.get("scored", 0), rows.get("total", 0), "row")
    return f"{scored} scored, {matches:,} match{'' if matches == 1 else 'es'}."

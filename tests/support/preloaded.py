"""Imports what a run of the program imports, for processes that are forked from one that has it already."""

import importlib

from batchverify.cli.logging import quieten_libraries

quieten_libraries()
for name in (
    "apache_beam.io.parquetio",
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    "keras",
    "matplotlib.backends.backend_svg",
    "tensorflow",
    "batchverify.cli.job",
    "batchverify.cli.main",
    "batchverify.model.load",
    "batchverify.pipeline.run",
    "batchverify.report.render",
):
    importlib.import_module(name)

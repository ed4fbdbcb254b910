"""Beam's options behave as Beam's own do, however often they are looked at."""

import pickle

from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions, WorkerOptions

from batchverify.pipeline.parsed_options import ParsedOptions

ARGUMENTS = ["--runner=FnApiRunner", "--num_workers=3", "--experiments=one", "--experiments=two", "--their_own=7"]


def test_values_are_those_of_beams_own_options():
    ours, beams = (kind(ARGUMENTS, save_main_session=False) for kind in (ParsedOptions, PipelineOptions))
    for options in (ours, beams):
        options.view_as(StandardOptions).streaming = True
        options.view_as(WorkerOptions).num_workers = 5
    assert (
        ours.view_as(WorkerOptions).num_workers == 5 and ours.view_as(StandardOptions).view_as(WorkerOptions).num_workers == 5
    )
    assert ours.get_all_options() == beams.get_all_options()
    assert ours.view_as(SetupOptions) is ours.view_as(SetupOptions)


def test_workers_are_sent_the_values_alone():
    options = ParsedOptions(ARGUMENTS)
    options.view_as(StandardOptions).streaming = True
    assert len(pickle.dumps(options)) < 1.5 * len(pickle.dumps(PipelineOptions(ARGUMENTS)))
    sent = pickle.loads(pickle.dumps(options))
    assert sent.view_as(StandardOptions).streaming is True and sent.view_as(WorkerOptions).num_workers == 3
    options.view_as(WorkerOptions).num_workers = 9
    assert sent.view_as(WorkerOptions).num_workers == 3

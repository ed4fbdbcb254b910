"""A job reports what it has encoded under the names that Beam's RunInference uses."""

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.metrics.metric import MetricsFilter

import batchverify


@pytest.fixture
def metrics(small_model, pictures):
    """The metrics of a job of ten images, one of which is missing, by name."""
    names = [str(pictures / f"p{number}.png") for number in range(9)] + [str(pictures / "none.png")]
    block = pa.table({"left": names, "right": names[::-1]})
    pipeline = beam.Pipeline(runner="FnApiRunner")
    verify = batchverify.VerifyPairs(batchverify.ScoringConfig(model=small_model, batch_size=4), expected_images=10)
    _ = pipeline | beam.Create([("block 0", block)]) | verify
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace("batchverify"))
    return {metric.key.metric.name: metric.committed for kind in found.values() for metric in kind}


def test_inferences_are_reported_as_by_run_inference(metrics):
    assert metrics["num_inferences"] == metrics["images_encoded"] == 9
    sizes = metrics["inference_request_batch_size"]
    assert (sizes.sum, sizes.max) == (9, 4) and sizes.count in (3, 4)
    pixels = metrics["inference_request_batch_byte_size"]
    assert pixels.sum in (9 * 16 * 16 * 3, 9 * 16 * 16 * 3 * 4)  # As bytes, or as float32.
    latency = metrics["inference_batch_latency_micro_secs"]
    assert latency.count == sizes.count and 0 < latency.min <= latency.max < 60e6


def test_loading_the_model_is_reported_once(metrics):
    load, size = metrics["load_model_latency_milli_secs"], metrics["model_byte_size"]
    assert load.count == size.count == 1
    assert 0 <= load.max < 600_000 and size.min >= 0  # Tests share loaded models.

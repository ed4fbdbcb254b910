"""Estimates the cost of a run that is too large to try: shuffled bytes, hours, requests and money.

`estimate` has the formulas, and `format_estimates` returns the text that `python -m benchmarks.scale --estimate` prints. Sizes
of elements follow the Arrow IPC format, and a test compares them with the coder. Rates and prices are parameters with a source
each.
"""

from __future__ import annotations

import dataclasses
import math

from batchverify.config import VerificationConfig
from batchverify.manifest.parquet import PARQUET_ROWS
from batchverify.pipeline.buckets import bucket_count
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE, worker_bytes
from batchverify.pipeline.plan import bounded_block_rows

# Bytes of an element without its rows: the schema, message headers and padding of an Arrow IPC stream.
REQUEST_BYTES, ANSWER_BYTES, BLOCK_BYTES = 300, 920, 900
# Bytes of a row: the offset of a text. A row of an answer also has a status, an error, a digest and an identity score.
OFFSET_BYTES, ANSWER_ROW_BYTES = 4, 25
PROVENANCE_BYTES = 9
DECODE_MS = 0.79
_FETCH_THREADS = 16
_PADDLE = "paddlepaddle.org.cn/inference/guides/benchmark/benchmark_gpu.html"
_NVIDIA = "github.com/NVIDIA/DeepLearningExamples, TensorFlow/Classification/ConvNets/resnet50v1.5"
_AZURE = "github.com/datareceipts/data-receipts, 109-gpu-pricing/hyperscalers.json, 2026-11-09"


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that encodes images.

    Attributes:
        name: Name of the device.
        images_per_s: Images of 224×224 pixels that it encodes per second, with MobileNetV2 (width 1.0) in float32.
        rate_from: Source of the rate.
        usd_per_hour: Price of an hour of a worker with one device.
        price_from: Source of the price.
    """

    name: str
    images_per_s: float
    rate_from: str
    usd_per_hour: float
    price_from: str


DEVICES = (
    Device("2 cores, AMD EPYC", 149, "measured, benchmarks/README.md, decoding included", 0.10, "assumed"),
    Device("T4", 1419, f"quoted, TensorRT 8, batches of 4: {_PADDLE}", 0.60, "assumed"),
    Device("L4", 2800, "assumed: twice a T4", 0.90, "assumed"),
    Device("A100", 6000, f"assumed: 4.2 T4, as ResNet-50 in {_NVIDIA} (1,794 to 424)", 3.67, f"quoted, Azure: {_AZURE}"),
    Device("H100", 12000, "assumed: twice an A100", 6.98, f"quoted, Azure: {_AZURE}"),
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on a distributed runner.

    Attributes:
        pairs: Number of rows of the manifest.
        images: Number of distinct images; each row names any of them with the same probability.
        embedding_bytes: Bytes of an embedding.
        uri_bytes: Bytes of an image's URI.
        other_bytes: Bytes of a row's other columns.
        file_bytes: Bytes of an image's file.
        unchanged: Share of images whose embeddings an earlier run has stored.
        latency_s: Seconds of a request to the store.
        usd_per_million_reads: Price of a million reads of objects or of their metadata.
        usd_per_gb_shuffled: Price of 10⁹ bytes that pass a shuffle once.
        requests_per_s: Number of requests per second that a store answers at first.
    """

    pairs: int = 10**9
    images: int = 2 * 10**8
    embedding_bytes: int = 404
    uri_bytes: int = 60
    other_bytes: int = 0
    file_bytes: int = 12_000
    unchanged: float = 0.95
    latency_s: float = 0.05
    usd_per_million_reads: float = 0.40
    usd_per_gb_shuffled: float = 0.011
    requests_per_s: float = 5000


_SOURCES = {
    "uri_bytes": "assumed",
    "other_bytes": "assumed: no other columns",
    "file_bytes": "assumed: photos of 250×250 pixels take 9,000 to 18,000",
    "unchanged": "assumed",
    "latency_s": "assumed",
    "usd_per_million_reads": "quoted: cloud.google.com/storage/pricing-examples, class B, read 2026-11-24",
    "usd_per_gb_shuffled": "assumed",
    "requests_per_s": "quoted: cloud.google.com/storage/docs/request-rate, read 2026-11-24; it may double every 20 minutes",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The size of a job. A TB is 10¹² bytes.

    Attributes:
        block_rows: Highest number of rows of a block.
        blocks: Number of blocks.
        buckets: Number of buckets.
        bucket_images: Number of images in a bucket.
        parts: Number of parts in which a bucket is encoded and answered.
        names: Number of distinct images in a block.
        answers_per_image: Number of times that an image is sent.
        requests: Number of elements in the first shuffle.
        answers: Number of elements in the second shuffle, without the blocks.
        images_per_answer: Number of rows of an answer.
        request_tb: TB in the first shuffle.
        block_tb: TB of blocks in the second shuffle.
        answer_tb: TB of answers in the second shuffle.
        worker_gib: GiB that a worker needs for one block, by `batchverify.pipeline.memory`.
        file_tb: TB of the images' files, each read once.
    """

    block_rows: int
    blocks: int
    buckets: int
    bucket_images: float
    parts: int
    names: float
    answers_per_image: float
    requests: float
    answers: float
    images_per_answer: float
    request_tb: float
    block_tb: float
    answer_tb: float
    worker_gib: float
    file_tb: float

    @property
    def shuffle_tb(self) -> float:
        """TB in both shuffles."""
        return self.request_tb + self.block_tb + self.answer_tb


def estimate(job: Job) -> Estimate:
    """Returns the size of a job with a Parquet manifest whose images are in random order, which is the worst case."""
    block_rows = min(job.pairs, PARQUET_ROWS, bounded_block_rows(VerificationConfig.block_rows, job.embedding_bytes))
    blocks, buckets = math.ceil(job.pairs / block_rows), bucket_count(job.images)
    # If n images are equally likely, m draws name n·(1 − (1 − 1/n)^m) distinct images.
    names = distinct(2 * block_rows, job.images)
    requests = blocks * distinct(names, buckets)
    parts = math.ceil(job.images / buckets * job.embedding_bytes / EMBEDDING_BYTES_AT_ONCE)
    answers = blocks * distinct(names, buckets * parts)
    sent = blocks * names
    row_bytes = 2 * (job.uri_bytes + OFFSET_BYTES) + PROVENANCE_BYTES + job.other_bytes
    answer_row = job.uri_bytes + OFFSET_BYTES + ANSWER_ROW_BYTES + job.embedding_bytes
    return Estimate(
        block_rows=block_rows,
        blocks=blocks,
        buckets=buckets,
        bucket_images=job.images / buckets,
        parts=parts,
        names=names,
        answers_per_image=sent / job.images,
        requests=requests,
        answers=answers,
        images_per_answer=sent / answers,
        request_tb=(requests * REQUEST_BYTES + sent * (job.uri_bytes + OFFSET_BYTES)) / 1e12,
        block_tb=(blocks * BLOCK_BYTES + job.pairs * row_bytes) / 1e12,
        answer_tb=(answers * ANSWER_BYTES + sent * answer_row) / 1e12,
        worker_gib=worker_bytes(block_rows * row_bytes, round(names), job.embedding_bytes) / 2**30,
        file_tb=job.images * job.file_bytes / 1e12,
    )


def distinct(draws: float, count: int) -> float:
    """Returns the expected number of distinct things in `draws` random draws from `count` things."""
    return count * -math.expm1(draws * math.log1p(-1 / count)) if count > 1 else 1.0


def format_estimates(jobs: list[Job], devices: tuple[Device, ...] = DEVICES) -> str:
    """Returns estimates as Markdown tables: shuffles of all jobs, and hours, requests and money of the first job.

    Args:
        jobs: Jobs that differ in `embedding_bytes`.
        devices: Devices that encode.
    """
    estimates = [estimate(job) for job in jobs]
    job = jobs[0]
    return "\n\n".join((_shuffles(jobs, estimates), _device_hours(job, devices), _requests(job), _parameters(job, devices)))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def _shuffles(jobs: list[Job], estimates: list[Estimate]) -> str:
    job = jobs[0]
    lines: list[tuple[str, list[str]]] = [
        ("rows a block, at most", [f"{each.block_rows:,}" for each in estimates]),
        ("blocks", [f"{each.blocks:,}" for each in estimates]),
        ("buckets, and images in each", [f"{each.buckets:,}; {each.bucket_images:,.0f}" for each in estimates]),
        ("parts that a bucket is answered in", [f"{each.parts:,}" for each in estimates]),
        ("distinct images a block", [f"{each.names:,.0f}" for each in estimates]),
        ("times that an image is sent", [f"{each.answers_per_image:.2f}" for each in estimates]),
        ("requests, million elements", [f"{each.requests / 1e6:,.1f}" for each in estimates]),
        ("answers, million elements", [f"{each.answers / 1e6:,.1f}" for each in estimates]),
        ("images an answer", [f"{each.images_per_answer:,.1f}" for each in estimates]),
        ("shuffle of requests, TB", [f"{each.request_tb:.2f}" for each in estimates]),
        ("shuffle of blocks, TB", [f"{each.block_tb:.2f}" for each in estimates]),
        ("shuffle of answers, TB", [f"{each.answer_tb:.2f}" for each in estimates]),
        ("all of it, TB", [f"**{each.shuffle_tb:.2f}**" for each in estimates]),
        ("its price, USD", [f"{each.shuffle_tb * 1000 * job.usd_per_gb_shuffled:,.0f}" for each in estimates]),
        ("memory a block at work, GiB", [f"{each.worker_gib:.1f}" for each in estimates]),
    ]  # fmt: skip
    header = [f"{job.pairs:,} pairs over {job.images:,} images", *(f"{each.embedding_bytes:,} bytes an image" for each in jobs)]
    return table(header, [[name, *values] for name, values in lines])


def _device_hours(job: Job, devices: tuple[Device, ...]) -> str:
    rows = []
    for device in devices:
        hours = job.images / device.images_per_s / 3600
        feeds = device is not devices[0]
        rows.append(
            [
                device.name,
                f"{device.images_per_s:,.0f}",
                f"{hours:,.1f}",
                f"{hours * (1 - job.unchanged):,.1f}",
                f"{device.images_per_s * DECODE_MS / 1000:.1f}" if feeds else "–",
                f"{max(1, device.images_per_s * job.latency_s):,.0f}",
                f"{hours * device.usd_per_hour:,.0f}",
            ]
        )
    header = ["device", "images/s", "hours, all", f"hours, {1 - job.unchanged:.0%} new", "cores that decode for it",
              "requests at once that keep it busy", "USD, all"]  # fmt: skip
    return table(header, rows)


def _requests(job: Job) -> str:
    store_tb = job.images * (job.embedding_bytes + job.uri_bytes + OFFSET_BYTES + ANSWER_ROW_BYTES) / 1e12
    nights = (
        ("all", 0, job.images),
        (f"next nights, {job.unchanged:.0%} unchanged", job.images, job.images * (1 - job.unchanged)),
    )
    rows = []
    for name, looked_up, read in nights:
        total = looked_up + read
        rows.append(
            [
                name,
                f"{looked_up / 1e6:,.0f}",
                f"{read / 1e6:,.0f}",
                f"{total / 1e6 * job.usd_per_million_reads:,.0f}",
                f"{total / job.requests_per_s / 3600:,.1f}",
                f"{total * job.latency_s / _FETCH_THREADS / 3600:,.0f}",
                f"{read * job.file_bytes / 1e12:.2f}",
                f"{store_tb if looked_up else 0:.2f}",
            ]
        )
    header = ["night", "version look-ups, million", "GETs, million", "USD", f"hours at {job.requests_per_s:,.0f}/s",
              f"worker-hours with {_FETCH_THREADS} threads", "files read, TB", "embeddings shuffled besides, TB"]  # fmt: skip
    return table(header, rows)


def _parameters(job: Job, devices: tuple[Device, ...]) -> str:
    rows = [[name, f"{getattr(job, name):g}", source] for name, source in _SOURCES.items()]
    for device in devices:
        rows.append([f"{device.name}, images/s", f"{device.images_per_s:,.0f}", device.rate_from])
        rows.append([f"{device.name}, USD a worker-hour", f"{device.usd_per_hour:.2f}", device.price_from])
    return table(["parameter", "value", "from"], rows)

"""What a run costs that is too large to try: bytes shuffled, hours, requests and money, by arithmetic.

`estimate` is the formulas, and `words` what `python -m benchmarks.scale --estimate` prints. Bytes of elements follow
the Arrow IPC format, and a test holds them against the coder; rates and prices are parameters, each with its source.
"""

from __future__ import annotations

import dataclasses
import math

from batchverify.config import VerificationConfig
from batchverify.manifest.parquet import PARQUET_ROWS
from batchverify.pipeline.buckets import bucket_count
from batchverify.pipeline.memory import EMBEDDING_BYTES_AT_ONCE, worker_bytes
from batchverify.pipeline.plan import bounded_block_rows

# Of an element, beside its rows: schema, message headers and padding of an Arrow IPC stream.
REQUEST_BYTES, ANSWER_BYTES, BLOCK_BYTES = 300, 920, 900
# Of a row: the offset of a text; and of an answer's row also status, error, digest and identity score.
OFFSET_BYTES, ANSWER_ROW_BYTES = 4, 25
PROVENANCE_BYTES = 9
DECODE_MS = 0.79
_FETCH_THREADS = 16
_PADDLE = "paddlepaddle.org.cn/inference/guides/benchmark/benchmark_gpu.html"
_NVIDIA = "github.com/NVIDIA/DeepLearningExamples, TensorFlow/Classification/ConvNets/resnet50v1.5"
_AZURE = "github.com/datareceipts/data-receipts, 109-gpu-pricing/hyperscalers.json, 2026-11-09"


@dataclasses.dataclass(frozen=True)
class Device:
    """What encodes images.

    Attributes:
        name: of it.
        images_per_s: that it encodes, of 224×224 pixels, with MobileNetV2 (width 1.0) in float32.
        rate_from: where that figure comes from.
        usd_per_hour: of a worker with one.
        price_from: where that figure comes from.
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
        pairs: rows of the manifest.
        images: distinct ones, each as likely as any other in each row.
        embedding_bytes: of what is kept of one image.
        uri_bytes: of an image's URI.
        other_bytes: of a row's other columns.
        file_bytes: of an image's file.
        unchanged: share of images whose embeddings the night before has left.
        latency_s: of a request to the store.
        usd_per_million_reads: of objects or their metadata.
        usd_per_gb_shuffled: 10⁹ bytes, in and out of a shuffle once.
        requests_per_s: that a store answers at first.
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
    """What a job comes to.

    Attributes:
        block_rows: at most.
        blocks: of rows.
        buckets: of images.
        bucket_images: images in one of them.
        parts: that one bucket is encoded and answered in.
        names: distinct images in one block.
        answers_per_image: how often an image is sent.
        requests: elements of the first shuffle.
        answers: elements of the second one, beside the blocks.
        images_per_answer: rows of one.
        request_tb: 10¹² bytes of the first shuffle.
        block_tb: of the rows in the second one.
        answer_tb: of the images in it.
        worker_gib: that one block at work needs on a worker, by `batchverify.memory`.
        file_tb: of the images' files, read once.
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
        return self.request_tb + self.block_tb + self.answer_tb


def estimate(job: Job) -> Estimate:
    """Returns what a job comes to; of a Parquet manifest with images drawn at random, the worst order that there is."""
    block_rows = min(job.pairs, PARQUET_ROWS, bounded_block_rows(VerificationConfig.block_rows, job.embedding_bytes))
    blocks, buckets = math.ceil(job.pairs / block_rows), bucket_count(job.images)
    # Of n equally likely images, m draws name n·(1 − (1 − 1/n)^m) different ones.
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


def distinct(draws: float, of: int) -> float:
    """Returns how many different things so many random draws of `of` things are expected to show."""
    return of * -math.expm1(draws * math.log1p(-1 / of)) if of > 1 else 1.0


def words(jobs: list[Job], devices: tuple[Device, ...] = DEVICES) -> str:
    """Returns estimates in Markdown: of jobs that differ in what they keep of an image; hours and money of the first."""
    found = [estimate(job) for job in jobs]
    job = jobs[0]
    return "\n\n".join((_shuffles(jobs, found), _device_hours(job, devices), _requests(job), _parameters(job, devices)))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def _shuffles(jobs: list[Job], found: list[Estimate]) -> str:
    job = jobs[0]
    lines: list[tuple[str, list[str]]] = [
        ("rows a block, at most", [f"{each.block_rows:,}" for each in found]),
        ("blocks", [f"{each.blocks:,}" for each in found]),
        ("buckets, and images in each", [f"{each.buckets:,}; {each.bucket_images:,.0f}" for each in found]),
        ("parts that a bucket is answered in", [f"{each.parts:,}" for each in found]),
        ("distinct images a block", [f"{each.names:,.0f}" for each in found]),
        ("times that an image is sent", [f"{each.answers_per_image:.2f}" for each in found]),
        ("requests, million elements", [f"{each.requests / 1e6:,.1f}" for each in found]),
        ("answers, million elements", [f"{each.answers / 1e6:,.1f}" for each in found]),
        ("images an answer", [f"{each.images_per_answer:,.1f}" for each in found]),
        ("shuffle of requests, TB", [f"{each.request_tb:.2f}" for each in found]),
        ("shuffle of blocks, TB", [f"{each.block_tb:.2f}" for each in found]),
        ("shuffle of answers, TB", [f"{each.answer_tb:.2f}" for each in found]),
        ("all of it, TB", [f"**{each.shuffle_tb:.2f}**" for each in found]),
        ("its price, USD", [f"{each.shuffle_tb * 1000 * job.usd_per_gb_shuffled:,.0f}" for each in found]),
        ("memory a block at work, GiB", [f"{each.worker_gib:.1f}" for each in found]),
    ]  # fmt: skip
    header = [f"{job.pairs:,} pairs over {job.images:,} images", *(f"{one.embedding_bytes:,} bytes an image" for one in jobs)]
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

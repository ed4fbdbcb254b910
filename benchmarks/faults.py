"""The fault campaign: it kills and stops real runs, gives them damaged input, and accounts for every row.

    python -m benchmarks.faults --tries 20

Each case prints a line of a table: tries, rows in the manifests, rows in the outputs, rows that failed with a reason, and rows
that are lost, doubled or wrong; for runs that are killed and gone on with, also the images, and how many were encoded in all.
The exit code is 1 if any row is lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import glob
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from batchverify.config import VerificationConfig
from batchverify.manifest.plan import plan_manifest
from batchverify.manifest.read import read_blocks
from benchmarks import resume
from benchmarks.hostile_images import MOST_BYTES, MOST_PIXELS, write_corpus
from benchmarks.hostile_manifests import write_manifests

DEMO = Path(__file__).parent.parent / "manifests"
WORKERS = [
    "--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=beam:env:harness_subprocess_python:v1",
    f"--environment_config={sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
]  # fmt: skip
FINISHED, FAILED, REFUSED = 0, 1, 2


@dataclasses.dataclass
class Outcome:
    """One line of the table.

    Attributes:
        case: Name of the case.
        tries: Number of tries.
        rows_in: Number of rows in the manifests.
        rows_out: Number of rows in the outputs.
        typed: Number of rows without a score whose status or error names the reason.
        lost: Number of rows that are missing in the output.
        doubled: Number of rows that were written more than once.
        wrong: Number of runs whose rows differ from an undisturbed run, of wrong exit codes and of unexpected files.
        images: Number of images of runs that were killed and gone on with.
        encoded: Number of images that all these runs have encoded together.
    """

    case: str
    tries: int = 0
    rows_in: int = 0
    rows_out: int = 0
    typed: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    images: int = 0
    encoded: int = 0

    def account(
        self,
        expected_rows: int,
        output: Path,
        undisturbed: pd.DataFrame | None = None,
        equal: Callable[[pd.DataFrame, pd.DataFrame], bool] = pd.DataFrame.equals,
    ) -> None:
        """Adds a finished run of a manifest with `expected_rows` rows, which are compared with those of an undisturbed run."""
        rows = read(output)
        keys = rows[["manifest_file", "manifest_row"]]
        self.rows_in += expected_rows
        self.rows_out += len(rows)
        self.lost += expected_rows - len(keys.drop_duplicates())
        self.doubled += int(keys.duplicated().sum())
        failed = rows["score"].isna()
        self.typed += int((failed & rows["error"].notna()).sum())
        self.wrong += int((failed & rows["error"].isna()).sum())
        self.wrong += len(names(output) ^ {"_SUCCESS", "_report.html", "_summary.json", *scores(output)})
        if undisturbed is not None:
            self.wrong += 0 if equal(rows, undisturbed) else 1


class Campaign:
    """The cases, each a generator of tries for one `Outcome`.

    Args:
        folder: Folder for all files.
        tries: Number of tries of the random cases.
        images: Number of images of the runs that are killed and gone on with.
    """

    def __init__(self, folder: Path, tries: int, images: int):
        self.folder, self.tries, self.images = folder, tries, images
        self.random = random.Random(0)
        self.manifest = folder / "pairs.csv"
        self.rows = write_pairs(self.manifest)
        started = time.monotonic()
        self.run(folder / "undisturbed")
        self.seconds = time.monotonic() - started
        self.undisturbed = read(folder / "undisturbed")

    def kill(self, outcome: Outcome) -> None:
        """Kills a run with SIGKILL at a random moment, and runs the same command again."""
        output = self.folder / "killed"
        for number in self._tries(outcome, self.tries):
            process = self.start(output, "--overwrite")
            time.sleep(self.random.uniform(0, self.seconds))
            process.kill()
            process.wait()
            # From the second try on there is a finished run, which must be there still, or lie whole beside its replacement.
            outcome.wrong += number > 0 and not names(output) & {"_SUCCESS", "_REPLACEMENT"}
            if "_SUCCESS" in names(output):
                outcome.account(self.rows, output, self.undisturbed)
            outcome.wrong += self.run(output, "--overwrite") != FINISHED
            outcome.account(self.rows, output, self.undisturbed)

    def stop(self, outcome: Outcome) -> None:
        """Sends SIGTERM or SIGINT at a random moment: the output is empty or complete."""
        output = self.folder / "stopped"
        for number in self._tries(outcome, self.tries):
            sent_signal = (signal.SIGTERM, signal.SIGINT)[number % 2]
            process = self.start(output)
            time.sleep(self.random.uniform(1, self.seconds))
            process.send_signal(sent_signal)
            code = process.wait(120)
            if "_SUCCESS" in names(output):
                outcome.account(self.rows, output, self.undisturbed)
                for path in output.iterdir():
                    path.unlink()
            else:
                outcome.wrong += code != 128 + sent_signal
                outcome.wrong += len(names(output))

    def kill_worker(self, outcome: Outcome) -> None:
        """Kills a worker process with SIGKILL: the run fails with its exit code, and the next run is complete."""
        output = self.folder / "worker"
        for _ in self._tries(outcome, max(1, self.tries // 4)):
            process = self.start(output, "--overwrite", *WORKERS)
            while not (workers := list(_workers_of(process.pid))) and process.poll() is None:
                time.sleep(0.1)
            time.sleep(self.random.uniform(0, 6))
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            try:
                code = process.wait(120)
            except subprocess.TimeoutExpired:  # The run has neither recovered nor failed.
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            if code == FINISHED:  # The worker had finished before it was killed.
                outcome.account(self.rows, output, self.undisturbed)
            else:
                outcome.wrong += code != FAILED
                if "_SUCCESS" in names(output):  # The finished run of the try before stays until it is replaced.
                    outcome.account(self.rows, output, self.undisturbed)
                elif code == FAILED:  # The next run removes the files of a killed run.
                    outcome.wrong += len(names(output))
            outcome.wrong += self.run(output, "--overwrite") != FINISHED
            outcome.account(self.rows, output, self.undisturbed)

    def repeat_bundles(self, outcome: Outcome) -> None:
        """Runs every bundle twice, as if its worker had died after it had written its output."""
        output = self.folder / "repeated"
        for _ in self._tries(outcome, 1):
            outcome.wrong += self.run(output, "--direct_runner_bundle_repeat=1") != FINISHED
            outcome.account(self.rows, output, self.undisturbed)

    def two_at_once(self, outcome: Outcome) -> None:
        """Starts two runs with one output directory at random moments: one of them is refused."""
        output = self.folder / "both"
        for _ in self._tries(outcome, max(1, self.tries // 4)):
            first = self.start(output, "--overwrite")
            time.sleep(self.random.uniform(0, 2))
            codes = {self.run(output, "--overwrite"), first.wait(300)}
            # Both finish if the second began after the first had ended.
            outcome.wrong += codes not in ({FINISHED}, {FINISHED, REFUSED})
            outcome.account(self.rows, output, self.undisturbed)

    def hostile_images(self, outcome: Outcome) -> None:
        """Compares every image of the hostile corpus with a good one."""
        corpus = write_corpus(self.folder / "corpus")
        good = str(DEMO / "images" / "a0_c0_w0.png")
        # Arrow's strings are UTF-8, so a manifest can't contain other names. Its reader treats "" and file:// specially.
        uris = [uri for uri in corpus if uri and _is_utf8(uri) and not uri.startswith("file:")]
        manifest = self.folder / "hostile.parquet"
        pq.write_table(pa.table({"left": [good] * len(uris), "right": uris}), manifest)
        output = self.folder / "hostile"
        for _ in self._tries(outcome, 1):
            limits = (f"--max-image-pixels={MOST_PIXELS}", f"--max-image-bytes={MOST_BYTES}")
            outcome.wrong += self.run(output, *limits, manifest=manifest) != FINISHED
            outcome.account(len(uris), output)
            rows = read(output).sort_values("manifest_row")
            expected = [corpus[uri] for uri in rows["right"]]
            outcome.wrong += sum(s not in allowed for s, allowed in zip(rows["right_status"], expected, strict=True))

    def hostile_manifests(self, outcome: Outcome) -> None:
        """Runs manifests as other programs write them, and broken ones: each is done whole or refused, as is right for it."""
        for manifest in write_manifests(self.folder / "manifests", str(DEMO / "images" / "a0_c0_w0.png")):
            outcome.tries += 1
            output = self.folder / "manifest" / manifest.path.name
            outcome.wrong += self.run(output, manifest=manifest.path) != manifest.code
            if manifest.code == REFUSED:
                outcome.wrong += len(names(output))
            else:
                outcome.account(manifest.rows, output)

    def limited_files(self, outcome: Outcome) -> None:
        """Lets no file grow beyond a random size, as a full disk does, while a finished run is there: it stays as it was."""
        output = self.folder / "limited"
        outcome.wrong += self.run(output) != FINISHED
        for _ in self._tries(outcome, max(1, self.tries // 4)):
            limit = int(2 ** self.random.uniform(5, 21))
            code = self.start(output, "--overwrite", before=functools.partial(_limit_files, limit)).wait(900)
            outcome.wrong += code not in (FINISHED, FAILED, REFUSED)
            outcome.account(self.rows, output, self.undisturbed)

    def unread_words(self, outcome: Outcome) -> None:
        """Closes what the program prints to, before or while it prints: the work is done and the exit code says so."""
        output = self.folder / "unread"
        for number in self._tries(outcome, max(2, self.tries // 4)):
            process = self.start(output, "--overwrite", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            if number % 2:
                time.sleep(self.random.uniform(0, self.seconds))
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()
            outcome.wrong += process.wait(900) != FINISHED
            outcome.account(self.rows, output, self.undisturbed)

    def one_embedding_store(self, outcome: Outcome) -> None:
        """Starts two runs with one store of embeddings at random moments: each that ends with 0 has published its own."""
        store = self.folder / "embeddings"
        for number in self._tries(outcome, max(1, self.tries // 4)):
            outputs = [self.folder / f"stored-{number}-{side}" for side in "ab"]
            first = self.start(outputs[0], "--embeddings", str(store))
            time.sleep(self.random.uniform(0, 2))
            codes = [self.run(outputs[1], "--embeddings", str(store)), first.wait(900)]
            outcome.wrong += not set(codes) <= {FINISHED, REFUSED} or FINISHED not in codes
            for output, code in zip(reversed(outputs), codes, strict=True):
                if code == FINISHED:
                    outcome.account(self.rows, output, self.undisturbed)
            again = self.folder / f"stored-{number}-again"
            outcome.wrong += self.run(again, "--embeddings", str(store)) != FINISHED
            summary = json.loads((again / "_summary.json").read_text(encoding="utf-8"))
            outcome.wrong += summary["embeddings"]["encoded"] != 0

    def resume(self, outcome: Outcome) -> None:
        """Kills a run with a store of embeddings at 25, 50 and 75% of its images, each time starts it again: see `resume`."""
        self._resume(outcome, str(self.folder / "resumed-embeddings"))

    def resume_on_s3(self, outcome: Outcome) -> None:
        """Does the same with a store of embeddings on s3://."""
        with resume.s3_bucket() as (bucket, arguments, keys):
            self._resume(outcome, f"{bucket}/embeddings", *arguments, environment=keys)

    def resume_in_workers(self, outcome: Outcome) -> None:
        """Does the same on a portable runner, and kills the worker processes, too."""
        self._resume(outcome, str(self.folder / "workers-embeddings"), *WORKERS)

    def _resume(self, outcome: Outcome, store: str, *more: str, environment: Mapping[str, str] | None = None) -> None:
        folder = self.folder / outcome.case
        manifest = resume.write_images(DEMO, folder, self.images)
        output, rows = folder / "resumed", self.images // 2
        outcome.wrong += self.run(folder / "undisturbed", manifest=manifest) != FINISHED
        for number in self._tries(outcome, 1):
            arguments = ["--overwrite", "--embeddings", f"{store}-{number}", *more]

            def start(temporary: Mapping[str, str], arguments: list[str] = arguments) -> subprocess.Popen[bytes]:
                variables = {**(environment or {}), **temporary}
                return self.start(output, *arguments, manifest=manifest, environment=variables)

            encoded = resume.run_with_kills(start, self.images, folder / str(number))
            outcome.images, outcome.encoded = outcome.images + self.images, outcome.encoded + encoded
            outcome.wrong += encoded > resume.MOST_ENCODINGS * self.images
            outcome.account(rows, output, read(folder / "undisturbed"), resume.are_equal)

    def bad_rows(self, outcome: Outcome) -> None:
        """Mixes in rows with one field too few or too many: a tenth of all rows."""
        lines = self.manifest.read_text().splitlines()
        bad = [",".join([line, "more"]) if n % 2 else line.split(",")[0] for n, line in enumerate(lines[1:251])]
        manifest = self.folder / "bad.csv"
        mixed = lines[1:] + bad
        self.random.shuffle(mixed)
        manifest.write_text("\n".join([lines[0], *mixed]))
        output = self.folder / "bad"
        for _ in self._tries(outcome, 1):
            outcome.wrong += self.run(output, manifest=manifest) != REFUSED
            outcome.wrong += self.run(output, "--bad-rows", "keep", manifest=manifest) != FINISHED
            outcome.account(len(mixed), output)
            outcome.wrong += abs(int((read(output)["left_status"] == "bad_row").sum()) - len(bad))

    def ten_million_rows(self, outcome: Outcome) -> None:
        """Plans and reads a manifest of ten million rows: memory grows by less than 1 GiB."""
        manifest = self.folder / "long.csv"
        rows = 10_000_000
        left = pa.array([f"images/{number:06d}.jpg" for number in range(100_000)])
        table = pa.table({"left": left, "right": left})
        with pa.csv.CSVWriter(manifest, table.schema) as writer:
            for _ in range(rows // len(table)):
                writer.write_table(table)
        config = VerificationConfig(manifests=(str(manifest),), output="-")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in self._tries(outcome, 1):
            plan = plan_manifest(config)
            last = -1
            for block in (block for shard in plan.shards for block in read_blocks(shard, plan.schema, config)):
                outcome.doubled += int(block["manifest_row"][0].as_py() <= last)
                last = block["manifest_row"][-1].as_py()
                outcome.rows_out += block.num_rows
            outcome.rows_in += rows
            outcome.lost += rows - outcome.rows_out
            outcome.wrong += resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 2**20

    def start(
        self,
        output: Path,
        *more: str,
        manifest: Path | None = None,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
        before: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts the command in a process group of its own; `before` is called in its process."""
        command = [sys.executable, "-m", "batchverify", "--manifest", str(manifest or self.manifest), "--output", str(output)]
        command += ["--block-rows", "500", *more]
        variables = {**os.environ, **(environment or {})}
        return subprocess.Popen(command, start_new_session=True, stdout=stdout, stderr=stderr, preexec_fn=before, env=variables)

    def run(self, output: Path, *more: str, manifest: Path | None = None) -> int:
        """Runs the command to its end and returns its exit code."""
        return self.start(output, *more, manifest=manifest).wait(900)

    def _tries(self, outcome: Outcome, count: int) -> Iterator[int]:
        for number in range(count):
            outcome.tries += 1
            yield number


def write_pairs(manifest: Path) -> int:
    """Writes the demo's pairs twenty times, with absolute paths, and returns the number of rows."""
    demo = pd.read_csv(DEMO / "demo.csv", dtype=str, keep_default_na=False)
    for side in ("left", "right"):
        demo[side] = [f"{DEMO}/{name}" if name else "" for name in demo[side]]
    pairs = pd.concat([demo] * 20)
    pairs.to_csv(manifest, index=False)
    return len(pairs)


def names(output: Path) -> set[str]:
    """Returns the names in a run directory; none if there is no such directory."""
    return {path.name for path in output.iterdir()} if output.exists() else set()


def scores(output: Path) -> set[str]:
    """Returns the names of the Parquet files in a run directory."""
    return {os.path.basename(path) for path in glob.glob(f"{output}/scores-*.parquet")}


def read(output: Path) -> pd.DataFrame:
    """Returns the rows of a run in the manifest's order."""
    tables = [pq.read_table(output / name) for name in sorted(scores(output))]
    frame = pa.concat_tables(tables).to_pandas().astype({"left_status": str, "right_status": str, "identity_check": str})
    return frame.sort_values(["manifest_file", "manifest_row"], ignore_index=True)


def _workers_of(launcher: int) -> Iterator[int]:
    """Yields the process ids of Beam's worker processes that `launcher` started."""
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                arguments[1:3] == [b"-m", b"apache_beam.runners.worker.sdk_worker_main"]
                and os.getsid(int(entry.name)) == launcher
            ):
                yield int(entry.name)
        except (OSError, ValueError):
            continue


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def main() -> int:
    """Runs the cases and prints the table."""
    parser = argparse.ArgumentParser(
        description="Kills and stops real runs, gives them damaged input, and accounts for every row."
    )
    parser.add_argument("--tries", type=int, default=20, help="tries of the random cases (default: 20)")
    parser.add_argument(
        "--images", type=int, default=60_000, help="images of the runs that are killed and gone on with (default: 60,000)"
    )
    parser.add_argument("--only", nargs="*", help="cases to run (default: all)")
    options = parser.parse_args()
    columns = [field.name for field in dataclasses.fields(Outcome)][1:]
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.tries, options.images)
        cases: list[Callable[[Outcome], None]] = [
            campaign.hostile_images, campaign.hostile_manifests, campaign.bad_rows, campaign.ten_million_rows,
            campaign.repeat_bundles, campaign.two_at_once, campaign.one_embedding_store, campaign.kill, campaign.stop,
            campaign.kill_worker, campaign.limited_files, campaign.unread_words, campaign.resume, campaign.resume_on_s3,
            campaign.resume_in_workers,
        ]  # fmt: skip
        print(f"{'':22}" + "".join(f"{name:>12}" for name in columns), flush=True)
        outcomes = []
        for case in cases:
            if options.only and case.__name__ not in options.only:
                continue
            outcome = Outcome(case.__name__.replace("_", " "))
            case(outcome)
            outcomes.append(outcome)
            print(f"{outcome.case:22}" + "".join(f"{getattr(outcome, name):>12,}" for name in columns), flush=True)
    return int(any(outcome.lost or outcome.doubled or outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

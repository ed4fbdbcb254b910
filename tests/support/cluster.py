"""A small cluster on one machine: Beam's job service, which hands its workers to several worker pools in turn.

    python cluster.py PORT_FILE POOL [POOL …]

Beam's own `local_job_service_main` starts one worker for a pipeline, in one pool. This is the same service with as many
workers as there are pools. It writes its own port and that of the pool of pools into PORT_FILE.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner


class PoolOfPools(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Hands each request for a worker on to the next of `pools`."""

    def __init__(self, pools: list[str]):
        self._stubs = [beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(grpc.insecure_channel(pool)) for pool in pools]
        self._turns = itertools.cycle(self._stubs)

    def StartWorker(self, request, context):  # noqa: N802
        return next(self._turns).StartWorker(request, wait_for_ready=True, timeout=30)


def main(port_file: str, *pools: str) -> None:
    class Runner(fn_runner.FnApiRunner):
        def __init__(self, **settings):
            super().__init__(**settings)
            self._num_workers = len(pools)

    fn_runner.FnApiRunner = Runner  # type: ignore[misc, assignment]  # The job service makes its runners of this class.
    front = grpc.server(ThreadPoolExecutor())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(PoolOfPools(list(pools)), front)
    front_port = front.add_insecure_port("localhost:0")
    front.start()
    port = local_job_service.LocalJobServicer(None).start_grpc_server(0)
    with open(f"{port_file}.part", "w") as file:
        file.write(f"{port} {front_port}")
    os.rename(f"{port_file}.part", port_file)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`python -m batchverify`. Kept empty: what stands in `__main__` is pickled to every worker."""

from batchverify.cli.job import run_as_process

if __name__ == "__main__":
    run_as_process()

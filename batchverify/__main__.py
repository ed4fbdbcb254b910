"""`python -m batchverify`. It stays empty: everything in `__main__` is pickled and sent to every worker."""

from batchverify.cli.main import run_as_process

if __name__ == "__main__":
    run_as_process()

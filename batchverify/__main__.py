"""`python -m batchverify`. Kept empty: what stands in `__main__` is pickled to every worker."""

import sys

from batchverify.cli import main

if __name__ == "__main__":
    sys.exit(main())

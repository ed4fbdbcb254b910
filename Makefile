.PHONY: check fix test-fast test docs

# Looks for mistakes (linter, formatter, types, order of imports), and changes nothing.
check:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# Repairs what the linter and the formatter can repair.
fix:
	ruff check --fix .
	ruff format .

# Runs the tests that start no servers, workers, processes of the program, benchmarks or whole runs.
test-fast:
	pytest -m 'not (servers or workers or benchmarks or processes or slow)' --ignore tests/servers --ignore tests/benchmarks

# Runs all tests, and prints which lines of the package they do not reach.
test:
	pytest --cov --cov-report term-missing:skip-covered

# Builds the documentation into site/.
docs:
	mkdocs build --strict

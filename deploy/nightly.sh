#!/bin/sh
# One night's job: it scores the pairs of one day into a directory of that day, and compares them with the day before.
#
#   PAIRS=/srv/verification/pairs SCORES=/srv/verification/scores MODEL=/srv/verification/model.keras nightly.sh [options]
#
# DAY is the day to score (default: today in UTC), PYTHON the interpreter (default: python3). Options are passed on to
# batchverify: --overwrite scores a day again. The exit code is batchverify's own, see README.md.
set -eu
: "${PAIRS:?is not set: the folder with dt=YYYY-MM-DD/*.parquet}" "${SCORES:?is not set}" "${MODEL:?is not set}"

DAY=${DAY:-$(date -u +%F)}
BEFORE=$(date -u -d "$DAY - 1 day" +%F)

exec "${PYTHON:-python3}" -m batchverify \
    --manifest "$PAIRS/dt=$DAY/*.parquet" --output "$SCORES/dt=$DAY" --model "$MODEL" \
    --baseline "$SCORES/dt=$BEFORE" --baseline-optional --max-drift 0.25 \
    --max-failed-rows 1% --max-identity-faults 0 "$@"

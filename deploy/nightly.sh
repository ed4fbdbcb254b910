#!/bin/sh
# One night's job: it scores the pairs of one day into a directory of that day, compares them with the day before, and makes
# the page of all nights again, $SCORES/_nights.html.
#
#   PAIRS=/srv/verification/pairs SCORES=/srv/verification/scores MODEL=/srv/verification/model.keras nightly.sh [options]
#
# DAY is the day to score (default: today in UTC), PYTHON the interpreter (default: python3). Options are passed on to
# batchverify: --overwrite scores a day again. NIGHTS_OPTIONS are options of `batchverify nights`, such as
# "--baseline /srv/verification/good/_summary.json". The exit code is that of the job, see README.md.
set -eu
: "${PAIRS:?is not set: the folder with dt=YYYY-MM-DD/*.parquet}" "${SCORES:?is not set}" "${MODEL:?is not set}"

DAY=${DAY:-$(date -u +%F)}
BEFORE=$(date -u -d "$DAY - 1 day" +%F)

"${PYTHON:-python3}" -m batchverify \
    --manifest "$PAIRS/dt=$DAY/*.parquet" --output "$SCORES/dt=$DAY" --model "$MODEL" \
    --baseline "$SCORES/dt=$BEFORE" --baseline-optional --max-drift 0.25 \
    --max-failed-rows 1% --max-identity-faults 0 "$@" &
job=$!
# The job ends by itself when a signal stops it, and deletes its unfinished output first.
for signal in HUP INT TERM; do trap "kill -s $signal $job 2> /dev/null || :" "$signal"; done
code=0
wait "$job" || code=$?
while kill -0 "$job" 2> /dev/null; do  # A signal has ended the wait.
    code=0
    wait "$job" || code=$?
done

# Nothing is written where the job only checked (--check), or was stopped. What becomes of the page changes no exit code.
for option in "$@"; do [ "$option" != --check ] || exit "$code"; done
[ "$code" -lt 126 ] || exit "$code"
# shellcheck disable=SC2086  # NIGHTS_OPTIONS are several words.
"${PYTHON:-python3}" -m batchverify nights "$SCORES" --until "$DAY" ${NIGHTS_OPTIONS:-} >&2 ||
    echo "nightly.sh: the page of all nights was not made again." >&2
exit "$code"

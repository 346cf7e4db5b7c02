#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors
#
# Runs one configuration of one Promela model with Spin and says in one line what came out.
#
#   run_model.sh MODEL NAME DEFINES holds|fails WORKDIR [ERROR_TEXT]
#
#   MODEL       the .pml file
#   NAME        name of this configuration (its files go to WORKDIR/NAME)
#   DEFINES     -D switches of the model, one word ("" for the protocol as it is)
#   holds       true only if the search ended without an error AND was complete
#   fails       true only if the search found an error (a violated assertion or a deadlock) whose text
#               contains ERROR_TEXT: a mutant must die of what it takes away, not of something else
#
# A model names the flags that it needs in its header: "Pan-compile: -D..." and "Pan-run: -...".
# Exit code: 0 the expectation came true, 1 it did not, 2 usage, 77 Spin or a C compiler is missing.
# Environment: KVTRIE_MODEL_MB (memory of one search, 3800), KVTRIE_MODEL_SECONDS (its CPU time, 120).

set -u

if [ $# -lt 5 ] || [ $# -gt 6 ]; then
  sed -n '5,19s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
model=$1 name=$2 defines=$3 expect=$4 work=$5/$2 error_text=${6:-}
case $expect in
  holds | fails) ;;
  *) echo "$name: the expectation is holds or fails, not '$expect'" >&2; exit 2 ;;
esac
[ -r "$model" ] || { echo "$name: cannot read $model" >&2; exit 2; }

for tool in spin "${CC:-cc}"; do
  command -v "$tool" >/dev/null && continue
  echo "$name: skipped, $tool is not installed (apt-get install spin gcc)"
  exit 77
done

header_flags() { sed -n "s/^.*$1: *//p" "$model" | head -n 1; }
compile_flags=$(header_flags Pan-compile)
run_flags=$(header_flags Pan-run)
# -DREVERSE is for the search too: the processes in the other order, which may find a mutant sooner.
case $defines in *-DREVERSE*) compile_flags="$compile_flags -DREVERSE" ;; esac
# A mutant dies at once, so the time goes into the compiler and into clearing the table of states
# (2^hash_bits pointers; a small one is slower, never less complete); a search that holds is worth
# optimising.
if [ "$expect" = holds ]; then optimise=-O2 hash_bits=24; else optimise=-O0 hash_bits=20; fi

rm -rf "$work" && mkdir -p "$work" && cp "$model" "$work/model.pml" && cd "$work" || exit 2
broken() { echo "$name: $1"; tail -n 5 "$2"; exit 1; }

# shellcheck disable=SC2086 # the switches are words
spin $defines -a model.pml >spin.out 2>&1 || broken "spin refuses the model" spin.out
grep -q -i -E 'error|undeclared' spin.out && broken "spin refuses the model" spin.out
# shellcheck disable=SC2086
"${CC:-cc}" $optimise -w -DSAFETY -DCOLLAPSE -DMEMLIM="${KVTRIE_MODEL_MB:-3800}" $compile_flags -o pan pan.c \
  >cc.out 2>&1 || broken "the generated search does not compile" cc.out
TIMEFORMAT=%U
# The limit is on CPU time, so that a busy machine does not decide the outcome.
# A search reads all over its table of states: huge pages, where the kernel gives them, save a third of its time.
# shellcheck disable=SC2086
{ time (ulimit -t "${KVTRIE_MODEL_SECONDS:-120}" && GLIBC_TUNABLES=glibc.malloc.hugetlb=1 ./pan -m100000 -w$hash_bits $run_flags >pan.out 2>&1); } 2>time.out
pan_code=$?
seconds=$(tail -n 1 time.out)

errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.out | head -n 1)
states=$(awk '/states, stored/ { print $1; exit }' pan.out)
depth=$(sed -n 's/.*depth reached \([0-9]*\).*/\1/p' pan.out | head -n 1)
violation=$(grep -m 1 -E '^pan:1:' pan.out | sed 's/^pan:1: *//; s/ (at depth.*//')
complete=yes
if [ "$pan_code" -ne 0 ] || [ -z "$errors" ] ||
  grep -q -E 'max search depth too small|out of memory|memory limit|not completed|aborted' pan.out; then
  complete=no
fi

verdict=WRONG
case $expect in
  holds) [ "$complete" = yes ] && [ "${errors:-1}" = 0 ] && verdict=ok ;;
  fails) [ "${errors:-0}" != 0 ] && [ -n "$violation" ] && [[ $violation == *"$error_text"* ]] && verdict=ok ;;
esac
claim=$(grep -o -m 1 'claim_[a-z_]*' <<<"$violation") || claim=${violation:0:80}
echo "$verdict $name [$defines] expected=$expect errors=${errors:-none} complete=$complete" \
  "states=${states:-0} depth=${depth:-0} cpu_s=$seconds${claim:+ error: $claim}"
rm -f pan pan.[bchmpt] ./*.trail
[ "$verdict" = ok ]

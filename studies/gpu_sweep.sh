#!/usr/bin/env bash
# Site tables of the bundled model, one task after another, within the given minutes; a second call goes on.
#
#   studies/gpu_sweep.sh MINUTES OUT                              # one GPU
#   DEVICE=cpu DTYPE=float32 MODEL=FOLDER SITES=7 STEPS=4 BATCH=4 SEEDS=1 studies/gpu_sweep.sh 2 OUT    # a small try
#
# Every site of every layer, rates searched at each, three seeds. DATA_DIR names the folder with files of the tasks that
# are not generated (without it these are left out). PYTHON names the interpreter. Each task has its own folder below OUT;
# its table.json is all that has to be kept (scores can be added on a CPU: the same command without --no-scores). What a task does not need of its part of the time, the next ones get.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:?minutes}; out=${2:?folder}
model=${MODEL:-smollm2-135m}; python=${PYTHON:-python}
tasks=${TASKS:-listops recall compare twice}
[ -n "${DATA_DIR:-}" ] && tasks="$tasks arc_easy"
mkdir -p "$out"
ends=$(( $(date +%s) + minutes * 60 ))
left=$(wc -w <<< "$tasks")
for task in $tasks; do
  budget=$(( (ends - $(date +%s)) / left )); left=$(( left - 1 ))
  [ "$budget" -gt 10 ] || { echo "no time left for $task" >&2; continue; }
  files=(); case $task in arc_*|boolq*|winogrande*) files=(--data-dir "$DATA_DIR");; esac
  "$python" -m steerscope sweep "$model" --task "$task" "${files[@]}" \
    --sites "${SITES:-all}" --seeds "${SEEDS:-3}" --steps "${STEPS:-80}" --batch-size "${BATCH:-24}" \
    --longer "${LONGER:-24}" --test-examples "${TEST:-512}" --selection-examples "${SELECTION:-128}" \
    --device "${DEVICE:-cuda}" --dtype "${DTYPE:-bfloat16}" --budget "$(awk "BEGIN{print $budget / 60}")" \
    --no-scores --out "$out/$task" --resume --quiet > "$out/$task.txt" || echo "$task: see above" >&2
  head -3 "$out/$task.txt"
done

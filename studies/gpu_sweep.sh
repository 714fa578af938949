#!/usr/bin/env bash
# Site tables of the bundled model, several tasks at a time, within the given minutes; a second call goes on.
#
#   studies/gpu_sweep.sh MINUTES OUT                              # one GPU
#   DEVICE=cpu DTYPE=float32 MODEL=FOLDER SITES=7 STEPS=4 BATCH=4 SEEDS=1 JOBS=1 studies/gpu_sweep.sh 2 OUT    # a small try
#
# Every site of every layer (ListOps and ARC-Easy: of twelve layers), as docs/validation_plan_3.md says. STEPS=..., or
# STEPS_recall=... for one task, overrides the plan (so do BATCH, SEEDS, SITES, PACK, RATES). Rates are chosen at every
# site, or at TUNE layers per kind; LONGER sites are trained for twice as many steps. One run's steps are too small for a
# GPU and wait for the processor, so JOBS tasks run at a time, each as its own process; PACK is the most runs that train
# together in one, and what bounds its memory: 105 of `recall` and of `compare`, 140 of `twice` and 42 of ListOps took 97 GB
# together. FROM names a folder of kept tables (studies/site_tables): a task that has one there goes on from it. DATA_DIR
# names the folder with files of the tasks that are not generated (without it these are left out). PYTHON names the
# interpreter. Each task has its own folder below OUT; its table.json is all that has to be kept (scores can be added on a
# CPU: the same command without --no-scores).
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:?minutes}; out=${2:?folder}
model=${MODEL:-smollm2-135m}; python=${PYTHON:-python}; jobs=${JOBS:-5}
tasks=${TASKS:-listops recall compare twice}
[ -n "${DATA_DIR:-}" ] && tasks="$tasks arc_easy"
mkdir -p "$out"
ends=$(( $(date +%s) + minutes * 60 ))

STEPS_listops=${STEPS_listops:-${STEPS:-240}};   BATCH_listops=${BATCH_listops:-${BATCH:-24}};   SEEDS_listops=${SEEDS_listops:-${SEEDS:-3}}
STEPS_recall=${STEPS_recall:-${STEPS:-32}};      SEEDS_recall=${SEEDS_recall:-${SEEDS:-5}}
STEPS_compare=${STEPS_compare:-${STEPS:-80}};    SEEDS_compare=${SEEDS_compare:-${SEEDS:-5}}
STEPS_twice=${STEPS_twice:-${STEPS:-48}};        SEEDS_twice=${SEEDS_twice:-${SEEDS:-5}}
STEPS_arc_easy=${STEPS_arc_easy:-${STEPS:-160}}; BATCH_arc_easy=${BATCH_arc_easy:-${BATCH:-24}}; SEEDS_arc_easy=${SEEDS_arc_easy:-${SEEDS:-3}}
PACK_listops=${PACK_listops:-${PACK:-42}}; SITES_listops=${SITES_listops:-${SITES:-84}}
PACK_arc_easy=${PACK_arc_easy:-${PACK:-10}}; SITES_arc_easy=${SITES_arc_easy:-${SITES:-84}}

# The setting NAME of a task: NAME_task, NAME, or what is given.
of() { local own="$1_$2"; echo "${!own:-${!1:-$3}}"; }

sweep() {
  local task=$1 files=() seconds
  seconds=$(( ends - $(date +%s) ))
  [ "$seconds" -gt 10 ] || { echo "no time left for $task" >&2; return; }
  [ -e "$out/$task/table.json" ] || [ ! -e "${FROM:-}/smollm2-135m-$task.json" ] || {
    mkdir -p "$out/$task"; cp "$FROM/smollm2-135m-$task.json" "$out/$task/table.json"
  }
  case $task in arc_*|boolq*|winogrande*) files=(--data-dir "$DATA_DIR");; esac
  "$python" -m steerscope sweep "$model" --task "$task" "${files[@]}" --sites "$(of SITES "$task" all)" \
    --seeds "$(of SEEDS "$task" 3)" --steps "$(of STEPS "$task" 80)" --batch-size "$(of BATCH "$task" 16)" \
    --rates "$(of RATES "$task" 1e-3,3e-3,1e-2,3e-2,1e-1)" ${TUNE:+--tune-layers "$TUNE"} \
    --longer "${LONGER:-84}" --test-examples "${TEST:-512}" --selection-examples "${SELECTION:-128}" \
    --pack-size "$(of PACK "$task" 105)" --device "${DEVICE:-cuda}" --dtype "${DTYPE:-bfloat16}" \
    --budget "$(awk "BEGIN{print $seconds / 60}")" --no-scores --out "$out/$task" --resume --quiet \
    > "$out/$task.txt" 2>&1 || echo "$task: $(tail -1 "$out/$task.txt")" >&2
  head -3 "$out/$task.txt"
}

for task in $tasks; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
  sweep "$task" &
done
wait

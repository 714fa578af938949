#!/usr/bin/env bash
# The runs behind docs/claims.md, several tasks at a time, within the given minutes; a second call goes on.
#
#   DATA_DIR=FOLDER studies/gpu_claims.sh MINUTES OUT             # one GPU
#   DEVICE=cpu MODEL=FOLDER TASKS=twice ONLY=none,post-block STEPS=4 BATCH=4 SEEDS=1 TRIES=3 studies/gpu_claims.sh 2 OUT
#
# DATA_DIR names the folder with files of the published tasks, which are left out without it; ListOps then is that of the
# files. The configurations of studies/claims/study.py that claims are about, or those of ONLY; SEEDS seeds; the first
# one's rate is searched with runs of full length and taken over by the others. STEPS=..., or STEPS_recall=... for one task,
# overrides (so do BATCH and TEST); 80 steps were too few for post-block edits on the bundled model. LONGER names
# configurations that are trained for twice as many steps too, by one seed with a search of its own, to see whether the
# others had converged; they are begun when a task has nothing else left. JOBS tasks run at a time, each as its own process.
# Weights are float32: full fine-tuning in bfloat16 would lose small updates that adapters, which are always float32, keep.
# When the minutes are over no other run is begun; one that is under way goes on to its end, or if it is stopped, from its
# last checkpoint in the next call. LEFTOVER=1 also measures claim (f), which holds two models. PYTHON names the interpreter.
# What has to be kept of OUT is one file: python -m studies.claims OUT/*/ PAGE --keep FILE.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:?minutes}; out=${2:?folder}
model=${MODEL:-smollm2-135m}; python=${PYTHON:-python}; jobs=${JOBS:-10}
only=${ONLY:-none,post-block,post-mlp,attn-out,mlp-in,sft,lora,loreft,nonlinear,joint,joint-input,joint-output,lora-joint-size,lora-r1,post-block-r1,post-block-r32,loreft-published}
tasks=${TASKS:-twice recall compare listops ${DATA_DIR:+arc_challenge boolq winogrande aqua gsm8k}}
mkdir -p "$out"
ends=$(( $(date +%s) + minutes * 60 ))

# The setting NAME of a task: NAME_task, NAME, or what is given.
of() { local own="$1_$2"; echo "${!own:-${!1:-$3}}"; }

# study TASK OUT CONFIGURATIONS SEEDS STEPS
study() {
  local task=$1 files=() left=(--no-leftover) seconds
  [ -z "${LEFTOVER:-}" ] || left=()
  seconds=$(( ends - $(date +%s) ))
  [ "$seconds" -gt 10 ] || { echo "no time left for $2" >&2; return; }
  case $task in listops*|boolq*|winogrande*|arc_*|aqua*|gsm8k) files=(${DATA_DIR:+--data-dir "$DATA_DIR"});; esac
  "$python" -m studies.claims.study "$model" --task "$task" "${files[@]}" --out "$2" --only "$3" --seeds "$4" \
    --search-once --minutes "$(awk "BEGIN{print $seconds / 60}")" "${left[@]}" -- \
    --steps "$5" --batch-size "$(of BATCH "$task" 16)" --tries "$(of TRIES "$task" 7)" \
    --max-examples "$(of TEST "$task" 1000)" --no-likelihoods --eval-batch-size "$(of EVAL_BATCH "$task" 128)" \
    --device "${DEVICE:-cuda}" --dtype "${DTYPE:-float32}" --quiet > "$2.txt" 2>&1 || tail -5 "$2.txt" >&2
  grep "runs are left" "$2.txt" || true
}

claims() {
  local steps
  steps=$(of STEPS "$1" 240)
  study "$1" "$out/$1" "$only" "${SEEDS:-5}" "$steps"
  [ -z "${LONGER-all}" ] || study "$1" "$out/$1-longer" "${LONGER:-post-block,lora,sft}" 1 $(( 2 * steps ))
}

for task in $tasks; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
  claims "$task" &
done
wait

#!/usr/bin/env bash
# What the scripts beside this one share: the recipe's flags, the log, and the result in the form of the original
# (ModelZoo InceptionV4_ID1778).
#
#   launch.sh SCRIPT CASE CARDS FLAG... -- ARGUMENT...
#
# SCRIPT is who asks, for messages; CASE is acc, perf or eval; CARDS is 1 or 8; FLAGs are that script's own. ARGUMENTs
# are its user's: those that are not in `usage` go to train.py behind all others, so that they win.
#
# --workers is left to train.py, which takes every core that training does not need.
set -euo pipefail

readonly NETWORK=InceptionV4_ID1778_for_PyTorch
script=$(basename "$1")
case=$2 cards=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")

usage() {
    cat << END
usage: bash $script --data_path=FOLDER [argument]... [flag of train.py]...

  --data_path=FOLDER      ImageNet (train/<class>/<picture>, val/<class>/<picture>), or shards of it
  --device_id=N           the card, for the scripts that use one (default: \$ASCEND_DEVICE_ID, or 0)
  --pth_path=CHECKPOINT   what to score, or to go on from; the same as --resume=CHECKPOINT
  --output=FOLDER         where log, result and checkpoints go (default: $here/output/<card>)

Everything else goes to train.py and wins over what the script says: --batch-size=64 --device-list=0,1,2,3 ...
Without an accelerator: --device=cpu --device-list=0,1 --opt-level=O0 --blocks=0,0,0 --image-size=75 --batch-size=16
The interpreter is \$PYTHON, else that of the checkout's .venv, else python3.
END
}

fail() {
    echo "$script: error: $1" >&2
    exit 2
}

flags=(--amp --seed=49 --label-smoothing=0.1 --weight-decay=1.0e-04 --mom=0.9)
while [[ $1 != -- ]]; do
    flags+=("$1")
    shift
done
shift

data='' output='' card='' weights='' rest=()
while (($#)); do
    case $1 in
        --data_path | --device_id | --pth_path | --output | --save_path)
            (($# > 1)) || fail "$1 needs a value: $1=…"
            set -- "$1=$2" "${@:3}"
            continue
            ;;
        --data_path=*) data=${1#*=} ;;
        --device_id=*) card=${1#*=} ;;
        --output=* | --save_path=*) output=${1#*=} ;;
        --pth_path=*) weights=given rest+=("--resume=${1#*=}") ;;
        --resume | --resume=* | --pretrained | --pretrained=*) weights=given rest+=("$1") ;;
        -h | --help)
            usage
            exit
            ;;
        *) rest+=("$1") ;;
    esac
    shift
done
[[ -n $data ]] || fail "give --data_path=FOLDER, an ImageNet folder or a folder of shards"
[[ -d $data ]] || fail "--data_path=$data: no such folder"
[[ $case != eval || -n $weights ]] || fail "give --pth_path=CHECKPOINT, what is to be scored"
[[ $cards == 1 || -z $card ]] || fail "--device_id is for one card; give --device-list=0,1,… to choose among $cards"
card=${card:-${ASCEND_DEVICE_ID:-0}}
[[ $card =~ ^[0-9]+$ ]] || fail "--device_id must be a number of at least 0, was $card"

if ((cards == 1)); then
    flags+=("--device=npu:$card" --loss-scale=1024)
else
    flags+=(--device=npu --device-list="$(seq -s, 0 $((cards - 1)))" --loss-scale=128)
    flags+=(--multiprocessing-distributed --world-size=1 --rank=0 --addr=127.0.0.1 --dist-backend=hccl)
fi

python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    [[ ! -x $root/.venv/bin/python ]] || python=$root/.venv/bin/python
fi
command -v "$python" > /dev/null || fail "no such python: $python; set PYTHON to one that has torch"
"$python" -c 'import sys, importlib.util as i; sys.exit(sys.version_info < (3, 11) or not i.find_spec("torch"))' ||
    fail "$python is not Python 3.11 or later with torch: set PYTHON to one that is (make test makes one in .venv)"

# shellcheck source=test/env_npu.sh
source "$here/env_npu.sh"

output=${output:-$here/output/$card}
log=$output/train_$card.log
mkdir -p "$output" 2> /dev/null || fail "--output=$output cannot be made"
if [[ -e $log ]]; then
    number=1
    while [[ -e $log.$number ]]; do number=$((number + 1)); done
    mv "$log" "$log.$number"
    echo "note: an earlier log is now $log.$number"
fi

# Train in the background, for only then does a signal reach this shell at once, which hands it on. The shell has its
# background jobs ignore SIGINT, and their children with them: that is undone. A group of its own, so that ^C arrives
# once, and so that all of it can be ended.
readonly BEGIN='
import os, signal, sys
os.setpgid(0, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])'
hand_on() { kill -s "$1" -- "-$trainer" 2> /dev/null || kill -s "$1" "$trainer" 2> /dev/null || :; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkfifo "$scratch/lines"
start=$(date +%s)
tee "$log" < "$scratch/lines" &
shown=$!
"$python" -c "$BEGIN" "$root/train.py" "${flags[@]}" ${rest[@]+"${rest[@]}"} --data="$data" --output="$output" \
    > "$scratch/lines" 2>&1 < /dev/null &
trainer=$!
for signal in INT TERM HUP; do
    # shellcheck disable=SC2064
    trap "hand_on $signal" "$signal"
done
while true; do # a signal ends `wait`, but not yet the training
    status=0
    wait "$trainer" || status=$?
    kill -0 "$trainer" 2> /dev/null || break
done
wait "$shown" || :
seconds=$(($(date +%s) - start))

if ((status > 128 && status < 160)); then
    echo "$script: training was ended by SIG$(kill -l $((status - 128))); the log is $log" >&2
    exit "$status"
elif ((status)); then
    {
        echo "$script: training failed with exit code $status; the log is $log; its last error:"
        awk 'NF { last = $0 } /[Ee]rror|was ended by/ { error = $0 }
             END { print "  " (error ? error : last ? last : "(the log is empty)") }' "$log"
    } >&2
    exit "$status"
fi

# What was in force, whoever said it, and how fast pictures were scored: train.py's own record of this run.
values=$("$python" - "$output/metrics.jsonl" "$start" << 'END'
import contextlib, json, pathlib, sys

path, start, last = pathlib.Path(sys.argv[1]), float(sys.argv[2]), {}
for text in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(ValueError):  # half a line, where an earlier run was killed
        line = json.loads(text)
        last |= {line["kind"]: line} if line["time"] >= start else {}
if "run" in last:
    scored = f"{last['val']['fps']:.3f}" if "val" in last else ""
    print(last["run"]["options"]["batch_size"], last["run"]["world_size"], scored)
END
)
read -r batch ranks scored <<< "$values" || :
if [[ -z $batch ]]; then # --device=sim:… trains nothing, and records nothing
    ranks=$cards
    batch=$(printf '%s\n' "${flags[@]}" | sed -n 's/^--batch-size=//p')
    echo "note: train.py has recorded no run in $output: BatchSize and RankSize are those of $script"
fi

# The original's rules. When only scoring there is no line with FPS, where the original divides by nothing: it is the
# pictures scored in a second then, and the losses are those of the Test lines, for there are no Epoch lines.
lines_of=Epoch
[[ $case != eval ]] || lines_of=Test
name=${NETWORK}_bs${batch}_${ranks}p_$case
losses=$output/train_${name}_loss.txt
fps=$(awk '/FPS/ { fps = $NF } END { print fps }' "$log")
fps=${fps:-$scored}
accuracy=$(awk -F 'Acc@1' '/\* Acc@1/ { split($2, rest, " "); accuracy = rest[1] } END { print accuracy }' "$log")
awk -F '\tLoss ' -v kind="$lines_of: " 'index($0, kind) && NF > 1 { split($2, rest, " "); print rest[1] }' "$log" > "$losses"
step_ms=$(LC_ALL=C awk -v batch="$batch" -v fps="$fps" 'BEGIN { if (fps > 0) printf "%.2f", batch * 1000 / fps }')

echo "------------------ Final result ------------------"
echo "Final Performance images/sec : $fps"
echo "Final Train Accuracy : $accuracy"
echo "E2E Training Duration sec : $seconds"

cat > "$output/$name.log" << END
Network = $NETWORK
RankSize = $ranks
BatchSize = $batch
DeviceType = $(uname -m)
CaseName = $name
ActualFPS = $fps
TrainingTime = $step_ms
TrainAccuracy = $accuracy
ActualLoss = $(tail -n 1 "$losses")
E2ETrainingTime = $seconds
END

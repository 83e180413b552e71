#!/bin/sh
# The outer loop of Sim2SG: Algorithm 1 of Prakash et al. 2021. `make loop` runs it, `make -n loop` prints its commands.
#
#   make loop ENV=clevr PRESET=quick SEED=0 ITERATIONS=2 TARGET=/any/folder PROTOCOL=paper OUT=runs/clevr
#
# Data sets are written to OUT/data, networks and their scores to one folder per row of the table beside it. A stage is
# skipped if its result is there and not older than its inputs: an interrupted loop continues where it stopped.
# shellcheck disable=SC3013  # test -nt: every sh has it
set -eu
cd "$(dirname "$0")"

# --- options: variables of the environment or of make ------------------------------------------------

ENV=${ENV-clevr}
PRESET=${PRESET-quick}
SEED=${SEED-0}
TARGET=${TARGET-}           # a folder of images, ideally with train/ and a labeled test/ or val/; none: a stand-in
DOMAIN=${DOMAIN-target}     # the stand-in's domain
PROTOCOL=${PROTOCOL-paper}  # strong: the source randomizes everything a scene graph does not hold, and colors
CAMERA=${CAMERA-}           # of a KITTI TARGET; paper: 90 degrees wide, as the paper assumes; else each image's calib/
OUT=${OUT-runs/$ENV}
DEVICE=${DEVICE-auto}
TRAIN_OPTIONS=${TRAIN_OPTIONS-}  # for every train.py, for instance --scratch where ImageNet weights are not available
LIFT_OPTIONS=${LIFT_OPTIONS-}    # for every synthesize.py that lifts graphs, for instance --refine
python=${RUN-.venv/bin/python}
dry_run=${1-}

fail() {
    echo "Error: $*" >&2
    exit 2
}

# Wrong options are reported now, not after the first hour.
case $PRESET in quick | paper) [ -f "envs/$ENV.py" ] ;; *) false ;; esac ||
    fail "ENV=$ENV PRESET=$PRESET: expected a file of envs/ without its .py, and quick or paper"
echo "$PROTOCOL,$CAMERA,$SEED,${ITERATIONS-1}" | grep -Eqx '(paper|strong),(|calib|paper),[0-9]+,[1-9][0-9]*' ||
    fail "PROTOCOL=$PROTOCOL CAMERA=$CAMERA SEED=$SEED ITERATIONS=${ITERATIONS-}: expected paper or strong, nothing or" \
        "calib or paper, a whole number, and one from 1 on"
[ -z "$TARGET" ] || [ -d "$TARGET" ] || fail "TARGET=$TARGET: no such folder, expected one of images"

# The numbers of the environment's preset. Any of them can be given as a variable, too.
if [ -z "$dry_run" ] || command -v "$python" >/dev/null; then
    numbers=$("$python" -m envs "$ENV" "$PRESET")
else
    echo "# .venv is not built yet: numbers are shown by their names, and a single iteration"
    numbers="ITERATIONS=1"
fi
number() {
    echo "$numbers" | sed -n "s/^$1=//p" | grep . || echo "$1"
}
: "${SOURCE_IMAGES:=$(number SOURCE_IMAGES)}"  # random images of the source domain
: "${TARGET_IMAGES:=$(number TARGET_IMAGES)}"  # images of the stand-in
: "${LIFTED_IMAGES:=$(number LIFTED_IMAGES)}"  # images of one iteration
: "${START_STEPS:=$(number START_STEPS)}"      # training steps of the first network
: "${STEPS:=$(number STEPS)}"                  # training steps of every row that is fine-tuned from it
: "${ITERATIONS:=$(number ITERATIONS)}"

# --- folders -----------------------------------------------------------------------------------------

if [ -z "$TARGET" ]; then
    inside=
    [ "$ENV" != drive ] || inside=/kitti  # the stand-in for KITTI is read as a KITTI folder
    train_images=$OUT/data/target/train$inside
    test_images=$OUT/data/target/test$inside
    stand_in=$OUT/data/target/test/dataset.json
else
    train_images=$TARGET
    [ ! -d "$TARGET/train" ] || train_images=$TARGET/train
    test_images=$train_images
    for labels in val/training/label_2 val/label_2 val/graphs.jsonl test/training/label_2 test/label_2 test/graphs.jsonl; do
        # a data set of this project, or KITTI's folder with or without training/; the last one found counts
        [ ! -e "$TARGET/$labels" ] || test_images=$(dirname "$TARGET/$labels")
    done
    stand_in=
fi

# A folder holds one loop: other options would mix old stages with new ones, once there are any.
options="ENV=$ENV ITERATIONS=$ITERATIONS PRESET=$PRESET SEED=$SEED TARGET=$TARGET DOMAIN=$DOMAIN PROTOCOL=$PROTOCOL"
options="$options TRAIN_OPTIONS=$TRAIN_OPTIONS LIFT_OPTIONS=$LIFT_OPTIONS${CAMERA:+ CAMERA=$CAMERA}"
if [ -e "$OUT/data" ]; then
    made_with=$(cat "$OUT/options.txt")
    [ "$options" = "$made_with" ] || fail "$OUT was made with $made_with; choose another OUT or remove it"
elif [ -z "$dry_run" ]; then
    mkdir -p "$OUT"
    echo "$options" >"$OUT/options.txt"
fi

# --- stages ------------------------------------------------------------------------------------------

planned="|"  # results of this run's stages: a dry run does not make them

# todo COMMENT RESULT INPUT...: whether the RESULT is missing or older than an INPUT. Prints the COMMENT if so.
todo() {
    comment=$1 result=$2 outdated=
    shift 2
    [ -e "$result" ] || outdated=yes
    for input in "$@"; do
        case $planned in *"|$input|"*) outdated=yes ;; esac
        [ ! "$input" -nt "$result" ] || outdated=yes
    done
    [ -n "$outdated" ] || return 1
    planned="$planned$result|"
    echo
    echo "# $comment"
}

# Print a command, and unless this is a dry run, run it.
run() {
    line=
    for word in "$@"; do
        case $word in *[!-A-Za-z0-9_./,:=]*) word="'$word'" ;; esac
        line="$line$word "
    done
    echo "${line% }"
    [ -n "$dry_run" ] || "$@"
}

synthesize() {
    run "$python" synthesize.py --env "$ENV" --preset "$PRESET" --device "$DEVICE" --overwrite "$@"
}

train() {
    augment=
    [ "$PROTOCOL" != strong ] || augment="--augment color"
    # shellcheck disable=SC2086  # options are words
    run "$python" train.py --preset "$PRESET" --device "$DEVICE" --seed "$SEED" --overwrite $TRAIN_OPTIONS $augment "$@"
}

# evaluate ROW: the scores of a row's network on the labeled target images.
evaluate() {
    if todo "Score $1 on target images." "$OUT/$1/metrics.json" "$OUT/$1/model.pt" "$stand_in"; then
        run "$python" evaluate.py --device "$DEVICE" --overwrite --checkpoint "$OUT/$1/model.pt" --data "$test_images" \
            ${CAMERA:+--camera "$CAMERA"} --out "$OUT/$1"
    fi
}

# lift DATA NETWORK: what the network sees in the target's training images, rendered in the source's look.
lift() {
    if todo "Iteration $k, $1: infer scene graphs on the target with the network '$2', lift and render them (label alignment)." \
        "$OUT/data/$1/dataset.json" "$OUT/$2/model.pt" "$stand_in"; then
        # shellcheck disable=SC2086  # options are words
        synthesize --checkpoint "$OUT/$2/model.pt" --target "$train_images" --num "$LIFTED_IMAGES" --seed "$SEED" \
            --randomize "$PROTOCOL" $LIFT_OPTIONS ${CAMERA:+--camera "$CAMERA"} --out "$OUT/data/$1"
    fi
}

# fine_tune ROW DATA OPTION...: train the start on SDR and one more data set, then score it. All rows begin with the same
# network, not with the last iteration's, so that each takes the same number of steps; and SDR stays in the mix, or a
# network forgets what the lifted scenes miss.
fine_tune() {
    row=$1 data=$2
    shift 2
    if todo "Train $row on SDR and $data${1:+, aligned with the target's images}." "$OUT/$row/model.pt" \
        "$OUT/start/model.pt" "$OUT/data/$data/dataset.json"; then
        train --source "$OUT/data/sdr" --source "$OUT/data/$data" "$@" --init "$OUT/start/model.pt" --steps "$STEPS" \
            --out "$OUT/$row"
    fi
    evaluate "$row"
}

# --- Algorithm 1 -------------------------------------------------------------------------------------

if [ -z "$TARGET" ] && todo "A stand-in for real images, the same for every SEED: train, val and a labeled test." "$stand_in"; then
    synthesize --domain "$DOMAIN" --num "$TARGET_IMAGES" --seed 1 ${inside:+--export kitti} --out "$OUT/data/target"
fi

if todo "Random scenes of the source: structured domain randomization (SDR)." "$OUT/data/sdr/dataset.json"; then
    synthesize --num "$SOURCE_IMAGES" --seed "$SEED" --randomize "$PROTOCOL" --out "$OUT/data/sdr"
fi

if todo "Train the first network on them." "$OUT/start/model.pt" "$OUT/data/sdr/dataset.json"; then
    train --source "$OUT/data/sdr" --steps "$START_STEPS" --out "$OUT/start"
fi
evaluate start

# The baseline takes as many further steps and images as the other rows; its images are random.
if todo "More random scenes, for the baseline." "$OUT/data/more/dataset.json"; then
    synthesize --num "$LIFTED_IMAGES" --seed "$((SEED + 1000))" --randomize "$PROTOCOL" --out "$OUT/data/more"
fi
fine_tune sdr more

label=start       # the network that infers the next iteration's graphs: of the rows without,
appearance=start  # and of those with appearance alignment
for k in $(seq 1 "$ITERATIONS"); do
    lift "label$k" "$label"
    fine_tune "label$k" "label$k"
    label=label$k

    data=label1  # both begin with what the start infers
    if [ "$k" -gt 1 ]; then
        data=appearance$k
        lift "$data" "$appearance"
    fi
    fine_tune "appearance$k" "$data" --target "$train_images" --align appearance
    appearance=appearance$k
done

# The last iteration once more, with both discriminators: D_a (appearance) and D_c (prediction).
fine_tune full "$data" --target "$train_images" --align appearance,prediction

echo
echo "# The table and the report."
run "$python" evaluate.py --summary "$OUT"
run "$python" evaluate.py report "$OUT" || echo "The report could not be drawn; the table above is complete." >&2

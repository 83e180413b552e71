#!/bin/sh
# The outer loop of Sim2SG, Algorithm 1 of Prakash et al. 2021, beside its baselines and ours. `make
# loop` runs it, and `make -n loop` prints its commands.
#
#   make loop ENV=clevr PRESET=quick SEED=0 ITERATIONS=2 TARGET=/any/folder OUT=runs/clevr
#   make loop ROWS="sdr look oracle" SEEDS="0 1 2" OUT=runs/look
#
# Data sets go to OUT/data, each row of the table to a folder of its own beside it. A stage is skipped if
# its result is there and not older than its inputs: an interrupted loop continues where it stopped, and
# further ROWS can be added to it. Paths are relative to the folder of this file.
# shellcheck disable=SC3013  # every sh has test -nt
set -eu
cd "$(dirname "$0")"

# --- options: variables of make or of the environment ----------------------------------------------

ENV=${ENV-clevr}
PRESET=${PRESET-quick}
SEED=${SEED-0}
# Several seeds: one loop each, in OUT-SEED, and the table of all.
SEEDS=${SEEDS-}
# Rows of the table besides start, separated by spaces or commas:
#   sdr               the baseline: more random scenes
#   appearance        the same with appearance alignment (D_a)
#   label             iterations of label alignment: scenes lifted from the target in a random look
#   label-appearance  the same with appearance alignment
#   full              in its last iteration with prediction alignment (D_c), too: the paper's Sim2SG
#   look              ours: iterations of label alignment in a look that is fitted to the target
#   look-appearance   in its last iteration with appearance alignment
#   oracle            labeled target images: what could be reached
ROWS=${ROWS-sdr label full look oracle}
# A folder of images, ideally with train/ and a labeled test/ or val/. Without it, a stand-in is
# rendered from DOMAIN.
TARGET=${TARGET-}
DOMAIN=${DOMAIN-target}
# Of random scenes of the source. With target-content and DOMAIN=target, source and target differ in
# appearance alone; with source and DOMAIN=target-content, in content alone.
SOURCE_DOMAIN=${SOURCE_DOMAIN-source}
# paper: the source as in the paper; strong: everything that a scene graph does not hold is randomized.
PROTOCOL=${PROTOCOL-paper}
# --augment of every train.py: by default full, and strong, which adds colors, with PROTOCOL=strong.
AUGMENT=${AUGMENT-$([ "$PROTOCOL" = strong ] && echo strong || echo full)}
OUT=${OUT-runs/$ENV}
# On drive. paper: the paper's camera, 90 degrees wide; empty: of a KITTI TARGET's images, their own
# calib/, and of random scenes KITTI's usual one.
CAMERA=${CAMERA-}
DEVICE=${DEVICE-auto}
# Empty: every iteration is trained from the start, STEPS steps as the other rows. 1: from the iteration
# before, with STEPS / ITERATIONS steps, so that the last one has taken as many steps as the other rows.
# The paper trains a single network like that, 90,000 steps in all on CLEVR.
CONTINUE=${CONTINUE-}
# For every train.py, for instance --scratch, which needs no ImageNet weights.
TRAIN_OPTIONS=${TRAIN_OPTIONS-}
# For every synthesize.py that lifts graphs, for instance --refine.
LIFT_OPTIONS=${LIFT_OPTIONS-}
# Of the look rows: fitted, or mixed with random looks; further options of their synthesize.py.
LOOK=${LOOK-fitted}
LOOK_OPTIONS=${LOOK_OPTIONS-$([ "$ENV" != clevr ] || echo --compare)}
# Fraction of each batch from what a row adds to the random scenes: lifted scenes, or the oracle's.
NEWEST=${NEWEST-0.5}
# Rows that are trained side by side, sharing the cores. The last digits of a network depend on its
# number of threads, which is in its config.json.
cores=$(getconf _NPROCESSORS_ONLN || echo 1)
JOBS=${JOBS-$([ "$PRESET" = quick ] && [ "$cores" -gt 1 ] && echo 2 || echo 1)}

# Of glibc: freed memory is kept, not given back and cleared again for each tensor; a tenth faster.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296

python=${RUN-.venv/bin/python}
dry_run=${1-}

fail() {
    echo "Error: $*" >&2
    exit 2
}

# expect NAME PATTERN WORDS: is the value of NAME what it should be?
expect() {
    eval "value=\${$1-}"
    echo "$value" | grep -Eqx "$2" || fail "$1=$value: expected $3"
}

# Wrong options are reported now, not after the first hour.
[ -f "envs/$ENV.py" ] || fail "ENV=$ENV: expected a file of envs/ without its .py"
for name in SOURCE_IMAGES TARGET_IMAGES LIFTED_IMAGES START_STEPS STEPS ITERATIONS; do
    expect $name '|[1-9][0-9]*' "a whole number from 1 on"
done
expect PRESET 'quick|paper' "quick or paper"
expect PROTOCOL 'paper|strong' "paper or strong"
expect AUGMENT 'none|color|full|strong' "none, color, full or strong"
expect CAMERA '|calib|paper' "nothing, calib or paper"
expect LOOK 'fitted|mixed' "fitted or mixed"
expect CONTINUE '|1' "nothing or 1"
expect NEWEST '0?\.[0-9]*[1-9][0-9]*' "a fraction between 0 and 1"
expect JOBS '[1-9][0-9]*' "a whole number from 1 on"
expect SEED '[0-9]+' "a whole number"
expect SEEDS '([0-9]+([ ,]+[0-9]+)*)?' "whole numbers"
[ -z "$(echo "$SEEDS" | tr ', ' '\n\n' | grep . | sort | uniq -d)" ] ||
    fail "SEEDS=$SEEDS: expected each seed once"
[ -z "$TARGET" ] || [ -d "$TARGET" ] ||
    fail "TARGET=$TARGET: no such folder, expected one of images"
ROWS=$(echo "$ROWS" | tr , ' ')
names="sdr appearance label label-appearance full look look-appearance oracle"
for row in ${ROWS:-nothing}; do
    case " $names " in *" $row "*) ;; *) fail "ROWS=$ROWS: $row is not one of $names" ;; esac
done

# Numbers of the environment's preset. Each can be given as a variable instead.
if [ -z "$dry_run" ] || command -v "$python" >/dev/null; then
    numbers=$("$python" -m envs "$ENV" "$PRESET")
else
    echo "# .venv is not built yet: numbers are shown by their names, and a single iteration"
    numbers="ITERATIONS=1"
fi
number() {
    echo "$numbers" | sed -n "s/^$1=//p" | grep . || echo "$1"
}
domains=$(number DOMAINS)
if [ "$domains" != DOMAINS ]; then
    any_domain=$(echo "$domains" | tr ' ' '|')
    expect SOURCE_DOMAIN "$any_domain" "one of $domains"
    [ -n "$TARGET" ] || expect DOMAIN "$any_domain" "one of $domains"
fi
given=  # those that were given belong to the options of OUT
for name in SOURCE_IMAGES TARGET_IMAGES LIFTED_IMAGES START_STEPS STEPS; do
    value=$(printenv "$name" || true)
    given="$given${value:+ $name=$value}"
done
: "${SOURCE_IMAGES:=$(number SOURCE_IMAGES)}" # random images of the source domain
: "${TARGET_IMAGES:=$(number TARGET_IMAGES)}" # images of the stand-in
: "${LIFTED_IMAGES:=$(number LIFTED_IMAGES)}" # images of one iteration
: "${START_STEPS:=$(number START_STEPS)}"     # training steps of the first network
: "${STEPS:=$(number STEPS)}"                 # training steps of each row that is fine-tuned from it
: "${ITERATIONS:=$(number ITERATIONS)}"

# --- folders ---------------------------------------------------------------------------------------

if [ -z "$TARGET" ]; then
    kitti=
    [ "$ENV" != drive ] || kitti=/kitti # the stand-in for KITTI is read as a KITTI folder
    train_images=$OUT/data/target/train$kitti
    test_images=$OUT/data/target/test$kitti
    labeled_train=$OUT/data/target/train
    stand_in=$OUT/data/target/test/dataset.json
else
    train_images=$TARGET
    [ ! -d "$TARGET/train" ] || train_images=$TARGET/train
    test_images=$train_images
    labeled_train=$train_images
    for split in val test; do
        # labels of KITTI, with or without its training/, or of a data set of this project
        for labels in training/label_2 label_2 graphs.jsonl; do
            [ ! -e "$TARGET/$split/$labels" ] || test_images=$(dirname "$TARGET/$split/$labels")
        done
    done
    stand_in=
fi

# A folder holds one loop: other options, except ROWS, would mix its old stages with new ones.
options="ENV=$ENV ITERATIONS=$ITERATIONS PRESET=$PRESET SEED=$SEED TARGET=$TARGET DOMAIN=$DOMAIN"
options="$options PROTOCOL=$PROTOCOL AUGMENT=$AUGMENT TRAIN_OPTIONS=$TRAIN_OPTIONS LIFT_OPTIONS=$LIFT_OPTIONS"
options="$options LOOK=$LOOK LOOK_OPTIONS=$LOOK_OPTIONS NEWEST=$NEWEST CONTINUE=$CONTINUE"
options="$options${CAMERA:+ CAMERA=$CAMERA}$given"
[ "$SOURCE_DOMAIN" = source ] || options="$options SOURCE_DOMAIN=$SOURCE_DOMAIN"
if [ -e "$OUT/data" ]; then
    made_with=$(cat "$OUT/options.txt")
    [ "$options" = "$made_with" ] ||
        fail "$OUT was made with $made_with; choose another OUT or remove it"
elif [ -z "$dry_run$SEEDS" ]; then
    mkdir -p "$OUT"
    echo "$options" >"$OUT/options.txt"
fi

# --- stages ----------------------------------------------------------------------------------------

# todo COMMENT RESULT INPUT...: is the RESULT missing or older than an INPUT? Prints the COMMENT if so.
planned="|" # results of stages that this run has begun, each once: a dry run does not make them
todo() {
    comment=$1 result=$2 outdated=
    shift 2
    case $planned in *"|$result|"*) return 1 ;; esac
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

# Print a command, and run it unless this is a dry run.
run() {
    line=
    for word in "$@"; do
        case $word in *[!-A-Za-z0-9_./,:=]*) word="'$word'" ;; esac
        line="$line$word "
    done
    echo "${line% }"
    [ -z "$dry_run" ] || return 0
    "$@" &
    children=$!
    wait "$children"
}

# A signal ends what runs, too; the next `make loop` continues.
stop() {
    for child in $children; do
        kill -s TERM "$child" 2>/dev/null || true
    done
    wait
    rm -f "$OUT"/.*.lines "$ended"
    exit "$1"
}
children= ended=$OUT/.ended # a pipe of `begin`
trap 'stop 130' INT
trap 'stop 143' TERM

# begin COMMAND...: make one row, or one kind of rows, as soon as less than JOBS others are being made.
# Its lines are printed behind its name. In a dry run and with JOBS=1 they follow each other.
running=0
begin() {
    if [ -n "$dry_run" ] || [ "$JOBS" -eq 1 ]; then
        "$@"
        return
    fi
    [ "$running" -lt "$JOBS" ] || wait_for_one
    lines=$OUT/.${2-$1}.lines
    rm -f "$lines"
    mkfifo "$lines"
    print_lines "${2-$1}" <"$lines" &
    ( # reports its exit status to wait_for_one
        children=
        trap 'echo $? >&3' EXIT
        trap 'stop 130' INT
        trap 'stop 143' TERM
        threads=$((cores / JOBS))
        export OMP_NUM_THREADS="${OMP_NUM_THREADS-$((threads > 1 ? threads : 1))}"
        "$@"
    ) >"$lines" 2>&1 &
    children="$children $!"
    running=$((running + 1))
}

print_lines() {
    cr=$(printf '\r')
    while IFS= read -r text; do
        echo "$1 | ${text##*"$cr"}" # of a progress bar its last state
    done
}

wait_for_one() {
    until read -r status <&3; do :; done # a signal ends the read
    running=$((running - 1))
    [ "$status" -eq 0 ] || stop "$status"
}

# Wait for all.
finish() {
    while [ "$running" -gt 0 ]; do
        wait_for_one
    done
    wait
    children=
    rm -f "$OUT"/.*.lines "$ended"
}

synthesize() {
    run "$python" synthesize.py --env "$ENV" --preset "$PRESET" --device "$DEVICE" --overwrite "$@"
}

random_scenes() { # NUMBER SEED DATA: of the source
    source="--domain $SOURCE_DOMAIN --unsplit"
    [ "$SOURCE_DOMAIN" != source ] || source=
    # shellcheck disable=SC2086  # several options
    synthesize $source --num "$1" --seed "$2" --randomize "$PROTOCOL" \
        ${CAMERA:+--camera "$CAMERA"} --out "$OUT/data/$3"
}

train() {
    # shellcheck disable=SC2086  # several options
    run "$python" train.py --preset "$PRESET" --device "$DEVICE" --seed "$SEED" --overwrite \
        --augment "$AUGMENT" $TRAIN_OPTIONS "$@"
}

# evaluate ROW: scores of its network on the labeled target images.
evaluate() {
    if todo "Score $1 on the target." "$OUT/$1/metrics.json" "$OUT/$1/model.pt" "$stand_in"; then
        run "$python" evaluate.py --device "$DEVICE" --overwrite \
            --checkpoint "$OUT/$1/model.pt" --data "$test_images" \
            ${CAMERA:+--camera "$CAMERA"} --out "$OUT/$1"
    fi
}

# lift DATA NETWORK: label alignment. The network infers scene graphs on target images; they are lifted
# to 3-D and rendered with exact labels, in a random look of the source or in one fitted to the target.
lift() {
    look=
    case $1 in look*) look="--look $LOOK $LOOK_OPTIONS" ;; esac
    if todo "Infer scene graphs on the target with $2, lift and render them." \
        "$OUT/data/$1/dataset.json" "$OUT/$2/model.pt" "$stand_in"; then
        # shellcheck disable=SC2086  # several options
        synthesize --checkpoint "$OUT/$2/model.pt" --target "$train_images" \
            --num "$LIFTED_IMAGES" --seed "$SEED" --randomize "$PROTOCOL" \
            $look $LIFT_OPTIONS ${CAMERA:+--camera "$CAMERA"} --out "$OUT/data/$1"
    fi
}

# fine_tune ROW FOLDER [METHODS]: train on SDR and one more data set, from the network `before` for
# `steps`, and score. SDR stays in the mix, or a network forgets what the lifted scenes lack.
before=start steps=$STEPS
fine_tune() {
    row=$1 folder=$2 methods=${3-} target_read=$stand_in mix="--newest $NEWEST"
    [ "$row" != sdr ] || target_read=
    [ "$folder" != "$OUT/data/more" ] || mix= # random scenes count alike, or the baseline overfits
    if todo "Train $row on random scenes and $folder${methods:+ with $methods alignment}." \
        "$OUT/$row/model.pt" "$OUT/$before/model.pt" "$folder/dataset.json" "$target_read"; then
        # shellcheck disable=SC2086  # an option and its value
        train --source "$OUT/data/sdr" --source "$folder" $mix \
            ${methods:+--target "$train_images" --align "$methods"} \
            --init "$OUT/$before/model.pt" --steps "$steps" --out "$OUT/$row"
    fi
    evaluate "$row"
}

# --- Algorithm 1 -----------------------------------------------------------------------------------

# iterate ROW DATA LAST [METHODS [METHODS OF LAST]]: the outer loop. The first iteration has the graphs
# that the start infers, lifted to DATA, each further one those of the network before. LAST is a row
# with other METHODS in the last iteration. Of the two rows those in ROWS are made.
iterate() {
    kind=$1 data=$2 last=$3 aligned=${4-} network=start
    [ -z "$CONTINUE" ] || steps=$(expr "$STEPS" / "$ITERATIONS" || true)
    for k in $(seq 1 "$ITERATIONS"); do
        [ "$k" -eq 1 ] || data=$kind$k
        lift "$data" "$network"
        [ -z "$CONTINUE" ] || before=$network
        if [ "$k" -lt "$ITERATIONS" ] || wanted "$kind"; then
            fine_tune "$kind$k" "$OUT/data/$data" "$aligned"
        fi
        network=$kind$k
    done
    ! wanted "$last" || fine_tune "$last" "$OUT/data/$data" "${5-}"
    before=start steps=$STEPS
}

oracle() {
    if [ -n "$TARGET" ] && ! { [ -e "$labeled_train/dataset.json" ] &&
        [ -e "$labeled_train/graphs.jsonl" ]; }; then
        echo "# No oracle: $labeled_train is not a labeled data set."
    else
        fine_tune oracle "$labeled_train"
    fi
}

# wanted ROW...: is one of them among the ROWS?
wanted() {
    for row in "$@"; do
        case " $ROWS " in *" $row "*) return 0 ;; esac
    done
    return 1
}

algorithm_1() { # a function, so that this file is read whole first: it may change in the hours to come
    if [ -z "$TARGET" ] && todo "A stand-in for real images: train, val and a labeled test." \
        "$stand_in"; then # the same for every SEED
        synthesize --domain "$DOMAIN" --num "$TARGET_IMAGES" --seed 1 \
            ${kitti:+--export kitti} --out "$OUT/data/target"
    fi

    if todo "Random scenes of the source: structured domain randomization (SDR)." \
        "$OUT/data/sdr/dataset.json"; then
        random_scenes "$SOURCE_IMAGES" "$SEED" sdr
    fi

    if todo "Train the first network on them." \
        "$OUT/start/model.pt" "$OUT/data/sdr/dataset.json"; then
        train --source "$OUT/data/sdr" --steps "$START_STEPS" --out "$OUT/start"
    fi
    evaluate start

    # Data of several rows. Every row gets as many further images, trains for as many steps and has
    # the same start; what is added to the source images differs.
    if wanted sdr appearance && todo "More random scenes, for the baseline." \
        "$OUT/data/more/dataset.json"; then
        random_scenes "$LIFTED_IMAGES" "$((SEED + 1000))" more
    fi
    if wanted label label-appearance full; then
        lift label1 start
    fi

    if [ -z "$dry_run" ] && [ "$JOBS" -gt 1 ]; then
        rm -f "$ended"
        mkfifo "$ended"
        exec 3<>"$ended"
    fi
    ! wanted sdr || begin fine_tune sdr "$OUT/data/more"
    ! wanted appearance || begin fine_tune appearance "$OUT/data/more" appearance
    ! wanted label || begin iterate label label1 -
    ! wanted label-appearance full ||
        begin iterate label-appearance label1 full appearance appearance,prediction
    ! wanted look look-appearance || begin iterate look look1 look-appearance "" appearance
    ! wanted oracle || begin oracle
    finish

    echo
    echo "# The table of all rows."
    run "$python" evaluate.py --summary "$OUT"
    echo
    echo "# The same with curves and images, as one HTML page."
    run "$python" evaluate.py report "$OUT" ||
        echo "The page could not be made; the table above is complete." >&2
}

several_seeds() {
    echo "# One loop per seed, and the table of all."
    for seed in $(echo "$SEEDS" | tr , ' '); do
        run env SEEDS= SEED="$seed" OUT="$OUT-$seed" sh loop.sh
        set -- "$@" --summary "$OUT-$seed"
    done
    run "$python" evaluate.py "$@"
}

if [ -n "$SEEDS" ]; then several_seeds; else algorithm_1; fi; exit

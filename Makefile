# Sim2SG: `make loop` runs the whole experiment, `make test` the tests; the first use of either builds .venv.
#
#   make loop ENV=clevr ITERATIONS=2 PRESET=quick TARGET=/any/folder SEED=0 OUT=runs/clevr PROTOCOL=paper
#
# Every stage is a file target: an interrupted loop goes on where it stopped, a finished one only prints its table.

ENV ?= clevr
PRESET ?= quick
SEED ?= 0
# a folder of images, better one of train/ and a labeled test/ or val/; without it a stand-in is rendered from DOMAIN
TARGET ?=
DOMAIN ?= target
# paper: the source as the paper draws it; strong: all that no scene graph holds is randomized, and colors augmented
PROTOCOL ?= paper
OUT ?= runs/$(ENV)
# of a KITTI TARGET: paper for the paper's camera, 90 degrees wide; without it each image's own calib/
CAMERA ?=
DEVICE ?= auto
PYTHON ?= python3

# more options for every train.py, for instance --scratch where ImageNet weights cannot be had
TRAIN_OPTIONS ?=
# more options for every synthesize.py that lifts graphs, for instance --refine
LIFT_OPTIONS ?=

# of an environment and preset: images of SDR, of the stand-in and of an iteration, training steps of the start and of every
# row that grows from it, iterations, and the share of an aligned row's steps before its discriminators start
clevr-quick := 1500 400 500 400 350 2 0
clevr-paper := 1000 1600 1000 10000 90000 2 0
dining-quick := 1000 400 400 500 350 1 0.3
dining-paper := 5000 8000 5000 10000 70000 6 0.7
drive-quick := 1000 400 400 500 350 1 0.3
drive-paper := 6000 9600 6000 10000 90000 3 0.3
ifeq ($(wildcard envs/$(ENV).py)$(filter-out quick paper,$(PRESET)),envs/$(ENV).py)
else
$(error ENV=$(ENV) PRESET=$(PRESET): expected a file of envs/ without its .py, and quick or paper)
endif
NUMBERS_OF_RUN := $(or $($(ENV)-$(PRESET)),$(clevr-$(PRESET)))
pick = $(word $(1),$(NUMBERS_OF_RUN))
SOURCE_NUM := $(call pick,1)
TARGET_NUM := $(call pick,2)
LIFTED_NUM := $(call pick,3)
START_STEPS := $(call pick,4)
STEPS := $(call pick,5)
ITERATIONS ?= $(call pick,6)
WARMUP := $(call pick,7)

# found now, not after the first hour
ifeq ($(shell echo '$(PROTOCOL),$(CAMERA),$(SEED),$(ITERATIONS)' | grep -Ex '(paper|strong),(|calib|paper),[0-9]+,[1-9][0-9]*'),)
$(error PROTOCOL=$(PROTOCOL) CAMERA=$(CAMERA) SEED=$(SEED) ITERATIONS=$(ITERATIONS): expected paper or strong, nothing or calib \
or paper, a whole number, and one from 1 on)
endif

# --- where things are -------------------------------------------------------------------------------------------------

ifneq ($(words $(OUT)) $(words x$(TARGET)),1 1)
$(error OUT=$(OUT) TARGET=$(TARGET): expected paths without spaces)
endif
ifeq ($(TARGET),)
# the stand-in for KITTI is a KITTI folder, and is read as KITTI is
INSIDE := $(if $(filter drive,$(ENV)),/kitti)
TRAIN_IMAGES := $(OUT)/data/target/train$(INSIDE)
TEST_IMAGES := $(OUT)/data/target/test$(INSIDE)
TARGET_READY := $(OUT)/data/target/test/dataset.json
else
ifeq ($(wildcard $(TARGET)/.),)
$(error TARGET=$(TARGET): no such folder, expected one of images)
endif
TRAIN_IMAGES := $(if $(wildcard $(TARGET)/train/.),$(TARGET)/train,$(TARGET))
# a data set of ours, or KITTI's with or without its training/
LABELLED := $(foreach split,test val,$(wildcard $(foreach labels,graphs.jsonl label_2 training/label_2,\
$(TARGET)/$(split)/$(labels))))
TEST_IMAGES := $(firstword $(patsubst %/,%,$(dir $(LABELLED))) $(TRAIN_IMAGES))
endif

RUN := .venv/bin/python
comma := ,
NUMBERS := $(shell seq 1 $(ITERATIONS))
RUNS := start sdr $(NUMBERS:%=label%) $(NUMBERS:%=appearance%) full
OPTIONS := ENV=$(ENV) ITERATIONS=$(ITERATIONS) PRESET=$(PRESET) SEED=$(SEED) TARGET=$(TARGET) DOMAIN=$(DOMAIN) \
PROTOCOL=$(PROTOCOL) TRAIN_OPTIONS=$(TRAIN_OPTIONS) LIFT_OPTIONS=$(LIFT_OPTIONS)$(if $(CAMERA), CAMERA=$(CAMERA))
VIEW := $(if $(CAMERA),--camera $(CAMERA))

SYNTHESIZE := $(RUN) synthesize.py --env $(ENV) --preset $(PRESET) --device $(DEVICE) --overwrite
TRAIN := $(RUN) train.py --preset $(PRESET) --device $(DEVICE) --seed $(SEED) --overwrite $(TRAIN_OPTIONS) \
$(if $(filter strong,$(PROTOCOL)),--augment color)
EVALUATE := $(RUN) evaluate.py --device $(DEVICE) --overwrite

.PHONY: loop options test bench faults
# a stage's files appear whole or not at all: whatever ends make, what has just been finished must not be deleted
DATA := target/test sdr more $(NUMBERS:%=label%) $(patsubst %,appearance%,$(filter-out 1,$(NUMBERS)))
.PRECIOUS: $(DATA:%=$(OUT)/data/%/dataset.json) $(RUNS:%=$(OUT)/%/model.pt) $(RUNS:%=$(OUT)/%/metrics.json)

# --- the loop ---------------------------------------------------------------------------------------------------------

# the table counts: a report that cannot be drawn is no reason to fail
loop: $(RUNS:%=$(OUT)/%/metrics.json)
	$(RUN) evaluate.py --summary $(OUT)
	-$(RUN) evaluate.py report $(OUT)

# a folder holds one loop: other options would mix its old stages with new ones, once there are any
options: .venv/ready
	@mkdir -p $(OUT)
	@test -e $(OUT)/data || echo "$(OPTIONS)" > $(OUT)/options.txt
	@test "$(OPTIONS)" = "$$(cat $(OUT)/options.txt)" || { echo "Error: $(OUT) was made with $$(cat $(OUT)/options.txt);" \
		"choose another OUT or remove it" >&2; exit 2; }

# the stand-in for real images, labeled, the same for every SEED
$(OUT)/data/target/test/dataset.json: | options
	$(SYNTHESIZE) --domain $(DOMAIN) --num $(TARGET_NUM) --seed 1 $(if $(INSIDE),--export kitti) --out $(OUT)/data/target

# SDR: random scenes of the source domain
$(OUT)/data/sdr/dataset.json: | options $(TARGET_READY)
	$(SYNTHESIZE) --num $(SOURCE_NUM) --seed $(SEED) --randomize $(PROTOCOL) --out $(OUT)/data/sdr

# the start of the loop, trained on them
$(OUT)/start/model.pt: $(OUT)/data/sdr/dataset.json
	$(TRAIN) --source $(OUT)/data/sdr --steps $(START_STEPS) --out $(OUT)/start

# the baseline: the same steps as every later row and as many new images, all of them random
$(OUT)/data/more/dataset.json: | options
	$(SYNTHESIZE) --num $(LIFTED_NUM) --seed $$(($(SEED) + 1000)) --randomize $(PROTOCOL) --out $(OUT)/data/more

$(OUT)/sdr/model.pt: $(OUT)/start/model.pt $(OUT)/data/more/dataset.json
	$(TRAIN) --source $(OUT)/data/sdr --source $(OUT)/data/more --init $(OUT)/start/model.pt \
		--steps $(STEPS) --out $(OUT)/sdr

# iteration k: the network of k - 1 reads the target, its graphs become scenes, a network learns them. It grows from the
# start, not from k - 1, so that every row takes the same steps; random scenes stay in the mix, or it forgets what the
# mistakes leave out. label<k> does so without discriminators, appearance<k> with D_a; both begin with what the start reads
BEFORE = $(if $(filter 1,$(2)),start,$(1)$(shell expr $(2) - 1))
LIFTED = $(OUT)/data/$(if $(filter 1,$(2)),label,$(1))$(2)
define lift
$(OUT)/data/$(1)$(2)/dataset.json: $(OUT)/$(call BEFORE,$(1),$(2))/model.pt $(TARGET_READY)
	$(SYNTHESIZE) --checkpoint $$< --target $(TRAIN_IMAGES) --num $(LIFTED_NUM) --seed $(SEED) \
		--randomize $(PROTOCOL) $(LIFT_OPTIONS) $(VIEW) --out $(OUT)/data/$(1)$(2)
endef
define learn
$(OUT)/$(1)/model.pt: $(2)/dataset.json
	$(TRAIN) --source $(OUT)/data/sdr --source $(2) $(if $(3),--target $(TRAIN_IMAGES) --align $(3) --warmup $(WARMUP)) \
		--init $(OUT)/start/model.pt --steps $(STEPS) --out $(OUT)/$(1)
endef
$(foreach k,$(NUMBERS),$(eval $(call lift,label,$(k))))
$(foreach k,$(filter-out 1,$(NUMBERS)),$(eval $(call lift,appearance,$(k))))
$(foreach k,$(NUMBERS),$(eval $(call learn,label$(k),$(OUT)/data/label$(k))))
$(foreach k,$(NUMBERS),$(eval $(call learn,appearance$(k),$(call LIFTED,appearance,$(k)),appearance)))
# the last iteration once more, with D_a and D_c
$(eval $(call learn,full,$(call LIFTED,appearance,$(ITERATIONS)),appearance$(comma)prediction))

$(RUNS:%=$(OUT)/%/metrics.json): $(OUT)/%/metrics.json: $(OUT)/%/model.pt $(TARGET_READY)
	$(EVALUATE) --checkpoint $< --data $(TEST_IMAGES) $(VIEW) --out $(OUT)/$*

# --- tests, speed, faults ---------------------------------------------------------------------------------------------

test: .venv/ready
	$(RUN) -m pytest -q

bench: .venv/ready
	$(RUN) tests/bench.py
	$(RUN) tests/bench_raster.py

faults: .venv/ready
	$(RUN) tests/faults.py
	$(RUN) tests/kills.py

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q -r requirements.txt
	touch .venv/ready

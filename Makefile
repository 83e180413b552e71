# Sim2SG: `make loop` runs the whole experiment, `make test` the tests; the first use of either builds .venv.
#
#   make loop ENV=clevr ITERATIONS=2 PRESET=quick TARGET=/any/folder SEED=0 OUT=runs/clevr PROTOCOL=paper
#
# Every stage is a file target: an interrupted loop goes on where it stopped, a finished one only prints its table.

ENV ?= clevr
ITERATIONS ?= 2
PRESET ?= quick
SEED ?= 0
# a folder of images, better one of train/ and a labelled test/ or val/; without it a stand-in is rendered from DOMAIN
TARGET ?=
DOMAIN ?= target
# paper: the source as the paper draws it; strong: all that no scene graph holds is randomised, and colours augmented
PROTOCOL ?= paper
OUT ?= runs/$(ENV)
DEVICE ?= auto
PYTHON ?= python3

# images of the random source and of the stand-in; training steps before the first iteration, and of each iteration
SIZES_quick = 400 400 800 400
SIZES_paper = 1000 1600 10000 45000
SOURCE_NUM = $(word 1,$(SIZES_$(PRESET)))
TARGET_NUM = $(word 2,$(SIZES_$(PRESET)))
START_STEPS = $(word 3,$(SIZES_$(PRESET)))
STEPS = $(word 4,$(SIZES_$(PRESET)))

# --- where things are -------------------------------------------------------------------------------------------------

RUN = .venv/bin/python
# a loop in runs/x keeps its data sets in data/x, one anywhere else in OUT/data
DATA := $(if $(filter runs/%,$(OUT)),$(OUT:runs/%=data/%),$(OUT)/data)
STAND_IN := data/$(ENV)/$(DOMAIN)$(if $(filter quick,$(PRESET)),,-$(PRESET))
ifeq ($(TARGET),)
TRAIN_IMAGES := $(STAND_IN)/train
TEST_IMAGES := $(STAND_IN)/test
else
TRAIN_IMAGES := $(if $(wildcard $(TARGET)/train),$(TARGET)/train,$(TARGET))
TEST_IMAGES := $(firstword $(patsubst %/graphs.jsonl,%,$(wildcard $(TARGET)/test/graphs.jsonl $(TARGET)/val/graphs.jsonl)) $(TRAIN_IMAGES))
endif

SYNTHESIZE = $(RUN) synthesize.py --env $(ENV) --preset $(PRESET) --device $(DEVICE) --overwrite
RANDOMISE = --seed $(SEED) --randomise $(PROTOCOL)
TRAIN = $(RUN) train.py --preset $(PRESET) --seed $(SEED) --device $(DEVICE) --overwrite $(if $(filter strong,$(PROTOCOL)),--augment colour)
EVALUATE = $(RUN) evaluate.py --device $(DEVICE) --overwrite

NUMBERS := $(shell seq 1 $(ITERATIONS))
RUNS := 0 sdr $(NUMBERS) appearance full
total = $(shell expr $(ITERATIONS) \* $(STEPS))
OPTIONS = ENV=$(ENV) ITERATIONS=$(ITERATIONS) PRESET=$(PRESET) SEED=$(SEED) TARGET=$(TARGET) DOMAIN=$(DOMAIN) PROTOCOL=$(PROTOCOL) SIZES=$(SIZES_$(PRESET))

.PHONY: loop same-options test bench clean
.DELETE_ON_ERROR:
.SECONDARY:

# --- the loop ---------------------------------------------------------------------------------------------------------

loop: same-options $(RUNS:%=$(OUT)/%/metrics.json)
	$(RUN) evaluate.py --summary $(OUT)

# a folder holds one loop: other options would mix old stages with new ones
same-options: .venv/ready
	@mkdir -p $(OUT)
	@test -e $(OUT)/options.txt || echo "$(OPTIONS)" > $(OUT)/options.txt
	@test "$(OPTIONS)" = "$$(cat $(OUT)/options.txt)" || { echo "Error: $(OUT) was made with $$(cat $(OUT)/options.txt); choose another OUT or remove it" >&2; exit 4; }

# the stand-in for real images; the same one for every SEED of a loop
$(STAND_IN)/train $(STAND_IN)/test &: | .venv/ready
	$(SYNTHESIZE) --domain $(DOMAIN) --num $(TARGET_NUM) --seed 1 --out $(STAND_IN)

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
LABELLED := $(wildcard $(TARGET)/test/graphs.jsonl $(TARGET)/val/graphs.jsonl)
TEST_IMAGES := $(firstword $(LABELLED:/graphs.jsonl=) $(TRAIN_IMAGES))
endif

NUMBERS := $(shell seq 1 $(ITERATIONS))
LAST := $(lastword $(NUMBERS))
BEFORE_LAST := $(shell expr $(LAST) - 1)
RUNS := 0 sdr $(NUMBERS) appearance full
OPTIONS := ENV=$(ENV) ITERATIONS=$(ITERATIONS) PRESET=$(PRESET) SEED=$(SEED) TARGET=$(TARGET) DOMAIN=$(DOMAIN) \
	PROTOCOL=$(PROTOCOL)

SYNTHESIZE = $(RUN) synthesize.py --env $(ENV) --preset $(PRESET) --device $(DEVICE) --overwrite
TRAIN = $(RUN) train.py --preset $(PRESET) --device $(DEVICE) --seed $(SEED) --overwrite \
	$(if $(filter strong,$(PROTOCOL)),--augment colour)
EVALUATE = $(RUN) evaluate.py --device $(DEVICE) --overwrite

.PHONY: loop options test bench clean
.SECONDARY:

# --- the loop ---------------------------------------------------------------------------------------------------------

loop: options $(RUNS:%=$(OUT)/%/metrics.json)
	$(RUN) evaluate.py --summary $(OUT)

# a folder holds one loop: other options would mix old stages with new ones
options: .venv/ready
	@mkdir -p $(OUT)
	@test -e $(OUT)/options.txt || echo "$(OPTIONS)" > $(OUT)/options.txt
	@test "$(OPTIONS)" = "$$(cat $(OUT)/options.txt)" || { echo "Error: $(OUT) was made with $$(cat $(OUT)/options.txt);" \
		"choose another OUT, or remove $(OUT) and $(DATA)" >&2; exit 4; }

# the stand-in for real images, labelled; the same one for every SEED
$(STAND_IN)/test/dataset.json: | .venv/ready
	$(SYNTHESIZE) --domain $(DOMAIN) --num $(TARGET_NUM) --seed 1 --out $(STAND_IN)

# SDR: random scenes of the source domain
$(DATA)/sdr/dataset.json: | options
	$(SYNTHESIZE) --num $(SOURCE_NUM) --seed $(SEED) --randomise $(PROTOCOL) --out $(DATA)/sdr

# the start of the loop, trained on them
$(OUT)/0/model.pt: $(DATA)/sdr/dataset.json
	$(TRAIN) --source $(DATA)/sdr --steps $(START_STEPS) --out $(OUT)/0

# the baseline: SDR alone for as many steps as the whole loop takes
$(OUT)/sdr/model.pt: $(OUT)/0/model.pt
	$(TRAIN) --source $(DATA)/sdr --init $(OUT)/0/model.pt --steps $$(($(ITERATIONS) * $(STEPS))) --out $(OUT)/sdr

# iteration k of label alignment: the network of k - 1 reads the target, its graphs become scenes, the network learns them
define iteration
$(DATA)/$(1)/dataset.json: $(OUT)/$(2)/model.pt $(if $(TARGET),,$(STAND_IN)/test/dataset.json)
	$(SYNTHESIZE) --checkpoint $(OUT)/$(2)/model.pt --target $(TRAIN_IMAGES) --num $(LIFTED_NUM) \
		--seed $(SEED) --randomise $(PROTOCOL) --out $(DATA)/$(1)

$(OUT)/$(1)/model.pt: $(DATA)/$(1)/dataset.json
	$(TRAIN) --source $(DATA)/sdr --source $(DATA)/$(1) --init $(OUT)/$(2)/model.pt --steps $(STEPS) --out $(OUT)/$(1)
endef
$(foreach k,$(NUMBERS),$(eval $(call iteration,$(k),$(shell expr $(k) - 1))))

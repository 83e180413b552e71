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

# images of SDR, of the stand-in and of an iteration; training steps before the first iteration and in each
SOURCE_NUM := $(if $(filter quick,$(PRESET)),1500,1000)
TARGET_NUM := $(if $(filter quick,$(PRESET)),400,1600)
LIFTED_NUM := 500
START_STEPS := $(if $(filter quick,$(PRESET)),800,10000)
STEPS := $(if $(filter quick,$(PRESET)),300,45000)

# --- where things are -------------------------------------------------------------------------------------------------

RUN := .venv/bin/python
# a loop in runs/x keeps its data sets in data/x, one anywhere else in OUT/data
DATA := $(if $(filter runs/%,$(OUT)),$(OUT:runs/%=data/%),$(OUT)/data)
STAND_IN := data/$(ENV)/$(DOMAIN)$(if $(filter quick,$(PRESET)),,-$(PRESET))
ifeq ($(TARGET),)
TRAIN_IMAGES := $(STAND_IN)/train
TEST_IMAGES := $(STAND_IN)/test
READY := $(STAND_IN)/test/dataset.json
else
TRAIN_IMAGES := $(if $(wildcard $(TARGET)/train),$(TARGET)/train,$(TARGET))
LABELLED := $(wildcard $(TARGET)/test/graphs.jsonl) $(wildcard $(TARGET)/val/graphs.jsonl)
TEST_IMAGES := $(firstword $(LABELLED:/graphs.jsonl=) $(TRAIN_IMAGES))
READY :=
endif

NUMBERS := $(shell seq 1 $(ITERATIONS))
BEFORE_LAST := $(shell expr $(ITERATIONS) - 1)
RUNS := 0 sdr $(NUMBERS) appearance full
OPTIONS := ENV=$(ENV) ITERATIONS=$(ITERATIONS) PRESET=$(PRESET) SEED=$(SEED) TARGET=$(TARGET) DOMAIN=$(DOMAIN) \
PROTOCOL=$(PROTOCOL)

SYNTHESIZE := $(RUN) synthesize.py --env $(ENV) --preset $(PRESET) --device $(DEVICE) --overwrite
TRAIN := $(RUN) train.py --preset $(PRESET) --device $(DEVICE) --seed $(SEED) --overwrite \
$(if $(filter strong,$(PROTOCOL)),--augment colour)
EVALUATE := $(RUN) evaluate.py --device $(DEVICE) --overwrite

.PHONY: loop options test bench clean
.DELETE_ON_ERROR:

# --- the loop ---------------------------------------------------------------------------------------------------------

loop: $(RUNS:%=$(OUT)/%/metrics.json)
	$(RUN) evaluate.py --summary $(OUT)

# a folder holds one loop: other options would mix its old stages with new ones
options: .venv/ready
	@mkdir -p $(OUT)
	@test -e $(OUT)/options.txt || echo "$(OPTIONS)" > $(OUT)/options.txt
	@test "$(OPTIONS)" = "$$(cat $(OUT)/options.txt)" || { echo "Error: $(OUT) was made with $$(cat $(OUT)/options.txt);" \
		"choose another OUT, or remove $(OUT) and $(DATA)" >&2; exit 2; }

# the stand-in for real images, labelled, the same for every SEED
$(STAND_IN)/test/dataset.json: | options
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

# iteration k of label alignment: the network of k - 1 reads the target, its graphs become scenes, the network learns
# them; random scenes stay in the mix, or it forgets what its own mistakes leave out
define iteration
$(DATA)/$(1)/dataset.json: $(OUT)/$(2)/model.pt $(READY)
	$(SYNTHESIZE) --checkpoint $(OUT)/$(2)/model.pt --target $(TRAIN_IMAGES) --num $(LIFTED_NUM) --seed $(SEED) \
		--randomise $(PROTOCOL) --out $(DATA)/$(1)

$(OUT)/$(1)/model.pt: $(DATA)/$(1)/dataset.json
	$(TRAIN) --source $(DATA)/sdr --source $(DATA)/$(1) --init $(OUT)/$(2)/model.pt --steps $(STEPS) --out $(OUT)/$(1)
endef
$(foreach k,$(NUMBERS),$(eval $(call iteration,$(k),$(shell expr $(k) - 1))))

# the last iteration once more, with the discriminators
ALIGN_appearance := appearance
ALIGN_full := appearance,prediction
$(OUT)/appearance/model.pt $(OUT)/full/model.pt: $(OUT)/%/model.pt: $(DATA)/$(ITERATIONS)/dataset.json
	$(TRAIN) --source $(DATA)/sdr --source $(DATA)/$(ITERATIONS) --target $(TRAIN_IMAGES) --align $(ALIGN_$*) \
		--init $(OUT)/$(BEFORE_LAST)/model.pt --steps $(STEPS) --out $(OUT)/$*

$(RUNS:%=$(OUT)/%/metrics.json): $(OUT)/%/metrics.json: $(OUT)/%/model.pt $(READY)
	$(EVALUATE) --checkpoint $< --data $(TEST_IMAGES) --out $(OUT)/$*

# --- tests, speed -----------------------------------------------------------------------------------------------------

test: .venv/ready
	$(RUN) -m pytest -q

bench: .venv/ready
	$(RUN) tests/bench.py

clean:
	rm -rf data runs .pytest_cache .hypothesis

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q -r requirements.txt
	touch .venv/ready

# make loop    runs the whole experiment; `make -n loop` prints its commands. Options: see loop.sh.
# make test    runs the tests.
# make bench   measures speed.
# make faults  tries broken files, kills and full disks.
# The first use of any of them builds .venv.

PYTHON ?= python3
RUN := .venv/bin/python
DRY_RUN := $(if $(findstring n,$(firstword -$(MAKEFLAGS))),--dry-run)

.PHONY: loop test bench faults

# loop.sh finds variables of the command line, such as ENV=dining, in its environment
loop: .venv/ready
	+@sh loop.sh $(DRY_RUN)

test: .venv/ready
	$(RUN) -m pytest -q -n 2

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

# make demo, make test: all that is needed is Python >= 3.11 and make.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
H = $(BIN)/python -m hpc_isl.submit
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11
# Further words for steps: make demo PLATE='--wells 6' PRETRAIN='train.steps=20' SWEEP='train.steps=5' SITE='site.cpus=1'; make test PYTEST='-k store';
# make slurm-start CLUSTER='--nodes 4'
PLATE :=
# Wells whose nuclei are taught; those of row E are counted by a model that has not seen them.
TAUGHT := fields=[B02,B03,B04,B05,B06,B07,C02,C03,C04,C05,C06,C07,D02,D03,D04,D05,D06,D07]
PRETRAIN :=
SWEEP :=
SITE :=
CLUSTER :=
# Test files that run side by side.
JOBS := 2
PYTEST :=

.PHONY: help setup demo test peers slurm-test slurm-start slurm-stop lint lock clean

help:
	@echo "make demo          a synthetic plate -> OME-Zarr -> pretrained model -> segmentation from one field -> every nucleus, in demo/"
	@echo "make test          lint, types, spelling, tests"
	@echo "make peers         plates written by ngio, ome-zarr-py and iohub through every verb, and exports read by other libraries; installs these"
	@echo "make slurm-test    the tests that need a real Slurm; they bring up their own"
	@echo "make slurm-start   a real Slurm of two nodes on this machine, to use with --site testcluster"
	@echo "make slurm-stop    end it, and remove all of it"
	@echo "make setup         .venv, with every dependency as requirements.txt and requirements-test.txt lock it"
	@echo "make lint          ruff, mypy and spelling alone"
	@echo "make lock          resolve the dependencies of pyproject.toml anew into requirements.txt and requirements-test.txt"
	@echo "make clean         remove the environment and the demo"

setup: .venv/.ready

.venv/.ready: requirements.txt requirements-test.txt requirements-uv.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-uv.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes \
		-r requirements.txt -r requirements-test.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	rm -rf demo
	$(BIN)/python -m hpc_isl.stages.synthetic demo/export $(PLATE)
	$(H) convert source=demo/export out=demo/plate.zarr plate_map=demo/export/plate_map.csv site.runs=demo/runs $(SITE)
	$(H) annotate import demo/export/truth/nuclei plate=demo/plate.zarr labels=nuclei $(TAUGHT) site.runs=demo/runs $(SITE)
	$(H) annotate import demo/export/truth/nuclei plate=demo/plate.zarr labels=truth site.runs=demo/runs $(SITE)
	$(H) inspect demo/plate.zarr
	$(H) pretrain demo.yaml --name demo site.runs=demo/runs $(SITE) $(PRETRAIN)
	$(H) sweep demo_sweep.yaml --name nuclei site.runs=demo/runs site.cpus=1 $(SITE) $(SWEEP)
	$(H) report nuclei --root demo/runs
	$(H) segment model=nuclei plates=[demo/plate.zarr] labels=predicted 'reference_labels={labels: truth}' --name objects site.runs=demo/runs $(SITE)
	$(H) table objects out=demo/wells.csv --root demo/runs
	@echo
	@echo "What was made, below demo/:"
	@echo "  export/                     a plate as an Opera Phenix writes it, and the truth about its cells"
	@echo "  plate.zarr                  the same as OME-Zarr 0.5, with nuclei of rows B to D as labels, and all of them as truth"
	@echo "  runs/pretrain/demo/         the run: recipe, split, checkpoints, metrics, and"
	@echo "    model/                    the model: weights and its contract"
	@echo "    scores.csv                PCC, MAE and SSIM of each held-out field"
	@echo "    pictures/examples.png     source, target, prediction side by side"
	@echo "    stain.zarr                the virtual stain of the held-out wells"
	@echo "Mean PCC of held-out fields:  $$($(BIN)/python -c 'import json; \
	print(round(json.load(open("demo/runs/pretrain/demo/done/pretrain.json"))["figures"]["pcc"], 3))')"
	@echo "  runs/sweep/nuclei/          nuclei from 1 and 3 annotated fields, with and without pretraining, and"
	@echo "    report/report.html        what it shows: open it in a browser"
	@echo "  runs/segment/objects/       every nucleus of the plate: labels in plate.zarr, a table of features, and"
	@echo "    pictures/               outlines, counts against the truth, the plate as a heat map"
	@echo "  wells.csv                 counts per well, with treatments"
	@echo "To see it all in MLflow:      $(H) ui --root demo/runs"

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell README.md CHANGELOG.md docs/*.md docs/study hpc_isl configs slurm benchmarks findings Makefile
	$(BIN)/mypy

test: lint
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder --durations 40 $(PYTEST)

# iohub needs Python 3.12: make peers PEER_PYTHON=python3.12
PEER_PYTHON := python3.12
peers: setup
	for peer in ngio==1.1.3 ome-zarr==0.18.0 iohub==0.3.11; do \
		$(BIN)/uv venv --quiet --allow-existing --python $(PEER_PYTHON) .peers/$${peer%%==*} && \
		$(BIN)/uv pip install --quiet --python .peers/$${peer%%==*}/bin/python $$peer || exit 1; done
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .peers/shapely
	$(BIN)/uv pip install --quiet --python .peers/shapely/bin/python shapely==2.2.0 geojson==3.3.0
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .peers/bioimageio
	$(BIN)/uv pip install --quiet --python .peers/bioimageio/bin/python bioimageio.core==0.11.0 bioimageio.spec==0.5.12.0 \
		onnx==1.23.2 onnxruntime==1.32.0 'pydantic<2.13' numpy==$$($(BIN)/python -c 'import numpy; print(numpy.__version__)')
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .peers/scanpy
	$(BIN)/uv pip install --quiet --python .peers/scanpy/bin/python scanpy==1.11.5
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$(.peers/bioimageio/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .peers/cp_measure
	$(BIN)/uv pip install --quiet --python .peers/cp_measure/bin/python cp-measure==0.3.0 \
		numpy==$$($(BIN)/python -c 'import numpy; print(numpy.__version__)')
	cp $$(.peers/bioimageio/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth \
		$$(.peers/cp_measure/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	.peers/cp_measure/bin/python -m pytest tests/objects/test_feature_groups.py tests/stages/test_measurements.py $(PYTEST)
	HPC_ISL_PEERS=.peers $(BIN)/pytest tests/peers $(PYTEST)

slurm-test: setup
	$(BIN)/pytest tests/slurm $(PYTEST)

slurm-start: setup
	$(BIN)/python slurm/testcluster/testcluster.py start $(CLUSTER)

slurm-stop: setup
	$(BIN)/python slurm/testcluster/testcluster.py stop

# All are resolved together first, so that what users install is what is tested. The extra `features` is not among
# them: it would hold Pillow below 12 for everybody.
TESTED := --extra test --extra onnx
lock: setup
	echo uv | $(LOCK) -o requirements-uv.txt -
	$(LOCK) $(TESTED) pyproject.toml -o .lock-all.txt
	$(LOCK) --constraint .lock-all.txt pyproject.toml -o requirements.txt
	$(LOCK) --constraint .lock-all.txt $(TESTED) pyproject.toml -o requirements-test.txt \
		$$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.txt | sort -u)
	rm .lock-all.txt

clean:
	rm -rf .venv .peers demo

# Depth from one camera, for ROS 2. No ROS installation is needed for anything here.
#
#   make demo                 the real node on a clip rendered on the spot -> demo_out/
#   make demo SOURCE=PATH     the same on a folder, a video or a bag of yours
#   make test                 everything
#   make soak                 ten minutes at full rate: the node's memory must not grow
#   make fuzz                 100,000 malformed messages, 1,000 random parameter sets: six minutes
#   make lint | clean | distclean
#
# PYTHON=python3.12   the interpreter to build on (3.10 or newer)
# ROS=ros-jazzy       Jazzy's packages from PyPI instead of Kilted's, in a .venv of their own
# ARGS="-k geometry"  for pytest

PYTHON ?= python3
ROS ?= ros
VENV ?= $(if $(filter ros,$(ROS)),.venv,.venv-$(ROS))
OUT ?= demo_out
SOURCE ?=
ARGS ?=

ifeq ($(filter ros ros-jazzy,$(ROS)),)
$(error ROS=$(ROS) is not known: expected ros (Kilted) or ros-jazzy)
endif

# A sourced ROS installation would be found before the packages in the venv and mix with them.
unexport PYTHONPATH PYTHONHOME LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
unexport ROS_DISTRO ROS_LOCALHOST_ONLY RMW_IMPLEMENTATION FASTDDS_DEFAULT_PROFILES_FILE
unexport FASTRTPS_DEFAULT_PROFILES_FILE _ROS_WHEELS_BOOTSTRAP_COMPLETE
# What is installed is what runs, not the sources in the current folder (Python 3.11 and newer).
export PYTHONSAFEPATH = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export ROS_AUTOMATIC_DISCOVERY_RANGE = LOCALHOST

BIN = $(VENV)/bin
# A domain of its own for every run, so that two of them, or a robot, never meet.
GRAPH = ROS_DOMAIN_ID=$$(( $$$$ % 90 + 10 ))
SOURCES = $(shell find vlm_depth_ros launch config resource -name __pycache__ -prune -o -print) \
	package.xml setup.cfg

.PHONY: help demo soak fuzz test lint venv clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
ifeq ($(SOURCE),)
	@rm -rf '$(OUT)/clip'
	$(BIN)/vlm-depth synthetic '$(OUT)/clip' --clip --count 40 --size 480x640 --seed 4
endif
	$(GRAPH) $(BIN)/python -m vlm_depth_ros.ros.demo --out '$(OUT)' --source '$(or $(SOURCE),$(OUT)/clip)'
	$(BIN)/vlm-depth report '$(OUT)/depth.mcap' --out '$(OUT)' --check

# Ten minutes at full rate; MINUTES=60 for an hour.
soak: $(VENV)/.installed
	@test -d '$(OUT)/clip' || $(BIN)/vlm-depth synthetic '$(OUT)/clip' --clip --count 40 --size 480x640 --seed 4
	$(GRAPH) $(BIN)/python -m vlm_depth_ros.ros.soak --out '$(OUT)' --source '$(or $(SOURCE),$(OUT)/clip)' --minutes $(or $(MINUTES),10)

fuzz: $(VENV)/.installed
	$(GRAPH) VLM_DEPTH_FUZZ=1 VLM_DEPTH_INSTALLED=1 OMP_NUM_THREADS=1 $(BIN)/pytest -rP \
		test/test_fuzz_messages.py test/test_ros_fuzz.py $(ARGS)

# Three processes for two cores, as many tests wait for a graph; one that is done takes from the
# queue of another. Tests that keep time run alone, afterwards. 5: none was selected.
test: $(VENV)/.installed
	@failed=0; \
	$(GRAPH) VLM_DEPTH_INSTALLED=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal \
		-m 'not alone' $(ARGS) || [ $$? -eq 5 ] || failed=1; \
	$(GRAPH) VLM_DEPTH_INSTALLED=1 $(BIN)/pytest -m alone \
		$$(grep -l 'mark\.alone' test/test_*.py) $(ARGS) || [ $$? -eq 5 ] || failed=1; \
	exit $$failed

lint: $(VENV)/.lint
	$(BIN)/ruff check .

venv: $(VENV)/.installed

# An interrupted step leaves no stamp, and is done again.
$(VENV)/.created:
	@command -v '$(PYTHON)' >/dev/null || \
		{ echo 'make: $(PYTHON) is not there: sudo apt install python3 python3-venv' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: $$('$(PYTHON)' -V) is too old: use PYTHON=python3.10 or newer" >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'make: $(PYTHON) cannot make virtual environments: sudo apt install python3-venv' >&2; exit 1; }
	'$(PYTHON)' -m venv '$(VENV)'
	@touch $@

$(VENV)/.dependencies: setup.py $(VENV)/.created
	@echo 'Installing into $(VENV): PyTorch and ROS 2 packages, about 5.5 GB and two minutes, once.'
	@rm -rf build/lib build/bdist.* *.egg-info
	$(BIN)/pip install 'setuptools>=70.1' '.[$(ROS),test]'
	@touch $@

# The package alone, in seconds. Not editable: that would leave out share/ (launch files, config).
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	@rm -rf build/lib build/bdist.* *.egg-info
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	@touch $@

$(VENV)/.lint: setup.py $(VENV)/.created
	$(BIN)/pip install --quiet 'ruff>=0.9,<1'
	@touch $@

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache '$(OUT)'
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	@test ! -e '$(VENV)' -o -e '$(VENV)/pyvenv.cfg' || { echo 'make: $(VENV) is no venv' >&2; exit 1; }
	rm -rf '$(VENV)'

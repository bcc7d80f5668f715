# Everything here can be done without make as well: see ./start and docs/developing.md.
VENV := $(or $(VENV),$(PASSTHRU_VENV),.venv)
export PASSTHRU_VENV := $(abspath $(VENV))
PYTHON = $(PASSTHRU_VENV)/bin/python
PYTEST = $(PYTHON) -m pytest $(ARGS)

# A debug build is a tree of its own, so that it is never mixed up with the build in place, and
# so that the tests in it find no other: build/debug and build/asan.
SOURCES = setup.py pyproject.toml README.md LICENSE man passthru tests
COPY = tar -cf - --exclude='*.c' --exclude='*.so' --exclude=__pycache__ $(SOURCES) | tar -xf - -C
BUILD = $(PYTHON) setup.py -q build_ext --inplace

# The address sanitizer has to be the first library of each process that loads the extensions: the
# daemons and the tests' own Python, which is therefore build/asan/python; programs that the tests
# start besides go without (build/asan/sitecustomize.py).
define ASAN_PYTHON
#!/bin/sh
LIBS="$$(${CC} -print-file-name=libasan.so) $$(${CC} -print-file-name=libubsan.so)"
export LD_PRELOAD="$$LIBS" PYTHONPATH="$(abspath build/asan)" PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
exec $(PYTHON) "$$@"
endef
define ASAN_SITE
import os, sys
os.environ.pop("LD_PRELOAD", None)
sys.executable = "$(abspath build/asan/python)"
endef
export ASAN_PYTHON ASAN_SITE

.PHONY: build debug debug-asan test test-unit test-kernel coherent survive test-debug test-asan mutants bench man lint deb clean run

build:
	./start --setup

run:
	./start

debug:
	./start --setup test
	mkdir -p build/debug
	$(COPY) build/debug
	cd build/debug && PASSTHRU_DEBUG=1 $(BUILD)

debug-asan:
	./start --setup test
	mkdir -p build/asan
	$(COPY) build/asan
	cd build/asan && PASSTHRU_DEBUG=1 PASSTHRU_SANITIZE=1 $(BUILD)
	echo "$$ASAN_SITE" >build/asan/sitecustomize.py
	echo "$$ASAN_PYTHON" >build/asan/python
	chmod +x build/asan/python

test:
	./start --test $(ARGS)

test-unit:
	./start --test tests/unit $(ARGS)

test-kernel:
	./start --test tests/kernel $(ARGS)

# A million changes beside mounts, of which none may be missed; some hours.
coherent:
	PASSTHRU_TEST_CHANGES=$(or $(CHANGES),125000) ./start --test tests/kernel/test_coherent.py -k random_changes -s $(ARGS)

survive:
	PASSTHRU_TEST_KILLS=$(or $(KILLS),500) ./start --test tests/kernel/test_takeover.py -k under_load -s --timeout=3600 $(ARGS)

test-debug: debug
	cd build/debug && PYTHONPATH=$(abspath build/debug) $(PYTEST)

test-asan: debug-asan
	cd build/asan && ./python -m pytest $(ARGS)

mutants:
	./start --setup test
	$(PYTHON) tools/mutants $(ARGS)

bench:
	./start --setup test
	$(PYTHON) -m pytest bench -q $(ARGS)

man:
	./start --setup
	$(PYTHON) man/make.py
	$(PYTHON) docs/modules.py

lint:
	./start --setup lint
	PATH="$(PASSTHRU_VENV)/bin:$$PATH" ruff check .
	PATH="$(PASSTHRU_VENV)/bin:$$PATH" cython-lint passthru
	$(PYTHON) -m mypy
	$(PYTHON) man/make.py --check
	$(PYTHON) docs/modules.py --check

deb:
	tools/deb

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .benchmarks
	rm -f passthru/*.c passthru/*.so
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

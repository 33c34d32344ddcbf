# peertalk: every target makes its own .venv when it is missing, and needs Python 3.11 or later, a C compiler and make. `make help` lists them.
#
# Extension modules are built once for each kind into build/native/KIND and copied into peertalk/_core/: "debug" (assertions on) for the tests,
# "release" for what is measured. The sanitizer kinds live in copies of the tree under build/sanitize and never touch this one.

PYTHON ?= python3
DEMO_PATH ?=
TEST_ARGS ?=
MUTANTS ?=
FUZZ_RUNS ?= 10000000
STORM_SECONDS ?= 600
EXITS ?= 1000
CLANG ?= clang
GCC ?= gcc

PY := .venv/bin/python
PROCESSORS := $(shell getconf _NPROCESSORS_ONLN)
SOURCES := $(wildcard csrc/*/*.c csrc/*/*.h) build_ffi.py
C_FILES := $(wildcard csrc/*/*.c)
FORMATTED_C := $(wildcard csrc/*/*.[ch] bench/*.c tests/c/*.[ch] tests/c/*/*.[ch] tests/fuzz/*.[ch])
C_WARNINGS := -std=c11 -Wall -Wextra -Wconversion -Wshadow -Wpedantic -Werror
C_INCLUDES := -Icsrc/core -Icsrc/sim -Icsrc/classic -Icsrc/platform -Icsrc/border
SANITIZERS := address thread

# What each needs of the system, by the one script that installs it.
TOOLS_lint := $(GCC) $(CLANG) clang-tidy cppcheck
TOOLS_sanitize := $(GCC) gcc-sanitizers
TOOLS_fuzz := $(CLANG) clang-sanitizers
TOOLS_vintage := # and those of the parts, which tests/vintage/run.py asks the same script for

.PHONY: tools-lint tools-sanitize tools-fuzz tools-vintage
tools-lint tools-sanitize tools-fuzz tools-vintage: tools-%:
	@GCC=$(GCC) CLANG=$(CLANG) .ci/packages $(PYTHON) $(TOOLS_$*)

.PHONY: help demo test bench soak mutants storm exits vintage format lint lint-python lint-c sanitize sanitize-address sanitize-thread fuzz release debug clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: release ## two processes find each other and exchange files; DEMO_PATH=folder chooses which
	@exec .venv/bin/peertalk demo $(DEMO_PATH)

# Without bytecode each process would compile, and pytest rewrite, every module again: a third of the time of the tests.
export PYTHONDONTWRITEBYTECODE :=

# Each process of the tests would also rewrite each changed module by itself, and find out for Hypothesis which characters there are: one does so before.
build/rewritten: $(wildcard tests/*.py tests/*/*.py) .venv/made
	@mkdir -p build
	@$(PY) -m pytest tests --collect-only -qq >/dev/null || true
	@$(PY) -c 'from hypothesis import strategies; strategies.text().validate()'
	@touch $@

test: .venv/made ## the whole suite, with assertions on in C; TEST_ARGS="-k words" narrows it
	@$(MAKE) --no-print-directory --jobs $(PROCESSORS) debug build/rewritten
	$(PY) -m pytest tests -n 4 --dist loadfile $(TEST_ARGS)

bench: release .venv/bench ## C against the reference core, then against other libraries
	.venv/bin/peertalk bench
	$(PY) bench/versus.py

soak: debug ## the long form of the tests that have one: millions of calls and messages, an hour or two; TEST_ARGS="-n 2" shares them
	PEERTALK_SOAK=1 $(PY) -m pytest tests -m soak -o faulthandler_timeout=15000 $(TEST_ARGS)

# MUTANTS="--today" plants ten of them, others each day.
mutants: debug ## faults of one line, planted one at a time: which of them does no test notice? MUTANTS="frame-crc pool-aba" narrows it
	$(PY) tests/mutants/run.py $(MUTANTS)

storm: debug ## threads, forks and signals, all at once, for STORM_SECONDS: on asyncio nodes, then on sync ones (make soak has both)
	$(PY) tests/storm.py $(STORM_SECONDS)
	$(PY) tests/storm_sync.py $(STORM_SECONDS)

exits: debug ## EXITS processes that end with live workers, at random moments (make soak has 1,000)
	$(PY) tests/exits.py $(EXITS)

# The parts are named in tests/vintage/run.py; what it measures and the output of the far Python stay in build/vintage.
vintage: tools-vintage .venv/made ## the core on other machines: big-endian ones, a true 68000, Windows, musl, macOS; VINTAGE="m68k 68000" narrows it
	$(PY) tests/vintage/run.py $(VINTAGE)

format: .venv/lint ## lay out Python and C as make lint wants it
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(FORMATTED_C)

lint: tools-lint lint-python lint-c ## layout, ruff, mypy --strict, and the C with gcc, clang, clang-tidy and cppcheck, warnings as errors

lint-python: .venv/lint
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(FORMATTED_C)
	@! grep -nE '^.{160}' *.md docs/*.md bench/*.md tests/*.md || { echo "a line of Markdown has 160 characters or more"; exit 1; }
	.venv/bin/ruff check .
	.venv/bin/mypy --strict peertalk

lint-c: tools-lint .venv/made
	@set -e; python=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	each() { printf '%s\n' $(C_FILES) | xargs -P $(PROCESSORS) "$$@"; }; \
	for size in "" -DPT_LOWMEM; do for checks in -DNDEBUG -DPT_ASSERTIONS=1; do \
	    for compiler in "$(GCC) -O2 -c -o /dev/null" "$(CLANG) -fsyntax-only"; do \
	        echo "$$compiler $$size $$checks: $(words $(C_FILES)) files"; \
	        each -n 1 $$compiler $(C_WARNINGS) $$size $$checks $(C_INCLUDES) -isystem $$python -DPy_LIMITED_API=0x030B0000; \
	    done; done; \
	    echo "clang-tidy $$size"; \
	    each -I FILE clang-tidy --quiet FILE -- -std=c11 $$size -DPT_ASSERTIONS=1 $(C_INCLUDES) -isystem $$python -DPy_LIMITED_API=0x030B0000 2>/dev/null; \
	    echo "cppcheck $$size"; \
	    cppcheck --quiet -j $(PROCESSORS) --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 $$size -D__GNUC__=12 -D__x86_64__=1 $(C_INCLUDES) $(C_FILES); \
	done

# UBSan says nothing about signed overflow under Python's -fwrapv, and its -DNDEBUG takes assertions away: build_ffi.py turns both back.
# PYTHONMALLOC=malloc lets AddressSanitizer see each object; tests/lsan.supp names what the interpreter itself keeps. Under ThreadSanitizer uvloop stays
# out: its own code was built without, so each of its locks would be invisible and each report about it false. Reports go to files, because one from a
# child process counts as much (children look for no leaks: tests/conftest.py); libubsan knows only standard error, so pytest leaves that alone (--capture=sys).
# tests/tsan.supp names what glibc itself does with the memory of a thread that has ended.
sanitize: sanitize-address sanitize-thread ## the suite under Address-, UndefinedBehavior- and LeakSanitizer; threads under ThreadSanitizer

SANITIZED_address = LD_PRELOAD="$$($(GCC) -print-file-name=libasan.so) $$($(GCC) -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
    ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:malloc_context_size=12:log_path=$(CURDIR)/build/sanitize/address.report \
    UBSAN_OPTIONS=print_stacktrace=1 \
    LSAN_OPTIONS=suppressions=$(CURDIR)/tests/lsan.supp:print_suppressions=0
SANITIZED_thread = LD_PRELOAD="$$($(GCC) -print-file-name=libtsan.so)" \
    TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$(CURDIR)/tests/tsan.supp:log_path=$(CURDIR)/build/sanitize/thread.report
SUITE_address := -m "not unsanitized and not source"
SUITE_thread := -m "threads and not uvloop and not unsanitized and not source"

$(SANITIZERS:%=sanitize-%): sanitize-%: tools-sanitize build/native/%/made
	@rm -rf build/sanitize/$* build/sanitize/$*.report.*; mkdir -p build/sanitize/$*
	@tar -c --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./dist --exclude='*.so' . | tar -x -C build/sanitize/$*
	@cp build/native/$*/*.so build/sanitize/$*/peertalk/_core/
	cd build/sanitize/$* && status=0; PYTHONPATH=$(CURDIR)/build/sanitize/$* PEERTALK_SANITIZER=$* $(SANITIZED_$*) \
	    $(CURDIR)/$(PY) -m pytest tests -n 3 --dist loadfile -p no:cacheprovider --capture=sys --timeout=400 -o faulthandler_timeout=600 $(SUITE_$*) $(TEST_ARGS) || status=$$?; \
	for report in $(CURDIR)/build/sanitize/$*.report.*; do \
	    if test -s $$report; then echo "== $$report"; cat $$report; status=1; fi; done; exit $$status

FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

fuzz: $(FUZZ_TARGETS:%=fuzz-%) ## libFuzzer on each decoder, with -j side by side; FUZZ_RUNS inputs over all of them; what it finds stays in build/fuzz
	@test -n "$(FUZZ_TARGETS)" || { echo "no fuzz targets in tests/fuzz"; exit 1; }

$(FUZZ_TARGETS:%=fuzz-%): fuzz-%: tools-fuzz build/fuzz/%
	@set -e; runs=$$(( ($(FUZZ_RUNS) + $(words $(FUZZ_TARGETS)) - 1) / $(words $(FUZZ_TARGETS)) )); \
	mkdir -p build/fuzz/found/$* tests/fuzz/corpus/$*; echo "fuzz $*: $$runs inputs"; \
	build/fuzz/$* -runs=$$runs -max_len=20000 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix=build/fuzz/$*- build/fuzz/found/$* tests/fuzz/corpus/$* 2>build/fuzz/$*.log || { tail -40 build/fuzz/$*.log; exit 1; }; \
	sed -n -E 's/^stat::(number_of_executed_units|average_exec_per_sec)/$*: \1/p' build/fuzz/$*.log

.PHONY: $(FUZZ_TARGETS:%=fuzz-%)
FUZZED = $(CLANG) -std=c11 -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=undefined -DPT_ASSERTIONS=1 -Icsrc/core
FUZZED_CORE := $(patsubst csrc/core/%.c,build/fuzz/core/%.o,$(wildcard csrc/core/*.c))

$(FUZZED_CORE): build/fuzz/core/%.o: csrc/core/%.c $(SOURCES)
	@mkdir -p build/fuzz/core
	@$(FUZZED) -fsanitize=fuzzer-no-link,address,undefined -c $< -o $@

build/fuzz/%: tests/fuzz/fuzz_%.c $(FUZZED_CORE) $(wildcard tests/fuzz/*.h)
	$(FUZZED) -fsanitize=fuzzer,address,undefined $< $(FUZZED_CORE) -o $@

release debug: %: build/native/%/made
	@install -m 755 build/native/$*/*.so peertalk/_core/

build/native/%/made: $(SOURCES) .venv/made
	@mkdir -p build/native/$*
	PEERTALK_BUILD=$(filter-out release,$*) PT_LOWMEM= $(if $(filter $(SANITIZERS),$*),CC=$(GCC) LDSHARED="$(GCC) -shared") $(PY) build_ffi.py build/native/$*
	@touch $@

# Modules are compiled by whoever imports them first: most of what is installed nobody ever does.
INSTALL := install --quiet --no-compile

# The project is installed as a link to this tree, without its extension modules: those are copied in by the kinds above. What builds it is in the group
# test, so pip need not install that once more, apart. The pip of $(PYTHON), where it has one, puts the new one here in a third of the time of ensurepip.
.venv/made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "peertalk needs Python 3.11 or later and $(PYTHON) is not: say which with make PYTHON=python3.11"; exit 1; }
	@$(PY) -c '' 2>/dev/null || $(PYTHON) -m venv --without-pip --clear .venv
	@$(PYTHON) -m pip --python $(PY) $(INSTALL) "pip>=25.1" 2>/dev/null || { $(PY) -m ensurepip >/dev/null; $(PY) -m pip $(INSTALL) "pip>=25.1"; }
	$(PY) -m pip $(INSTALL) --group test
	PEERTALK_BUILD=none PYTHONWARNINGS=ignore $(PY) -m pip $(INSTALL) --no-build-isolation --editable ".[cli,uvloop]"
	@touch $@

.venv/lint .venv/bench .venv/release: .venv/%: .venv/made
	$(PY) -m pip $(INSTALL) --group $*
	@touch $@

clean: ## forget everything that was built, .venv included
	rm -rf .venv build dist wheelhouse *.egg-info peertalk/_core/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

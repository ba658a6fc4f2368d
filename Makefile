# Every target works in a fresh clone: nothing is taken from the environment but PATH. `make test` is what CI runs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

# A service account may have no HOME; Go then has no place for its caches. The underscore keeps ./... out of there.
ifeq ($(strip $(HOME)),)
export HOME := $(CURDIR)/build/_home
endif

# A clone owned by another user or a source archive has no usable version control data; a build must not fail for that.
export GOFLAGS := -buildvcs=false
export GOTOOLCHAIN := local
export CGO_ENABLED := 0

GO ?= go
# sbin: mkfs and losetup are outside a normal user's PATH on Debian.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

# Whole systems: real processes, whole sites in one process. They find interleavings by load and kill points, which the
# race detector's slowdown hides; the packages below them run with it.
SYSTEM  := ./test/... ./internal/demo/... ./cmd/...
FUZZ    ?= 60s
SOAK    ?= 1h
FLAPS   ?= 1000
BENCH   ?=
HISTORIES := TestCrashKeeps|TestQueueCrash|TestFillOnQueue|TestIntervalsAreCuts|TestResizeUnderLoad|TestSuspendHolds

.PHONY: all build demo test tools format vet unit histories system fuzz fuzz-slice soak flaps links campaigns bench lint clean

all: build

build:
	$(GO) build -o bin/gantline ./cmd/gantline

demo: build
	bin/gantline demo $(DEMO)

test: tools format vet build unit histories system fuzz-slice

# Installs the clients and peers that the tests drive, if they are not there.
tools:
	scripts/tools.sh

format:
	@bad=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard -- '*.go' 2>/dev/null || find . -name '*.go')); \
	if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi

vet:
	$(GO) vet ./...

# The race detector needs cgo, hence a C compiler; scripts/tools.sh sees to it. Most tests of the node wait: four at once.
unit:
	GO=$(GO) CGO_ENABLED=1 scripts/gotest.sh -race -parallel 4 -timeout 20m $$($(GO) list ./internal/... ./bench/... | grep -v -e /internal/demo$$)

# The random histories of the log and the copies at full length: without the race detector, which met a part of them above.
histories:
	GO=$(GO) GANTLINE_CAMPAIGN=1 scripts/gotest.sh -count=1 -timeout 15m -run '$(HISTORIES)' ./internal/volume ./internal/node

# bin/gantline is what these start. Most of a system's time is waiting: four at once. A pattern without packages is left out,
# for a tree that has only some of them.
system: build
	pkgs=$$($(GO) list $(SYSTEM) 2>/dev/null); \
	if [ -n "$$pkgs" ]; then GO=$(GO) GANTLINE_BIN=$(CURDIR)/bin/gantline scripts/gotest.sh -count=1 -p 1 -parallel 4 -timeout 25m $$pkgs; fi

# Every fuzz target in turn: make fuzz FUZZ=10m
fuzz:
	scripts/fuzz.sh $(FUZZ)

# By count, not by time: Go's fuzzer sometimes calls its own deadline a failure.
fuzz-slice:
	scripts/fuzz.sh 5000x

# Whole systems over and over with new seeds until the time is over or something fails: make soak SOAK=8h
soak: build tools
	scripts/soak.sh $(SOAK)

# The copy link cut a thousand times under load; `make test` has a slice of it: make flaps FLAPS=10000
flaps:
	GANTLINE_FLAPS=$(FLAPS) $(GO) test -count=1 -timeout 2h -run Flaps -v ./internal/node

# Each link between two processes of a move, cut both ways and one way, at each of its steps; `make test` has three rows by chance:
# make links ROWS=a-b-both
ROWS    ?=
links:
	GANTLINE_CAMPAIGN=1 GANTLINE_LINK=$(ROWS) $(GO) test -count=1 -timeout 3h -parallel 4 -run TestMoveCutLinks -v ./test/powerloss

# All rows of tests of which `make test` runs some by chance, or none, but for those of `make links`: each kill point, power cut at each
# call, long histories. Hours: make campaigns CAMPAIGNS=Carry
CAMPAIGNS ?=
campaigns: build tools
	GANTLINE_CAMPAIGN=1 GANTLINE_BIN=$(CURDIR)/bin/gantline $(GO) test -count=1 -p 1 -timeout 8h -parallel 3 -run '$(CAMPAIGNS)' \
		-skip TestMoveCutLinks ./internal/volume ./internal/node ./test/processes ./test/powerloss

# Ourselves beside nbdkit, qemu-nbd and blockdev-mirror in one run: make bench BENCH='-run write -runs 5'
bench: build tools
	$(GO) run ./bench -gantline bin/gantline $(BENCH)

lint:
	scripts/lint.sh

clean:
	[ ! -d build ] || chmod -R u+w build # Go's module cache is read-only
	rm -rf bin build

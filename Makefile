# netverdict. `make` alone prints what there is.
#
# Every target works on a new Debian 12 machine that has Go and make: what else
# it needs, it installs (as root). Variables can be set on the command line:
# make unit PKGS=./policy/...

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.NOTPARALLEL:            # targets that use the kernel or measure share one machine
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PKGS      ?= ./...
FUZZTIME  ?= 10s
BENCH     ?= .
COUNT     ?= 6
BENCHTIME ?= 1s
BENCHFILE ?= bench/results/$(shell date -u +%Y-%m-%d)-$(shell git rev-parse --short HEAD 2>/dev/null || echo local).txt

# What enforcing needs: iptables and ipset are run, ip and conntrack are for people
# (and the demo). ca-certificates: Go fetches modules over HTTPS.
DEPS      := iptables ipset iproute2 conntrack ca-certificates
# What testing needs besides: the race detector is C.
TEST_DEPS := gcc libc6-dev git nftables

# One static binary, and one set of compiled packages for all but the race detector.
export CGO_ENABLED := 0

TOOL    := go tool -modfile=.ci/tools/go.mod
RESULTS := bin/results

# Every package is tested once. Those that start goroutines are tested under the
# race detector, the pure ones without it. Those whose tests make network
# namespaces are found by what they import. No cached result is taken where the go
# command cannot see what a test depends on: the kernel, or (purity) go list.
RACY    := ./engine/... ./kube/... ./bench/netlab/... ./cmd/...
NETNS   := github.com/vishvananda/netns
LIST     = $(shell go list -e $(1))
# having(Prefix) is the packages of PKGS whose tests have functions of that name.
having   = $(filter $(call LIST,$(PKGS)),$(call LIST,$(sort $(dir $(shell grep -rl '^func $(1)[A-Z_]' --include='*_test.go' .)))))
TESTED   = $(sort $(foreach prefix,Test Fuzz Example,$(call having,$(prefix))))
NETTESTS = $(patsubst %.test,%,$(call LIST,-test -f '{{range .Deps}}{{if eq . "$(NETNS)"}}{{$$.ImportPath}}{{end}}{{end}}' $(PKGS)))
KERNEL   = $(filter $(NETTESTS),$(TESTED))
RACE     = $(filter-out $(KERNEL),$(filter $(call LIST,$(RACY)),$(TESTED)))
PURE     = $(filter-out $(KERNEL) $(call LIST,$(RACY)),$(TESTED))
# none(what) is for an empty list: right for some PKGS, but of all packages there
# are some of each kind, and an empty list means that go list failed.
none = echo '$(1): no such package in $(PKGS)'; [[ '$(PKGS)' != ./... ]]

# Both protocols, ports by number and name, blocks with exceptions, changes.
CONFORMANCE_SHORT := 'default-deny-all|based on Ports|access on one named port|enforce updated policy|except clause|stop enforcing policies'

# gotest(name, flags, packages, gotestsum's flags) runs tests, keeps their results for
# `total`, and says last what failed.
define gotest
	@mkdir -p $(RESULTS)
	@rm -f $(RESULTS)/$(1).json
	@if [[ -z "$(strip $(3))" ]]; then $(call none,$(1)); else failed=0; \
	$(TOOL) gotestsum --format pkgname --format-hide-empty-pkg $(4) --jsonfile $(RESULTS)/$(1).json --packages='$(strip $(3))' -- $(2) || failed=$$?; \
	.ci/failures $(RESULTS)/$(1).json || failed=1; exit $$failed; fi
endef

# What real traffic finds on a busy machine is tried once more, if it is little; it is
# told all the same, and never believed that something forbidden passed by chance.
REPEAT := --rerun-fails=1 --rerun-fails-max-failures=3

# fuzz(time) finds the fuzz targets and runs each for that time.
define fuzz
	@packages='$(call having,Fuzz)'; \
	if [[ -z "$$packages" ]]; then $(call none,fuzz); else .ci/fuzz $(1) $$packages; fi
endef

.PHONY: help demo build test deps deps-test check vet lint unit race integration control-plane conformance conformance-short cluster profile fuzz fuzz-long fuzz-corpus bench benchstat bench-once bench-agent bench-net bench-peers bench-report deps-peers total clean

help: ## Print this
	@echo "netverdict: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PKGS=$(PKGS) FUZZTIME=$(FUZZTIME) SOAK=$(SOAK) BENCH=$(BENCH) COUNT=$(COUNT) BENCHTIME=$(BENCHTIME)"

demo: deps build ## See it work: namespaces as pods, real policies, real requests (root; 1 minute)
	./bin/netverdict demo

build: ## Build bin/netverdict
	go build -trimpath -o bin/netverdict ./cmd/netverdict

test: deps-test check vet lint bench-once fuzz unit race integration total ## Everything that CI runs (root); control-plane has the rest

deps: ## Install the Debian packages that are missing (root, only if any is)
	@.ci/deps $(DEPS)

deps-test:
	@.ci/deps $(DEPS) $(TEST_DEPS)

check:
	go build $(PKGS)

vet: ## go vet
	go vet $(PKGS)

lint: ## The linter: .golangci.yml says what it insists on
	$(TOOL) golangci-lint run --timeout 20m $(PKGS)

unit: ## Tests of the pure packages: policy semantics (txtar), the oracle, allocations, purity
	$(call gotest,unit,-count=1 -timeout 15m,$(PURE))

race: deps-test ## Tests of the packages with goroutines, under the race detector
	$(call gotest,race,-race -timeout 15m,$(RACE))
race: export CGO_ENABLED = 1

integration: deps-test ## Tests on the real kernel, in network namespaces of their own, under the race detector (root)
	$(call gotest,integration,-race -count=1 -p 2 -timeout 40m,$(KERNEL),$(REPEAT))
integration: export CGO_ENABLED = 1

# Modules of their own: giants such as a Kubernetes API server, which users never
# download. A busy machine can make one of their tests late: what fails is tried
# once more, and gotestsum says so.
MODULES = $(patsubst ./%/go.mod,%,$(sort $(shell find . -mindepth 2 -name go.mod -not -path './.ci/*')))

control-plane: deps-test deps-peers ## Tests of the modules: a real API server, deploy/, a cluster in a box, real hubble clients, bench/peers (first build 10 minutes)
	@mkdir -p $(RESULTS)
	@$(foreach m,$(MODULES),echo 'module $(m)'; (cd $(m) && go vet ./... && go tool -modfile=$(CURDIR)/.ci/tools/go.mod gotestsum \
		--format pkgname --format-hide-empty-pkg --rerun-fails=1 --rerun-fails-max-failures=3 --packages=./... \
		--jsonfile $(CURDIR)/$(RESULTS)/module-$(subst /,-,$(m)).json -- -count=1 -p 1 -timeout 30m);)

conformance: deps ## Upstream's NetworkPolicy tests and ours on a cluster, with and without agents, into deploy/conformance/results (root; 25 minutes, the first build 12 more)
	cd deploy/conformance && go run . -results results

conformance-short: deps ## Eight of upstream's tests, with and without agents (root; 3 minutes, the first build 12 more)
	cd deploy/conformance && go run . -own=false -families IPv4 -procs 8 -focus $(CONFORMANCE_SHORT)

cluster: deps ## A Kubernetes cluster in a box until Ctrl-C: real API server and agents, pods are namespaces (root); flags: BOX="-nodes 5"
	@mkdir -p bin
	cd bench/netlab/cluster && go build -o ../../../bin/box ./box
	@cd bench/netlab/cluster && exec ../../../bin/box $(BOX)

bench-agent: deps ## The agent in a cluster of 10,000 pods and 1,000 policies, policy latency, outages, into BENCHFILE (root; some minutes)
	@mkdir -p $(dir $(BENCHFILE))
	@.ci/machine | tee $(BENCHFILE)
	cd bench/netlab/cluster && go test -run '^$$' -bench . -benchtime 1x -timeout 1h . | tee -a $(CURDIR)/$(BENCHFILE)

profile: deps build ## CPU profile and flame graph of the agent under load, in bin/profile (root; PROFILEFLAGS=-help)
	go run ./bench/profile -netverdict bin/netverdict -out bin/profile $(PROFILEFLAGS)

fuzz: ## Every fuzz target for FUZZTIME
	$(call fuzz,$(FUZZTIME))

fuzz-long: ## Every fuzz target for 10 minutes, FUZZJOBS at once
	$(call fuzz,10m)

fuzz-corpus: ## What fuzzing found on this machine and reaches new code, into testdata/fuzz
	.ci/corpus $(call having,Fuzz)

# promised(tests) is a pattern; FIGURES keeps what the tests measured, and their verdicts.
space    := $(subst ,, )
promised = ^($(subst $(space),|,$(strip $(1))))$$
FIGURES  := grep --line-buffered -E '^ *(--- |ok|FAIL|panic)|^ +[a-z_]+_test.go:[0-9]+: '
PROMISES ?= bench/results/$(shell date -u +%Y-%m-%d)-promises.txt

.PHONY: promises
promises: deps-test ## What we promise of live flows, pod start, upgrades and floods, at full count, into PROMISES (root; 20 minutes)
	@mkdir -p $(dir $(PROMISES))
	@.ci/machine | tee $(PROMISES)
	@failed=0; promise() { "$$@" 2>&1 | $(FIGURES) | tee -a $(PROMISES) || failed=1; }; \
	promise go test -count=1 -timeout 1h -v -run '$(call promised,TestLiveFlows TestKeptFlows TestPodStart)' ./engine -pods=500 -prompt=100ms -dip=5 -dip-windows=30; \
	promise go test -count=1 -timeout 1h -v -run '$(call promised,TestAgentsFollowEachOther TestFlood TestPolicyChurn TestDemo)' ./cmd/netverdict -demo-time=1m -churn-time=60s -turns=20 -connect-rate=300 -flood-time=10s -flood-cpu=5 -flood-keep=80; \
	exit $$failed

SBOMFILE ?= bin/netverdict.cdx.json

.PHONY: vuln sbom reproducible
vuln: ## Known vulnerabilities that the program calls; GOVULNDB=file:///path where vuln.go.dev cannot be reached
	@.ci/vuln

sbom: build ## Bill of materials of bin/netverdict, and with DPKG=status of the image, as CycloneDX into SBOMFILE
	@.ci/sbom bin/netverdict $(shell git describe --always --dirty) >$(SBOMFILE)
	@echo "$(SBOMFILE): $$(grep -c '"purl"' $(SBOMFILE)) components"

reproducible: ## Build the image's program twice, in two places, and compare
	@.ci/reproduce

SOAK     ?= 30m
SOAKFILE ?= bench/results/$(shell date -u +%Y-%m-%d)-soak.txt

.PHONY: churn soak
churn: deps-test ## 60 s of 50 changes a second, every flow record compared with the oracle (root; 3 minutes)
	go test -count=1 -timeout 30m -v -run '^TestPolicyChurn$$' ./cmd/netverdict -churn-time=60s

soak: deps-test ## An agent for SOAK of changes and traffic must not grow, into SOAKFILE (root)
	@mkdir -p $(dir $(SOAKFILE))
	@.ci/machine | tee $(SOAKFILE)
	go test -count=1 -timeout 24h -v -run '^TestSoak$$' ./cmd/netverdict -soak=$(SOAK) 2>&1 | $(FIGURES) | tee -a $(SOAKFILE)

bench: deps ## Every benchmark COUNT times, into BENCHFILE; compare two files with: benchstat
	@mkdir -p $(dir $(BENCHFILE))
	@.ci/machine | tee $(BENCHFILE)
	go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) -benchtime $(BENCHTIME) -p 1 -timeout 4h $(call having,Benchmark) | tee -a $(BENCHFILE)

benchstat: ## Compare two results of bench: OLD=file NEW=file
	@$(TOOL) benchstat $(OLD) $(NEW)

bench-once: deps ## One iteration of every benchmark: they still work, and still see the verdict they measure
	@mkdir -p $(RESULTS)
	@packages='$(call having,Benchmark)'; \
	if [[ -z "$$packages" ]]; then $(call none,bench-once); \
	elif go test -run '^$$' -bench . -benchtime 1x -count 1 -p 1 -timeout 15m $$packages >$(RESULTS)/bench-once.txt 2>&1; \
	then grep '^ok' $(RESULTS)/bench-once.txt; echo "bench-once: $$(grep -c '^Benchmark' $(RESULTS)/bench-once.txt) benchmarks"; \
	else cat $(RESULTS)/bench-once.txt >&2; grep -A 20 -E '^ *--- FAIL|^panic:|^FAIL' $(RESULTS)/bench-once.txt | tail -60 >&2; exit 1; fi

# What the programs in bench/peers need: nft, libmnl and a C compiler.
PEERS_DEPS := gcc libc6-dev nftables libmnl-dev
NETBENCH   := bench/results/$(shell date -u +%Y-%m-%d)-net.txt
ROUNDS     ?= 5

define peers
	@.ci/machine | tee $(NETBENCH)
	cd bench/peers && go build -o ../../bin/peers .
	./bin/peers -netverdict bin/netverdict -rounds $(ROUNDS) $(1) | tee -a $(NETBENCH)
endef

bench-net: deps deps-peers build ## Real traffic through netverdict and the bounds of the possible, into NETBENCH (root, 10 minutes)
	$(call peers,-variants cost)

bench-peers: deps deps-peers build ## The same, how designs scale, and the closest peer's decisions (root, 30 minutes)
	$(call peers,)
	cd bench/peers && go test -run '^$$' -bench Evaluate . | tee -a ../../$(NETBENCH)

bench-report: ## Tables and plot of bench/README.md from NETBENCH
	cd bench/peers && go run ./report -readme ../README.md -plot ../connects.svg ../../$(NETBENCH)

deps-peers:
	@.ci/deps $(PEERS_DEPS)

total:
	@.ci/total $(wildcard $(addprefix $(RESULTS)/,unit.json race.json integration.json $(foreach m,$(MODULES),module-$(subst /,-,$(m)).json)))

clean: ## Remove what was built here (Go's own caches stay)
	rm -rf bin

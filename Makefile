# The next PocketBase, and the Go it needs; see next and next-mod.
NEXT_POCKETBASE := v0.40.4
NEXT_GO         := 1.27.0

# How long make fuzz runs each fuzz target.
FUZZTIME ?= 20s

# The randomized tests whose length -rounds sets; see full.
ROUNDS_TESTS := 'Model|PlansDecide|NoWriteThatMatters'

# make next sets these two differently for the test targets.
MODFILE := go.mod
RACE    := -race

# Where make lint builds its tools, and what they read: code built with the race
# detector, as for the tests, so that PocketBase is compiled once for both.
BIN       := $(CURDIR)/.bin
LINT      := GOFLAGS="$$(go env GOFLAGS) -race" $(BIN)/
NPM_READY := e2e/node_modules/.package-lock.json

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: test
test: test-go test-core test-e2e ## install what is needed and run all tests

.PHONY: test-go
test-go: ## run the Go tests
	go vet $(RACE) ./...
	go test $(RACE) -timeout 15m ./...

.PHONY: test-core
test-core: ## run PocketBase's own realtime tests without and with the plugin
	go run ./coresuite -modfile $(MODFILE) $(RACE)

.PHONY: test-e2e
test-e2e: $(NPM_READY) ## run the official SDK against the example app, in Node and Chromium
	.ci/e2e

$(NPM_READY): e2e/package-lock.json
	cd e2e && npm ci --no-audit --no-fund

.PHONY: stress
stress: ## look for lost and wrong messages for 20 s; STRESS="-seed 1 -duration 5m"
	go run -race ./stress $(STRESS)

.PHONY: abuse
abuse: ## measure for 60 s what attackers change for others; ABUSE="-seed 1 -only flood"
	go build -o $(BIN)/abuse ./abuse
	$(BIN)/abuse $(ABUSE)

.PHONY: bench
bench: ## measure against the documented notify loop; BENCH="-scenario burst" and so on
	go build -o $(BIN)/bench ./bench
	$(BIN)/bench $(BENCH)

.PHONY: lint
lint: $(BIN)/tools.mod $(NPM_READY) ## check formatting, go.mod and code
	@test -z "$$($(BIN)/gofumpt -l .)" || { $(BIN)/gofumpt -d .; exit 1; }
	go mod tidy -diff
	go vet -race ./...
	$(LINT)staticcheck -checks all ./...
	$(LINT)errcheck -exclude .ci/errcheck.txt ./...
	$(LINT)go-errorlint ./...
	$(LINT)revive -config .ci/revive.toml ./...
	cd e2e && npm run format:check

.PHONY: fmt
fmt: $(BIN)/tools.mod $(NPM_READY) ## format Go, JavaScript, HTML and CSS
	$(BIN)/gofumpt -w .
	cd e2e && npm run format

# .ci/tools.mod pins the tools. Its copy in $(BIN) says which of its versions was built.
$(BIN)/tools.mod: .ci/tools.mod .ci/tools.sum
	GOBIN=$(BIN) go install -modfile=.ci/tools.mod tool
	cp .ci/tools.mod $@

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME=20s
	@go test -list '^Fuzz' ./... \
	| awk '/^Fuzz/ {targets[n++] = $$1} /^ok/ {for (i = 0; i < n; i++) print $$2, targets[i]; n = 0}' \
	| while read -r package target; do \
		echo "$$target in $$package"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" </dev/null || exit 1; \
	done

# The short forms of all of these but the benchmarks are part of make test.
.PHONY: full
full: ## run the tests many times, and stress, abuse, fuzz and bench for long, about 90 min
	go test $(RACE) -timeout 60m -count 5 ./...
	go test $(RACE) -timeout 60m -run $(ROUNDS_TESTS) . -rounds 20
	$(MAKE) stress STRESS="-duration 5m"
	$(MAKE) stress STRESS="-duration 2m -burners 8"
	$(MAKE) abuse ABUSE="-duration 5m"
	$(MAKE) abuse ABUSE="-proxied=false"
	$(MAKE) fuzz FUZZTIME=2m
	$(MAKE) bench

.PHONY: next
next: export GOTOOLCHAIN := go$(NEXT_GO)
next: ## run the tests with the next PocketBase, without the race detector and the example's page
	go mod tidy -diff -modfile=.ci/next.mod
	GOFLAGS="$$(go env GOFLAGS) '-modfile=$(CURDIR)/.ci/next.mod'" WITHOUT=page.test.mjs $(MAKE) test MODFILE=.ci/next.mod RACE=

.PHONY: next-mod
next-mod: export GOTOOLCHAIN := go$(NEXT_GO)
next-mod: ## write .ci/next.mod anew after a change of go.mod
	cp go.mod .ci/next.mod
	go mod edit -go=$(NEXT_GO) -require=github.com/pocketbase/pocketbase@$(NEXT_POCKETBASE) .ci/next.mod
	go mod tidy -modfile=.ci/next.mod

.PHONY: run
run: ## start the example app at http://127.0.0.1:8090
	go run ./example_app serve

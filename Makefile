# The commands of Kith. Each installs what is missing first, see .ci/setup.

# Mix takes no Hex packages here, so that a machine with Hex and one without do the same.
export KITH_NO_DEPS := 1
# People's names are not ASCII.
export LC_ALL := C.UTF-8
# Where .ci/setup puts a newer Node than the system's.
export PATH := $(CURDIR)/.ci/node/node_modules/current/bin:$(PATH)

.PHONY: help demo test chat chat-test interop crash nodes bench lint docs fuzz

help:
	@echo 'make demo    a family of six talks, loses its connection, restarts and catches up'
	@echo '             TRANSCRIPT=path  your own conversation, lines of `name: text`'
	@echo '             PEER=official    the last of the people uses the official Signal client'
	@echo '             SEED=number      other absences'
	@echo 'make test    all tests, with the official Signal client as a live peer'
	@echo 'make chat    the family chat, on http://localhost:4000'
	@echo '             PORT=number      another port'
	@echo 'make chat-test its tests, with people at browsers'
	@echo 'make interop a long conversation with the official Signal client in both roles; one line of figures'
	@echo '             MESSAGES=number  how many, 20000 unless said'
	@echo '             KITH_SEED=number another network'
	@echo 'make crash   kills VMs and databases in the middle of traffic; a line of figures for each store'
	@echo '             KILLS=number     on SQLite, 1000 unless said'
	@echo '             PG_KILLS=number  on PostgreSQL, 200 unless said'
	@echo '             SEED=number      other times of death'
	@echo 'make nodes   many processes on several nodes on the same sessions; a line of figures for each store'
	@echo '             OPS=number       how many operations on each store, 100000 unless said'
	@echo '             NODES=number     2 unless said'
	@echo '             SEED=number      other operations'
	@echo 'make bench   the benchmarks; writes docs/benchmarks.md'
	@echo 'make lint    formats and lints'
	@echo 'make docs    the documentation as HTML in doc/, and whether anything in it refers to what is not there'
	@echo 'make fuzz    fuzzes a parser or the whole decrypt path; installs cargo-fuzz'
	@echo '             TARGET=name      one of native/kith_protocol/fuzz/fuzz_targets; all in turn without'
	@echo '             SECONDS=number   for each target; 60 without'

demo:
	@.ci/setup build $(if $(filter official,$(PEER)),peer)
	@mix run examples/family_transcript/run.exs \
		--peer '$(PEER)' --seed '$(or $(SEED),1)' $(if $(TRANSCRIPT),'$(TRANSCRIPT)')

test:
	@.ci/setup build peer
	@.ci/test

chat:
	@.ci/setup build
	@echo 'The family chat will be on http://localhost:$(or $(PORT),4000), once it is compiled. Ctrl-C twice ends it.'
	@PORT=$(or $(PORT),4000) .ci/chat mix phx.server

chat-test:
	@.ci/chat-test

interop:
	@.ci/setup build peer
	@.ci/interop $(or $(MESSAGES),20000)

# Without PostgreSQL the scripts say what did not run.
crash:
	@.ci/setup build
	@.ci/setup postgres || true
	@MIX_ENV=test mix run --no-start test/support/crash/kills.exs \
		'$(or $(KILLS),1000)' '$(or $(PG_KILLS),200)' '$(or $(SEED),1)'

nodes:
	@.ci/setup build
	@.ci/setup postgres || true
	@MIX_ENV=test mix run --no-start test/support/crash/nodes.exs \
		'$(or $(OPS),100000)' '$(or $(NODES),2)' '$(or $(SEED),1)'

bench:
	@.ci/setup build peer
	@bench/run

lint:
	@.ci/setup build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	mix format --check-formatted
	mix compile --force --warnings-as-errors

docs:
	@.ci/setup build
	@.ci/docs

fuzz:
	@.ci/fuzz '$(or $(SECONDS),60)' $(TARGET)

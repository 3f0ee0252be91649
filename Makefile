# The commands of Kith. Each installs what is missing first, see .ci/setup.

# Mix takes no Hex packages here, so that a machine with Hex and one without do the same.
export KITH_NO_DEPS := 1
# People's names are not ASCII.
export LC_ALL := C.UTF-8
# Where .ci/setup puts a newer Node than the system's.
export PATH := $(CURDIR)/.ci/node/node_modules/current/bin:$(PATH)

.PHONY: help demo test interop bench lint fuzz

help:
	@echo 'make demo    a family of six talks, loses its connection, restarts and catches up'
	@echo '             TRANSCRIPT=path  your own conversation, lines of `name: text`'
	@echo '             PEER=official    the last of the people uses the official Signal client'
	@echo '             SEED=number      other absences'
	@echo 'make test    all tests, with the official Signal client as a live peer'
	@echo 'make interop a long conversation with the official Signal client in both roles; one line of figures'
	@echo '             MESSAGES=number  how many, 20000 unless said'
	@echo '             KITH_SEED=number another network'
	@echo 'make bench   the benchmarks; writes docs/benchmarks.md'
	@echo 'make lint    formats and lints'
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

interop:
	@.ci/setup build peer
	@.ci/interop $(or $(MESSAGES),20000)

bench:
	@.ci/setup build peer
	@bench/run

lint:
	@.ci/setup build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	mix format --check-formatted
	mix compile --force --warnings-as-errors

fuzz:
	@.ci/fuzz '$(or $(SECONDS),60)' $(TARGET)

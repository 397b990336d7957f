# `just` lists what can be done here.

# What is here.
default:
    @just --list

# Format, lints, documentation: what must hold before sharing a change.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Every test that needs neither root nor Java.
test:
    cargo test --workspace

# More crashes than a test run has time for, of log and derived state, by distinct states of the disk: `just crash 100000`.
crash states="100000":
    RAFTMQ_CRASH_STATES={{states}} cargo test --release --workspace --test log --test fold crash:: -- --nocapture

# Whether the tests find the bugs that can be planted, all or one of them: `just planted vote-unsynced`.
planted name="all":
    RAFTMQ_PLANTED={{name}} cargo test --release --workspace --features tests/planted-bugs --test log --test fold --test group planted:: -- --nocapture

# A simulated cluster under faults: `just sim 17` repeats one seed, `just sim --seeds 0..500` runs many.
sim *arguments:
    cargo run --release -p tests --bin sim -- {{arguments}}

# Which seeds of a range find a bug that is planted: `just sim-planted vote-unsynced 0..100`.
sim-planted name seeds="0..100":
    cargo build --release --workspace --features tests/planted-bugs --bin sim
    target/release/sim --seeds {{seeds}} --planted {{name}} --fail-fast

# Which of the seeds catches each planted bug, or which test of raft-store: writes docs/results/planted-bugs.md.
planted-table seeds="0..100":
    cargo build --release --workspace --features tests/planted-bugs --bin sim
    target/release/sim --planted all --seeds {{seeds}} --write docs/results/planted-bugs.md

# The same table anew after a change, in minutes: what caught a bug before is looked at first.
planted-table-again:
    cargo build --release --workspace --features tests/planted-bugs --bin sim
    target/release/sim --planted known --write docs/results/planted-bugs.md

# Whether some of the planted bugs, chosen by a number, are still caught by the seeds that stand in that table.
planted-sample count="10" seed="0":
    cargo build --release --workspace --features tests/planted-bugs --bin sim
    target/release/sim --planted known --sample {{count}} --sample-seed {{seed}}

# The cluster of three in one process that proves itself.
demo *arguments:
    cargo run --release -- demo {{arguments}}

# Unmodified Java, Go, Python and Node clients against three broker processes.
interop *arguments:
    tests/interop/run {{arguments}}

# Fuzz one decoder for a while: `just fuzz frame 60`. It needs `cargo install cargo-fuzz`.
fuzz target seconds="60":
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} --sanitizer none -- \
        -max_total_time={{seconds}} $(test ! -f {{target}}.dict || echo -dict={{target}}.dict)

# Licences, sources, duplicates, advisories.
deny:
    cargo deny check

# Every workload under every mix of real faults, as root: `just torture 60 1 /tmp/torture`.
torture minutes="60" seed="1" out="/tmp/torture":
    cargo build --release -p raftmq -p jepsen
    target/release/jepsen torture --minutes {{minutes}} --seed {{seed}} --out {{out}}

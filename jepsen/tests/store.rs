//! A store must survive SIGKILL at any moment. The power-loss form needs root and runs in the long profile.

use std::process::Command;

#[test]
fn a_killed_store_keeps_what_it_acknowledged() {
    let output = Command::new(env!("CARGO_BIN_EXE_jepsen"))
        .args(["store", "--fault", "kill", "--cycles", "10"])
        .output()
        .expect("the harness starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("10 faults"), "{stdout}{stderr}");
}

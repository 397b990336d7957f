//! Who belongs to the group: what `raftmq admin` says of it, and changes that are asked for until they are done.

use std::io;
use std::process::{Child, Stdio};
use std::time::Duration;

use env::Env;

use crate::cluster::{Cluster, PATIENCE};

/// A command is given again after this, as an operator would whose command has failed.
pub const AGAIN: Duration = Duration::from_secs(1);

/// Between two looks at a command that runs.
const LOOK: Duration = Duration::from_millis(10);

/// Gives an admin command once, and waits for it. What it printed, or why it failed.
pub async fn give(env: &Env, cluster: &Cluster, arguments: &[&str]) -> io::Result<Result<String, String>> {
    let mut command = cluster.admin(arguments);
    let mut running = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    let deadline = env.clock.monotonic() + PATIENCE;
    let status = loop {
        if let Some(status) = running.0.try_wait()? {
            break status;
        }
        if env.clock.monotonic() > deadline {
            running.0.kill()?;
        }
        env.clock.sleep(LOOK).await;
    };
    // Both are short: neither can have filled its pipe.
    let (stdout, stderr) = (running.0.stdout.take().expect("piped"), running.0.stderr.take().expect("piped"));
    let said = if status.success() { io::read_to_string(stdout)? } else { io::read_to_string(stderr)? };
    let said = said.trim().to_owned();
    Ok(if status.success() { Ok(said) } else { Err(said) })
}

/// A command that does not outlive whoever waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; all that matters is that none is left behind.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Gives an admin command until it says that it is done. How long that took.
pub async fn until_done(env: &Env, cluster: &Cluster, arguments: &[&str]) -> io::Result<Duration> {
    let began = env.clock.monotonic();
    loop {
        let said = match give(env, cluster, arguments).await? {
            Ok(_) => return Ok(env.clock.monotonic() - began),
            Err(said) => said,
        };
        if env.clock.monotonic() - began > PATIENCE {
            let asked = arguments.join(" ");
            return Err(io::Error::other(format!("{asked} is not done within {PATIENCE:?}; its last words: {said}")));
        }
        env.clock.sleep(AGAIN).await;
    }
}

/// The id of the node that is a voter at a broker's place.
pub async fn node_at(env: &Env, cluster: &Cluster, k: usize) -> io::Result<String> {
    let peer = cluster.broker(k).peer.to_string();
    let listed = give(env, cluster, &["nodeList"]).await?.map_err(io::Error::other)?;
    voter_at(&listed, &peer).ok_or_else(|| io::Error::other(format!("no voter at {peer}:\n{listed}")))
}

/// The id of the voter at a peer address in what `nodeList` prints.
fn voter_at(listed: &str, peer: &str) -> Option<String> {
    let rows = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut nodes = rows.filter(|row| row.len() > 3 && row[3] == peer && row[1] != "learner");
    nodes.next().map(|row| row[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::voter_at;

    #[test]
    fn a_learner_is_no_voter_yet() {
        let listed = "#Node  #Role  #Client Address  #Peer Address\n\
                      0a     leader   127.0.0.1:1  127.0.0.1:11  0  0  true\n\
                      0b     learner  127.0.0.1:2  127.0.0.1:12  9  9  false\n\
                      0c     voter    127.0.0.1:2  127.0.0.1:12  0  0  true\n";
        assert_eq!(voter_at(listed, "127.0.0.1:11").as_deref(), Some("0a"));
        assert_eq!(voter_at(listed, "127.0.0.1:12").as_deref(), Some("0c"));
        assert_eq!(voter_at(listed, "127.0.0.1:13"), None);
    }
}

//! Whether the operating system lets a broker have what its configuration needs: looked at before anything is opened, and
//! said with what to do.

use broker::config::BrokerConfig;
use env::{Env, limits};

/// Files beside segments and connections: ConsumeQueues, index, sled, listeners, peers.
const OTHER_FILES: u64 = 1_024;

/// Memory maps beside those of segments: libraries, thread stacks, the allocator.
const OTHER_MAPS: u64 = 4_096;

/// Segments that may be added before the next start.
const SPARE_SEGMENTS: u64 = 256;

/// What a broker process needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    connections: u64,
    segments: u64,
}

/// Raises the limit on open files as far as it goes. An error if the broker could not even open its log; a warning, in the
/// log, if it could not take all the connections it is configured for.
pub async fn check(env: &Env, config: &BrokerConfig) -> Result<(), String> {
    let mut needs = Needs::default();
    for group in &config.groups {
        needs.connections += group.limits.connections as u64;
        let segments = env.disk.list(&group.data_dir.join("commitlog")).await.unwrap_or_default();
        needs.segments += segments.len() as u64 + SPARE_SEGMENTS;
    }
    let files = limits::raise_open_files().map_err(|error| format!("raising the limit on open files: {error}"))?;
    if let Some(warning) = judge_files(needs, files)? {
        tracing::warn!("{warning}");
    }
    judge_maps(needs, limits::memory_maps())
}

fn judge_files(needs: Needs, limit: Option<u64>) -> Result<Option<String>, String> {
    let Some(limit) = limit else { return Ok(None) };
    let least = needs.segments + OTHER_FILES;
    let wanted = least + needs.connections;
    let fix = format!(
        "raise the hard limit: `ulimit -Hn {wanted}` before the start, LimitNOFILE={wanted} in the systemd unit, or \
         `nofile` in /etc/security/limits.conf"
    );
    if limit < least {
        return Err(format!("{limit} open files are allowed, the log alone may need {least}; {fix}"));
    }
    Ok((limit < wanted).then(|| {
        format!("{limit} open files are allowed, {wanted} are needed for `connections` = {}; {fix}", needs.connections)
    }))
}

fn judge_maps(needs: Needs, limit: Option<u64>) -> Result<(), String> {
    let wanted = needs.segments + OTHER_MAPS;
    match limit.filter(|limit| *limit < wanted) {
        Some(limit) => Err(format!(
            "{limit} memory maps are allowed, the log may need {wanted}; `sysctl vm.max_map_count={wanted}`"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let needs = Needs { connections: 10_000, segments: 300 };
        assert_eq!(judge_files(needs, None), Ok(None));
        assert_eq!(judge_files(needs, Some(11_324)), Ok(None));
        let warning = judge_files(needs, Some(4_096)).expect("it starts").expect("a warning");
        assert!(warning.contains("4096 open files") && warning.contains("ulimit -Hn 11324"), "{warning}");
        let refused = judge_files(needs, Some(1_024)).expect_err("not enough for the log");
        assert!(refused.contains("may need 1324") && refused.contains("LimitNOFILE=11324"), "{refused}");
        assert_eq!(judge_maps(needs, Some(65_530)), Ok(()));
        assert_eq!(judge_maps(needs, None), Ok(()));
        let refused = judge_maps(Needs { segments: 70_000, ..needs }, Some(65_530)).expect_err("too many segments");
        assert!(refused.ends_with("`sysctl vm.max_map_count=74096`"), "{refused}");
    }
}

//! Configuration: 26 shows it in RocketMQ's words, 25 would change it. Housekeeping on demand: 306, 316, 329.
//!
//! What may be set at run time is a typed list, so that no path, command or address can be set over the network. It is
//! empty as yet: everything is read once, at the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::body::{self, DataVersion};
use protocol::code::ResponseCode;
use protocol::header::GetBrokerConfigResponse;
use protocol::json;
use raft_store::group::Role;

use crate::broker::BrokerGroup;
use crate::config::GroupConfig;
use crate::dispatch::{Answer, Call};
use crate::error::RequestError;

/// Handles GET_BROKER_CONFIG.
pub async fn get(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let leads = matches!(&*broker.role.borrow(), Role::Leader { .. });
    let config = config_table(&broker.cluster, &broker.name_servers, &broker.config, leads);
    let version = DataVersion { counter: 0, state_version: 0, timestamp: broker.started_ms };
    let version = String::from_utf8(json::to_vec(&version)).expect("JSON is UTF-8");
    let header = GetBrokerConfigResponse { version: Some(version) };
    Ok(call.request.reply_with(ResponseCode::SUCCESS, &header).with_body(body::to_config_text(&config)))
}

/// Handles UPDATE_BROKER_CONFIG.
pub async fn update(_broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let text = std::str::from_utf8(&call.request.body);
    let text = text.map_err(|_| RequestError::InvalidParameter("the body is not UTF-8".to_owned()))?;
    refuse_unsettable(&body::parse_config_text(text))?;
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

/// Handles CLEAN_EXPIRED_CONSUMEQUEUE, CLEAN_UNUSED_TOPIC and DELETE_EXPIRED_COMMITLOG. Nothing is done on a tool's word
/// to one replica: what may go is decided in the log, for all replicas alike.
pub async fn clean(_broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    Ok(call.request.reply(ResponseCode::SUCCESS))
}

fn refuse_unsettable(wanted: &BTreeMap<String, String>) -> Result<(), RequestError> {
    let Some(key) = wanted.keys().next() else { return Ok(()) };
    let remark = format!("{key} cannot be set at run time; change the configuration file and restart the replica");
    Err(RequestError::Forbidden { remark, whose: None })
}

/// The configuration under RocketMQ's names.
fn config_table(cluster: &str, name_servers: &[String], config: &GroupConfig, leads: bool) -> BTreeMap<String, String> {
    let messages = &config.messages;
    let levels: Vec<String> = messages.delay_levels.iter().map(|level| format!("{}s", level.as_secs())).collect();
    let retention = &config.retention;
    let hours: Vec<String> = retention.hours.iter().map(|hour| format!("{hour:02}")).collect();
    let pairs = [
        ("autoCreateSubscriptionGroup", messages.auto_create_groups.to_string()),
        ("enablePropertyFilter", messages.sql_filters.to_string()),
        ("autoCreateTopicEnable", messages.auto_create_topics.to_string()),
        ("brokerClusterName", cluster.to_owned()),
        ("brokerIP1", config.advertised_address.ip().to_string()),
        ("brokerName", config.broker_name.clone()),
        ("brokerRole", if leads { "SYNC_MASTER" } else { "SLAVE" }.to_owned()),
        ("defaultTopicQueueNums", messages.default_topic_queues.to_string()),
        ("deleteWhen", hours.join(";")),
        ("diskMaxUsedSpaceRatio", retention.max_used_percent.to_string()),
        ("fileReservedTime", (retention.time.as_secs() / 3600).to_string()),
        ("flushDiskType", config.flush.name().to_owned()),
        ("listenPort", config.advertised_address.port().to_string()),
        ("mappedFileSizeCommitLog", config.segment_bytes.to_string()),
        ("maxDelayTimeSec", messages.longest_delay.as_secs().to_string()),
        ("maxMessageSize", messages.body_bytes.to_string()),
        ("messageDelayLevel", levels.join(" ")),
        ("namesrvAddr", name_servers.join(";")),
        ("storePathRootDir", config.data_dir.display().to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::config::{Flush, Limits, MessagePolicy, RaftTiming, Retention};

    #[test]
    fn the_configuration_reads_as_rocketmq_s() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let config = GroupConfig {
            broker_name: "broker-a".to_owned(),
            data_dir: "data/broker-a".into(),
            listen: at(10911),
            vip: true,
            advertised_address: at(10911),
            peer_listen: at(10912),
            peer_address: "127.0.0.1:10912".to_owned(),
            founders: vec!["127.0.0.1:10912".to_owned()],
            join: false,
            flush: Flush::Sync,
            segment_bytes: 64 << 20,
            catch_up_bytes_per_s: 0,
            scrub_bytes_per_s: 0,
            messages: MessagePolicy::default(),
            retention: Retention::default(),
            limits: Limits::default(),
            raft: RaftTiming::default(),
        };
        let name_servers = ["127.0.0.1:9876".to_owned(), "127.0.0.1:9877".to_owned()];
        let text = body::to_config_text(&config_table("DefaultCluster", &name_servers, &config, true));
        let golden = "autoCreateSubscriptionGroup=true\nautoCreateTopicEnable=true\nbrokerClusterName=DefaultCluster\n\
                      brokerIP1=127.0.0.1\nbrokerName=broker-a\nbrokerRole=SYNC_MASTER\ndefaultTopicQueueNums=8\n\
                      deleteWhen=04\ndiskMaxUsedSpaceRatio=75\nenablePropertyFilter=true\nfileReservedTime=72\nflushDiskType=SYNC_FLUSH\nlistenPort=10911\nmappedFileSizeCommitLog=67108864\nmaxDelayTimeSec=259200\n\
                      maxMessageSize=4194304\nmessageDelayLevel=1s 5s 10s 30s 60s 120s 180s 240s 300s 360s 420s 480s 540s \
                      600s 1200s 1800s 3600s 7200s\nnamesrvAddr=127.0.0.1:9876;127.0.0.1:9877\nstorePathRootDir=data/broker-a\n";
        assert_eq!(text, golden);
    }

    #[test]
    fn nothing_can_be_set_over_the_network() {
        let wanted = body::parse_config_text("storePathRootDir=/etc\n");
        let error = refuse_unsettable(&wanted).expect_err("a path");
        assert_eq!(error.response_code(), Some(ResponseCode::NO_PERMISSION));
        assert!(error.to_string().contains("storePathRootDir"));
        assert!(refuse_unsettable(&BTreeMap::new()).is_ok());
    }
}

//! Topics and groups that come into being because somebody uses them, and those that every broker has.
//!
//! Each is made by a replicated command that leaves an existing one alone, so that two clients, two replicas or two
//! leaders that want the same thing at the same time get one. NameServers hear of it at once.

use protocol::names::{self, BUILT_IN_GROUPS, BUILT_IN_TOPICS};
use protocol::permission::Permission;

use crate::broker::BrokerGroup;
use crate::config::MessagePolicy;
use crate::error::RequestError;
use crate::tables::Tables;
use crate::tables::command::Command;
use crate::tables::groups::GroupConfig;
use crate::tables::topics::{Topic, TopicConfig};

/// Queues of the topic named after the cluster.
const CLUSTER_TOPIC_QUEUES: u32 = 16;

/// The topic that a send creates after a template: as many queues as the client wants, but no more than the template has;
/// its permission without the right to be inherited. `None` if the template does not exist or may not be inherited.
fn after_template(tables: &Tables, name: &str, template: &str, wanted_queues: i32) -> Option<TopicConfig> {
    let template = &tables.topics().get(template)?.config;
    let permission = Permission(template.permission as i32);
    if !permission.is_inherited() {
        return None;
    }
    let queues = u32::try_from(wanted_queues).unwrap_or(0).min(template.write_queues).max(1);
    Some(TopicConfig {
        permission: permission.with(Permission::INHERIT, false).0 as u32,
        system_flag: template.system_flag,
        multi_tag: template.multi_tag,
        ..TopicConfig::new(name, queues)
    })
}

/// Topics that every broker has, beside those that only it can name.
fn system_topics(cluster: &str, broker_name: &str, policy: &MessagePolicy) -> Vec<TopicConfig> {
    let topic = |name: &str, queues: u32, permission: u32| TopicConfig { permission, ..TopicConfig::new(name, queues) };
    let mut topics: Vec<TopicConfig> = BUILT_IN_TOPICS
        .iter()
        .filter(|(name, ..)| *name != names::TRACE_TOPIC || policy.trace_topic)
        .map(|(name, queues, permission)| topic(name, *queues as u32, *permission as u32))
        .collect();
    topics.push(topic(cluster, CLUSTER_TOPIC_QUEUES, 7));
    topics.push(topic(broker_name, 1, 7));
    topics.push(topic(&names::reply_topic(cluster), 1, 6));
    if policy.auto_create_topics {
        topics.push(topic(names::AUTO_CREATE_TOPIC, policy.default_topic_queues, 7));
    }
    topics
}

impl BrokerGroup {
    /// Makes the topic unless it exists.
    pub(crate) async fn ensure_topic(&self, config: TopicConfig) -> Result<(), RequestError> {
        self.refuse_beyond_limits(&[Command::PutTopic { config: config.clone(), only_if_absent: true }])?;
        self.make_topic(config).await
    }

    /// Makes the group's dead-letter topic, also beyond the limit of topics, which holds for groups as well: there is one for
    /// each, and what was given up must lie somewhere.
    pub(crate) async fn ensure_dead_letter_topic(&self, group: &str) -> Result<(), RequestError> {
        self.make_topic(TopicConfig::new(names::dlq_topic(group), 1)).await
    }

    async fn make_topic(&self, config: TopicConfig) -> Result<(), RequestError> {
        let name = config.name.clone();
        self.command(&Command::PutTopic { config, only_if_absent: true }).await?;
        tracing::info!(group = %self.broker_name(), topic = %name, "topic created on demand");
        self.registration.wake();
        Ok(())
    }

    /// Makes the topic that a client sends to after the template it names.
    pub(crate) async fn create_after_template(
        &self,
        name: &str,
        template: &str,
        wanted_queues: i32,
    ) -> Result<(), RequestError> {
        if !self.config.messages.auto_create_topics {
            return Err(RequestError::NoTopic(name.to_owned()));
        }
        if template == names::AUTO_CREATE_TOPIC && self.topic_id(template).is_none() {
            // The group's first leader is about to make it: a producer that is as quick need not hear of that.
            self.ensure_system().await?;
        }
        let config = after_template(&self.reader.tables(), name, template, wanted_queues);
        self.ensure_topic(config.ok_or_else(|| RequestError::NoTopic(name.to_owned()))?).await
    }

    /// The group's configuration. A group that does not exist is made with its retry topic, if that is allowed.
    pub(crate) async fn ensure_group(&self, name: &str) -> Result<GroupConfig, RequestError> {
        if let Some(known) = self.reader.tables().groups().get(name) {
            return Ok(known.clone());
        }
        self.ensure_groups(&[name.to_owned()]).await?;
        // Another client may have made it at the same time, with other settings.
        Ok(self.reader.tables().groups().get(name).cloned().unwrap_or_else(|| GroupConfig::new(name)))
    }

    /// Whether the group does not exist, or the retry topic that it should have.
    pub(crate) fn is_group_missing(&self, name: &str) -> bool {
        let tables = self.reader.tables();
        let Some(group) = tables.groups().get(name) else { return true };
        TopicConfig::retry_of(group).is_some_and(|retry| tables.topics().get(&retry.name).is_none())
    }

    /// Makes what is missing of those groups and their retry topics, as far as that is allowed: all or nothing.
    pub(crate) async fn ensure_groups(&self, names: &[String]) -> Result<(), RequestError> {
        let mut commands = Vec::new();
        for name in names.iter().filter(|name| self.is_group_missing(name)) {
            let known = self.reader.tables().groups().get(name).cloned();
            if known.is_none() {
                names::validate_group(name)?;
                if !self.config.messages.auto_create_groups {
                    return Err(RequestError::NoGroup(name.clone()));
                }
            }
            // A retry topic that was deleted comes back as its group has it.
            let config = known.unwrap_or_else(|| GroupConfig::new(name));
            commands.push(Command::PutGroup { config, only_if_absent: true });
        }
        if commands.is_empty() {
            return Ok(());
        }
        self.refuse_beyond_limits(&commands)?;
        self.commands(&commands).await?;
        tracing::info!(group = %self.broker_name(), consumer_groups = ?names, "consumer groups created on demand");
        self.registration.wake();
        Ok(())
    }

    /// Makes what every broker has and this one lacks. The first leader of a group does it, and the first one of a newer
    /// version, which may have more.
    pub(crate) async fn ensure_system(&self) -> Result<(), RequestError> {
        let mut commands: Vec<Command> = Vec::new();
        {
            let tables = self.reader.tables();
            for config in system_topics(&self.cluster, self.broker_name(), &self.config.messages) {
                if tables.topics().get(&config.name).is_none() {
                    commands.push(Command::PutTopic { config, only_if_absent: true });
                }
            }
            for name in BUILT_IN_GROUPS {
                if tables.groups().get(name).is_none() {
                    // Nobody retries in the system's own groups: no retry topics for tools to list.
                    let config = GroupConfig { retry_queues: 0, ..GroupConfig::new(name) };
                    commands.push(Command::PutGroup { config, only_if_absent: true });
                }
            }
        }
        if !commands.is_empty() {
            self.commands(&commands).await?;
            self.registration.wake();
        }
        Ok(())
    }

    /// Refuses commands that would make more topics, groups or queues than there may be. What makes none is never
    /// refused, so that a broker at its limit can still be administered.
    pub(crate) fn refuse_beyond_limits(&self, commands: &[Command]) -> Result<(), RequestError> {
        let tables = self.reader.tables();
        let (limits, growth) = (&self.config.limits, Growth::of(commands, &tables));
        let fits = |what: &str, there_are: u64, more: u64, limit: u64| {
            if more == 0 || there_are + more <= limit {
                return Ok(());
            }
            Err(RequestError::Busy(format!("{what}: there are {there_are}, {more} more are asked for, {limit} may be")))
        };
        let topics_max = limits.topics as u64;
        fits("topics", tables.topics().count() as u64, growth.topics, topics_max)?;
        fits("consumer groups", tables.groups().count() as u64, growth.groups, topics_max)?;
        fits("queues", tables.topics().queues(), growth.queues, limits.queues)
    }
}

/// What commands would add, at most: a name that stands there twice counts twice.
#[derive(Debug, Default, PartialEq, Eq)]
struct Growth {
    topics: u64,
    groups: u64,
    queues: u64,
}

impl Growth {
    fn of(commands: &[Command], tables: &Tables) -> Growth {
        let mut growth = Growth::default();
        for command in commands {
            match command {
                Command::PutTopic { config, only_if_absent } => growth.add_topic(config, *only_if_absent, tables),
                Command::PutGroup { config, .. } => {
                    growth.groups += u64::from(tables.groups().get(&config.name).is_none());
                    if let Some(retry) = TopicConfig::retry_of(config) {
                        growth.add_topic(&retry, true, tables);
                    }
                }
                _ => {}
            }
        }
        growth
    }

    fn add_topic(&mut self, config: &TopicConfig, only_if_absent: bool, tables: &Tables) {
        let known = tables.topics().get(&config.name);
        self.topics += u64::from(known.is_none());
        let queues = match known {
            Some(_) if only_if_absent => 0,
            known => config.queues().saturating_sub(known.map_or(0, Topic::queues)),
        };
        self.queues += u64::from(queues);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broker_has_what_tools_and_producers_look_for() {
        let topics = system_topics("DefaultCluster", "broker-a", &MessagePolicy::default());
        let find = |name: &str| topics.iter().find(|topic| topic.name == name);
        assert_eq!(find("TBW102").map(|topic| (topic.write_queues, topic.permission)), Some((8, 7)));
        assert_eq!(find("DefaultCluster").map(|topic| (topic.read_queues, topic.permission)), Some((16, 7)));
        for name in [
            "broker-a",
            "RMQ_SYS_TRACE_TOPIC",
            "DefaultCluster_REPLY_TOPIC",
            "SELF_TEST_TOPIC",
            "OFFSET_MOVED_EVENT",
            "BenchmarkTest",
            "SCHEDULE_TOPIC_XXXX",
        ] {
            assert!(find(name).is_some(), "{name}");
        }
        let policy = MessagePolicy { auto_create_topics: false, trace_topic: false, ..MessagePolicy::default() };
        let without = system_topics("DefaultCluster", "broker-a", &policy);
        assert!(without.iter().all(|topic| !["TBW102", "RMQ_SYS_TRACE_TOPIC"].contains(&topic.name.as_str())));
    }
}

//! What a NameServer is told: at start by its file, and later over the network, a few switches only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// A NameServer's configuration. The file format is the binary's business.
#[derive(Clone, Debug)]
pub struct NameServerConfig {
    /// Where clients and brokers connect.
    pub listen: SocketAddr,
    /// Whether listening beyond loopback is allowed although nothing authenticates.
    pub allow_unauthenticated: bool,
    /// After how much silence a broker is removed, unless its registration names another time.
    pub broker_expiry: Duration,
    /// Whether routes carry the order of ordered topics. Changeable at run time.
    pub order_message_enable: bool,
    /// Connections kept; further ones are closed at once.
    pub connections: usize,
}

impl Default for NameServerConfig {
    fn default() -> Self {
        NameServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 9876)),
            allow_unauthenticated: false,
            broker_expiry: Duration::from_secs(120),
            order_message_enable: false,
            connections: 20_000,
        }
    }
}

/// Why a configuration is refused; says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// The key as the file has it.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl NameServerConfig {
    /// Checks what must hold among the values, before anything is opened.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError { key, problem });
        if !self.listen.ip().is_loopback() && !self.allow_unauthenticated {
            let problem = format!(
                "{} can be reached from other machines and nothing authenticates yet; bind 127.0.0.1, or set \
                 allow_unauthenticated = true on a network where every machine is trusted",
                self.listen
            );
            return refuse("listen", problem);
        }
        if self.broker_expiry < Duration::from_secs(1) {
            return refuse("broker_expiry_ms", "a living broker may be silent for longer; use 1000 or more".to_owned());
        }
        if self.connections == 0 {
            return refuse("connections", "0 would refuse everything".to_owned());
        }
        Ok(())
    }
}

/// The switches that tools may change at run time, and nothing else: no path, no address, no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// Whether routes carry the order of ordered topics.
    pub order_message_enable: bool,
}

/// Why a change of switches is refused; none of it is applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// Not one of the switches.
    #[error("{0} cannot be changed over the network; change it in the NameServer's file and restart it")]
    NotChangeable(String),
    /// A switch with a value that it cannot have.
    #[error("{key} cannot be {value:?}; use true or false")]
    BadValue {
        /// The switch.
        key: &'static str,
        /// What it was to become.
        value: String,
    },
}

const ORDER_MESSAGE_ENABLE: &str = "orderMessageEnable";

impl Switches {
    /// The switches after a change; all of it or nothing.
    pub fn changed(self, change: &BTreeMap<String, String>) -> Result<Switches, SwitchError> {
        let mut switches = self;
        for (key, value) in change {
            match key.as_str() {
                ORDER_MESSAGE_ENABLE => switches.order_message_enable = parse_switch(ORDER_MESSAGE_ENABLE, value)?,
                other => return Err(SwitchError::NotChangeable(other.to_owned())),
            }
        }
        Ok(switches)
    }

    /// RocketMQ's names and texts.
    pub fn to_table(self) -> BTreeMap<String, String> {
        BTreeMap::from([(ORDER_MESSAGE_ENABLE.to_owned(), self.order_message_enable.to_string())])
    }
}

fn parse_switch(key: &'static str, value: &str) -> Result<bool, SwitchError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(SwitchError::BadValue { key, value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_the_key_to_change() {
        let default = NameServerConfig::default;
        assert_eq!(default().check(), Ok(()));
        let open = SocketAddr::from(([0, 0, 0, 0], 9876));
        let cases = [
            ("listen", NameServerConfig { listen: open, ..default() }),
            ("broker_expiry_ms", NameServerConfig { broker_expiry: Duration::from_millis(9), ..default() }),
            ("connections", NameServerConfig { connections: 0, ..default() }),
        ];
        for (key, config) in cases {
            assert_eq!(config.check().expect_err("it cannot work").key, key);
        }
        assert_eq!(NameServerConfig { listen: open, allow_unauthenticated: true, ..default() }.check(), Ok(()));
    }

    #[test]
    fn a_change_is_all_or_nothing_and_reaches_switches_only() {
        let off = Switches { order_message_enable: false };
        let change = |pairs: &[(&str, &str)]| {
            off.changed(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(change(&[("orderMessageEnable", "true")]), Ok(Switches { order_message_enable: true }));
        assert_eq!(
            change(&[("orderMessageEnable", "true"), ("rocketmqHome", "/")]),
            Err(SwitchError::NotChangeable("rocketmqHome".to_owned()))
        );
        assert_eq!(
            change(&[("orderMessageEnable", "yes")]),
            Err(SwitchError::BadValue { key: ORDER_MESSAGE_ENABLE, value: "yes".to_owned() })
        );
        assert_eq!(off.to_table()["orderMessageEnable"], "false");
    }
}

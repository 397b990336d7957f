//! Dead letters: dlqList, dlqShow, dlqResend.

use std::time::Duration;

use clap::Args;
use client::admin::dead_letters::{DeadLetterQueue, Destination, Resend, ResendProgress, Wanted};
use client::admin::protocol::message_id::MessageId;
use client::admin::protocol::names::{dlq_topic, group_of_dlq_topic};
use client::admin::protocol::properties;
use client::admin::protocol::record::RecordView;
use client::admin::protocol::sql92::SqlFilter;
use client::admin::protocol::tag::TagExpression;
use serde_json::{Value, json};

use super::groups::GroupName;
use super::report::{Column, Report, Table, date};
use super::{Desk, Execute, failed, messages};

/// Between two lines of progress.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// Which dead letters.
#[derive(Args)]
struct Which {
    /// With this key, or this unique key.
    #[arg(short = 'k', long = "msgKey", value_name = "KEY")]
    key: Option<String>,
    /// With one of these tags: `A || B`.
    #[arg(short = 'c', long = "tags", value_name = "EXPRESSION")]
    tags: Option<String>,
    /// Of which this SQL92 expression over properties is true.
    #[arg(long = "sql", value_name = "EXPRESSION")]
    sql: Option<String>,
    /// Given up at or after, milliseconds since the epoch.
    #[arg(short = 's', long = "beginTimestamp", value_name = "MS", default_value_t = 0)]
    begin: i64,
    /// Given up at or before, milliseconds since the epoch.
    #[arg(short = 'e', long = "endTimestamp", value_name = "MS", default_value_t = i64::MAX, hide_default_value = true)]
    end: i64,
}

impl Which {
    fn wanted(&self) -> Result<Wanted, String> {
        let tags =
            TagExpression::parse(self.tags.as_deref().unwrap_or("*")).map_err(|error| format!("--tags: {error}"))?;
        let sql = self.sql.as_deref().map(SqlFilter::parse).transpose().map_err(|error| format!("--sql: {error}"))?;
        Ok(Wanted { key: self.key.clone(), tags, sql, from_ms: self.begin, to_ms: self.end })
    }
}

#[derive(Args)]
pub struct DlqList {
    /// One group's dead letters, one by one; without it, every group that has any.
    #[arg(short = 'g', long = "groupName", alias = "consumerGroup", value_name = "GROUP")]
    group: Option<String>,
    #[command(flatten)]
    which: Which,
    /// Most dead letters to list.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

const GROUPS: &[Column] = &[
    Column("#Group", "group"),
    Column("#Broker Name", "brokerName"),
    Column("#QID", "queueId"),
    Column("#Dead Letters", "deadLetters"),
    Column("#Ever", "ever"),
];

const DEAD_LETTERS: &[Column] = &[
    Column("#Broker Name", "brokerName"),
    Column("#QID", "queueId"),
    Column("#Offset", "offset"),
    Column("#Offset ID", "offsetMsgId"),
    Column("#Topic", "topic"),
    Column("#Tags", "tags"),
    Column("#Keys", "keys"),
    Column("#Unique Key", "uniqueKey"),
    Column("#Reconsume Times", "reconsumeTimes"),
    Column("#Stored", "storeTimestamp"),
];

impl Execute for DlqList {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        match &self.group {
            Some(group) => self.of(desk, group).await,
            None => groups(desk).await,
        }
    }
}

async fn groups(desk: &Desk) -> Result<Report, String> {
    let topics = desk.admin.topics().await.map_err(|error| failed("topics", error))?.topic_list;
    let mut table = Table::new(GROUPS);
    for group in topics.iter().filter_map(|topic| group_of_dlq_topic(topic)) {
        for queue in queues(desk, group).await? {
            let DeadLetterQueue { broker_name, queue_id, first, end } = queue;
            table.push([group.into(), broker_name.into(), queue_id.into(), (end - first).into(), end.into()]);
        }
    }
    Ok(table.into())
}

async fn queues(desk: &Desk, group: &str) -> Result<Vec<DeadLetterQueue>, String> {
    let found = desk.admin.dead_letter_queues(group).await;
    found.map_err(|error| failed(format!("dead letters of {group}"), error))
}

impl DlqList {
    async fn of(&self, desk: &Desk, group: &str) -> Result<Report, String> {
        let wanted = self.which.wanted()?;
        let mut table = Table::new(DEAD_LETTERS);
        let (mut listed, mut problems) = (0, Vec::new());
        'queues: for queue in queues(desk, group).await? {
            let mut next = queue.first;
            while next < queue.end {
                let read = desk.admin.dead_letters(group, &queue, next).await;
                let (records, behind) = read.map_err(|error| failed(format!("dead letters of {group}"), error))?;
                for record in records {
                    let view = RecordView::parse(&record).map_err(|error| format!("a dead letter: {error}"))?;
                    if !wanted.matches(&view) {
                        continue;
                    }
                    if listed == self.limit {
                        problems.push(format!("{group} has more; list them with --limit"));
                        break 'queues;
                    }
                    listed += 1;
                    table.push(row(&queue, &view));
                }
                if behind <= next {
                    break;
                }
                next = behind;
            }
        }
        Ok(Report::from(table).with_problems(problems))
    }
}

fn row(queue: &DeadLetterQueue, dead_letter: &RecordView<'_>) -> [Value; 10] {
    let property = |name: &str| dead_letter.property(name).map_or(Value::Null, Value::from);
    let (store_host, physical_offset) = (dead_letter.store_host(), dead_letter.physical_offset());
    [
        queue.broker_name.as_str().into(),
        queue.queue_id.into(),
        dead_letter.queue_offset().into(),
        MessageId { store_host, physical_offset }.to_string().into(),
        property(properties::RETRY_TOPIC),
        property(properties::TAGS),
        property(properties::KEYS),
        property(properties::UNIQ_KEY),
        dead_letter.reconsume_times().into(),
        date(dead_letter.store_timestamp()),
    ]
}

#[derive(Args)]
pub struct DlqShow {
    #[command(flatten)]
    group: GroupName,
    /// The dead letter's offset message id, as dlqList shows it.
    #[arg(short = 'i', long = "msgId", value_name = "ID")]
    id: String,
}

impl Execute for DlqShow {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let id: MessageId = self.id.parse().map_err(|error| format!("{}: {error}; see dlqList", self.id))?;
        let (topic, address) = (dlq_topic(&self.group.name), id.store_host.to_string());
        let found = desk.admin.view_message(&address, Some(&topic), id.physical_offset).await;
        let record = found.map_err(|error| failed(format!("message {} at {address}", self.id), error))?;
        let view =
            RecordView::parse(&record).map_err(|error| format!("the broker's record cannot be read: {error}"))?;
        if view.topic() != topic {
            return Err(format!("{} is a message of {}, no dead letter of {}", self.id, view.topic(), self.group.name));
        }
        messages::report([&record[..]])
    }
}

#[derive(Args)]
pub struct DlqResend {
    #[command(flatten)]
    group: GroupName,
    #[command(flatten)]
    which: Which,
    /// To the group's retry topic, which no other group reads, instead of the topic that they came from. Not for a group that
    /// consumes in order: it would give them up at once.
    #[arg(long = "toRetry")]
    to_retry: bool,
    /// At most so many a second; 0 for as fast as it goes.
    #[arg(long = "rate", value_name = "COUNT", default_value_t = 100)]
    rate: u32,
}

impl Execute for DlqResend {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let resend = Resend {
            group: self.group.name.clone(),
            destination: if self.to_retry { Destination::RetryTopic } else { Destination::OriginalTopic },
            wanted: self.which.wanted()?,
            per_second: self.rate,
        };
        let clock = &desk.env.clock;
        let mut told_at = clock.monotonic();
        let tell = |progress: &ResendProgress| {
            let now = clock.monotonic();
            if now >= told_at + TELL_INTERVAL {
                told_at = now;
                eprintln!("{}", summary(progress));
            }
        };
        let done = resend.run(&desk.admin, &desk.env, tell).await.map_err(|error| error.to_string())?;
        let json = json!({
            "total": done.total, "sent": done.sent, "sentBefore": done.sent_before, "unwanted": done.unwanted,
            "withoutTopic": done.without_topic,
        });
        let mut problems = Vec::new();
        if done.without_topic > 0 {
            problems.push(format!(
                "{} dead letters do not say which topic they came from; look at them with dlqList and dlqShow",
                done.without_topic
            ));
        }
        let text = format!("{}\nA repeated run passes over what is sent.\n", summary(&done));
        Ok(Report::new(text, json).with_problems(problems))
    }
}

fn summary(progress: &ResendProgress) -> String {
    let ResendProgress { total, looked_at, sent, sent_before, unwanted, .. } = progress;
    format!("{looked_at} of {total} dead letters: {sent} sent, {sent_before} sent before, {unwanted} not wanted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_badly_is_refused_with_its_flag() {
        let which = |tags: Option<&str>, sql: Option<&str>| Which {
            key: None,
            tags: tags.map(str::to_owned),
            sql: sql.map(str::to_owned),
            begin: 0,
            end: i64::MAX,
        };
        assert!(which(Some("A || B"), Some("n > 1")).wanted().is_ok());
        assert!(which(None, Some("n >")).wanted().err().is_some_and(|error| error.starts_with("--sql: ")));
        assert!(which(Some("||"), None).wanted().err().is_some_and(|error| error.starts_with("--tags: ")));
    }
}

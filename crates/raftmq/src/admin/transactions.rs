//! Transactions that wait for their ends: transactionList, transactionResume, transactionEnd.

use clap::{Args, ValueEnum};
use client::admin::protocol::body::WaitingTransaction;
use client::admin::protocol::message_id::MessageId;
use serde_json::Value;

use super::report::{Column, Report, Table, date};
use super::{Desk, Execute, Target, failed};

/// Asked for at once.
const PAGE: i32 = 1_000;

/// How far the question has got, how a transaction has ended.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// Nobody was asked yet.
    Unasked,
    /// A producer was asked, and is again.
    Asked,
    /// No producer is asked any more.
    Discarded,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Unasked => "unasked",
            State::Asked => "asked",
            State::Discarded => "discarded",
        }
    }
}

#[derive(Args)]
pub struct TransactionList {
    #[command(flatten)]
    target: Target,
    /// Which ones.
    #[arg(long, value_enum, default_value = "discarded")]
    state: State,
    /// Most to list of each broker group.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

impl Execute for TransactionList {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let mut table = Table::new(&[
            Column("#Broker Name", "brokerName"),
            Column("#Offset ID", "offsetMsgId"),
            Column("#Topic", "topic"),
            Column("#Producer Group", "producerGroup"),
            Column("#Keys", "keys"),
            Column("#Unique Key", "uniqueKey"),
            Column("#Asked", "asked"),
            Column("#Stored", "storeTimestamp"),
            Column("#Since", "since"),
        ]);
        let mut problems = Vec::new();
        for broker in self.target.brokers(desk).await? {
            match listed(desk, &broker.address, self.state, self.limit).await {
                Ok((transactions, more)) => {
                    if more {
                        problems.push(format!("{} has more; list them with --limit", broker.name));
                    }
                    transactions.into_iter().for_each(|one| table.push(row(&broker.name, one)));
                }
                Err(problem) => problems.push(problem),
            }
        }
        Ok(Report::from(table).with_problems(problems))
    }
}

/// Those of one broker group in a state, at most `limit`, and whether it has more.
async fn listed(
    desk: &Desk,
    address: &str,
    state: State,
    limit: usize,
) -> Result<(Vec<WaitingTransaction>, bool), String> {
    let mut transactions: Vec<WaitingTransaction> = Vec::new();
    loop {
        let wanted = i32::try_from(limit - transactions.len()).unwrap_or(PAGE).min(PAGE);
        let page = desk.admin.transactions(address, state.name(), transactions.last(), wanted).await;
        let page = page.map_err(|error| failed(format!("transactions at {address}"), error))?;
        let is_end = !page.more || page.transactions.is_empty();
        transactions.extend(page.transactions);
        if is_end || transactions.len() >= limit {
            return Ok((transactions, !is_end));
        }
    }
}

fn row(broker: &str, transaction: WaitingTransaction) -> [Value; 9] {
    [
        broker.into(),
        transaction.offset_msg_id.into(),
        transaction.topic.into(),
        transaction.producer_group.into(),
        transaction.keys.into(),
        transaction.unique_key.into(),
        transaction.asked.into(),
        date(transaction.store_timestamp),
        date(transaction.since),
    ]
}

#[derive(Args)]
pub struct TransactionResume {
    /// The offset message id, as transactionList shows it.
    #[arg(short = 'i', long = "msgId", value_name = "ID")]
    id: String,
    /// The message's topic.
    #[arg(short = 't', long = "topic", value_name = "TOPIC")]
    topic: Option<String>,
}

impl Execute for TransactionResume {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let address = parsed(&self.id)?.store_host.to_string();
        let resumed = desk.admin.resume_transaction(&address, self.topic.as_deref(), &self.id).await;
        resumed.map_err(|error| failed(format!("transaction {} at {address}", self.id), error))?;
        let text = format!("producers are asked about the transaction {} again", self.id);
        Ok(Report::new(text, serde_json::json!({ "resumed": self.id })))
    }
}

#[derive(Args)]
pub struct TransactionEnd {
    /// The offset message id, as transactionList shows it.
    #[arg(short = 'i', long = "msgId", value_name = "ID")]
    id: String,
    /// How.
    #[arg(long, value_enum)]
    with: End,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum End {
    /// Its message becomes visible.
    Commit,
    /// Its message never becomes visible.
    Rollback,
}

impl Execute for TransactionEnd {
    async fn execute(&self, desk: &Desk) -> Result<Report, String> {
        let id = parsed(&self.id)?;
        let address = id.store_host.to_string();
        let (given_up, _) = listed(desk, &address, State::Discarded, usize::MAX).await?;
        // Each replica names it with its own address: only the place counts.
        let Some(transaction) = given_up.iter().find(|one| one.commit_log_offset == id.physical_offset) else {
            return Err(format!(
                "no transaction {} was given up at {address}: it has ended, or producers are still asked; see transactionList \
                 --state asked",
                self.id
            ));
        };
        let ended = desk.admin.end_transaction(&address, transaction, self.with == End::Commit).await;
        ended.map_err(|error| failed(format!("transaction {} at {address}", self.id), error))?;
        let (text, how) = match self.with {
            End::Commit => ("committed: its message is visible", "committed"),
            End::Rollback => ("rolled back: its message will never be visible", "rolledBack"),
        };
        Ok(Report::new(format!("the transaction {} is {text}", self.id), serde_json::json!({ how: self.id })))
    }
}

fn parsed(id: &str) -> Result<MessageId, String> {
    id.parse().map_err(|error| format!("{id}: {error}; see transactionList"))
}

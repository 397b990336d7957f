//! Transactions that wait for their ends: transactionList, transactionResume.

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
            match self.of(desk, &broker.address).await {
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

impl TransactionList {
    /// Those of one broker group, and whether it has more than were asked for.
    async fn of(&self, desk: &Desk, address: &str) -> Result<(Vec<WaitingTransaction>, bool), String> {
        let mut transactions: Vec<WaitingTransaction> = Vec::new();
        loop {
            let wanted = i32::try_from(self.limit - transactions.len()).unwrap_or(PAGE).min(PAGE);
            let page = desk.admin.transactions(address, self.state.name(), transactions.last(), wanted).await;
            let page = page.map_err(|error| failed(format!("transactions at {address}"), error))?;
            let is_end = !page.more || page.transactions.is_empty();
            transactions.extend(page.transactions);
            if is_end || transactions.len() >= self.limit {
                return Ok((transactions, !is_end));
            }
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
        let id: MessageId = self.id.parse().map_err(|error| format!("{}: {error}; see transactionList", self.id))?;
        let address = id.store_host.to_string();
        let resumed = desk.admin.resume_transaction(&address, self.topic.as_deref(), &self.id).await;
        resumed.map_err(|error| failed(format!("transaction {} at {address}", self.id), error))?;
        let text = format!("producers are asked about the transaction {} again", self.id);
        Ok(Report::new(text, serde_json::json!({ "resumed": self.id })))
    }
}

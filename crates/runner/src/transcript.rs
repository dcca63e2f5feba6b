//! What a run's log says: what was talked about, and what comes next. Pure.

use std::collections::VecDeque;

use ledger::{Entry, Step};
use llm::{Call, Message};

/// The state of a run as its log tells it. The same log always leads to the same next step: that is how a run goes on
/// after a crash.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    /// The conversation after the task.
    messages: Vec<Message>,
    /// How often the model answered.
    answers: u32,
    /// Calls of the latest answer without a result, in their order.
    open: VecDeque<Call>,
    /// The first of them was begun.
    begun: bool,
    /// An answer without calls: the end.
    end: Option<Answer>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask the model for the `turn`th time.
    Ask { turn: u32 },
    /// Let the tool act.
    Call(Call),
    /// Tell the model that nobody knows what became of this call.
    Lost(Call),
    /// The run has its answer.
    End(Answer),
}

/// The last words of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// Why it is not all that the model would have said.
    pub(crate) cut: Option<String>,
}

/// The log does not make sense.
#[derive(Debug, thiserror::Error)]
#[error("the run's log is damaged: {0}")]
pub(crate) struct Damaged(String);

impl Transcript {
    pub(crate) fn read(log: &[Entry]) -> Result<Self, Damaged> {
        let mut transcript = Self::default();
        for entry in log {
            transcript.add(&entry.step)?;
        }
        Ok(transcript)
    }

    /// What happened next, in the log already.
    pub(crate) fn add(&mut self, step: &Step) -> Result<(), Damaged> {
        match step {
            Step::Asked { .. } | Step::Retrying { .. } | Step::Spent { .. } | Step::Noted { .. } => {}
            Step::Answered { message, cut, .. } => {
                let message = serde_json::from_value(message.clone()).map_err(|error| Damaged(error.to_string()))?;
                let Message::Assistant { text, calls } = &message else {
                    return Err(Damaged("an answer that is not the model's".to_owned()));
                };
                if !self.open.is_empty() {
                    return Err(Damaged("an answer before the results of its calls".to_owned()));
                }
                self.open.extend(calls.iter().cloned());
                self.end = calls.is_empty().then(|| Answer { text: text.clone(), cut: cut.clone() });
                self.messages.push(message);
                self.answers += 1;
            }
            Step::Called { call_id, .. } => {
                if self.begun || self.open.front().is_none_or(|call| call.id != *call_id) {
                    return Err(Damaged(format!("the call {call_id} out of turn")));
                }
                self.begun = true;
            }
            Step::Returned { call_id, output, .. } => {
                let Some(call) = self.open.pop_front().filter(|call| self.begun && call.id == *call_id) else {
                    return Err(Damaged(format!("a result of {call_id} without its call")));
                };
                self.messages.push(Message::Tool { call: call.id, output: output.clone() });
                self.begun = false;
            }
        }
        Ok(())
    }

    pub(crate) fn next(&self) -> Next {
        match (&self.end, self.open.front()) {
            (Some(answer), _) => Next::End(answer.clone()),
            (None, Some(call)) if self.begun => Next::Lost(call.clone()),
            (None, Some(call)) => Next::Call(call.clone()),
            (None, None) => Next::Ask { turn: self.answers + 1 },
        }
    }

    /// Results of the latest answer's calls.
    pub(crate) fn results(&self) -> usize {
        self.messages.iter().rev().take_while(|message| matches!(message, Message::Tool { .. })).count()
    }

    pub(crate) fn messages(&self) -> &[Message] {
        &self.messages
    }
}

//! The hands of a run: tools that act, and who may call which.

use futures::future::BoxFuture;
use ledger::{Action, Ticket, ToolRules};
use serde_json::{Map, Value};

/// Bytes of a result that the model is told, so that one call cannot fill its window.
const OUTPUT: usize = 128 << 10;

/// Tools that act for runs.
pub trait Tools: Send + Sync + 'static {
    /// The tools this run has; no I/O.
    fn list(&self, ticket: &Ticket) -> Vec<llm::Tool>;

    /// Lets a tool of the list act. A tool that fails is a result like another. Dropping the future stops the tool.
    fn call<'a>(
        &'a self,
        ticket: &'a Ticket,
        name: &'a str,
        arguments: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Output>;
}

/// What a tool gives back, for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub text: String,
    pub failed: bool,
}

impl Output {
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self { text: text.into(), failed: true }
    }

    /// Cuts the middle out of what is too long, and says so.
    pub(crate) fn bounded(mut self) -> Self {
        let length = self.text.len();
        if length > OUTPUT {
            let head = self.text.floor_char_boundary(OUTPUT / 2);
            let tail = self.text.ceil_char_boundary(length - OUTPUT / 2);
            let left_out = format!("\n[{} bytes left out]\n", tail - head);
            self.text.replace_range(head..tail, &left_out);
        }
        self
    }
}

/// Why this tool may not be called, for the model and for people; `None` when it may.
pub(crate) fn refusal(rules: &ToolRules, tool: &str) -> Option<String> {
    let named = |list: &[String]| list.iter().any(|it| it == tool);
    if let Some(gate) = &rules.gate {
        let action = gate.rules.iter().find(|(name, _)| name == tool).map_or(gate.default, |(_, action)| *action);
        let policy = &gate.policy;
        match action {
            Action::Allow => {}
            Action::Deny => return Some(format!("denied: the policy {policy} does not allow the tool {tool}")),
            Action::Ask => {
                return Some(format!(
                    "denied: the policy {policy} wants a person's approval for the tool {tool}, and nobody can give it here"
                ));
            }
        }
    }
    if named(&rules.deny) || (!rules.allow.is_empty() && !named(&rules.allow)) {
        return Some(format!("denied: the run's toolPolicy does not allow the tool {tool}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::Gate;

    #[test]
    fn what_is_denied_anywhere_is_denied_and_says_by_whom() {
        let list = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let gate = |default, rules: &[(&str, Action)]| {
            let rules = rules.iter().map(|(tool, action)| ((*tool).to_owned(), *action)).collect();
            Some(Gate { policy: "careful".to_owned(), default, rules })
        };
        use Action::{Allow, Ask, Deny};
        let table = [
            (list(&[]), list(&[]), None, None),
            (list(&["x"]), list(&[]), None, None),
            (list(&["y"]), list(&[]), None, Some("toolPolicy")),
            (list(&["x"]), list(&["x"]), None, Some("toolPolicy")),
            (list(&[]), list(&[]), gate(Deny, &[("x", Allow)]), None),
            (list(&[]), list(&[]), gate(Deny, &[("y", Allow)]), Some("careful")),
            (list(&["x"]), list(&[]), gate(Allow, &[("x", Deny)]), Some("careful")),
            (list(&[]), list(&[]), gate(Ask, &[]), Some("approval")),
            (list(&[]), list(&["x"]), gate(Allow, &[]), Some("toolPolicy")),
        ];
        for (allow, deny, gate, expected) in table {
            let rules = ToolRules { allow, deny, gate };
            let refused = refusal(&rules, "x");
            assert_eq!(refused.is_some(), expected.is_some(), "{rules:?}: {refused:?}");
            assert!(refused.unwrap_or_default().contains(expected.unwrap_or_default()), "{rules:?}");
        }
    }

    #[test]
    fn what_is_too_long_loses_its_middle() {
        let short = Output { text: "é".repeat(10), failed: false };
        assert_eq!(short.clone().bounded(), short);
        let long = Output { text: format!("begin{}end", "é".repeat(OUTPUT)), failed: false }.bounded();
        assert!(long.text.starts_with("beginé") && long.text.ends_with("éend"));
        assert!(long.text.len() < OUTPUT + 100 && long.text.contains(" bytes left out]"), "{}", long.text.len());
    }
}

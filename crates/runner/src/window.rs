//! How much of a session a model can be told: an estimate, on the safe side.

use ledger::Turn;
use llm::{Message, Tool, estimate_tokens};

/// Tokens a model takes in, by the beginning of its name; the first line that fits counts. Read off the providers'
/// pages; a wrong line costs turns of a session or a refusal of the provider, never more.
const WINDOWS: &[(&str, u64)] = &[
    ("gpt-3.5-turbo", 16_385),
    ("gpt-4.1", 1_047_576),
    ("gpt-4o", 128_000),
    ("gpt-4-turbo", 128_000),
    ("gpt-4-0", 8_192),
    ("gpt-4-32k", 32_768),
    ("gpt-5", 272_000),
    ("o1", 200_000),
    ("o3", 200_000),
    ("o4", 200_000),
    ("claude", 200_000),
    ("gemini", 1_000_000),
    ("llama3.1", 128_000),
    ("llama3.2", 128_000),
    ("llama3.3", 128_000),
    ("llama3", 8_192),
    ("llama2", 4_096),
    ("mistral-7b", 32_768),
    ("mixtral", 32_768),
    ("gemma2", 8_192),
    ("phi3", 4_096),
];

/// For a model that nobody told us of.
const UNKNOWN: u64 = 128_000;

/// Around each message, for its role.
const AROUND: u64 = 4;

/// Tokens that a model takes in. A path before the name (`openai/gpt-4o`) does not count.
pub(crate) fn of(model: &str) -> u64 {
    let name = model.rsplit('/').next().unwrap_or(model).to_ascii_lowercase();
    if name == "gpt-4" {
        return 8_192;
    }
    WINDOWS.iter().find(|(prefix, _)| name.starts_with(prefix)).map_or(UNKNOWN, |(_, window)| *window)
}

/// The newest turns that fit into the window beside the rest of the question and room for an answer; whole turns only.
pub(crate) fn fitting<'a>(window: u64, rest: &[Message], tools: &[Tool], history: &'a [Turn]) -> &'a [Turn] {
    let answer = (window / 4).min(16_384);
    let tools: u64 = tools.iter().map(|it| estimate_tokens(&it.description) + json(&it.parameters)).sum();
    let mut room = window.saturating_sub(answer + tools + rest.iter().map(tokens).sum::<u64>());
    let mut from = history.len();
    for (index, turn) in history.iter().enumerate().rev() {
        let needs = estimate_tokens(&turn.task) + estimate_tokens(&turn.answer) + 2 * AROUND;
        if needs > room {
            break;
        }
        room -= needs;
        from = index;
    }
    history.get(from..).unwrap_or_default()
}

fn tokens(message: &Message) -> u64 {
    AROUND
        + match message {
            Message::System { text } | Message::User { text } => estimate_tokens(text),
            Message::Assistant { text, calls } => {
                let calls = calls.iter().map(|it| estimate_tokens(&it.name) + estimate_tokens(&it.arguments));
                estimate_tokens(text) + calls.sum::<u64>()
            }
            Message::Tool { output, .. } => estimate_tokens(output),
        }
}

fn json(value: &serde_json::Value) -> u64 {
    estimate_tokens(&value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_the_models_or_the_default() {
        for (model, window) in [
            ("gpt-4o-mini", 128_000),
            ("openai/GPT-4.1-nano", 1_047_576),
            ("gpt-4", 8_192),
            ("gpt-4-0613", 8_192),
            ("llama3:8b", 8_192),
            ("llama3.1:8b", 128_000),
            ("scripted", 128_000),
            ("", 128_000),
        ] {
            assert_eq!(of(model), window, "{model}");
        }
    }

    #[test]
    fn the_oldest_turns_go_first_and_none_is_split() {
        let turn = |bytes: usize| Turn { task: "x".repeat(bytes / 2), answer: "y".repeat(bytes / 2) };
        let history = [turn(400), turn(4_000), turn(800)]; // 108, 1008 and 208 tokens
        let rest = [Message::User { text: "x".repeat(400) }]; // 104 tokens
        // A quarter of the window is for the answer.
        for (window, turns) in [(100, 0), (414, 0), (415, 1), (1_758, 1), (1_759, 2), (1_902, 2), (1_903, 3)] {
            assert_eq!(fitting(window, &rest, &[], &history).len(), turns, "{window}");
        }
        assert_eq!(fitting(1_700, &rest, &[], &history), &history[2..]);
    }
}

//! What the sandbox's tools take, as the model is told and as it is read. Pure.
//!
//! Names, parameters and limits are those of Sympozium's agent-runner; `offset` is ours.

use std::time::Duration;

use llm::Tool;
use serde_json::{Map, Value, json};

/// How long a command may take: when nothing is said, and at most.
const TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const TIMEOUT_MOST: Duration = Duration::from_secs(120);
/// Where files are read and written.
const READABLE: &[&str] = &["/workspace", "/skills", "/tmp", "/ipc"];
const WRITABLE: &[&str] = &["/workspace", "/tmp"];
/// Relative paths begin here.
const HOME: &str = "/workspace";

/// A call that makes sense. Paths are absolute and have no `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Execute { command: String, workdir: Option<String>, timeout: Duration },
    Read { path: String, offset: u64 },
    Write { path: String, content: String },
    List { path: String },
}

/// All tools, as models are told about them.
pub(super) fn tools() -> Vec<Tool> {
    let text = |what: &str| json!({"type": "string", "description": what});
    let tool = |name: &str, description: &str, properties: Value, required: &[&str]| Tool {
        name: name.to_owned(),
        description: description.to_owned(),
        parameters: json!({"type": "object", "properties": properties, "required": required}),
    };
    vec![
        tool(
            "execute_command",
            "Run a command with bash in the sandbox and get its output and exit code. The sandbox is a Linux machine of \
             your own without network, with this machine's programs (python3, git, ...); files in /workspace are kept. \
             Of long output you get the end, and the name of a file with all of it.",
            json!({
                "command": text("What bash runs."),
                "workdir": text("The directory in which it runs; /workspace when not given."),
                "timeout": {"type": "integer", "minimum": 1, "maximum": TIMEOUT_MOST.as_secs(), "default": TIMEOUT.as_secs(),
                            "description": "Seconds after which it is killed with all that it started. Start what takes \
                                            longer in the background, with its output in a file."},
            }),
            &["command"],
        ),
        tool(
            "read_file",
            "Read a text file in the sandbox, 8 KiB at a time.",
            json!({
                "path": text("A file below /workspace, /skills, /tmp or /ipc."),
                "offset": {"type": "integer", "minimum": 1, "default": 1, "description": "The first line to read."},
            }),
            &["path"],
        ),
        tool(
            "write_file",
            "Write a whole text file in the sandbox; directories above it are made, a file that is there is replaced.",
            json!({
                "path": text("A file below /workspace or /tmp."),
                "content": text("All that is to be in it."),
            }),
            &["path", "content"],
        ),
        tool(
            "list_directory",
            "List what is in a directory of the sandbox.",
            json!({"path": text("The directory.")}),
            &["path"],
        ),
    ]
}

impl Ask {
    /// Reads a call's arguments; what is not known is passed over. The error is for the model.
    pub(super) fn read(tool: &str, arguments: &Map<String, Value>) -> Result<Self, String> {
        let arguments = Arguments { tool, values: arguments };
        match tool {
            "execute_command" => {
                let command = arguments.text("command")?.to_owned();
                if command.trim().is_empty() {
                    return Err("execute_command: the command is empty".to_owned());
                }
                let workdir = arguments.optional("workdir")?.filter(|it| !it.is_empty()).map(absolute);
                let timeout = arguments.number("timeout")?.map_or(TIMEOUT, Duration::from_secs);
                Ok(Self::Execute { command, workdir, timeout: timeout.clamp(Duration::from_secs(1), TIMEOUT_MOST) })
            }
            "read_file" => {
                let path = arguments.path(READABLE)?;
                Ok(Self::Read { path, offset: arguments.number("offset")?.unwrap_or(1).max(1) })
            }
            "write_file" => {
                let path = arguments.path(WRITABLE)?;
                Ok(Self::Write { path, content: arguments.text("content")?.to_owned() })
            }
            "list_directory" => Ok(Self::List { path: absolute(arguments.text("path")?) }),
            _ => Err(format!("there is no tool {tool:?} in the sandbox")),
        }
    }
}

struct Arguments<'a> {
    tool: &'a str,
    values: &'a Map<String, Value>,
}

impl<'a> Arguments<'a> {
    fn text(&self, name: &str) -> Result<&'a str, String> {
        self.optional(name)?.ok_or_else(|| format!("{}: {name} is missing", self.tool))
    }

    fn optional(&self, name: &str) -> Result<Option<&'a str>, String> {
        match self.values.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("{}: {name} must be a string", self.tool)),
        }
    }

    /// A count; models write it as a number of any kind, and as a string.
    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let number = match self.values.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        match number.filter(|it| (0.0..=1e15).contains(it)) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within its bounds")]
            Some(number) => Ok(Some(number.ceil() as u64)),
            None => Err(format!("{}: {name} must be a whole number", self.tool)),
        }
    }

    /// The path, where it is below one of `roots`. Links are not followed here: what they lead to is in the sandbox too.
    fn path(&self, roots: &[&str]) -> Result<String, String> {
        let path = absolute(self.text("path")?);
        let within =
            |root: &&str| path.strip_prefix(*root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if roots.iter().any(within) {
            return Ok(path);
        }
        Err(format!("{}: {path} is not below {}", self.tool, roots.join(", ")))
    }
}

/// A path without `.` and `..`, from the root.
fn absolute(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let from_home = if path.starts_with('/') { "" } else { HOME };
    for part in from_home.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tool: &str, arguments: Value) -> Result<Ask, String> {
        Ask::read(tool, arguments.as_object().unwrap())
    }

    #[test]
    fn calls_are_read_as_models_write_them() {
        let execute = |command: &str, workdir: Option<&str>, seconds| Ask::Execute {
            command: command.to_owned(),
            workdir: workdir.map(str::to_owned),
            timeout: Duration::from_secs(seconds),
        };
        let read_file = |path: &str, offset| Ask::Read { path: path.to_owned(), offset };
        let table = [
            ("execute_command", json!({"command": "true"}), execute("true", None, 30)),
            (
                "execute_command",
                json!({"command": "x", "workdir": "sub", "timeout": 90}),
                execute("x", Some("/workspace/sub"), 90),
            ),
            (
                "execute_command",
                json!({"command": "x", "workdir": "", "timeout": 9000, "why": 1}),
                execute("x", None, 120),
            ),
            ("execute_command", json!({"command": "x", "timeout": "45"}), execute("x", None, 45)),
            ("execute_command", json!({"command": "x", "timeout": 0.5, "workdir": null}), execute("x", None, 1)),
            ("execute_command", json!({"command": "x", "timeout": 0}), execute("x", None, 1)),
            ("read_file", json!({"path": "/workspace/a"}), read_file("/workspace/a", 1)),
            ("read_file", json!({"path": "a/../b", "offset": 7}), read_file("/workspace/b", 7)),
            ("read_file", json!({"path": "/skills//x/./y"}), read_file("/skills/x/y", 1)),
            ("list_directory", json!({"path": "/etc/.."}), Ask::List { path: "/".to_owned() }),
            ("list_directory", json!({"path": ""}), Ask::List { path: "/workspace".to_owned() }),
            (
                "write_file",
                json!({"path": "/tmp/x", "content": ""}),
                Ask::Write { path: "/tmp/x".to_owned(), content: String::new() },
            ),
        ];
        for (tool, arguments, expected) in table {
            assert_eq!(read(tool, arguments.clone()), Ok(expected), "{tool} {arguments}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_to_do() {
        let table = [
            ("execute_command", json!({}), "command is missing"),
            ("execute_command", json!({"command": " "}), "empty"),
            ("execute_command", json!({"command": ["ls"]}), "command must be a string"),
            ("execute_command", json!({"command": "x", "timeout": "soon"}), "timeout must be a whole number"),
            ("execute_command", json!({"command": "x", "timeout": -1}), "timeout must be a whole number"),
            ("read_file", json!({"path": "/etc/none"}), "/etc/none is not below /workspace, /skills, /tmp, /ipc"),
            ("read_file", json!({"path": "/workspace/../etc/passwd"}), "/etc/passwd is not below"),
            ("read_file", json!({"path": "/workspaces/x"}), "is not below"),
            ("write_file", json!({"path": "/skills/x", "content": ""}), "is not below /workspace, /tmp"),
            ("write_file", json!({"path": "x"}), "content is missing"),
            ("no_such_tool", json!({}), "no_such_tool"),
        ];
        for (tool, arguments, said) in table {
            let error = read(tool, arguments.clone()).unwrap_err();
            assert!(error.contains(said), "{tool} {arguments}: {error}");
        }
    }

    #[test]
    fn every_tool_that_is_offered_can_be_called_as_it_is_offered() {
        for tool in tools() {
            let required = tool.parameters["required"].as_array().unwrap();
            let arguments: Map<_, _> =
                required.iter().map(|name| (name.as_str().unwrap().to_owned(), json!("/tmp/x"))).collect();
            assert!(Ask::read(&tool.name, &arguments).is_ok(), "{}", tool.name);
            for name in required {
                let mut less = arguments.clone();
                less.remove(name.as_str().unwrap());
                assert!(Ask::read(&tool.name, &less).is_err(), "{} without {name}", tool.name);
            }
        }
    }
}

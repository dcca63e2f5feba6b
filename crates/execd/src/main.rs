//! `execd --listen unix:PATH | --listen tcp:ADDRESS | --listen-fd N   [--token-fd N | --open]`

use std::process::ExitCode;

use execd::{Access, Listen, run, token_from};

const USAGE: &str = "usage: execd (--listen unix:PATH | --listen tcp:HOST:PORT | --listen-fd N) [--token-fd N | --open]

  --listen     where to listen; the place is told on stdout
  --listen-fd  a listening socket that was left open for us
  --token-fd   a descriptor with the access token in it, up to its end
  --open       no token is asked for
Without the last two nobody is let in before a bind.";

fn main() -> ExitCode {
    let result = match arguments(std::env::args().skip(1)) {
        Ok((listen, access)) => run(listen, access).map_err(|error| (1, format!("execd: {error}"))),
        Err(why) => Err((2, format!("execd: {why}\n{USAGE}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, why)) => {
            eprintln!("{why}");
            ExitCode::from(code)
        }
    }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<(Listen, Access), String> {
    let (mut listen, mut access) = (None, Access::Bind);
    while let Some(flag) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{flag} needs a value"));
        let number = |text: String| text.parse::<i32>().map_err(|error| format!("{text}: {error}"));
        match flag.as_str() {
            "--listen" => {
                let at = value()?;
                listen = Some(match at.split_once(':') {
                    Some(("unix", path)) => Listen::Unix(path.into()),
                    Some(("tcp", address)) => {
                        Listen::Tcp(address.parse().map_err(|error| format!("{address}: {error}"))?)
                    }
                    _ => return Err(format!("{at} is neither unix:PATH nor tcp:HOST:PORT")),
                });
            }
            "--listen-fd" => listen = Some(Listen::Inherited(number(value()?)?)),
            "--token-fd" => {
                let token = token_from(number(value()?)?).map_err(|error| format!("reading the token: {error}"))?;
                access = Access::Token(token);
            }
            "--open" => access = Access::Open,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok((listen.ok_or("there is no --listen")?, access))
}

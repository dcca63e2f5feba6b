//! `cargo xtask CHORE`

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let chore = std::env::args().nth(1).unwrap_or_default();
    match chore.as_str() {
        "codegen" => xtask::codegen::write(),
        "law" => {
            let page = std::fs::read_to_string(xtask::root().join("ARCHITECTURE.md"))?;
            let said = xtask::law::breaches(&xtask::law::allowed(&page)?, &xtask::law::actual()?);
            if said.is_empty() {
                return Ok(());
            }
            bail!("{}", said.join("\n"))
        }
        "kube-tables" => xtask::kube_tables::run(),
        _ => bail!("usage: cargo xtask codegen|law|kube-tables"),
    }
}

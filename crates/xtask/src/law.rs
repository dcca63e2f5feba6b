//! The law of rooms: which room may import which. The table is ARCHITECTURE.md's own, so that the page cannot lie.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

pub type Edges = BTreeMap<String, BTreeSet<String>>;

/// The edges that ARCHITECTURE.md allows: the rows `| room | what it hides | may import |` of its table of rooms.
pub fn allowed(page: &str) -> Result<Edges> {
    let rows = page.lines().skip_while(|line| !line.starts_with("| room |")).skip(2).take_while(|l| l.starts_with('|'));
    let mut edges = Edges::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rooms, _, imports] = cells.as_slice() else {
            anyhow::bail!("a row of the table of rooms is not three cells: {row}")
        };
        let imports: BTreeSet<String> = imports
            .split(',')
            .map(|name| name.trim().trim_matches('`').to_owned())
            .filter(|name| name != "–")
            .collect();
        for room in rooms.split(',') {
            edges.insert(room.trim().trim_matches('`').to_owned(), imports.clone());
        }
    }
    ensure!(!edges.is_empty(), "ARCHITECTURE.md has no table of rooms");
    Ok(edges)
}

/// The edges that the manifests have, dev-dependencies apart: tests may reach anywhere.
pub fn actual() -> Result<Edges> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(crate::root().join("Cargo.toml"))
        .other_options(["--offline".to_owned()])
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let ours: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    Ok(metadata
        .packages
        .iter()
        .map(|package| {
            let imports = package
                .dependencies
                .iter()
                .filter(|it| it.kind != cargo_metadata::DependencyKind::Development && ours.contains(&it.name))
                .map(|it| it.name.clone())
                .collect();
            (package.name.to_string(), imports)
        })
        .collect())
}

/// Every way in which the code breaks the table, in words.
pub fn breaches(allowed: &Edges, actual: &Edges) -> Vec<String> {
    let mut said = Vec::new();
    for (room, imports) in actual {
        let Some(may) = allowed.get(room) else {
            said.push(format!("the room `{room}` is not in ARCHITECTURE.md's table"));
            continue;
        };
        if may.contains("all") {
            continue;
        }
        for import in imports.difference(may) {
            said.push(format!("`{room}` imports `{import}`: a new edge is a decision, made in ARCHITECTURE.md"));
        }
    }
    for room in allowed.keys().filter(|room| !actual.contains_key(*room)) {
        said.push(format!("ARCHITECTURE.md's table has a room `{room}` that does not exist"));
    }
    said
}

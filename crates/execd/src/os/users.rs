//! The sandbox's user database: `/etc/passwd` and `/etc/group`, read by ourselves, because a static program has no NSS.

use std::fs::File;
use std::io::Read;

use super::identity::Identity;

/// Files longer than this are not read further: they are the sandbox's, so anybody's.
const LIMIT: u64 = 1 << 20;

/// One reading of the database. Cheap enough to be made anew for each request, which so sees users just added.
pub(crate) struct Users {
    passwd: String,
    group: String,
}

impl Users {
    pub(crate) fn read() -> Self {
        Self { passwd: text("/etc/passwd"), group: text("/etc/group") }
    }

    pub(crate) fn user_name(&self, uid: u32) -> String {
        name_of(&self.passwd, uid)
    }

    pub(crate) fn group_name(&self, gid: u32) -> String {
        name_of(&self.group, gid)
    }

    /// The id of a user given by name or number.
    pub(crate) fn uid(&self, name: &str) -> Option<u32> {
        id_of(&self.passwd, name)
    }

    pub(crate) fn gid(&self, name: &str) -> Option<u32> {
        id_of(&self.group, name)
    }

    /// Who `uid` is: `gid` as asked, else the user's own (0 when there is no such user), with the user's groups.
    pub(crate) fn identity(&self, uid: u32, gid: Option<u32>) -> Identity {
        let entry = lines(&self.passwd).find(|fields| number(fields, 2) == Some(uid));
        let primary = entry.as_ref().and_then(|fields| number(fields, 3)).unwrap_or(0);
        let name = entry.as_ref().and_then(|fields| fields.first().copied());
        let gid = gid.unwrap_or(primary);
        let mut groups = vec![gid];
        if let Some(name) = name {
            let member = |fields: &Vec<&str>| {
                fields.get(3).is_some_and(|members| members.split(',').any(|member| member.trim() == name))
            };
            groups.extend(lines(&self.group).filter(member).filter_map(|fields| number(&fields, 2)).take(64));
        }
        groups.sort_unstable();
        groups.dedup();
        Identity { uid, gid, groups }
    }
}

fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(LIMIT).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3)
}

fn number(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}

fn name_of(text: &str, id: u32) -> String {
    lines(text)
        .find(|fields| number(fields, 2) == Some(id))
        .and_then(|fields| fields.first().map(|name| (*name).to_owned()))
        .unwrap_or_else(|| id.to_string())
}

fn id_of(text: &str, name: &str) -> Option<u32> {
    lines(text)
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| number(&fields, 2))
        .or_else(|| name.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let users = Users {
            passwd: "root:x:0:0:root:/root:/bin/bash\n# rubbish\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n:::\n".into(),
            group: "root:x:0:\nann:x:1001:\nwheel:x:10:bob,ann\nother:x:11:annette\n".into(),
        };
        assert_eq!(users.user_name(1000), "ann");
        assert_eq!(users.user_name(4242), "4242");
        assert_eq!((users.uid("ann"), users.uid("7"), users.uid("nobody")), (Some(1000), Some(7), None));
        assert_eq!(users.identity(1000, None), Identity { uid: 1000, gid: 1001, groups: vec![10, 1001] });
        assert_eq!(users.identity(1000, Some(5)), Identity { uid: 1000, gid: 5, groups: vec![5, 10] });
        assert_eq!(users.identity(4242, None), Identity { uid: 4242, gid: 0, groups: vec![0] });
    }
}

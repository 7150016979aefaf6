//! Who a command in an image runs as: `user[:group]`, names or numbers, looked up in the image's own files.

use super::ImageError;

/// Ids of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Further groups.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Finds a user in the texts of `/etc/passwd` and `/etc/group` (either may be empty).
pub(super) fn find(image: &str, wanted: &str, passwd: &str, group: &str) -> Result<User, ImageError> {
    let (user, chosen) = wanted.split_once(':').map_or((wanted, None), |(user, group)| (user, Some(group)));
    let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| match fields.as_slice() {
        [name, _, uid, ..] => *name == user || *uid == user,
        _ => false,
    });
    let known = line.as_deref().and_then(|fields| match fields {
        [name, _, uid, gid, _, home, ..] => Some((*name, uid.parse().ok()?, gid.parse().ok()?, *home)),
        _ => None,
    });
    let (name, uid, gid, home) = match (known, user.parse()) {
        (Some(known), _) => known,
        (None, Ok(uid)) => ("", uid, 0, "/"),
        (None, Err(_)) => return Err(ImageError::invalid(image, format!("it has no user {user}"))),
    };
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let gid = match chosen {
        None => gid,
        Some(chosen) => {
            let named = groups().find(|fields| fields.first() == Some(&chosen)).and_then(|f| f.get(2)?.parse().ok());
            let number = named.or_else(|| chosen.parse().ok());
            number.ok_or_else(|| ImageError::invalid(image, format!("it has no group {chosen}")))?
        }
    };
    // A group that was chosen is the only one, as with docker.
    let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|all| all.split(',').any(|one| one == name));
    let further = if chosen.is_some() || name.is_empty() {
        Vec::new()
    } else {
        groups().filter(member).filter_map(|fields| fields.get(2)?.parse().ok()).collect()
    };
    Ok(User { uid, gid, groups: further, home: home.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n";
        let group = "root:x:0:\nwww:x:34:\nlog:x:7:a,web\n";
        let user = |uid, gid, groups: &[u32], home: &str| User { uid, gid, groups: groups.into(), home: home.into() };
        for (wanted, found) in [
            ("root", user(0, 0, &[], "/root")),
            ("web", user(33, 34, &[7], "/srv")),
            ("33", user(33, 34, &[7], "/srv")),
            ("web:log", user(33, 7, &[], "/srv")),
            ("web:99", user(33, 99, &[], "/srv")),
            ("1000", user(1000, 0, &[], "/")),
            ("1000:1001", user(1000, 1001, &[], "/")),
        ] {
            assert_eq!(find("i", wanted, passwd, group).unwrap(), found, "{wanted}");
        }
        for bad in ["nobody", "", "web:nobody", "-1"] {
            assert!(find("i", bad, passwd, group).is_err(), "{bad}");
        }
    }
}

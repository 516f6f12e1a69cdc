//! Static tokens: lines of `token,user,uid,"group1,group2"`.

use std::collections::HashMap;

use apimachinery::user::UserInfo;

pub struct TokenFile(HashMap<String, UserInfo>);

impl TokenFile {
    /// Reads the file's text; a line with fewer than three columns is an error.
    pub fn parse(text: &str) -> anyhow::Result<TokenFile> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let columns = columns(line);
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                anyhow::bail!("token file line {}: at least token, user name and uid are needed", number + 1);
            };
            anyhow::ensure!(!token.is_empty(), "token file line {}: the token is empty", number + 1);
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let groups = groups.split(',').filter(|g| !g.is_empty()).map(str::to_owned).collect();
            let user = UserInfo { name: name.clone(), uid: uid.clone(), groups, ..UserInfo::default() };
            users.insert(token.clone(), user);
        }
        Ok(TokenFile(users))
    }

    pub fn user(&self, token: &str) -> Option<UserInfo> {
        self.0.get(token).cloned()
    }
}

fn columns(line: &str) -> Vec<String> {
    let (mut out, mut current, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(std::mem::take(&mut current)),
            _ => current.push(c),
        }
    }
    out.push(current);
    out.into_iter().map(|c| c.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines() {
        let file = TokenFile::parse("t1,alice,1,\"a,b\"\n\nt2,bob,2\n").unwrap();
        assert_eq!(file.user("t1").unwrap().groups, ["a", "b"]);
        assert_eq!(file.user("t2").unwrap().name, "bob");
        assert!(file.user("t3").is_none());
        assert!(TokenFile::parse("t1,alice").is_err());
    }
}

//! Where in an object something is, as validation messages print it: `spec.containers[0].ports[name].protocol`.

use std::fmt::{self, Display, Write};

/// A path under construction. Cheap to clone; children share nothing with their parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn new(root: &str) -> Path {
        Path(root.to_owned())
    }

    /// The empty path: the object itself.
    pub fn root() -> Path {
        Path::default()
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Path {
        let mut path = String::with_capacity(self.0.len() + 1 + name.len());
        path.push_str(&self.0);
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        Path(path)
    }

    /// Several children at once.
    #[must_use]
    pub fn children(&self, names: &[&str]) -> Path {
        names.iter().fold(self.clone(), |path, name| path.child(name))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Path {
        let mut path = self.0.clone();
        let _ = write!(path, "[{index}]");
        Path(path)
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Path {
        let mut path = self.0.clone();
        let _ = write!(path, "[{key}]");
        Path(path)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

impl From<&Path> for String {
    fn from(path: &Path) -> String {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints() {
        let p = Path::new("spec").child("containers").index(0).child("ports").key("a/b");
        assert_eq!(p.to_string(), "spec.containers[0].ports[a/b]");
        assert_eq!(Path::root().child("x").to_string(), "x");
    }
}

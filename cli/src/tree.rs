//! Trees of lines, drawn as `tree` and `pstree` draw them.

use std::fmt;

/// A line, and what belongs to it.
#[derive(Debug, Default)]
pub struct Node {
    text: String,
    children: Vec<Node>,
}

impl Node {
    /// A line with nothing below it yet.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), children: Vec::new() }
    }

    /// Puts something below the line.
    pub fn push(&mut self, child: Node) {
        self.children.push(child);
    }

    /// Puts a line below the line.
    pub fn line(&mut self, text: impl Into<String>) {
        self.push(Self::new(text));
    }

    /// Puts `name` and a value below the line, if there is a value.
    pub fn field(&mut self, name: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.line(format!("{name:<NAMES$}{value}"));
        }
    }

    /// Draws it.
    pub fn draw(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{}", self.text)?;
        self.draw_children(out, "")
    }

    fn draw_children(&self, out: &mut dyn fmt::Write, before: &str) -> fmt::Result {
        for (position, child) in self.children.iter().enumerate() {
            let last = position + 1 == self.children.len();
            writeln!(out, "{before}{}{}", if last { "└─ " } else { "├─ " }, child.text)?;
            child.draw_children(out, &format!("{before}{}", if last { "   " } else { "│  " }))?;
        }
        Ok(())
    }
}

/// Width of the names of fields, which is also that of [`image_format::Facts::summary`].
const NAMES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_drawn() {
        let (mut root, mut child) = (Node::new("a"), Node::new("b"));
        child.line("c");
        root.push(child);
        root.field("size", Some(3));
        root.field("none", None::<u8>);
        let mut drawn = String::new();
        root.draw(&mut drawn).unwrap();
        assert_eq!(drawn, "a\n├─ b\n│  └─ c\n└─ size        3\n");
    }
}

//! How a file looks in results.

use benches::report::size;
use serde::Serialize;
use wire::namespace::Attr;

use crate::output::date;

/// A file or directory, for programs.
#[derive(Debug, Serialize)]
pub(super) struct View<'a> {
    path: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    length: u64,
    inode: u64,
    version: u64,
    chunks: u32,
    replicas: u32,
    created: String,
    modified: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl<'a> View<'a> {
    pub(super) fn new(path: &'a str, attr: &'a Attr) -> Self {
        Self {
            path,
            kind: if attr.is_dir { "directory" } else { "file" },
            length: attr.len,
            inode: attr.inode.0,
            version: attr.version,
            chunks: attr.chunks,
            replicas: attr.replicas,
            created: date(attr.created_ms),
            modified: date(attr.modified_ms),
            content_type: &attr.content_type,
            sha256: attr.sha256.map(|digest| hex(&digest)),
        }
    }

    /// Everything, one fact a line.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![
            format!("path      {}", self.path),
            format!("type      {}", self.kind),
            format!("created   {}", self.created),
            format!("modified  {}", self.modified),
        ];
        if self.kind == "file" {
            lines.push(format!("length    {} bytes ({})", self.length, size(self.length)));
            lines.push(format!("chunks    {}, {} replicas wanted of each", self.chunks, self.replicas));
            if !self.content_type.is_empty() {
                lines.push(format!("content   {}", self.content_type));
            }
            if let Some(digest) = &self.sha256 {
                lines.push(format!("sha256    {digest}"));
            }
        }
        lines.join("\n")
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use wire::InodeId;

    use super::*;

    pub(in crate::files) fn attr() -> Attr {
        Attr {
            inode: InodeId(7),
            is_dir: false,
            len: 1536,
            tail: None,
            tail_len_hint: 0,
            chunks: 1,
            version: 3,
            created_ms: 1_700_000_000_000,
            modified_ms: 1_700_000_001_000,
            content_type: String::new(),
            sha256: Some([0xab; 32]),
            replicas: 3,
        }
    }

    #[test]
    fn a_file_is_shown_with_its_length_and_digest() {
        let attr = attr();
        let view = View::new("/a", &attr);
        let text = view.text();
        assert!(text.contains("length    1536 bytes (1.5 KiB)"), "{text}");
        assert!(text.contains(&format!("sha256    {}", "ab".repeat(32))), "{text}");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["type"], "file");
        assert_eq!(json["length"], 1536);
        assert_eq!(json["modified"], "2023-11-14T22:13:21Z");
        assert!(json.get("content_type").is_none());
    }

    #[test]
    fn a_directory_has_no_length_and_no_chunks() {
        let attr = Attr { is_dir: true, sha256: None, ..attr() };
        let text = View::new("/a", &attr).text();
        assert!(!text.contains("length") && !text.contains("chunks"), "{text}");
    }
}

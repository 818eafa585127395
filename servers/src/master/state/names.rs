//! Names: mkdir, create, delete to the trash, undelete, rename.

use wire::{Fault, InodeId, Kind, NamePath};

use super::{Applied, Inode, NOWHERE, Node, State, Trashed};
use crate::master::entry::{Answer, Entry, Lsn};

/// Where a path leads.
pub(super) enum Found {
    /// To this.
    Inode(InodeId),
    /// Nowhere: `dir` exists, the names below it do not. At least one.
    Missing { dir: InodeId, names: Vec<String> },
    /// Through a file.
    Blocked { by: String },
}

impl State {
    pub(super) fn mkdir(&mut self, lsn: Lsn, entry: &Entry, path: &str) -> Result<Applied, Fault> {
        let path = NamePath::parse(path)?;
        let (dir, names) = match self.walk(&path) {
            Found::Missing { dir, names } => (dir, names),
            Found::Inode(_) => return Err(exists(&path)),
            Found::Blocked { by } => return Err(not_a_directory(&by)),
        };
        let made = self.make_directories(lsn, entry, dir, &names);
        Ok(Applied::new(Answer::Attr(self.attr(made)), []))
    }

    pub(super) fn create(&mut self, lsn: Lsn, entry: &Entry, path: &str, replicas: u32) -> Result<Applied, Fault> {
        let path = NamePath::parse(path)?;
        let (dir, names) = match self.walk(&path) {
            Found::Missing { dir, names } => (dir, names),
            Found::Inode(_) => return Err(exists(&path)),
            Found::Blocked { by } => return Err(not_a_directory(&by)),
        };
        let parent = self.make_parents(lsn, entry, dir, &names);
        let inode = self.new_inode(Inode::new(lsn, entry.now_ms, NOWHERE, Node::file("", replicas)));
        self.attach(lsn, entry, parent, path.name(), inode);
        Ok(Applied::new(Answer::Attr(self.attr(inode)), []))
    }

    pub(super) fn delete(&mut self, lsn: Lsn, entry: &Entry, path: &str, recursive: bool) -> Result<Applied, Fault> {
        let path = NamePath::parse(path)?;
        if path.is_root() {
            return Err(Fault::new(Kind::Invalid, "cannot remove root directory"));
        }
        let Found::Inode(inode) = self.walk(&path) else { return Err(not_found(&path)) };
        if let Some(Node::Directory { children: 1.., .. }) = self.inodes.get(&inode).map(|inode| &inode.node)
            && !recursive
        {
            return Err(Fault::new(
                Kind::Conflict,
                format!("directory {path} is not empty: ask to delete it with all below it"),
            ));
        }
        let attr = self.attr(inode);
        self.throw_away(lsn, entry, &path, inode);
        Ok(Applied::new(Answer::Attr(attr), []))
    }

    pub(super) fn undelete(&mut self, lsn: Lsn, entry: &Entry, path: &str) -> Result<Applied, Fault> {
        let path = NamePath::parse(path)?;
        let key = (path.as_str().to_owned(), 0)..=(path.as_str().to_owned(), Lsn::MAX);
        let Some((_, trash)) = self.derived.trash_paths.range(key).next_back().cloned() else {
            return Err(Fault::new(Kind::NotFound, format!("path {path} is not in the trash")));
        };
        let (dir, names) = match self.walk(&path) {
            Found::Missing { dir, names } => (dir, names),
            Found::Inode(_) => return Err(exists(&path)),
            Found::Blocked { by } => return Err(not_a_directory(&by)),
        };
        let Some(trashed) = self.trash.remove(&trash) else {
            return Err(Fault::new(Kind::NotFound, format!("path {path} is not in the trash")));
        };
        self.derived.trash_paths.remove(&(trashed.path, trash));
        let parent = self.make_parents(lsn, entry, dir, &names);
        self.attach(lsn, entry, parent, path.name(), trashed.inode);
        Ok(Applied::new(Answer::Attr(self.attr(trashed.inode)), []))
    }

    pub(super) fn rename(
        &mut self,
        lsn: Lsn,
        entry: &Entry,
        from: &str,
        to: &str,
        replace: bool,
    ) -> Result<Applied, Fault> {
        let (from, to) = (NamePath::parse(from)?, NamePath::parse(to)?);
        if from.is_root() || to.is_root() {
            return Err(Fault::new(Kind::Invalid, "the root directory cannot be renamed or replaced"));
        }
        let Found::Inode(moved) = self.walk(&from) else {
            return Err(Fault::new(Kind::NotFound, format!("source path {from} does not exist")));
        };
        if to != from && to.is_within(&from) {
            return Err(Fault::new(Kind::Invalid, format!("cannot move {from} to {to}, which lies below it")));
        }
        match self.walk(&to) {
            Found::Missing { .. } => {}
            Found::Blocked { by } => return Err(not_a_directory(&by)),
            Found::Inode(_) if !replace => {
                return Err(Fault::new(Kind::Exists, format!("target path {to} already exists")));
            }
            Found::Inode(same) if same == moved => return Ok(Applied::new(Answer::Attr(self.attr(moved)), [])),
            Found::Inode(target) if self.is_directory(target) || self.is_directory(moved) => {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("target path {to} exists: only a file replaces a file"),
                ));
            }
            Found::Inode(target) => self.throw_away(lsn, entry, &to, target),
        }
        self.detach(lsn, entry, moved, from.name());
        let Found::Missing { dir, names } = self.walk(&to) else {
            unreachable!("the target was free, or has just been thrown away, and does not lie below the source")
        };
        let parent = self.make_parents(lsn, entry, dir, &names);
        self.attach(lsn, entry, parent, to.name(), moved);
        Ok(Applied::new(Answer::Attr(self.attr(moved)), []))
    }

    /// Follows a path from the root.
    pub(super) fn walk(&self, path: &NamePath) -> Found {
        let mut at = InodeId::ROOT;
        let mut names = path.segments();
        let mut so_far = String::new();
        while let Some(name) = names.next() {
            if !self.is_directory(at) {
                return Found::Blocked { by: so_far };
            }
            let Some(next) = self.dirents.get(&(at, name.to_owned())) else {
                let names = std::iter::once(name).chain(names).map(str::to_owned).collect();
                return Found::Missing { dir: at, names };
            };
            so_far.push('/');
            so_far.push_str(name);
            at = *next;
        }
        Found::Inode(at)
    }

    pub(super) fn is_directory(&self, inode: InodeId) -> bool {
        self.inodes.get(&inode).is_some_and(|inode| matches!(inode.node, Node::Directory { .. }))
    }

    /// Makes all but the last of the missing names; the result is where the last one goes.
    pub(super) fn make_parents(&mut self, lsn: Lsn, entry: &Entry, dir: InodeId, names: &[String]) -> InodeId {
        let (_, parents) = names.split_last().map_or((None, &[][..]), |(last, parents)| (Some(last), parents));
        self.make_directories(lsn, entry, dir, parents)
    }

    fn make_directories(&mut self, lsn: Lsn, entry: &Entry, mut dir: InodeId, names: &[String]) -> InodeId {
        for name in names {
            let made = self.new_inode(Inode::new(lsn, entry.now_ms, NOWHERE, Node::directory()));
            self.attach(lsn, entry, dir, name, made);
            dir = made;
        }
        dir
    }

    pub(super) fn new_inode(&mut self, inode: Inode) -> InodeId {
        let id = InodeId(self.counters.next_inode);
        self.counters.next_inode += 1;
        assert!(self.inodes.insert(id, inode).is_none(), "inode numbers are never used again");
        id
    }

    /// Gives an inode without a name this one, which is free.
    pub(super) fn attach(&mut self, lsn: Lsn, entry: &Entry, dir: InodeId, name: &str, inode: InodeId) {
        assert!(self.dirents.insert((dir, name.to_owned()), inode).is_none(), "a name is given only when it is free");
        if let Some(row) = self.inodes.edit(&inode) {
            row.parent = dir;
            row.version = lsn;
        }
        self.count(lsn, entry, dir, inode, true);
    }

    /// Takes the name away.
    pub(super) fn detach(&mut self, lsn: Lsn, entry: &Entry, inode: InodeId, name: &str) {
        let Some(row) = self.inodes.edit(&inode) else { return };
        let dir = std::mem::replace(&mut row.parent, NOWHERE);
        row.version = lsn;
        assert_eq!(self.dirents.remove(&(dir, name.to_owned())), Some(inode), "a name leads to what it names");
        self.count(lsn, entry, dir, inode, false);
    }

    /// Keeps the counts of the directories above in step when a subtree comes or goes.
    fn count(&mut self, lsn: Lsn, entry: &Entry, dir: InodeId, inode: InodeId, comes: bool) {
        let (more_files, more_directories) = match self.inodes.get(&inode).map(|row| &row.node) {
            Some(Node::Directory { files, directories, .. }) => (*files, directories + 1),
            _ => (1, 0),
        };
        let change = |count: &mut u64, by: u64| *count = if comes { *count + by } else { *count - by };
        let mut above = dir;
        while let Some(row) = self.inodes.edit(&above) {
            if above == dir {
                row.touch(lsn, entry.now_ms);
            }
            if let Node::Directory { children, files, directories } = &mut row.node {
                change(children, u64::from(above == dir));
                change(files, more_files);
                change(directories, more_directories);
            }
            above = row.parent;
        }
    }

    /// Moves what a path names to the trash, as the version deleted by `lsn`.
    pub(super) fn throw_away(&mut self, lsn: Lsn, entry: &Entry, path: &NamePath, inode: InodeId) {
        self.detach(lsn, entry, inode, path.name());
        let path = path.as_str().to_owned();
        self.derived.trash_paths.insert((path.clone(), lsn));
        let trashed = Trashed { inode, path, deleted_ms: entry.now_ms, purging: false };
        assert!(self.trash.insert(lsn, trashed).is_none(), "an entry deletes one name");
    }
}

pub(super) fn not_found(path: &NamePath) -> Fault {
    Fault::new(Kind::NotFound, format!("path {path} is not found"))
}

pub(super) fn exists(path: &NamePath) -> Fault {
    Fault::new(Kind::Exists, format!("target path {path} already exists"))
}

pub(super) fn not_a_directory(path: &str) -> Fault {
    Fault::new(Kind::Conflict, format!("{path} is a file, not a directory"))
}

pub(super) fn is_a_directory(path: &NamePath) -> Fault {
    Fault::new(Kind::Conflict, format!("{path} is a directory, not a file"))
}

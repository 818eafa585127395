//! The name space against a model a tenth its size, with restarts among the operations: from the
//! log alone, and from a checkpoint plus the rest of the log.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use servers::master::entry::{Answer, Change, Entry};
use servers::master::state::{State, TABLES};
use wire::upload::Precondition;
use wire::{ClusterId, InodeId, Kind, NamePath, RequestId};

/// What a name stands for: `None` is a directory, a file has a number that tells it from others.
type Tree = BTreeMap<String, Option<u64>>;

/// The name space as a map of full paths.
#[derive(Clone, Debug, Default)]
struct Model {
    tree: Tree,
    trash: Vec<(String, Tree)>,
}

impl Model {
    fn kind(&self, path: &str) -> Option<Option<u64>> {
        if path == "/" { Some(None) } else { self.tree.get(path).copied() }
    }

    /// Checks that nothing above is a file.
    fn clear_way(&self, path: &str) -> Result<(), Kind> {
        let blocked = above(path).any(|dir| matches!(self.kind(&dir), Some(Some(_))));
        if blocked { Err(Kind::Conflict) } else { Ok(()) }
    }

    fn make_above(&mut self, path: &str) {
        for dir in above(path) {
            self.tree.entry(dir).or_insert(None);
        }
    }

    fn take(&mut self, path: &str) -> Tree {
        let (within, rest) = std::mem::take(&mut self.tree).into_iter().partition(|(name, _)| is_within(name, path));
        self.tree = rest;
        within
    }

    fn add(&mut self, path: &str, node: Option<u64>) -> Result<(), Kind> {
        self.clear_way(path)?;
        if self.kind(path).is_some() {
            return Err(Kind::Exists);
        }
        self.make_above(path);
        self.tree.insert(path.to_owned(), node);
        Ok(())
    }

    fn delete(&mut self, path: &str, recursive: bool) -> Result<(), Kind> {
        if path == "/" {
            return Err(Kind::Invalid);
        }
        self.kind(path).ok_or(Kind::NotFound)?;
        if !recursive && self.tree.keys().any(|name| name != path && is_within(name, path)) {
            return Err(Kind::Conflict);
        }
        let taken = self.take(path);
        self.trash.push((path.to_owned(), taken));
        Ok(())
    }

    fn undelete(&mut self, path: &str) -> Result<(), Kind> {
        let newest = self.trash.iter().rposition(|(name, _)| name == path).ok_or(Kind::NotFound)?;
        self.clear_way(path)?;
        if self.kind(path).is_some() {
            return Err(Kind::Exists);
        }
        let (_, taken) = self.trash.remove(newest);
        self.make_above(path);
        self.tree.extend(taken);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<(), Kind> {
        if from == "/" || to == "/" {
            return Err(Kind::Invalid);
        }
        let moved = self.kind(from).ok_or(Kind::NotFound)?;
        if from != to && is_within(to, from) {
            return Err(Kind::Invalid);
        }
        self.clear_way(to)?;
        match self.kind(to) {
            Some(_) if !replace => return Err(Kind::Exists),
            Some(_) if from == to => return Ok(()),
            Some(target) if target.is_none() || moved.is_none() => return Err(Kind::Conflict),
            Some(_) => self.delete(to, true)?,
            None => {}
        }
        let taken = self.take(from);
        self.make_above(to);
        self.tree.extend(taken.into_iter().map(|(name, node)| (format!("{to}{}", &name[from.len()..]), node)));
        Ok(())
    }

    fn publish(&mut self, path: &str, absent: bool, file: u64) -> Result<(), Kind> {
        if matches!(self.kind(path), Some(None)) {
            return Err(Kind::Conflict);
        }
        self.clear_way(path)?;
        if self.kind(path).is_some() {
            if absent {
                return Err(Kind::Precondition);
            }
            self.delete(path, true)?;
        }
        self.add(path, Some(file))
    }
}

fn above(path: &str) -> impl Iterator<Item = String> {
    path.match_indices('/').skip(1).map(|(at, _)| path[..at].to_owned())
}

fn is_within(name: &str, path: &str) -> bool {
    name == path || name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Clone, Debug)]
enum Op {
    Mkdir(String),
    Create(String),
    Delete(String, bool),
    Undelete(String),
    Rename(String, String, bool),
    Publish(String, bool),
    /// The same request again.
    Repeat,
    /// The oldest thing in the trash goes for good.
    Purge,
    Replay,
    Checkpoint,
    Reload,
}

/// Few names, so that they meet; some of which sort around the slash.
fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "a-b", "b", "a.c", "ab"]);
    prop::collection::vec(name, 1..4).prop_map(|names| format!("/{}", names.join("/")))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => path().prop_map(Op::Mkdir),
        6 => path().prop_map(Op::Create),
        3 => (path(), any::<bool>()).prop_map(|(path, recursive)| Op::Delete(path, recursive)),
        2 => path().prop_map(Op::Undelete),
        5 => (path(), path(), any::<bool>()).prop_map(|(from, to, replace)| Op::Rename(from, to, replace)),
        3 => (path(), any::<bool>()).prop_map(|(path, absent)| Op::Publish(path, absent)),
        1 => Just(Op::Repeat),
        1 => Just(Op::Purge),
        1 => Just(Op::Replay),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Reload),
    ]
}

/// The real thing, with what a disk would hold.
#[derive(Default)]
struct Real {
    state: State,
    log: Vec<Entry>,
    /// The rows of the last checkpoint, by table.
    disk: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
    saved: usize,
    requests: u64,
}

impl Real {
    fn new() -> Self {
        let mut real = Self { disk: vec![BTreeMap::new(); TABLES.len()], ..Self::default() };
        real.apply(Change::Found { cluster: ClusterId([1; 16]) }).unwrap();
        real
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId { client: [2; 16], number: self.requests }
    }

    fn apply(&mut self, change: Change) -> Result<Answer, Kind> {
        let before = self.state.dump();
        let entry = self.state.stamp(change, 1000 + self.log.len() as u64);
        match self.state.apply(self.state.applied() + 1, &entry) {
            Ok(applied) => {
                self.log.push(entry);
                Ok(applied.answer)
            }
            Err(fault) => {
                assert!(self.log.is_empty() || self.state.dump() == before, "a refusal changes nothing");
                Err(fault.kind)
            }
        }
    }

    fn checkpoint(&mut self) {
        for (table, rows) in self.disk.iter_mut().zip(self.state.take_dirty()) {
            for (key, value) in rows {
                match value {
                    Some(value) => drop(table.insert(key, value)),
                    None => drop(table.remove(&key)),
                }
            }
        }
        self.saved = self.log.len();
    }

    /// Starts again from the checkpoint and the entries after it.
    fn reload(&mut self) {
        let mut state = State::default();
        for (name, rows) in TABLES.iter().zip(&self.disk) {
            rows.iter().for_each(|(key, value)| state.load(name, key, value).unwrap());
        }
        state.rebuild().unwrap();
        self.restart(state, self.saved);
    }

    fn restart(&mut self, mut state: State, from: usize) {
        for (index, entry) in self.log.iter().enumerate().skip(from) {
            state.apply(index as u64 + 1, entry).unwrap();
        }
        assert!(state.dump() == self.state.dump(), "the same entries give the same state");
        self.state = state;
    }

    /// All names below the root, by walking pages of `limit`.
    fn tree(&self, limit: u32) -> Vec<(String, bool)> {
        let mut names = vec![];
        let mut after = String::new();
        loop {
            let page = self.state.list(&NamePath::root(), &after, limit, true).unwrap();
            assert!(page.entries.len() <= limit as usize);
            names.extend(page.entries.into_iter().map(|entry| (entry.path, entry.attr.is_dir)));
            match page.next {
                Some(next) => after = next,
                None => return names,
            }
        }
    }
}

fn check(real: &Real, model: &Model, files: &BTreeMap<u64, InodeId>) {
    let want: Vec<_> = model.tree.iter().map(|(path, node)| (path.clone(), node.is_none())).collect();
    assert_eq!(real.tree(2), want, "pages of two");
    assert_eq!(real.tree(1000), want, "one page");
    let directories = model.tree.values().filter(|node| node.is_none()).count() as u64;
    assert_eq!(real.state.name_counts(), (model.tree.len() as u64 - directories, directories));
    for (path, node) in &model.tree {
        let attr = real.state.stat(&NamePath::parse(path).unwrap()).unwrap();
        if let Some(file) = node {
            assert_eq!(attr.inode, files[file], "{path} stands for the file that was put there");
        }
        assert!(real.state.reachable(attr.inode));
        let page = real.state.list(&NamePath::parse(path).unwrap(), "", 1000, false).unwrap();
        let names: Vec<_> = page.entries.iter().map(|entry| entry.path.as_str()).collect();
        let want = model
            .tree
            .keys()
            .filter(|name| name.strip_prefix(&format!("{path}/")).is_some_and(|rest| !rest.contains('/')));
        assert!(names.iter().eq(want), "children of {path}");
    }
    let trash = real.state.list_trash("", 1000).unwrap();
    assert!(trash.entries.iter().map(|entry| &entry.path).eq(model.trash.iter().map(|(path, _)| path)));
    for file in model.trash.iter().flat_map(|(_, tree)| tree.values().flatten()) {
        assert!(!real.state.reachable(files[file]), "nobody reaches what lies in the trash");
    }
}

fn run(ops: Vec<Op>) {
    let mut real = Real::new();
    let mut model = Model::default();
    let mut files = BTreeMap::new();
    let mut last: Option<(RequestId, Answer)> = None;
    for op in ops {
        let request = real.request();
        let number = request.number;
        let (got, want) = match op {
            Op::Mkdir(path) => (real.apply(Change::Mkdir { request, path: path.clone() }), model.add(&path, None)),
            Op::Create(path) => (
                real.apply(Change::Create { request, path: path.clone(), replicas: 3 }),
                model.add(&path, Some(number)),
            ),
            Op::Delete(path, recursive) => {
                let got = real.apply(Change::Delete { request, path: path.clone(), recursive });
                let want = model.delete(&path, recursive);
                // A file in the way of a path that is not there is just "not found".
                (got, want)
            }
            Op::Undelete(path) => (real.apply(Change::Undelete { request, path: path.clone() }), model.undelete(&path)),
            Op::Rename(from, to, replace) => {
                let change = Change::Rename { request, from: from.clone(), to: to.clone(), replace };
                (real.apply(change), model.rename(&from, &to, replace))
            }
            Op::Publish(path, absent) => {
                let begin = Change::BeginUpload { request, content_type: "x/y".into(), replicas: 3 };
                let Ok(Answer::Inode(inode)) = real.apply(begin) else { panic!("an upload can always begin") };
                files.insert(number, inode);
                let precondition = if absent { Precondition::Absent } else { Precondition::None };
                let request = real.request();
                let publish =
                    Change::Publish { request, inode, path: path.clone(), precondition, len: 0, sha256: None };
                (real.apply(publish), model.publish(&path, absent, number))
            }
            Op::Repeat => {
                if let Some((request, answer)) = &last {
                    assert_eq!(real.state.remembered(*request), Some(answer), "a retry gets the first answer");
                }
                continue;
            }
            Op::Purge => {
                let oldest = real.state.trashed().next().map(|(lsn, _)| lsn);
                if let Some(trash) = oldest {
                    real.apply(Change::Purge { trash }).unwrap();
                    model.trash.remove(0);
                }
                check(&real, &model, &files);
                continue;
            }
            Op::Replay => {
                real.restart(State::default(), 0);
                continue;
            }
            Op::Checkpoint => {
                real.checkpoint();
                continue;
            }
            Op::Reload => {
                real.reload();
                continue;
            }
        };
        if let Ok(Answer::Attr(attr)) = &got
            && !attr.is_dir
        {
            files.entry(number).or_insert(attr.inode);
        }
        assert_eq!(got.as_ref().map(drop), want.as_ref().map(drop), "real and model agree");
        if let Ok(answer) = got {
            last = Some((RequestId { client: [2; 16], number: real.requests }, answer));
        }
        check(&real, &model, &files);
    }
    real.checkpoint();
    real.reload();
    check(&real, &model, &files);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names_behave_like_a_map_of_paths(ops in prop::collection::vec(op(), 1..60)) {
        run(ops);
    }
}

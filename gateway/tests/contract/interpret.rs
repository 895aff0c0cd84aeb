//! What mutations mean, told a second time: documents as nested maps, one state a commit, everything
//! copied. It shares nothing with the engine or a store, and judges both.

use crate::value::{Input, V};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use tidegate_protocol::{Code, Policy, Position};

/// A field's path, by plain segments.
pub(crate) type Path = Vec<String>;

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct GOp {
    pub(crate) doc: String,
    pub(crate) exists: Option<bool>,
    pub(crate) since: Option<Position>,
    pub(crate) kind: GKind,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum GKind {
    Set(BTreeMap<Path, Input>),
    Merge(BTreeMap<Path, Input>),
    Unset(Vec<Path>),
    Create(BTreeMap<Path, Input>),
    Replace(BTreeMap<Path, Input>),
    Delete,
    Inc(Path, V),
    Max(Path, V),
    Min(Path, V),
    Add(Path, Vec<V>),
    Remove(Path, Vec<V>),
    Now(Path),
    Check,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Mutation {
    pub(crate) base: Option<Position>,
    pub(crate) policy: Option<Policy>,
    pub(crate) ops: Vec<GOp>,
}

/// A node of a document.
#[derive(Clone, PartialEq, Debug)]
enum Node {
    Leaf(V),
    Map(BTreeMap<String, Node>),
}

type Stamp = (u64, u64);

/// The writer in the place of one that was erased.
pub(crate) const NOBODY: u64 = u64::MAX;

/// A document, also one that is gone.
#[derive(Clone, PartialEq, Debug, Default)]
struct Doc {
    alive: bool,
    root: BTreeMap<String, Node>,
    /// Who last wrote or removed each leaf, and when.
    stamps: BTreeMap<Path, Stamp>,
    born: Stamp,
    deleted: Option<Stamp>,
    last: Stamp,
}

/// The space as of a commit.
#[derive(Clone, Default)]
pub(crate) struct Docs(BTreeMap<String, Doc>);

/// Live documents with their leaves.
pub(crate) type Plain = BTreeMap<String, BTreeMap<Path, V>>;

/// What surrounds a mutation.
pub(crate) struct Around {
    pub(crate) seq: u64,
    pub(crate) writer: u64,
    pub(crate) at: u64,
    pub(crate) floor: u64,
    /// `base` and each `since`, cut to the present history; a position that is none of it is `None`.
    pub(crate) base: Option<u64>,
    pub(crate) since: Vec<Option<u64>>,
    /// What applies where the mutation names none.
    pub(crate) policy: Policy,
}

/// A unit in conflict: op, document, path.
pub(crate) type Unit = (u32, String, Option<Path>);

/// What becomes of a mutation.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Judged {
    pub(crate) refused: Option<Code>,
    pub(crate) conflicts: Vec<Unit>,
    pub(crate) skipped: Vec<Unit>,
    pub(crate) rejected: Vec<Unit>,
    /// Leaves that a write removed above or below it.
    pub(crate) displaced: u64,
    /// Documents that came back after a deletion.
    pub(crate) recreated: u64,
}

fn overlap(a: &[String], b: &[String]) -> bool {
    a.iter().zip(b).all(|(a, b)| a == b)
}

fn leaves(nodes: &BTreeMap<String, Node>, above: &[String], out: &mut BTreeMap<Path, V>) {
    for (name, node) in nodes {
        let path = [above, std::slice::from_ref(name)].concat();
        match node {
            Node::Leaf(v) => {
                out.insert(path, v.clone());
            }
            Node::Map(nodes) => leaves(nodes, &path, out),
        }
    }
}

/// Writes a leaf: what is a leaf on the way becomes a map.
fn put(nodes: &mut BTreeMap<String, Node>, path: &[String], v: &V) {
    let [name, rest @ ..] = path else { return };
    if rest.is_empty() {
        nodes.insert(name.clone(), Node::Leaf(v.clone()));
        return;
    }
    let node = nodes.entry(name.clone()).or_insert_with(|| Node::Map(BTreeMap::new()));
    if matches!(node, Node::Leaf(_)) {
        *node = Node::Map(BTreeMap::new());
    }
    if let Node::Map(nodes) = node {
        put(nodes, rest, v);
    }
}

/// Removes a leaf or a subtree; maps that become empty are no more.
fn cut(nodes: &mut BTreeMap<String, Node>, path: &[String]) {
    let [name, rest @ ..] = path else { return };
    if rest.is_empty() {
        nodes.remove(name);
    } else if let Some(Node::Map(below)) = nodes.get_mut(name) {
        cut(below, rest);
        if below.is_empty() {
            nodes.remove(name);
        }
    }
}

fn look<'a>(nodes: &'a BTreeMap<String, Node>, path: &[String]) -> Option<&'a Node> {
    let [name, rest @ ..] = path else { return None };
    match (nodes.get(name)?, rest.is_empty()) {
        (node, true) => Some(node),
        (Node::Map(nodes), false) => look(nodes, rest),
        (Node::Leaf(_), false) => None,
    }
}

/// The leaves of an input, each by its whole path.
fn flat(path: &[String], input: &Input, out: &mut Vec<(Path, V)>) {
    match input {
        Input::Leaf(v) => out.push((path.to_vec(), v.clone())),
        Input::Map(entries) => {
            for (name, input) in entries {
                flat(&[path, std::slice::from_ref(name)].concat(), input, out);
            }
        }
    }
}

fn flat_all(fields: &BTreeMap<Path, Input>) -> Vec<(Path, V)> {
    let mut out = vec![];
    fields.iter().for_each(|(path, input)| flat(path, input, &mut out));
    out
}

impl Doc {
    fn plain(&self) -> BTreeMap<Path, V> {
        let mut out = BTreeMap::new();
        leaves(&self.root, &[], &mut out);
        out
    }

    fn leaf(&self, path: &[String]) -> Option<&V> {
        match look(&self.root, path)? {
            Node::Leaf(v) => Some(v),
            Node::Map(_) => None,
        }
    }
}

/// A document while a mutation runs over it.
struct Work {
    doc: Doc,
    written: BTreeSet<Path>,
    born: bool,
    deleted: bool,
}

impl Work {
    fn write(&mut self, path: &Path, v: &V, judged: &mut Judged) {
        let before = self.doc.plain();
        judged.displaced += before.keys().filter(|old| *old != path && overlap(old, path)).count() as u64;
        self.exist();
        put(&mut self.doc.root, path, v);
        self.written.insert(path.clone());
    }

    fn exist(&mut self) {
        self.born |= !self.doc.alive;
        self.doc.alive = true;
    }

    fn become_exactly(&mut self, fields: &BTreeMap<Path, Input>) {
        self.doc.root.clear();
        self.doc.alive = true;
        self.born = true;
        for (path, v) in flat_all(fields) {
            put(&mut self.doc.root, &path, &v);
            self.written.insert(path);
        }
    }
}

impl Docs {
    /// Live documents with their leaves.
    pub(crate) fn plain(&self) -> Plain {
        self.0
            .iter()
            .filter(|(_, doc)| doc.alive)
            .map(|(name, doc)| (name.clone(), doc.plain()))
            .collect()
    }

    /// Forgets what a store forgets below its tombstone floor.
    pub(crate) fn collect(&mut self, floor: u64) {
        self.0.retain(|_, doc| doc.alive || doc.last.0 > floor);
        for doc in self.0.values_mut() {
            let live = doc.plain();
            doc.stamps
                .retain(|path, (seq, _)| live.contains_key(path) || *seq > floor);
        }
    }

    /// Erases what some clients wrote; returns how many leaves and removals that are known.
    pub(crate) fn erase(&mut self, theirs: impl Fn(u64) -> bool) -> u64 {
        let mut gone = 0;
        self.0.retain(|_, doc| {
            let stamps = std::mem::take(&mut doc.stamps);
            let (mine, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
                stamps.into_iter().partition(|(_, (_, writer))| theirs(*writer));
            gone += mine.len() as u64;
            doc.stamps = others;
            for path in mine
                .keys()
                .filter(|path| doc.plain().contains_key(*path))
                .collect::<Vec<_>>()
            {
                cut(&mut doc.root, path);
            }
            let mut headers = vec![&mut doc.last, &mut doc.born];
            headers.extend(doc.deleted.as_mut());
            for (_, writer) in &mut headers {
                if theirs(*writer) {
                    *writer = NOBODY;
                }
            }
            let strangers = headers.iter().any(|(_, writer)| *writer != NOBODY);
            strangers || !doc.stamps.is_empty()
        });
        gone
    }

    /// Whether anything of a field (`None`: the document) changed after `since`.
    fn changed(&self, name: &str, path: Option<&Path>, since: u64, floor: u64) -> bool {
        let Some(doc) = self.0.get(name) else {
            return since < floor;
        };
        let Some(path) = path else { return doc.last.0 > since };
        if doc.last.0 <= since {
            return false;
        }
        let newer = |stamp: &Stamp| stamp.0 > since;
        let field = doc.stamps.iter().any(|(at, stamp)| overlap(at, path) && newer(stamp));
        let covered = doc.plain().keys().any(|leaf| path.starts_with(leaf));
        newer(&doc.born) || doc.deleted.as_ref().is_some_and(newer) || field || (since < floor && !covered)
    }

    fn in_conflict(&self, op: &GOp, path: Option<&Path>, base: u64, around: &Around) -> bool {
        let Some(doc) = self.0.get(&op.doc) else { return false };
        let foreign = |stamp: &Stamp| stamp.0 > base && stamp.1 != around.writer;
        let here: Vec<_> = doc
            .stamps
            .iter()
            .filter(|(at, _)| path.is_none_or(|path| overlap(at, path)))
            .collect();
        let covered = |path: &Path| doc.plain().keys().any(|leaf| path.starts_with(leaf));
        let absent = || path.is_some_and(|path| !covered(path)) && base < around.floor && doc.last.0 > base;
        here.iter().any(|(_, stamp)| foreign(stamp))
            || doc.deleted.as_ref().is_some_and(foreign)
            || (path.is_none() && (foreign(&doc.born) || foreign(&doc.last)))
            || (op.exists == Some(true) && absent())
    }

    /// Does what a mutation asks for, unless it is refused.
    pub(crate) fn mutate(&mut self, mutation: &Mutation, around: &Around) -> Judged {
        let mut judged = Judged::default();
        let no_base = mutation.base.is_none() && matches!(mutation.policy, Some(Policy::Reject | Policy::Merge));
        if mutation.ops.is_empty() || no_base {
            judged.refused = Some(Code::Invalid);
            return judged;
        }
        let mut work: BTreeMap<String, Work> = BTreeMap::new();
        for (index, op) in mutation.ops.iter().enumerate() {
            let doc = self.0.get(&op.doc).cloned().unwrap_or_default();
            let this = work.entry(op.doc.clone()).or_insert(Work {
                doc,
                written: BTreeSet::new(),
                born: false,
                deleted: false,
            });
            let units = units(&op.kind);
            let exists = if matches!(op.kind, GKind::Create(_)) {
                Some(false)
            } else {
                op.exists
            };
            let fields: Vec<Option<&Path>> = if units.is_empty() {
                vec![None]
            } else {
                units.iter().map(Some).collect()
            };
            let changed = |since: Option<u64>| {
                since.is_none_or(|since| {
                    fields
                        .iter()
                        .any(|path| self.changed(&op.doc, *path, since, around.floor))
                })
            };
            let wrong = [op.exists, exists]
                .into_iter()
                .flatten()
                .any(|wanted| wanted != this.doc.alive);
            if wrong || (op.since.is_some() && changed(around.since[index])) {
                return Judged {
                    refused: Some(Code::PreconditionFailed),
                    ..Judged::default()
                };
            }
            // Whether the unit is to be written.
            let admit = |path: Option<&Path>, judged: &mut Judged| {
                if around.base.is_none_or(|base| !self.in_conflict(op, path, base, around)) {
                    return true;
                }
                let unit = (u32::try_from(index).expect("few ops"), op.doc.clone(), path.cloned());
                let policy = mutation.policy.unwrap_or(around.policy);
                match policy {
                    Policy::Lww => judged.conflicts.push(unit),
                    Policy::Reject => judged.rejected.push(unit),
                    Policy::Merge => judged.skipped.push(unit),
                }
                policy != Policy::Merge
            };
            match &op.kind {
                GKind::Set(fields) | GKind::Merge(fields) if fields.is_empty() => {
                    if !this.doc.alive && admit(None, &mut judged) {
                        this.exist();
                    }
                }
                GKind::Set(fields) => {
                    for (path, input) in fields {
                        if !admit(Some(path), &mut judged) {
                            continue;
                        }
                        if matches!(input, Input::Map(_)) {
                            cut(&mut this.doc.root, path);
                        }
                        let mut all = vec![];
                        flat(path, input, &mut all);
                        all.iter().for_each(|(path, v)| this.write(path, v, &mut judged));
                    }
                }
                GKind::Merge(fields) => {
                    for (path, v) in flat_all(fields) {
                        let there = match look(&this.doc.root, &path) {
                            Some(Node::Map(_)) => true,
                            Some(Node::Leaf(old)) => *old == V::EmptyMap,
                            None => false,
                        };
                        if admit(Some(&path), &mut judged) && !(v == V::EmptyMap && there) {
                            this.write(&path, &v, &mut judged);
                        }
                    }
                }
                GKind::Unset(paths) => {
                    for path in paths {
                        if admit(Some(path), &mut judged) {
                            cut(&mut this.doc.root, path);
                        }
                    }
                }
                GKind::Create(fields) | GKind::Replace(fields) => {
                    if admit(None, &mut judged) {
                        this.become_exactly(fields);
                    }
                }
                GKind::Delete => {
                    if admit(None, &mut judged) {
                        this.deleted |= self.0.get(&op.doc).is_some_and(|doc| doc.alive);
                        this.doc.root.clear();
                        this.doc.alive = false;
                        this.born = false;
                    }
                }
                GKind::Inc(path, by) => {
                    let sum = V::plus(this.doc.leaf(path), by);
                    this.write(path, &sum, &mut judged);
                }
                GKind::Max(path, v) | GKind::Min(path, v) => {
                    let better = if matches!(op.kind, GKind::Max(..)) {
                        Ordering::Greater
                    } else {
                        Ordering::Less
                    };
                    let order = this.doc.leaf(path).and_then(|old| v.order(old));
                    if order.is_none_or(|order| order == better) {
                        this.write(path, v, &mut judged);
                    }
                }
                GKind::Add(path, values) => {
                    let old = match this.doc.leaf(path) {
                        Some(V::Array(items)) => Some(items.clone()),
                        _ => None,
                    };
                    let mut items = old.clone().unwrap_or_default();
                    for v in values {
                        if !items.contains(v) {
                            items.push(v.clone());
                        }
                    }
                    if old.as_ref() != Some(&items) {
                        this.write(path, &V::Array(items), &mut judged);
                    }
                }
                GKind::Remove(path, values) => {
                    if let Some(V::Array(old)) = this.doc.leaf(path).cloned() {
                        let items: Vec<V> = old.iter().filter(|v| !values.contains(v)).cloned().collect();
                        if items.len() != old.len() {
                            this.write(path, &V::Array(items), &mut judged);
                        }
                    }
                }
                GKind::Now(path) => this.write(path, &V::Time(around.at), &mut judged),
                GKind::Check => {}
            }
        }
        if !judged.rejected.is_empty() {
            judged.refused = Some(Code::Conflict);
            return judged;
        }
        for (name, work) in work {
            self.keep(name, work, around, &mut judged);
        }
        judged
    }

    fn keep(&mut self, name: String, work: Work, around: &Around, judged: &mut Judged) {
        let Work {
            mut doc,
            written,
            born,
            deleted,
        } = work;
        let before = self.0.get(&name).map(Doc::plain).unwrap_or_default();
        let after = doc.plain();
        let stamp = (around.seq, around.writer);
        let gone: Vec<&Path> = before.keys().filter(|path| !after.contains_key(*path)).collect();
        let fresh: Vec<&Path> = written.iter().filter(|path| after.contains_key(*path)).collect();
        let existed = self.0.get(&name).is_some_and(|doc| doc.alive);
        if gone.is_empty() && fresh.is_empty() && !(doc.alive && born) && !(existed && deleted) {
            return;
        }
        for path in gone.into_iter().chain(fresh) {
            doc.stamps.insert(path.clone(), stamp);
        }
        if doc.alive && born {
            judged.recreated += u64::from(doc.deleted.is_some() || deleted);
            doc.born = stamp;
        }
        if deleted {
            doc.deleted = Some(stamp);
        }
        doc.last = stamp;
        self.0.insert(name, doc);
    }
}

/// The fields that an op is about; none if it is about the document.
fn units(kind: &GKind) -> Vec<Path> {
    match kind {
        GKind::Set(fields) => fields.keys().cloned().collect(),
        GKind::Merge(fields) => flat_all(fields).into_iter().map(|(path, _)| path).collect(),
        GKind::Unset(paths) => paths.clone(),
        GKind::Inc(path, _)
        | GKind::Max(path, _)
        | GKind::Min(path, _)
        | GKind::Add(path, _)
        | GKind::Remove(path, _)
        | GKind::Now(path) => vec![path.clone()],
        GKind::Create(_) | GKind::Replace(_) | GKind::Delete | GKind::Check => vec![],
    }
}

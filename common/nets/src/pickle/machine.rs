//! The pickle machine, reduced to data: it builds numbers, texts, containers and descriptions of tensors, and calls
//! nothing. A pickle that names any other class is refused.
//!
//! All values are in one list and refer to each other by index, so shared and even cyclic objects need no special care.

use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// An index into [`Heap`].
pub(super) type Id = usize;

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A value that weights do not need: None, a boolean, a float, bytes, a device, a dtype.
    Other,
    Int(i64),
    Text(Rc<str>),
    /// A tuple, a list or a set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Class(&'static str),
    Storage(Rc<Storage>),
    Tensor(Rc<View>),
}

/// Elements that several tensors may share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Storage {
    /// The element type, as `torch.FloatStorage`.
    pub class: &'static str,
    /// The name of the file in the archive's `data/`.
    pub key: Rc<str>,
    pub len: usize,
}

/// A tensor: element (i, j, ..) is storage[offset + i * strides[0] + j * strides[1] + ..].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct View {
    pub storage: Rc<Storage>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// All classes that a checkpoint of weights may name. None of them is run: each stands for a case of `reduce` or
/// `persistent`.
const CLASSES: &[&str] = &[
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.Size",
    "torch.device", "_codecs.encode", "torch.float32", "torch.float16", "torch.bfloat16", "torch.float64",
    "torch.int64", "torch.FloatStorage", "torch.HalfStorage", "torch.BFloat16Storage", "torch.DoubleStorage",
    "torch.LongStorage", "torch.IntStorage", "torch.ShortStorage", "torch.CharStorage", "torch.ByteStorage",
    "torch.BoolStorage",
];

pub(super) struct Heap(Vec<Value>);

impl std::ops::Index<Id> for Heap {
    type Output = Value;
    fn index(&self, id: Id) -> &Value {
        &self.0[id]
    }
}

/// Reads one pickle of protocol 0 to 5. Returns its values, and the index of the object that was pickled.
pub(super) fn load(bytes: &[u8]) -> Result<(Heap, Id)> {
    let mut machine = Machine {
        rest: bytes,
        heap: Heap(vec![Value::Other]),
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        copies: bytes.len(),
    };
    loop {
        let at = bytes.len() - machine.rest.len();
        let code = machine.byte()?;
        if code == b'.' {
            let whole = machine.pop()?;
            return Ok((machine.heap, whole));
        }
        machine.step(code).with_context(|| format!("byte {at} of the pickle"))?;
    }
}

/// Where every [`Value::Other`] lies.
const OTHER: Id = 0;

struct Machine<'a> {
    rest: &'a [u8],
    heap: Heap,
    stack: Vec<Id>,
    /// The heights of the stack at the open MARKs.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
    /// Entries of containers that may still be copied: as many as the pickle has bytes, since each is listed once.
    copies: usize,
}

impl<'a> Machine<'a> {
    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            0x80 => self.skip(1), // PROTO
            0x95 => self.skip(8), // FRAME
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }

            b'N' | 0x88 | 0x89 => self.push(Value::Other), // None, True, False
            b'K' => self.number(1),
            b'M' => self.number(2),
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))
            }
            0x8a => self.long(1),
            0x8b => self.long(4),
            b'I' | b'L' => self.decimal(),
            b'G' => self.skip(8).and_then(|()| self.push(Value::Other)),
            b'F' | b'S' => self.line().map(drop).and_then(|()| self.push(Value::Other)),

            0x8c => self.text(1),
            b'X' => self.text(4),
            0x8d => self.text(8),
            b'V' => {
                let line = self.line()?.into();
                self.push(Value::Text(line))
            }
            // Bytes and the byte strings of Python 2
            b'U' | b'C' => self.bytes(1),
            b'T' | b'B' => self.bytes(4),
            0x8e | 0x96 => self.bytes(8),

            b')' | b']' | 0x8f => self.push(Value::List(vec![])),
            b't' | b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))
            }
            0x85..=0x87 => {
                let at = self.stack.len().checked_sub(usize::from(code - 0x84)).context("the stack is too short")?;
                ensure!(self.marks.last().is_none_or(|&mark| mark <= at), "the stack is too short");
                let items = self.stack.split_off(at);
                self.push(Value::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            b'}' => self.push(Value::Dict(vec![])),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(vec![]))?;
                self.insert(&items)
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.insert(&items)
            }

            b'q' => self.number_of(1).and_then(|n| self.remember(n)),
            b'r' => self.number_of(4).and_then(|n| self.remember(n)),
            b'p' => self.line_number().and_then(|n| self.remember(n)),
            0x94 => self.remember(self.memo.len()),
            b'h' => self.number_of(1).and_then(|n| self.recall(n)),
            b'j' => self.number_of(4).and_then(|n| self.recall(n)),
            b'g' => self.line_number().and_then(|n| self.recall(n)),

            b'c' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                self.class(&name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let name = format!("{}.{}", self.as_text(module)?, self.as_text(name)?);
                self.class(&name)
            }
            b'R' | 0x81 => self.reduce(),
            b'b' => self.build(),
            b'Q' => self.persistent(),
            b'i' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                Err(foreign(&name))
            }
            other => bail!("its instruction {other:#04x} is not one that weights need"),
        }
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if let Value::Other = value {
            return self.push_known(OTHER);
        }
        self.heap.0.push(value);
        self.push_known(self.heap.0.len() - 1)
    }

    /// Pushes a value that is there already: a copy would let a few bytes ask for any amount of memory.
    fn push_known(&mut self, id: Id) -> Result<()> {
        self.stack.push(id);
        Ok(())
    }

    /// The top of the stack; values below the last mark cannot be reached.
    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[Id]>::last).copied().context("the stack is too short")
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("a mark is missing")?;
        ensure!(mark <= self.stack.len(), "the stack is too short");
        Ok(self.stack.split_off(mark))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.heap.0[top] {
            Value::List(list) => {
                list.extend(items);
                Ok(())
            }
            _ => bail!("it appends to a value that is not a list"),
        }
    }

    fn insert(&mut self, items: &[Id]) -> Result<()> {
        let top = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else { bail!("a key has no value") };
        match &mut self.heap.0[top] {
            Value::Dict(dict) => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            _ => bail!("it sets a key of a value that is not a dict"),
        }
    }

    fn remember(&mut self, n: usize) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(n, top);
        Ok(())
    }

    fn recall(&mut self, n: usize) -> Result<()> {
        let id = *self.memo.get(&n).with_context(|| format!("it recalls {n}, which it never stored"))?;
        self.stack.push(id);
        Ok(())
    }

    fn class(&mut self, name: &str) -> Result<()> {
        let known = CLASSES.iter().find(|class| **class == name).ok_or_else(|| foreign(name))?;
        self.push(Value::Class(known))
    }

    /// REDUCE and NEWOBJ: pushes what a call of one of the known classes would give.
    fn reduce(&mut self) -> Result<()> {
        let (args, class) = (self.pop()?, self.pop()?);
        let (Value::Class(class), Value::List(args)) = (&self.heap[class], &self.heap[args]) else {
            bail!("it calls a value that is not a class")
        };
        let made = match (*class, &args[..]) {
            ("torch.Size" | "torch._utils._rebuild_parameter", &[value, ..]) => return self.push_known(value),
            ("collections.OrderedDict", []) => Value::Dict(vec![]),
            ("collections.OrderedDict", &[pairs]) => {
                let pairs = self.pairs(pairs)?;
                self.copies = self.copies.checked_sub(pairs.len()).context("it copies its dicts again and again")?;
                Value::Dict(pairs)
            }
            // The second is how protocol 2 spells bytes.
            ("torch.device" | "_codecs.encode", _) => Value::Other,
            ("torch._utils._rebuild_tensor_v2", &[storage, offset, shape, strides, ..]) => {
                let Value::Storage(storage) = &self.heap[storage] else { bail!("a tensor has no storage") };
                Value::Tensor(Rc::new(View {
                    storage: storage.clone(),
                    offset: self.as_size(offset)?,
                    shape: self.as_sizes(shape)?,
                    strides: self.as_sizes(strides)?,
                }))
            }
            (class, args) => bail!("it calls {class} with {} arguments", args.len()),
        };
        self.push(made)
    }

    /// The entries of `OrderedDict([(key, value), ..])`.
    fn pairs(&self, list: Id) -> Result<Vec<(Id, Id)>> {
        let Value::List(items) = &self.heap[list] else { bail!("a dict is made of a value that is not a list") };
        let pair = |&item: &Id| match &self.heap[item] {
            Value::List(two) if two.len() == 2 => Ok((two[0], two[1])),
            _ => bail!("a dict is made of values that are not pairs"),
        };
        items.iter().map(pair).collect()
    }

    /// BUILD: drops attributes. A state_dict has `_metadata`, which weights do not need.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.heap[self.top()?] {
            Value::Dict(_) | Value::Tensor(_) => Ok(()),
            _ => bail!("it gives attributes to a value that is neither a dict nor a tensor"),
        }
    }

    /// BINPERSID of `('storage', class, key, location, elements)`: pushes the storage.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Value::List(parts) = &self.heap[id] else { bail!("a storage is not described by a tuple") };
        let &[kind, class, key, _, len] = &parts[..] else { bail!("a storage is described by {} values", parts.len()) };
        ensure!(&*self.as_text(kind)? == "storage", "it refers to something other than a storage");
        let Value::Class(class) = self.heap[class] else { bail!("a storage has no class") };
        let storage = Storage { class, key: self.as_text(key)?, len: self.as_size(len)? };
        self.push(Value::Storage(Rc::new(storage)))
    }

    fn as_text(&self, id: Id) -> Result<Rc<str>> {
        match &self.heap[id] {
            Value::Text(text) => Ok(text.clone()),
            _ => bail!("a text is missing"),
        }
    }

    fn as_size(&self, id: Id) -> Result<usize> {
        match self.heap[id] {
            Value::Int(n) => usize::try_from(n).map_err(|_| anyhow!("a size is {n}")),
            _ => bail!("a size is missing"),
        }
    }

    fn as_sizes(&self, id: Id) -> Result<Vec<usize>> {
        match &self.heap[id] {
            // torch has no tensors of more dimensions.
            Value::List(items) if items.len() > 64 => bail!("a tensor has {} dimensions", items.len()),
            Value::List(items) => items.iter().map(|&item| self.as_size(item)).collect(),
            _ => bail!("a list of sizes is missing"),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).context("it ends early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn skip(&mut self, n: usize) -> Result<()> {
        self.take(n).map(drop)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn line(&mut self) -> Result<&'a str> {
        let end = self.rest.iter().position(|&b| b == b'\n').context("it ends early")?;
        let line = std::str::from_utf8(&self.take(end + 1)?[..end])?;
        Ok(line.trim_end_matches('\r'))
    }

    fn line_number(&mut self) -> Result<usize> {
        Ok(self.line()?.parse()?)
    }

    /// A little-endian count of `width` bytes, at most 8.
    fn number_of(&mut self, width: usize) -> Result<usize> {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(self.take(width)?);
        Ok(usize::try_from(u64::from_le_bytes(wide))?)
    }

    fn number(&mut self, width: usize) -> Result<()> {
        let n = self.number_of(width)?;
        self.push(Value::Int(i64::try_from(n)?))
    }

    /// LONG1 and LONG4: an integer in two's complement after its length.
    fn long(&mut self, width: usize) -> Result<()> {
        let len = self.number_of(width)?;
        let bytes = self.take(len)?;
        if len > 8 {
            return self.push(Value::Other); // too long for a size or a key
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    /// INT and LONG of protocol 0, in which `01` and `00` are True and False.
    fn decimal(&mut self) -> Result<()> {
        let value = match self.line()?.trim_end_matches('L') {
            "00" | "01" => Value::Other,
            digits => Value::Int(digits.parse()?),
        };
        self.push(value)
    }

    fn text(&mut self, width: usize) -> Result<()> {
        let len = self.number_of(width)?;
        let text = std::str::from_utf8(self.take(len)?)?.into();
        self.push(Value::Text(text))
    }

    fn bytes(&mut self, width: usize) -> Result<()> {
        let len = self.number_of(width)?;
        self.skip(len)?;
        self.push(Value::Other)
    }
}

fn foreign(name: &str) -> anyhow::Error {
    anyhow!("it asks for the class {name}, which weights do not need; nothing of it was run")
}

//! A pickle reader that runs nothing.
//!
//! A pickle is a program for a small stack machine. This one builds plain values; a call is only
//! ever recorded as "this name with these arguments", and names outside a short list of what
//! tensor files need are refused. Values live in an arena and refer to each other by index, so
//! shared and self-referring values cost nothing and nothing recurses.

use std::collections::HashMap;

/// Index of a value in its [`Pickle`].
pub type ValueId = usize;

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    Tuple(Vec<ValueId>),
    List(Vec<ValueId>),
    Dict(Vec<(ValueId, ValueId)>),
    /// A name such as `torch._utils._rebuild_tensor_v2`.
    Global(String),
    /// A call of a name that was not run.
    Call {
        function: String,
        arguments: ValueId,
    },
    /// A reference to something outside the pickle (PyTorch: a storage).
    Persistent(ValueId),
}

/// A read pickle.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: ValueId,
}

/// Values of a pickle at most. A byte can make one, and each takes more than a byte.
const MAX_VALUES: usize = 1 << 22;

/// Names a checkpoint may mention. `argparse.Namespace` holds the settings of a training run and stays opaque.
const ALLOWED: [&str; 11] = [
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "argparse.Namespace",
    "torch.storage.UntypedStorage",
    "torch.device",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
    "pathlib.PosixPath",
];

fn is_allowed(name: &str) -> bool {
    let storage = name
        .strip_prefix("torch.")
        .and_then(|n| n.strip_suffix("Storage"))
        .is_some_and(|kind| !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric()));
    storage || ALLOWED.contains(&name)
}

impl Pickle {
    /// Reads a pickle of protocol 2 to 5.
    ///
    /// # Errors
    /// A sentence about what is wrong, and whether it was [`Problem::Damaged`] or [`Problem::Refused`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        Machine {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            values: Vec::new(),
        }
        .run()
    }

    /// The outermost value.
    pub fn root(&self) -> ValueId {
        self.root
    }

    /// The value at `id`.
    pub fn get(&self, id: ValueId) -> &Value {
        &self.values[id]
    }

    /// The value under string key `key` of a dict.
    pub fn lookup(&self, dict: ValueId, key: &str) -> Option<ValueId> {
        // The last of equal keys wins, as in Python.
        self.entries(dict)?
            .iter()
            .rev()
            .find(|(k, _)| self.str(*k) == Some(key))
            .map(|(_, v)| *v)
    }

    /// The entries of a dict.
    pub fn entries(&self, dict: ValueId) -> Option<&[(ValueId, ValueId)]> {
        match self.get(dict) {
            Value::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn str(&self, id: ValueId) -> Option<&str> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The value of an integer.
    pub fn int(&self, id: ValueId) -> Option<i64> {
        match self.get(id) {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub fn items(&self, id: ValueId) -> Option<&[ValueId]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// What a value is, for error texts.
    pub fn kind(&self, id: ValueId) -> String {
        match self.get(id) {
            Value::None => "None".into(),
            Value::Bool(_) => "a truth value".into(),
            Value::Int(_) => "an integer".into(),
            Value::Float(_) => "a number".into(),
            Value::Str(_) => "a string".into(),
            Value::Bytes(_) => "a byte string".into(),
            Value::Tuple(_) => "a tuple".into(),
            Value::List(_) => "a list".into(),
            Value::Dict(_) => "a dict".into(),
            Value::Global(name) => format!("the name `{name}`"),
            Value::Call { function, .. } if function.starts_with("torch._utils._rebuild") => {
                "a tensor".into()
            }
            Value::Call { function, .. } => format!("a `{function}`"),
            Value::Persistent(_) => "a storage".into(),
        }
    }
}

/// Why a pickle was not read.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// It breaks the format.
    Damaged(String),
    /// It is well-formed but asks for something that a checkpoint has no need of.
    Refused(String),
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<ValueId>,
    marks: Vec<usize>,
    memo: HashMap<u64, ValueId>,
    values: Vec<Value>,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, Problem> {
        loop {
            let start = self.at;
            let [opcode] = self.take::<1>()?;
            if self.values.len() > MAX_VALUES {
                return Err(Problem::Refused(format!(
                    "its pickle holds more than {MAX_VALUES} values"
                )));
            }
            match opcode {
                0x80 => {
                    let [version] = self.take::<1>()?;
                    if !(2..=5).contains(&version) {
                        return Err(Problem::Damaged(format!(
                            "its pickle has protocol {version}, expected 2 to 5"
                        )));
                    }
                }
                0x95 => drop(self.take::<8>()?),
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle {
                        values: self.values,
                        root,
                    });
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'J' => {
                    let n = i32::from_le_bytes(self.take()?);
                    self.push(Value::Int(n.into()));
                }
                b'K' => {
                    let [n] = self.take()?;
                    self.push(Value::Int(n.into()));
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.take()?);
                    self.push(Value::Int(n.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    let x = f64::from_be_bytes(self.take()?);
                    self.push(Value::Float(x));
                }
                0x8c => self.string(1)?,
                b'X' => self.string(4)?,
                0x8d => self.string(8)?,
                b'U' | b'C' => self.byte_string(1)?,
                b'T' | b'B' => self.byte_string(4)?,
                0x8e => self.byte_string(8)?,
                b')' => self.push(Value::Tuple(Vec::new())),
                0x85..=0x87 => {
                    let items = self.pop_many(usize::from(opcode - 0x84))?;
                    self.push(Value::Tuple(items));
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items));
                }
                b']' => self.push(Value::List(Vec::new())),
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.list()?.push(item);
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.list()?.extend(items);
                }
                b'}' => self.push(Value::Dict(Vec::new())),
                b'd' => {
                    let items = self.pop_to_mark()?;
                    let entries = pairs(&items)?;
                    self.push(Value::Dict(entries));
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.dict()?.push((items[0], items[1]));
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    let entries = pairs(&items)?;
                    self.dict()?.extend(entries);
                }
                b'q' => {
                    let [key] = self.take()?;
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.remember(key.into())?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let [key] = self.take()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.recall(key.into())?;
                }
                b'c' => {
                    let name = format!("{}.{}", self.line()?, self.line()?);
                    self.global(name)?;
                }
                0x93 => {
                    let items = self.pop_many(2)?;
                    let text = |id: ValueId| match &self.values[id] {
                        Value::Str(text) => Ok(text.clone()),
                        _ => Err(Problem::Damaged(
                            "its pickle names something by a value that is no string".into(),
                        )),
                    };
                    let name = format!("{}.{}", text(items[0])?, text(items[1])?);
                    self.global(name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id));
                }
                // REDUCE and NEWOBJ: a call that is recorded, not run.
                b'R' | 0x81 => self.call()?,
                b'b' => self.build()?,
                other => {
                    return Err(Problem::Refused(format!(
                        "its pickle uses instruction 0x{other:02x} at byte {start}, which no tensor file needs"
                    )));
                }
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let bytes = self.slice(N)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    fn slice(&mut self, count: usize) -> Result<&[u8], Problem> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.bytes.len())
            .ok_or_else(|| {
                Problem::Damaged(format!(
                    "its pickle ends in the middle of an instruction (byte {})",
                    self.bytes.len()
                ))
            })?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn line(&mut self) -> Result<String, Problem> {
        let rest = &self.bytes[self.at..];
        let end = rest
            .iter()
            .position(|b| *b == b'\n')
            .ok_or_else(|| Problem::Damaged("its pickle ends in the middle of a name".into()))?;
        let text = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(text)
    }

    fn length(&mut self, width: usize) -> Result<usize, Problem> {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(self.slice(width)?);
        usize::try_from(u64::from_le_bytes(wide))
            .map_err(|_| Problem::Damaged("its pickle claims an impossible string length".into()))
    }

    fn string(&mut self, width: usize) -> Result<(), Problem> {
        let count = self.length(width)?;
        let text = String::from_utf8(self.slice(count)?.to_vec())
            .map_err(|_| Problem::Damaged("its pickle holds a string that is no UTF-8".into()))?;
        self.push(Value::Str(text));
        Ok(())
    }

    fn byte_string(&mut self, width: usize) -> Result<(), Problem> {
        let count = self.length(width)?;
        let bytes = self.slice(count)?.to_vec();
        self.push(Value::Bytes(bytes));
        Ok(())
    }

    fn long(&mut self) -> Result<(), Problem> {
        let [count] = self.take::<1>()?;
        let bytes = self.slice(count.into())?;
        if bytes.len() > 8 {
            // Too wide to mean a size; seeds and the like stay as bytes.
            let wide = bytes.to_vec();
            self.push(Value::Bytes(wide));
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    fn pop(&mut self) -> Result<ValueId, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(empty_stack());
        }
        self.stack.pop().ok_or_else(empty_stack)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<ValueId>, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= floor => Ok(self.stack.split_off(start)),
            _ => Err(empty_stack()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<ValueId>, Problem> {
        let mark = self.marks.pop().ok_or_else(empty_stack)?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Value, Problem> {
        let id = *self.stack.last().ok_or_else(empty_stack)?;
        Ok(&mut self.values[id])
    }

    fn list(&mut self) -> Result<&mut Vec<ValueId>, Problem> {
        match self.top()? {
            Value::List(items) => Ok(items),
            _ => Err(Problem::Damaged(
                "its pickle appends to something that is no list".into(),
            )),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(ValueId, ValueId)>, Problem> {
        match self.top()? {
            Value::Dict(entries) => Ok(entries),
            _ => Err(Problem::Damaged(
                "its pickle sets an item of something that is no dict".into(),
            )),
        }
    }

    fn remember(&mut self, key: u64) -> Result<(), Problem> {
        let id = *self.stack.last().ok_or_else(empty_stack)?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Problem> {
        let id = *self.memo.get(&key).ok_or_else(|| {
            Problem::Damaged(format!(
                "its pickle recalls value {key}, which was never stored"
            ))
        })?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, name: String) -> Result<(), Problem> {
        if !is_allowed(&name) {
            return Err(Problem::Refused(format!(
                "its pickle asks for `{name}`, which no tensor file needs and which could run code"
            )));
        }
        self.push(Value::Global(name));
        Ok(())
    }

    fn call(&mut self) -> Result<(), Problem> {
        let operands = self.pop_many(2)?;
        let Value::Global(function) = self.values[operands[0]].clone() else {
            return Err(Problem::Damaged(
                "its pickle calls something that is no name".into(),
            ));
        };
        if function == "collections.OrderedDict" {
            self.push(Value::Dict(Vec::new()));
        } else {
            self.push(Value::Call {
                function,
                arguments: operands[1],
            });
        }
        Ok(())
    }

    /// BUILD sets attributes; on a state dict these are module versions, on a namespace its fields.
    fn build(&mut self) -> Result<(), Problem> {
        let _attributes = self.pop()?;
        match self.top()? {
            Value::Dict(_) => Ok(()),
            Value::Call { function, .. } if function == "argparse.Namespace" => Ok(()),
            _ => Err(Problem::Refused(
                "its pickle sets attributes of something that is no dict".into(),
            )),
        }
    }
}

fn empty_stack() -> Problem {
    Problem::Damaged("its pickle takes a value from an empty stack".into())
}

fn pairs(items: &[ValueId]) -> Result<Vec<(ValueId, ValueId)>, Problem> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Problem::Damaged(
            "its pickle has a dict key without a value".into(),
        ));
    }
    Ok(pairs.iter().map(|[k, v]| (*k, *v)).collect())
}

//! QEMU's list syntax: `name=value,name=value`, where `,,` inside a value is one comma.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// One item of a list. Values are bytes of the operating system: a path need not be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// What stands before the first `=` or the comma.
    pub(super) name: OsString,
    /// What stands after `=`, with `,,` undone; `None` where there is no `=`.
    pub(super) value: Option<OsString>,
}

/// Splits a list. Never fails: which names and values are good is decided elsewhere. A trailing comma is
/// allowed, as QEMU does; an empty list has no items. Unlike QEMU's, names may have space before them: a list
/// in quotes reads better so, and no name begins with any.
pub(super) fn split(list: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut rest = list.trim_ascii_start();
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'=' || b == b',').unwrap_or(rest.len());
        let name = OsString::from_vec(rest[..end].to_vec());
        let separator = rest.get(end).copied();
        rest = rest.get(end + 1..).unwrap_or_default();
        let value = (separator == Some(b'=')).then(|| {
            let (value, after) = take_value(rest);
            rest = after;
            OsString::from_vec(value)
        });
        rest = rest.trim_ascii_start();
        items.push(Item { name, value });
    }
    items
}

/// The value at the start of `bytes`, unescaped, and what follows its comma.
fn take_value(bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut value = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [b',', b',', after @ ..] => {
                value.push(b',');
                rest = after;
            }
            [b',', after @ ..] => return (value, after),
            [b, after @ ..] => {
                value.push(*b);
                rest = after;
            }
            [] => return (value, rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(list: &str) -> Vec<(String, Option<String>)> {
        let text = |s: OsString| s.into_string().unwrap();
        split(list.as_bytes()).into_iter().map(|i| (text(i.name), i.value.map(text))).collect()
    }

    fn pair(name: &str, value: Option<&str>) -> (String, Option<String>) {
        (name.into(), value.map(Into::into))
    }

    #[test]
    fn the_syntax() {
        assert_eq!(pairs(""), []);
        assert_eq!(pairs("a=1,b=x=y,"), [pair("a", Some("1")), pair("b", Some("x=y"))]);
        assert_eq!(
            pairs("drive=a,,b.img,size=1G"),
            [pair("drive", Some("a,b.img")), pair("size", Some("1G"))]
        );
        assert_eq!(pairs("a=1,,,b=2"), [pair("a", Some("1,")), pair("b", Some("2"))]);
        assert_eq!(pairs("a=,b"), [pair("a", Some("")), pair("b", None)]);
        assert_eq!(pairs("=1,,2"), [pair("", Some("1,2"))]);
        assert_eq!(pairs(",a=1"), [pair("", None), pair("a", Some("1"))]);
        // Space before a name is none of it; a value may begin and end with some.
        assert_eq!(
            pairs(" a= 1 , b=2,\n\tc"),
            [pair("a", Some(" 1 ")), pair("b", Some("2")), pair("c", None)]
        );
        assert_eq!(pairs("a=1, "), [pair("a", Some("1"))]);
        assert_eq!(pairs(" "), []);
    }

    proptest! {
        #[test]
        fn an_escaped_value_comes_back(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 1..5),
        ) {
            let mut list = Vec::new();
            for value in &values {
                list.extend(b"k=");
                for &b in value {
                    list.push(b);
                    if b == b',' { list.push(b); }
                }
                list.push(b',');
            }
            let back: Vec<_> = split(&list)
                .into_iter()
                .map(|i| (i.name.into_vec(), i.value.unwrap().into_vec()))
                .collect();
            let want: Vec<_> = values.into_iter().map(|v| (b"k".to_vec(), v)).collect();
            prop_assert_eq!(back, want);
        }

        #[test]
        fn any_bytes_split(list in prop::collection::vec(any::<u8>(), 0..64)) {
            split(&list);
        }
    }
}

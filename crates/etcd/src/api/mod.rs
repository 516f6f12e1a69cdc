//! The messages of etcd's v3 API, with their protobuf numbers and their names in JSON.
//!
//! A message is written as in the protocol: `name: kind = number;`, and `name ("jsonName")` where the name on the wire is not
//! Rust's. From that the macros make the struct, its protobuf codec (prost) and its JSON form (int64 as strings, bytes
//! as base64, unset fields left out).

mod auth;
mod cluster;
pub mod json;
mod kv;
mod lease;
mod maintenance;
mod recipes;
mod watch;

pub use auth::*;
pub use cluster::*;
pub use kv::*;
pub use lease::*;
pub use maintenance::*;
pub use recipes::*;
pub use watch::*;

/// Defines enumerations: `Name { VARIANT Variant = 0, … }`.
macro_rules! enums {
    ($($(#[$doc:meta])* $name:ident { $($text:literal $variant:ident = $value:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum $name { $($variant = $value),+ }

        impl $crate::api::json::EnumNames for $name {
            const NAMES: &'static [(&'static str, i32)] = &[$(($text, $value)),+];
        }
    )+};
}

/// Defines messages; see the module's documentation.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($fields:tt)* })+) => {$(
        $crate::api::messages!(@struct [$(#[$doc])* $name] [] $($fields)*);
        $crate::api::messages!(@json $name [] $($fields)*);
    )+};

    (@struct [$(#[$doc:meta])* $name:ident] [$($done:tt)*]) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, ::prost::Message)]
        pub struct $name { $($done)* }
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : bytes = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(bytes = "bytes", tag = $tag)] pub $f: ::bytes::Bytes,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : repeated bytes = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(bytes = "bytes", repeated, tag = $tag)] pub $f: Vec<::bytes::Bytes>,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : string = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(string, tag = $tag)] pub $f: String,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : repeated string = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(string, repeated, tag = $tag)] pub $f: Vec<String>,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : int64 = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(int64, tag = $tag)] pub $f: i64,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : uint64 = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(uint64, tag = $tag)] pub $f: u64,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : uint32 = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(uint32, tag = $tag)] pub $f: u32,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : bool = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(bool, tag = $tag)] pub $f: bool,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : enumeration $e:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(enumeration($e), tag = $tag)] pub $f: i32,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : repeated enumeration $e:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(enumeration($e), repeated, tag = $tag)] pub $f: Vec<i32>,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : repeated $t:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(message, repeated, tag = $tag)] pub $f: Vec<$t>,] $($rest)*);
    };
    (@struct $head:tt [$($done:tt)*] $f:ident $(($j:literal))? : $t:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@struct $head [$($done)* #[prost(message, optional, tag = $tag)] pub $f: Option<$t>,] $($rest)*);
    };

    // The JSON form goes by the fields' types, so the kinds need no telling apart, but for enumerations.
    (@json $name:ident [$($f:ident $j:expr, $with:expr;)*]) => {
        impl $crate::api::json::Json for $name {
            fn write(&self, _out: &mut ::serde_json::Map<String, ::serde_json::Value>) {
                $($with.write(_out, $j, &self.$f);)*
            }
            fn read(&mut self, _name: &str, _value: &::serde_json::Value) -> Result<bool, String> {
                $(if $crate::api::json::same_name(_name, $j) {
                    self.$f = $with.read(_value).map_err(|e| format!("{_name}: {e}"))?;
                    return Ok(true);
                })*
                Ok(false)
            }
        }
    };
    (@json $name:ident [$($done:tt)*] $f:ident : repeated enumeration $e:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@json $name [$($done)* $f stringify!($f), $crate::api::json::Enumerations::<$e>::default();] $($rest)*);
    };
    (@json $name:ident [$($done:tt)*] $f:ident : enumeration $e:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@json $name [$($done)* $f stringify!($f), $crate::api::json::Enumeration::<$e>::default();] $($rest)*);
    };
    (@json $name:ident [$($done:tt)*] $f:ident ($j:literal) : enumeration $e:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@json $name [$($done)* $f $j, $crate::api::json::Enumeration::<$e>::default();] $($rest)*);
    };
    (@json $name:ident [$($done:tt)*] $f:ident ($j:literal) : repeated $t:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@json $name [$($done)* $f $j, $crate::api::json::Plain;] $($rest)*);
    };
    (@json $name:ident [$($done:tt)*] $f:ident ($j:literal) : $t:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@json $name [$($done)* $f $j, $crate::api::json::Plain;] $($rest)*);
    };
    (@json $name:ident [$($done:tt)*] $f:ident : repeated $t:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@json $name [$($done)* $f stringify!($f), $crate::api::json::Plain;] $($rest)*);
    };
    (@json $name:ident [$($done:tt)*] $f:ident : $t:ident = $tag:literal; $($rest:tt)*) => {
        $crate::api::messages!(@json $name [$($done)* $f stringify!($f), $crate::api::json::Plain;] $($rest)*);
    };
}

pub(crate) use enums;
pub(crate) use messages;
